"""Parse an Envoy bootstrap (JSON on standard input) with the published descriptors.

The program also misspells the keys, one at a time, and parses each variant. It prints
``{"error": ..., "misspelled": n, "taken": [...]}``: the error, the number of misspelled
keys, and the misspellings that the parser accepted.
"""

import importlib
import json
import sys
from typing import Any

from envoy.config.bootstrap.v3.bootstrap_pb2 import Bootstrap
from google.protobuf import json_format

# The imports register the messages that occur inside `typed_config`.
for _module in (
    "access_loggers.stream.v3.stream",
    "filters.http.ext_proc.v3.ext_proc",
    "filters.http.lua.v3.lua",
    "filters.http.router.v3.router",
    "filters.http.upstream_codec.v3.upstream_codec",
    "filters.network.http_connection_manager.v3.http_connection_manager",
    "http.early_header_mutation.header_mutation.v3.header_mutation",
    "upstreams.http.v3.http_protocol_options",
):
    importlib.import_module(f"envoy.extensions.{_module}_pb2")

# The author of the configuration chooses the keys below these fields.
_FREE = {"json_format", "typed_extension_protocol_options", "typed_per_filter_config"}


def error_of(document: Any) -> str | None:
    try:
        json_format.ParseDict(document, Bootstrap())
    except json_format.ParseError as error:
        return str(error)
    return None


def mappings(node: object, *, free: bool = False):
    if isinstance(node, dict):
        if not free:
            yield node
        for key, value in node.items():
            yield from mappings(value, free=key in _FREE)
    elif isinstance(node, list):
        for value in node:
            yield from mappings(value)


document = json.load(sys.stdin)
error = error_of(document)
tried, taken = 0, []
for mapping in list(mappings(document)):
    for key in [key for key in mapping if key != "@type"]:
        items = list(mapping.items())
        mapping.clear()
        mapping.update({(f"{k}x" if k == key else k): v for k, v in items})
        tried += 1
        if error_of(document) is None:
            taken.append(key)
        mapping.clear()
        mapping.update(items)
print(json.dumps({"error": error, "misspelled": tried, "taken": taken}))
