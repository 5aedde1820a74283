"""Polling of the vLLM endpoints: load, limits and addresses."""
