"""Polls the vLLM endpoints for load and limits, and resolves their addresses."""
