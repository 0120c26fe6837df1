"""Runs on a Ray cluster: jobs through Ray's Jobs API, and manifests for Kubernetes."""
