"""Supervised stages on Ray Train and DeepSpeed."""
