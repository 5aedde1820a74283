"""Feedback from Envoy's access log, on every response and without reading bodies.

The reply to a request's body passes the decision to Envoy. The access log entry returns
this decision together with the outcome: status, token usage (from Envoy's
json_to_metadata and sse_to_metadata filters), attempts, answering cluster and times.
The router keeps no state for this, so any of its processes may receive the entry.
``envoy/access_log.yaml`` configures Envoy for it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct

from extproc.exchange.decision_token import read_decision_token
from extproc.exchange.events import Observation, Serving
from extproc.routing.models import AnyRouter
from extproc.routing.router import Decision, Outcome
from extproc.routing.token_counts import read_token_counts
from extproc.rpc.call import Call, Replies, RpcError, Send, Service, StatusCode
from extproc.server.services.codec import TOKEN_KEY, TOKEN_NAMESPACE
from extproc.server.services.ext_proc import ExtProcService
from extproc.wire import access_log_pb2 as pb

STREAM: Final = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs"

USAGE_NAMESPACE: Final = "llm.usage"
"""Metadata namespace in which the filters of ``envoy/access_log.yaml`` store token
counts."""

MAX_TOKEN_CHARS: Final = 16 * 1024
"""Largest decision token in base64 characters. A request with text in all scripts and a
long model name has a token of 6 KiB."""

_MAX_TOKENS = 1 << 31
_MAX_CLUSTER_CHARS = 256

_THANKS: Final = pb.StreamAccessLogsResponse().SerializeToString()


class Entry(StrEnum):
    """Result of reading an entry. A closed set, used as metric labels."""

    OBSERVED = "observed"
    UNRELATED = "unrelated"
    """No decision token, because no decision was made or the response was observed on
    its stream."""
    REFUSED = "refused"
    """The decision token does not match this configuration."""
    INTERMEDIATE = "intermediate"
    """The response is still in progress."""


class AccessLog:
    """Learns from access log entries.

    Args:
        service: receives the observations. The router of the service interprets the
            entries.
    """

    def __init__(self, service: ExtProcService) -> None:
        self._service = service

    def take(self, message: bytes) -> None:
        """Learn from each entry of a message after the current event-loop turn.

        Raises:
            RpcError: the message is not a ``StreamAccessLogsMessage``.
        """
        metrics = self._service.metrics
        try:
            entries = pb.StreamAccessLogsMessage.FromString(message).http_logs.log_entry
        except DecodeError:
            metrics.protocol_errors.add()
            raise RpcError(
                StatusCode.INVALID_ARGUMENT, "not a StreamAccessLogsMessage"
            ) from None
        for entry in entries:
            token = read_token(entry)
            found = read_entry(entry, token, self._service.router)
            if token and found is not Entry.INTERMEDIATE:
                self._service.in_flight.ended(token)
            if isinstance(found, Observation):
                self._service.learn_later(found)
                found = Entry.OBSERVED
            metrics.access_log_entries.add(found)


def read_token(entry: pb.HTTPAccessLogEntry) -> bytes | None:
    """Return an entry's decision token; None if it has none, empty if it is invalid."""
    metadata: Mapping[str, Struct] = entry.common_properties.metadata.filter_metadata
    # Check with "in" first, since looking up a missing name in a map of messages would
    # insert the name.
    if TOKEN_NAMESPACE not in metadata:
        return None
    fields = metadata[TOKEN_NAMESPACE].fields
    encoded = fields[TOKEN_KEY].string_value if TOKEN_KEY in fields else ""
    if not encoded:
        return None
    if len(encoded) > MAX_TOKEN_CHARS:
        return b""
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        return b""


def read_entry(
    entry: pb.HTTPAccessLogEntry, token: bytes | None, router: AnyRouter
) -> Observation | Entry:
    """Return an entry's observation, or the reason for its absence; never raises.

    Args:
        entry: entry for a complete or partial response; untrusted.
        token: the entry's decision token, from ``read_token``.
        router: router with the pools and categories that the decision may contain.
    """
    common = entry.common_properties
    if common.intermediate_log_entry:
        return Entry.INTERMEDIATE
    if token is None:
        return Entry.UNRELATED
    decision = read_decision_token(token, router)
    if decision is None:
        return Entry.REFUSED
    first_byte_s = None
    if common.HasField("time_to_first_upstream_rx_byte"):
        taken = common.time_to_first_upstream_rx_byte
        first_byte_s = max(0.0, taken.seconds + taken.nanos / 1e9)
    serving = Serving(common.upstream_cluster[:_MAX_CLUSTER_CHARS], first_byte_s)
    return Observation(decision, _outcome(entry, decision, router), serving)


def _outcome(
    entry: pb.HTTPAccessLogEntry, decision: Decision, router: AnyRouter
) -> Outcome:
    common = entry.common_properties
    metadata = common.metadata.filter_metadata
    prompt = completion = None
    if USAGE_NAMESPACE in metadata:
        prompt, completion = _usage(metadata[USAGE_NAMESPACE])
    attempts = max(1, common.upstream_request_attempt_count)
    outcome = Outcome(
        entry.response.response_code.value, prompt, completion, attempts=attempts
    )
    if prompt is None or completion is None:
        return outcome
    pool = decision.pool
    if attempts > 1:
        pool = router.of_pool(pool).policy.default
    cut = _was_cut(decision, prompt, completion, pool.max_model_len)
    return Outcome(outcome.status, prompt, completion, cut, attempts)


def _was_cut(
    decision: Decision, prompt: int, completion: int, max_model_len: int
) -> bool:
    """Whether the output was truncated by a limit.

    Envoy's filters cannot read ``finish_reason``, which is inside a list. However, vLLM
    truncates an output only if the output reaches the client's limit or fills the
    window.
    """
    each = -(-completion // max(1, decision.sequences))
    limit = decision.client_limit_tokens
    at_limit = limit is not None and each >= limit
    return at_limit or prompt + each >= max_model_len


def _usage(counts: Struct) -> tuple[int | None, int | None]:
    """Return the counts of prompt and completion tokens (OpenAI or Anthropic)."""
    read = read_token_counts(lambda name: _count(counts, name))
    return read.prompt, read.completion


def _count(counts: Struct, name: str) -> int | None:
    if name not in counts.fields:
        return None
    number = counts.fields[name].number_value
    # The first comparison is also false for NaN.
    whole = 0 <= number < _MAX_TOKENS and number == int(number)
    return int(number) if whole else None


class WithAccessLog:
    """Combines a service with the service that receives Envoy's access log."""

    def __init__(self, service: Service, access_log: AccessLog) -> None:
        self._service = service
        self._access_log = access_log

    def open(self, path: str, headers: Mapping[str, str], send: Send) -> Call | None:
        """Start a call of either service."""
        if path == STREAM:
            return _AccessLogStream(self._access_log)
        return self._service.open(path, headers, send)


class _AccessLogStream:
    """A stream of entries, which Envoy keeps open as long as possible."""

    def __init__(self, access_log: AccessLog) -> None:
        self._access_log = access_log

    def receive(self, message: bytes) -> Replies:
        self._access_log.take(message)
        return (), False

    def half_closed(self) -> Replies:
        return (_THANKS,), True

    def drain(self) -> Replies:
        """End the stream, so that Envoy connects to another server."""
        return (_THANKS,), True

    def closed(self, cancelled: bool) -> None:
        pass
