"""The fleet of ``envoy/models.yaml``: three models, five pools, adapters."""

import json
from pathlib import Path
from typing import Any

import yaml

from .outside import Response

ENVOY = Path(__file__).parents[2] / "envoy"
FLEET = yaml.safe_load((ENVOY / "models-router.yaml").read_text())
POOLS = {
    model: [pool["name"] for pool in each["pools"]]
    for model, each in FLEET["models"].items()
}
ALL_POOLS = [name for pools in POOLS.values() for name in pools]
NAMES = {model: model for model in POOLS} | {
    "support-v2": "llama-3.1-8b",
    "legal-de": "llama-3.1-8b",
}
"""Every name that clients use for a model or an adapter, with the base model."""
LONG = "all the words of a long story " * 8000


def chat(model: object, content: str = "Hello", **more: Any) -> bytes:
    messages = [{"role": "user", "content": content}]
    body = {"messages": messages, "model": model, "max_tokens": 4}
    return json.dumps(body | more).encode()


def pool_of(response: Response) -> str:
    return (response.served_by or "").removeprefix("vllm_")
