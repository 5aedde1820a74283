"""Clients that send through Envoy continuously and check every response."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..patience import PATIENCE_S

CLIENTS = 4
THINK_S = 0.01
JSON = {"content-type": "application/json"}


def chat(words: int, tokens: int, stream: bool = False) -> dict[str, Any]:
    content = " ".join(f"word{n}" for n in range(words))
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    return body | ({"stream_options": {"include_usage": True}} if stream else {})


KINDS = {
    "short": chat(20, 3),
    "short stream": chat(20, 12, stream=True),
    "long": chat(4000, 3),
    "long stream": chat(4000, 12, stream=True),
}


class FailedRequest(Exception):  # noqa: N818
    """The client cannot use the response."""


@dataclass(frozen=True)
class Answer:
    """The comparable part of a response; equal requests must have equal responses."""

    prompt_tokens: int
    completion_tokens: int
    chunks: int


@dataclass(frozen=True)
class Exchanged:
    """One request, as its client sees it."""

    kind: str
    began_s: float
    seconds: float
    answer: Answer
    routed: bool
    served_by: str


def exchange(port: int, kind: str) -> Exchanged:
    """Send one request of a kind.

    Raises:
        FailedRequest: the response is wrong.
    """
    began_s = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request(
            "POST", "/v1/chat/completions", json.dumps(KINDS[kind]), JSON
        )
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise FailedRequest(f"{kind}: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        raise FailedRequest(f"{kind}: {response.status} {body[:200]!r}")
    try:
        answer = read_sse(body) if KINDS[kind]["stream"] else read_json(body)
    except (ValueError, LookupError) as error:
        raise FailedRequest(f"{kind}: {error!r} in {body[-300:]!r}") from error
    return Exchanged(
        kind,
        began_s,
        time.monotonic() - began_s,
        answer,
        response.getheader("x-llm-pool") is not None,
        response.getheader("x-llm-served-by", ""),
    )


def read_json(body: bytes) -> Answer:
    usage = json.loads(body)["usage"]
    return Answer(usage["prompt_tokens"], usage["completion_tokens"], 1)


def read_sse(body: bytes) -> Answer:
    events = body.decode().split("\n\n")
    if events[-2:] != ["data: [DONE]", ""]:
        raise ValueError("the stream has no end")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    usage = chunks[-1]["usage"]
    return Answer(usage["prompt_tokens"], usage["completion_tokens"], len(chunks))


@dataclass
class Load:
    """Clients that send through one Envoy until they are stopped.

    Without ``per_second``, each client sends its next request when it has received a
    response. With ``per_second``, all clients together send this many requests a
    second, and catch up if responses were late. The clients send ``kinds`` in turn; the
    default is all kinds.
    """

    port: int
    expected: dict[str, Answer]
    clients: int = CLIENTS
    per_second: float | None = None
    kinds: Sequence[str] = ()
    done: list[Exchanged] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for number in range(self.clients):
            thread = threading.Thread(target=self._send, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _send(self, number: int) -> None:
        kinds = list(self.kinds or KINDS)
        due_s = time.monotonic()
        if self.per_second:
            due_s += number / self.per_second
        while not self._stopping.wait(self._pause_s(due_s)):
            if self.per_second:
                due_s += self.clients / self.per_second
            kind = kinds[number % len(kinds)]
            number += 1
            try:
                exchanged = exchange(self.port, kind)
                if exchanged.answer != self.expected[kind]:
                    raise FailedRequest(f"{kind}: {exchanged.answer}")
            except FailedRequest as failure:
                self.failed.append(str(failure))
            else:
                self.done.append(exchanged)

    def _pause_s(self, due_s: float) -> float:
        if self.per_second is None:
            return THINK_S
        return max(0.0, due_s - time.monotonic())

    def run(self, seconds: float) -> None:
        """Let the clients send for some seconds, and then until as many responses have
        arrived as there are clients.
        """
        wanted = self._answered() + self.clients
        deadline = time.monotonic() + PATIENCE_S
        self._stopping.wait(seconds)
        while self._answered() < wanted:
            assert time.monotonic() < deadline, "no answers"
            self._stopping.wait(THINK_S)

    def _answered(self) -> int:
        return len(self.done) + len(self.failed)

    def routed_after(self, moment_s: float) -> float:
        """Wait until a request that was sent after this moment is routed; return the
        seconds from this moment to the sending of that request.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            began = [e.began_s for e in list(self.done) if e.routed]
            later = [began_s for began_s in began if began_s >= moment_s]
            if later:
                return min(later) - moment_s
            self._stopping.wait(THINK_S)
        raise AssertionError("requests are not routed again")


def served(load: Load, kind: str) -> set[str]:
    return {exchanged.served_by for exchanged in load.done if exchanged.kind == kind}


@contextlib.contextmanager
def only(load: Load, word: str) -> Iterator[None]:
    """Restrict a load to the kinds whose name contains a word."""
    kept = dict(KINDS)
    for kind in kept:
        if word not in kind:
            del KINDS[kind]
    try:
        yield
    finally:
        KINDS.clear()
        KINDS.update(kept)


def post(port: int, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v1/chat/completions", body, JSON)
    status = connection.getresponse().status
    connection.close()
    return status


def in_parallel(count: int, work: Callable[[], int]) -> list[int]:
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda: results.append(work())) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def read_some(port: int, body: dict[str, Any], events: int) -> socket.socket:
    """Start a stream, and read its first ``events`` events."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    for _ in range(2 * events):
        response.readline()
    assert connection.sock is not None
    return connection.sock
