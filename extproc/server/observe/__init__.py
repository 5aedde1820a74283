"""Metrics, traces, recordings and recent decisions."""
