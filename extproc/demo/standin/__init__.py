"""A stand-in for a vLLM server: its HTTP API, scheduler and tokenizer."""
