"""The events of one HTTP exchange in ext_proc, and the replies to them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

from extproc.exchange.paths import Target
from extproc.routing.router import Decision, Outcome


class BodyMode(IntEnum):
    """How Envoy sends a body; values as in ``ProcessingMode.BodySendMode``."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4

    # Enum would hash the member's name in Python code, which is too slow for the lookup
    # of a mode in every request.
    __hash__ = int.__hash__


class RequestHeaders(msgspec.Struct, frozen=True, gc=False):
    """The request's headers, with lowercase names."""

    headers: Mapping[str, str]
    end_of_stream: bool = False
    request_mode: BodyMode | None = None
    """The configured request body mode; None before Envoy 1.34, which does not send
    it."""
    response_mode: BodyMode | None = None


class RequestBody(msgspec.Struct, frozen=True, gc=False):
    """Part or all of the request's body."""

    body: bytes | memoryview
    """The bytes of this part; a view of immutable bytes if the part is large."""
    end_of_stream: bool = False


class RequestTrailers(msgspec.Struct, frozen=True, gc=False):
    """The trailers that end a request."""

    end_of_stream: bool = True


class ResponseHeaders(msgspec.Struct, frozen=True, gc=False):
    """The response's headers, including ``:status``."""

    headers: Mapping[str, str]
    end_of_stream: bool = False


class ResponseBody(msgspec.Struct, frozen=True, gc=False):
    """Part of the response's body."""

    body: bytes
    end_of_stream: bool = False


class ResponseTrailers(msgspec.Struct, frozen=True, gc=False):
    """The trailers that end a response."""

    end_of_stream: bool = True


Event = (
    RequestHeaders
    | RequestBody
    | RequestTrailers
    | ResponseHeaders
    | ResponseBody
    | ResponseTrailers
)


class Continue(msgspec.Struct, frozen=True, gc=False):
    """Continue without changes."""


class NotRouted(StrEnum):
    """Why a request is not routed."""

    METHOD = "method"
    """The method is not POST."""
    PATH = "path"
    """The path does not name an API, or the path's prefix is not configured."""
    UNREAD = "unread"
    """The path belongs to an API whose requests are not read."""
    NO_BODY = "no_body"
    BODY_LATE = "body_late"
    """The requested body did not arrive in time."""
    UNKNOWN_MODEL = "unknown_model"
    """The model is not configured, or unknown because the body was not read."""


class AskRequestBody(msgspec.Struct, frozen=True, gc=False):
    """Continue; request the buffered request body and the response headers."""


class AskResponseBody(msgspec.Struct, frozen=True, gc=False):
    """Continue; request the response body in chunks."""


class Withhold(msgspec.Struct, frozen=True, gc=False):
    """Send no reply yet; in full duplex, Envoy does not wait for one."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Set the decision's headers and metadata, and clear the route cache."""

    decision: Decision
    body: bytes | None = None
    """A replacement for the request body; None keeps the original."""
    shadow: bool = False
    """Whether to set only the metadata, and to keep the request's route."""
    decision_token: bytes = b""
    """The decision for the access log; empty if it is not logged."""


class Release(msgspec.Struct, frozen=True, gc=False):
    """Full duplex: reply to the headers with the decision, then send the body."""

    decision: Decision | None
    body: bytes
    end_of_stream: bool
    trailers: bool = False
    """Whether the body was followed by trailers, which also need a reply."""
    shadow: bool = False
    """As in ``Route``."""
    decision_token: bytes = b""
    """As in ``Route``."""


class Rewrite(msgspec.Struct, frozen=True, gc=False):
    """Replace the response chunk with these bytes."""

    body: bytes


class Echo(msgspec.Struct, frozen=True, gc=False):
    """Full duplex: return the chunk unchanged (Envoy keeps no copy)."""

    body: bytes
    end_of_stream: bool


Reply = (
    Continue
    | AskRequestBody
    | AskResponseBody
    | Withhold
    | Route
    | Release
    | Rewrite
    | Echo
)


class Serving(msgspec.Struct, frozen=True, gc=False):
    """How a response was served, according to Envoy's access log."""

    cluster: str
    """The cluster that responded; empty if Envoy itself responded. After a retry, this
    is not the cluster of the decision."""
    first_byte_s: float | None = None
    """Seconds from the request's first byte to the response's first byte; None without
    a response."""


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A decision and the outcome of its response."""

    decision: Decision
    outcome: Outcome
    serving: Serving | None = None
    """How the response was served; None if the response was observed in the stream."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """The relevant headers of a routed request."""

    headers: Mapping[str, str]
    """The headers that are read, including ``:path``."""
    target: Target
    """The API and model that the path names."""


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A new decision, and what else the exchange does because of it."""

    decision: Decision
    head: RequestHead
    follows_response: bool = False
    """Whether the stream stays open to observe the response."""
    body: bytes | None = None
    """The request body with ``include_usage`` added; None keeps the original."""
    decision_token: bytes = b""
    """The decision for the access log; empty if it is not logged."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """The complete result of one event."""

    reply: Reply
    end: bool = False
    """Whether the router ends the stream after this reply; Envoy continues without
    it."""
    observation: Observation | None = None
    decided: Decided | None = None
    """The decision; set in the step that makes it."""
    fault: Exception | None = None
    """An internal error; the request continues regardless."""
    not_routed: NotRouted | None = None
    """Why no decision will be made; set in the step that determines this."""
    refused: bool = False
    """Whether the gateway rejected the requested body as too large."""
