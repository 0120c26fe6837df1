"""Runs as a service: Kubernetes manifests."""
