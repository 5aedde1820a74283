"""Observability: metrics, traces, recordings and recent decisions."""
