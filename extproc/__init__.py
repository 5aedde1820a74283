"""Route LLM requests to short or long vLLM pools by their token budget."""

__version__ = "0.1.0"
