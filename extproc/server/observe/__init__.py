"""Observability, with metrics, traces, recordings and recent decisions."""
