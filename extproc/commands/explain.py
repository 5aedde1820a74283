"""Explain the routing decision for one request, with all its numbers.

  extproc explain request.json
  curl -s ... | extproc explain --path /v1/completions -
  extproc explain --server http://127.0.0.1:9090 request.json

Without --server, a new router with this configuration decides, which has learned
nothing yet; with it, a running server, with its learned state. The text is not stored.
"""

from __future__ import annotations

import argparse
import http.client
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import UNSET

from extproc.commands.check_config import read_config
from extproc.exchange.openai import DEFAULT_PATH, ENDPOINTS
from extproc.routing.explanation import (
    DecisionExplanation,
    Explanation,
    FailedOpenExplanation,
    NotRoutedExplanation,
    PoolExplanation,
    PromptExplanation,
    RequestExplanation,
)
from extproc.server.admin.explain import AnyExplanation, Explainer
from extproc.server.build import build_generation
from extproc.server.in_force import InForce

_SERVER_TIMEOUT_S = 10.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "body",
        metavar="BODY.json",
        help="JSON body of a request; - reads standard input",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--config", type=Path, metavar="FILE", help="configuration of the router"
    )
    source.add_argument(
        "--server",
        metavar="URL",
        help="admin address of a running server that explains the request",
    )
    parser.add_argument(
        "--path",
        choices=_Suggested(ENDPOINTS),
        default=DEFAULT_PATH,
        metavar="PATH",
        help="request path, with any prefix (default: %(default)s)",
    )
    parser.add_argument(
        "--hint", metavar="CATEGORY", help="category hint, as in the request header"
    )
    parser.add_argument(
        "--model-header",
        metavar="NAME",
        default="",
        help="value of the header that `model.header` names",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


class _Suggested(tuple[str, ...]):
    """Suggestions for shell completion; other values are accepted, too."""

    def __contains__(self, value: object) -> bool:
        return True


def run(args: argparse.Namespace) -> int:
    """Explain and print. Return 2 if the file is unreadable, 1 if explaining fails."""
    try:
        body = _read_body(args.body)
    except OSError as error:
        print(f"extproc: {args.body}: {error.strerror}", file=sys.stderr)
        return 2
    if args.server:
        if not args.server.startswith(("http://", "https://")):
            print(
                f"extproc: --server: {args.server}; expected http://HOST:PORT, the "
                "router's admin port",
                file=sys.stderr,
            )
            return 2
        try:
            explanation = _ask(args, body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            print(f"extproc: {args.server}: {_reason(error)}", file=sys.stderr)
            return 1
    else:
        config = read_config(args.config)
        if config is None:
            return 2
        explainer = Explainer(InForce(build_generation(config)))
        explanation = explainer.explain(
            body, args.path, args.hint, model_header=args.model_header
        )
    if args.json:
        print(msgspec.json.encode(explanation).decode())
    else:
        for line in render(explanation):
            print(line)
    return 1 if isinstance(explanation, FailedOpenExplanation) else 0


def _reason(error: Exception) -> str:
    match error:
        case urllib.error.HTTPError(code=status):
            return f"/explain: status {status}; expected 200"
        case urllib.error.URLError(reason=Exception() as inner):
            return _reason(inner)
        case http.client.HTTPException():
            return "its response is not HTTP"
        case TimeoutError():
            return "no response in time"
        case OSError(strerror=str(reason)):
            return reason.lower()
    return str(error)


def _read_body(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


_DECODERS: tuple[Callable[[bytes], AnyExplanation], ...] = (
    msgspec.json.Decoder(Explanation).decode,
    msgspec.json.Decoder(FailedOpenExplanation).decode,
    msgspec.json.Decoder(NotRoutedExplanation).decode,
)
"""The decoders in the order in which they are tried: the formats with the most keys
come first, because the keys of some formats are a subset of another format's keys."""


def _ask(args: argparse.Namespace, body: bytes) -> AnyExplanation:
    server: str = args.server
    parameters = {"path": args.path, "hint": args.hint, "model": args.model_header}
    query = {name: value for name, value in parameters.items() if value}
    request = urllib.request.Request(
        f"{server.rstrip('/')}/explain?{urllib.parse.urlencode(query)}",
        data=body,
        headers={"content-type": "application/json"},
    )
    # The admin port is internal, so ignore proxies from the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=_SERVER_TIMEOUT_S) as response:
        answer = response.read()
    for decode in _DECODERS:
        try:
            return decode(answer)
        except msgspec.ValidationError:
            continue
    raise ValueError("no explanation; expected the output of /explain")


def render(explanation: AnyExplanation) -> Iterator[str]:
    """Format an explanation as text, line by line."""
    size = f"{explanation.request.body_bytes:,} B"
    yield _line("request", f"{explanation.path or DEFAULT_PATH}, {size}")
    if explanation.routed is False:
        yield _line("", "not routed: unknown API path, or prefix not configured")
    if isinstance(explanation, NotRoutedExplanation):
        model = explanation.asked or "(none)"
        yield _line("", f"model {model}")
        yield ""
        known = ", ".join(explanation.models)
        yield _line("decision", f"not routed: {explanation.not_routed} ({known})")
        return
    if explanation.model:
        yield _line("", f"as {explanation.model}")
    if isinstance(explanation, Explanation):
        yield from _render_request(explanation.request)
        yield from _render_estimate(explanation)
    elif explanation.why:
        yield _line("", f"not read: {explanation.why}")
    yield ""
    yield from _render_pools(explanation.pools)
    yield ""
    yield _line("decision", _render_decision(explanation.decision))
    if isinstance(explanation, Explanation):
        yield from _render_warnings(explanation)


def _render_warnings(explanation: Explanation) -> Iterator[str]:
    largest = explanation.pools[-1]
    if explanation.budget.bound_tokens > largest.max_model_len:
        yield _line(
            "",
            f"it fits no pool: {largest.name}, the largest, has "
            f"{largest.max_model_len:,} tokens; it may be rejected or truncated there",
        )
    made_of = explanation.prompt.made_of
    if made_of and made_of.get("learned") is False:
        yield _line("", "nothing learned about this model yet, which widens the bound")


def _line(label: str, text: str) -> str:
    return f"{label:<10} {text}".rstrip()


def _render_request(request: RequestExplanation) -> Iterator[str]:
    parts = [
        f"{label} {count:,}"
        for label, count in (
            ("messages", request.messages),
            ("tools", request.tools),
            ("images", request.images),
            ("audios", request.audios),
            ("files", request.files),
            ("token ids", request.token_ids),
        )
        if count
    ]
    if request.prompts > 1:
        parts.append(f"the longest of {request.prompts} prompts")
    if request.sequences > 1:
        parts.append(f"{request.sequences} parallel sequences")
    yield _line("", ", ".join([f"model {request.model or '(none)'}", *parts]))
    tools = f", tools {request.tools_bytes:,} B" if request.tools_bytes else ""
    yield _line("text", f"{request.text_bytes:,} B decoded{tools}")


_CLASSES_SHOWN = 5


def _render_estimate(explanation: Explanation) -> Iterator[str]:
    total = max(1, explanation.request.text_bytes)
    classes = list(explanation.byte_classes.items())[:_CLASSES_SHOWN]
    shares = (f"{name} {100 * count / total:.1f} %" for name, count in classes)
    yield _line("", ", ".join(shares))
    category = explanation.category
    source = f"from the {category.source}"
    if category.hint is not None and not category.hint_accepted:
        source += "; the hint is not a known category"
    yield _line("category", f"{category.name} ({source})")
    prompt = explanation.prompt
    bound = f"bound {prompt.bound_tokens:,}"
    yield _line("prompt", f"{prompt.tokens:,} tokens, {bound}")
    yield from _render_estimator(prompt)
    output = explanation.output
    if not output.declared:
        whose = "no limit declared: allowance"
    elif output.limit_tokens is None or output.tokens >= output.limit_tokens:
        whose = "the client's limit"
    else:
        whose = f"of a limit of {output.limit_tokens:,}: estimated output is shorter"
    yield _line("output", f"{output.tokens:,} tokens ({whose})")
    budget = explanation.budget
    held = f"{budget.bound_tokens:,} compared with the limits"
    yield _line("budget", f"{budget.tokens:,} tokens; {held}")


def _render_estimator(prompt: PromptExplanation) -> Iterator[str]:
    if prompt.estimator is None:
        yield _line("", "counted by the client: token ids")
    else:
        yield _line("", f"by {prompt.estimator}")
    for name, value in (prompt.made_of or {}).items():
        if isinstance(value, dict):
            for term, parts in value.items():
                yield _line("", f"  {term}: {_value(parts)}")
        else:
            label = "" if name == "formula" else f"{name}: "
            yield _line("", f"  {label}{_value(value)}")
    if prompt.media_tokens:
        yield _line("", f"{prompt.media_tokens:,} of them for media")


def _value(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:,.0f}" if value.is_integer() else f"{value:,.3f}"
        case int():
            return f"{value:,}"
        case dict():
            return ", ".join(f"{key} {_value(inner)}" for key, inner in value.items())
        case list():
            return ", ".join(_value(inner) for inner in value)
    return str(value)


def _render_pools(pools: Sequence[PoolExplanation]) -> Iterator[str]:
    width = max(4, *(len(pool.name) for pool in pools))
    yield f"{'pool':<{width}} {'threshold':>10} {'max_model_len':>14}  load"
    for pool in pools:
        load = "under pressure" if pool.under_pressure else "fine"
        load = load if pool.available else "down"
        mark = "  <- chosen" if pool.chosen else ""
        yield (
            f"{pool.name:<{width}} {pool.threshold_tokens:>10,} "
            f"{pool.max_model_len:>14,}  {load}{mark}"
        )


def _render_decision(decision: DecisionExplanation) -> str:
    head = f"{decision.pool}: {decision.reason}"
    by = decision.decided_by
    if by is None:
        return head
    if by.within is UNSET:
        return f"{head} (fits {by.pool})"
    sign = "<=" if by.within else ">"
    return (
        f"{head} ({by.budget_tokens:,} {sign} {by.limit_tokens:,}, "
        f"{by.limit} of {by.pool})"
    )
