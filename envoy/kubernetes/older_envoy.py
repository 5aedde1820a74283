"""Envoy's configuration for versions without `priority_group`."""

# ruff: noqa: E501 - YAML with long names

from __future__ import annotations

from sources import envoy_yaml
from yaml_text import cut, replace

_OLDER_HEAD = """\
# GENERATED from envoy/envoy.yaml by envoy/kubernetes/generate.py, for Envoy 1.37 to 1.39.
# The retry of an overflow differs: the route `short` leads to an aggregate cluster of the
# short pool, then the long one, and the retry takes the second. Envoy reports the aggregate
# as the cluster that answered, so the endpoints' metadata name the pool.

"""

_PLUGIN_BEGIN = "                  # The first attempt goes to the short pool,"
_PLUGIN_END = "                  retry_policy:\n                    # Retry if vLLM"
_LUA_BEGIN = "        # Upstream filters see each attempt before the retry policy does."
_LUA_END = "    load_assignment:\n      cluster_name: vllm_short"

_AGGREGATE_ROUTE = """\
                  # The first attempt goes to the short pool, a retry to the long pool
                  # (`retry_priority`, below).
                  cluster: vllm_short_then_long
"""

_RETRY_PRIORITY = """\
                    num_retries: 1
                    retry_priority:
                      name: envoy.retry_priorities.previous_priorities
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                        update_frequency: 1
                    retry_back_off"""

_AGGREGATE_CLUSTER = """
  # The short pool, then the long one for retries or if no server of the short pool is
  # healthy. For settings that apply before a server is chosen (upstream filters, concurrent
  # retries), this cluster's values count, not those of its two members.
  - name: vllm_short_then_long
    connect_timeout: 1s
    lb_policy: CLUSTER_PROVIDED
    cluster_type:
      name: envoy.clusters.aggregate
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig
        clusters: [vllm_short, vllm_long]
    circuit_breakers:
      thresholds:
      - {max_connections: 4096, max_pending_requests: 4096, max_requests: 4096, max_retries: 256}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {idle_timeout: 4s}
        explicit_http_config: {http_protocol_options: {}}
"""


def older_envoy() -> str:
    """Return Envoy's configuration without `priority_group`, which needs 1.40."""
    text = envoy_yaml()
    _, text = cut(text, _PLUGIN_BEGIN, _PLUGIN_END, _AGGREGATE_ROUTE)
    text = replace(
        text,
        "                    num_retries: 1\n"
        "                    refresh_cluster_on_retry: true\n"
        "                    retry_back_off",
        _RETRY_PRIORITY,
    )
    lua, text = cut(text, _LUA_BEGIN, _LUA_END, "")
    for name in ("short", "long"):
        address = f"{{address: vllm-{name}, port_value: 8000}}}}}}"
        metadata = f"{{filter_metadata: {{llm: {{cluster: vllm_{name}}}}}}}"
        text = replace(text, address, f"{address}\n          metadata: {metadata}")
    text = text.replace("%UPSTREAM_CLUSTER%", "%UPSTREAM_METADATA(llm:cluster)%")
    return f"{_OLDER_HEAD}{text.rstrip()}\n{_AGGREGATE_CLUSTER}{lua}"
