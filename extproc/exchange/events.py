"""The events of one HTTP exchange as ext_proc sends them, and the replies to them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum

import msgspec

from extproc.exchange.paths import Target
from extproc.routing.router import Decision, Outcome


class BodyMode(IntEnum):
    """How Envoy sends a body; the numbers are ``ProcessingMode.BodySendMode``'s."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4

    # Enum's own hashes the name, in Python, and every request looks its mode up.
    __hash__ = int.__hash__


class RequestHeaders(msgspec.Struct, frozen=True, gc=False):
    """The request's headers, keys in lower case."""

    headers: Mapping[str, str]
    end_of_stream: bool = False
    request_mode: BodyMode | None = None
    """The configured request body mode; None if Envoy (before 1.34) does not say."""
    response_mode: BodyMode | None = None


class RequestBody(msgspec.Struct, frozen=True, gc=False):
    """A part of the request's body, or all of it."""

    body: bytes | memoryview
    """A view if it is large; of bytes that do not change."""
    end_of_stream: bool = False


class RequestTrailers(msgspec.Struct, frozen=True, gc=False):
    """The end of a request whose body trailers follow."""

    end_of_stream: bool = True


class ResponseHeaders(msgspec.Struct, frozen=True, gc=False):
    """The response's headers, ``:status`` among them."""

    headers: Mapping[str, str]
    end_of_stream: bool = False


class ResponseBody(msgspec.Struct, frozen=True, gc=False):
    """A part of the response's body."""

    body: bytes
    end_of_stream: bool = False


class ResponseTrailers(msgspec.Struct, frozen=True, gc=False):
    """The end of a response whose body trailers follow."""

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
    """Go on; nothing changes."""


class NotRouted(StrEnum):
    """Why no decision is made about a request."""

    METHOD = "method"
    """Not a POST."""
    PATH = "path"
    """No API's path, or one under a prefix that is not configured."""
    UNREAD = "unread"
    """The path of an API whose requests are not read."""
    NO_BODY = "no_body"
    BODY_LATE = "body_late"
    """Its body was requested, and has not come in time."""
    UNKNOWN_MODEL = "unknown_model"
    """A model that is not configured, or a body that was not read and so names none."""


class AskRequestBody(msgspec.Struct, frozen=True, gc=False):
    """Go on, and send the request body buffered and the response headers."""


class AskResponseBody(msgspec.Struct, frozen=True, gc=False):
    """Go on, and send the response body in chunks as it comes."""


class Withhold(msgspec.Struct, frozen=True, gc=False):
    """Send no reply yet: in full duplex Envoy waits for neither reply nor body."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Set the decision's headers and metadata, and choose the route again."""

    decision: Decision
    body: bytes | None = None
    """The request body to send instead of the one received."""
    shadow: bool = False
    """Set the metadata only: the request takes the route that it has."""
    decision_token: bytes = b""
    """The decision, to come back in the access log; empty: it does not."""


class Release(msgspec.Struct, frozen=True, gc=False):
    """Full duplex: the headers' reply with its decision, then the body so far."""

    decision: Decision | None
    body: bytes
    end_of_stream: bool
    trailers: bool = False
    """Whether the body ended in trailers, which are to be answered too."""
    shadow: bool = False
    """As in ``Route``."""
    decision_token: bytes = b""
    """As in ``Route``."""


class Rewrite(msgspec.Struct, frozen=True, gc=False):
    """Send these bytes instead of the response chunk received."""

    body: bytes


class Echo(msgspec.Struct, frozen=True, gc=False):
    """Full duplex: send the chunk on as it came (Envoy keeps no copy)."""

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
    """How a response came about, as Envoy's access log has it."""

    cluster: str
    """The cluster that answered; after a retry not the decision's. Empty: Envoy."""
    first_byte_s: float | None = None
    """From the request's first byte to the response's; None: there was none."""


class Observation(msgspec.Struct, frozen=True, gc=False):
    """A decision, and what its response said."""

    decision: Decision
    outcome: Outcome
    serving: Serving | None = None
    """None if the response was observed as it passed."""


class RequestHead(msgspec.Struct, frozen=True, gc=False):
    """What the headers of a request that is routed say."""

    headers: Mapping[str, str]
    """Those that were read, ``:path`` among them."""
    target: Target
    """What its path asks for."""


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A decision when it is made, with everything that depends on it."""

    decision: Decision
    head: RequestHead
    follows_response: bool = False
    """Whether the stream stays open to observe the response."""
    body: bytes | None = None
    """The request body that asks for usage in the client's place; None: it stays."""
    decision_token: bytes = b""
    """The decision, to come back in the access log; empty: it does not."""


class Step(msgspec.Struct, frozen=True, gc=False):
    """Everything that one event leads to."""

    reply: Reply
    end: bool = False
    """Whether we end the stream after this reply: Envoy goes on without us."""
    observation: Observation | None = None
    decided: Decided | None = None
    """The decision, in the step that makes it."""
    fault: Exception | None = None
    """An internal error; the reply lets the request go on regardless."""
    not_routed: NotRouted | None = None
    """Why no decision will be made, in the step that settles it."""
    refused: bool = False
    """Whether the gateway refused the body that was requested: too large there."""
