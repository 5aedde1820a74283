"""Watching the vLLM endpoints: load, limits and addresses."""
