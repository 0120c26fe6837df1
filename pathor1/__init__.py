"""Patho-R1."""
