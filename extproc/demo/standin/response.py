"""A stand-in's responses: vLLM's JSON and server-sent events, for each endpoint."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from extproc.demo.standin.request import Job, ServedApi
from extproc.demo.standin.tokenizer import WORDS

_EMBEDDING_DIMENSIONS = 8


@dataclass(slots=True)
class Answer:
    """One choice of a response in progress."""

    index: int
    """Index of the answer among the choices."""
    output_tokens: int
    """Final length of the answer in tokens (>= 1)."""
    cut: bool
    """Whether a limit ends the answer, rather than the model."""
    seed: int
    produced: int = 0
    """Number of tokens so far."""

    @property
    def finish_reason(self) -> str:
        """OpenAI's finish reason."""
        return "length" if self.cut else "stop"

    def text(self, start: int, end: int) -> str:
        """Return the answer's tokens from ``start`` up to ``end`` as words."""
        return "".join(
            WORDS[(self.seed + self.index * 7 + i * i) % len(WORDS)]
            for i in range(start, end)
        )


@dataclass(slots=True)
class Responder:
    """Writes the response to one job. The caller updates the answers."""

    job: Job
    answers: Sequence[Answer]
    response_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def usage(self) -> dict[str, int]:
        """Return the token counts of all prompts and outputs so far."""
        prompt = sum(self.job.prompt_tokens)
        completion = sum(answer.produced for answer in self.answers)
        match self.job.endpoint:
            case ServedApi.MESSAGES:
                return {"input_tokens": prompt, "output_tokens": completion}
            case ServedApi.RESPONSES:
                return {
                    "input_tokens": prompt,
                    "output_tokens": completion,
                    "total_tokens": prompt + completion,
                }
            case ServedApi.EMBEDDINGS:
                return {"prompt_tokens": prompt, "total_tokens": prompt}
            case _:
                return {
                    "prompt_tokens": prompt,
                    "total_tokens": prompt + completion,
                    "completion_tokens": completion,
                }

    def document(self) -> dict[str, object]:
        """Return the complete response, if it is not streamed."""
        match self.job.endpoint:
            case ServedApi.CHAT:
                return self._openai("chat.completion", self._chat_choices())
            case ServedApi.COMPLETIONS:
                return self._openai("text_completion", self._completion_choices())
            case ServedApi.RESPONSES:
                return self._response("completed")
            case ServedApi.MESSAGES:
                return self._message(self.answers[0])
            case ServedApi.EMBEDDINGS:
                return self._embeddings()

    def begin(self) -> Iterator[bytes]:
        """Yield the events before the first token."""
        match self.job.endpoint:
            case ServedApi.CHAT:
                for answer in self.answers:
                    delta = {"role": "assistant", "content": ""}
                    yield self._chat_chunk(answer, delta, None)
            case ServedApi.RESPONSES:
                created = {"response": self._response("in_progress")}
                yield _named("response.created", created)
            case ServedApi.MESSAGES:
                message = self._message(None)
                yield _named("message_start", {"message": message})
                block = {"index": 0, "content_block": {"type": "text", "text": ""}}
                yield _named("content_block_start", block)

    def token(self, answer: Answer) -> bytes:
        """Return the event for an answer's latest token."""
        text = answer.text(answer.produced - 1, answer.produced)
        last = answer.produced >= answer.output_tokens
        reason = answer.finish_reason if last else None
        match self.job.endpoint:
            case ServedApi.CHAT:
                return self._chat_chunk(answer, {"content": text}, reason)
            case ServedApi.RESPONSES:
                delta = {"item_id": "msg_0", "output_index": 0, "delta": text}
                return _named("response.output_text.delta", delta)
            case ServedApi.MESSAGES:
                delta = {"index": 0, "delta": {"type": "text_delta", "text": text}}
                return _named("content_block_delta", delta)
            case _:
                choice = {"index": answer.index, "text": text, "finish_reason": reason}
                return self._chunk("text_completion", [choice])

    def end(self) -> Iterator[bytes]:
        """Yield the events after the last token."""
        match self.job.endpoint:
            case ServedApi.RESPONSES:
                done = {"response": self._response("completed")}
                yield _named("response.completed", done)
            case ServedApi.MESSAGES:
                yield _named("content_block_stop", {"index": 0})
                delta = {
                    "delta": {"stop_reason": _stop_reason(self.answers[0])},
                    "usage": self.usage(),
                }
                yield _named("message_delta", delta)
                yield _named("message_stop", {})
            case endpoint:
                if self.job.include_usage:
                    kind = (
                        "chat.completion.chunk"
                        if endpoint is ServedApi.CHAT
                        else "text_completion"
                    )
                    yield self._chunk(kind, [], usage=self.usage())
                yield b"data: [DONE]\n\n"

    def _openai(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.response_id,
            "object": kind,
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
            "usage": self.usage(),
        }

    def _chat_choices(self) -> list[dict[str, object]]:
        return [
            {
                "index": answer.index,
                "message": {
                    "role": "assistant",
                    "content": answer.text(0, answer.produced),
                },
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for answer in self.answers
        ]

    def _completion_choices(self) -> list[dict[str, object]]:
        return [
            {
                "index": answer.index,
                "text": answer.text(0, answer.produced),
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for answer in self.answers
        ]

    def _response(self, status: str) -> dict[str, object]:
        output: list[dict[str, object]] = []
        if status == "completed":
            answer = self.answers[0]
            content = {
                "type": "output_text",
                "text": answer.text(0, answer.produced),
                "annotations": [],
            }
            output.append(
                {
                    "id": "msg_0",
                    "type": "message",
                    "role": "assistant",
                    "status": "completed",
                    "content": [content],
                }
            )
            if answer.cut:
                status = "incomplete"
        return {
            "id": f"resp_{self.response_id}",
            "object": "response",
            "created_at": self.created,
            "model": self.job.model,
            "status": status,
            "output": output,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": self.usage() if output else None,
        }

    def _message(self, answer: Answer | None) -> dict[str, object]:
        """Return Anthropic's message; without an answer, the one to start a stream."""
        content = (
            []
            if answer is None
            else [{"type": "text", "text": answer.text(0, answer.produced)}]
        )
        return {
            "id": f"msg_{self.response_id}",
            "type": "message",
            "role": "assistant",
            "model": self.job.model,
            "content": content,
            "stop_reason": None if answer is None else _stop_reason(answer),
            "stop_sequence": None,
            "usage": self.usage(),
        }

    def _embeddings(self) -> dict[str, object]:
        vectors = [
            {
                "object": "embedding",
                "index": index,
                "embedding": [
                    ((self.job.seed >> i) % 1000) / 1000
                    for i in range(_EMBEDDING_DIMENSIONS)
                ],
            }
            for index in range(len(self.job.prompt_tokens))
        ]
        return {
            "id": f"embd-{self.response_id}",
            "object": "list",
            "created": self.created,
            "model": self.job.model,
            "data": vectors,
            "usage": self.usage(),
        }

    def _chat_chunk(
        self, answer: Answer, delta: dict[str, str], finish_reason: str | None
    ) -> bytes:
        choice = {"index": answer.index, "delta": delta, "finish_reason": finish_reason}
        return self._chunk("chat.completion.chunk", [choice])

    def _chunk(
        self,
        kind: str,
        choices: list[dict[str, object]],
        usage: dict[str, int] | None = None,
    ) -> bytes:
        chunk: dict[str, object] = {
            "id": self.response_id,
            "object": kind,
            "created": self.created,
            "model": self.job.model,
            "choices": choices,
        }
        if usage is not None:
            # vLLM omits the field in all other chunks; OpenAI sends `null` there.
            chunk["usage"] = usage
        return b"data: " + _json(chunk) + b"\n\n"


def _stop_reason(answer: Answer) -> str:
    """Return Anthropic's stop reason for an answer."""
    return "max_tokens" if answer.cut else "end_turn"


def _named(event: str, payload: Mapping[str, object]) -> bytes:
    data = _json({"type": event, **payload})
    return b"event: " + event.encode() + b"\ndata: " + data + b"\n\n"


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
