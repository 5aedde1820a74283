"""Envoy's configuration for several models."""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

from sources import ENVOY, envoy_yaml
from yaml_text import blocks, cut, indent, replace

from extproc.commands.envoy_routes import (
    cluster,
    health_answer,
    models_answer,
    routes,
)
from extproc.commands.gateway_fleet import Fleet, fleet_of
from extproc.commands.model_filter import model_source
from extproc.config import load_config

_MODELS_HEAD = """\
# GENERATED from envoy/envoy.yaml and envoy/models-router.yaml by
# envoy/kubernetes/generate.py: a complete configuration of Envoy 1.40 for three models and
# five pools. It differs from envoy.yaml as follows:
#
#   1. The router also sets x-llm-model: the base model, also for its adapters.
#   2. `x-llm-pool: NAME` goes to a small pool, with the retry on its own model's largest
#      pool; `x-llm-model: NAME` goes to that model's largest pool.
#   3. If the router named no model (it is down, or did not read the body), a Lua filter
#      after it reads the name from the body and clears the route cache. A request without
#      a decision thus goes to its own model's largest pool, never to another model's.
#   4. Envoy answers 404 if the model is not in the fleet, 400 if the request names no
#      model, and 503 if it cannot read the body while the router is down (compressed, or
#      above `request_body_buffer_limit`).

"""

_INFRA_BEGIN = "              # Requests about the server, not for the model"
_INFRA_END = "              - name: administration\n"
_SHORT_BEGIN = "              - name: short\n"
_ROUTES_END = "          http_filters:\n"
_ROUTER_FILTER = "          - name: envoy.filters.http.router\n"
_SHORT_CLUSTER = "  # vLLM with a small --max-model-len"
_LONG_CLUSTER = "  # vLLM with the model's full window."

_MODEL_FILTER_HEAD = """\
          # Name the model if the router did not. The filter buffers only the bodies of such
          # requests; all others pass at once.
          - name: envoy.filters.http.lua
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
              default_source_code:
                inline_string: |
"""

_NO_MODEL_CLUSTER = """\
  # The cluster of a request until its model is known; it has no server.
  - name: no_model
    type: STATIC
    connect_timeout: 1s
"""


def models_envoy() -> str:
    """Return Envoy's configuration for the fleet of ``models-router.yaml``."""
    fleet = fleet_of(load_config((ENVOY / "models-router.yaml").read_text(), {}))
    text = envoy_yaml()
    text = replace(
        text,
        "              - remove: x-llm-budget\n",
        "              - remove: x-llm-budget\n              - remove: x-llm-model\n",
    )
    answers = blocks([models_answer(fleet), health_answer()], 14)
    _, text = cut(text, _INFRA_BEGIN, _INFRA_END, answers)
    _, text = cut(text, _SHORT_BEGIN, _ROUTES_END, blocks(routes(fleet), 14))
    text = replace(text, _ROUTER_FILTER, _model_filter(fleet) + _ROUTER_FILTER)
    small, text = cut(text, _SHORT_CLUSTER, _LONG_CLUSTER, "")
    large, text = cut(text + "\n", _LONG_CLUSTER, "\n\n", "")
    clusters = [_NO_MODEL_CLUSTER]
    for model in fleet.models:
        for pool in model.pools:
            last = pool == model.pools[-1]
            piece = (large if last else small).split("\n", 1)[1]
            was = "long" if last else "short"
            piece = piece.replace(f"vllm_{was}", cluster(pool))
            clusters.append(piece.replace(f"vllm-{was}", f"vllm-{pool}"))
    return (
        _MODELS_HEAD
        + text.rstrip()
        + "\n\n"
        + "\n".join(piece.rstrip() + "\n" for piece in clusters)
    )


def _model_filter(fleet: Fleet) -> str:
    source = indent(model_source(fleet, fleet.last_route), 18)
    return _MODEL_FILTER_HEAD + source
