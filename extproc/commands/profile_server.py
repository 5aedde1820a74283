"""Measures a live vLLM server over HTTP: prefill, decoding, and checks of the fit."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from dataclasses import dataclass

import aiohttp
from msgspec.structs import replace

from extproc.commands.progress import Progress
from extproc.fleet.hardware_profile import (
    Check,
    Measured,
    Profile,
    Sent,
    compare,
    outcome,
    predict,
)
from extproc.fleet.profile_fit import (
    DecodeSample,
    PrefillSample,
    fit,
    relative_error,
)

# Token ids that exist in every vocabulary, above the ids of bytes and most special
# tokens.
_FIRST_ID, _LAST_ID = 300, 2000
_TIMEOUT_S = 600.0
# Request rates of the checks as a share of the predicted capacity: an ordinary load,
# and an overload.
_ORDINARY_LOAD, _OVERLOAD = 0.6, 1.5


class ServerError(Exception):
    """The server cannot be measured; the message has the request and its error."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """Arrival times of a streamed completion's tokens, in seconds."""

    sent_s: float
    token_s: tuple[float, ...]


class _Server:
    """A vLLM server, accessed over its OpenAI API."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, rng: random.Random
    ) -> None:
        self._session = session
        self._url = url.rstrip("/")
        self._rng = rng
        self.model = ""

    async def text(self, path: str) -> str:
        async with self._session.get(self._url + path) as response:
            body = await response.text()
            if response.status != 200:
                raise ServerError(f"{path}: status {response.status}; expected 200")
            return body

    async def complete(self, prompt_tokens: int, output_tokens: int) -> _Answer:
        """Stream a completion of a new random prompt, which no cache contains."""
        ids = [self._rng.randint(_FIRST_ID, _LAST_ID) for _ in range(prompt_tokens)]
        body = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        times: list[float] = []
        sent_s = time.perf_counter()
        async with self._session.post(
            f"{self._url}/v1/completions", json=body
        ) as response:
            if response.status != 200:
                refusal = (await response.text())[:200]
                raise ServerError(
                    f"/v1/completions: status {response.status}: {refusal}"
                )
            times += [
                time.perf_counter()
                async for line in response.content
                if line.startswith(b"data:") and b"[DONE]" not in line
            ]
        if not times:
            raise ServerError("/v1/completions: a response without tokens")
        return _Answer(sent_s, tuple(times))


async def measure(args: argparse.Namespace) -> Profile:
    """Measure a server, fit a profile, and check it.

    Args:
        args: the arguments of ``extproc profile``.

    Raises:
        ServerError, ProfileError: the server cannot be measured.
        aiohttp.ClientError, TimeoutError: the server cannot be reached.
    """
    headers = {"authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        server = _Server(session, args.url, random.Random(args.seed))
        max_model_len = await _identify(server, args.model)
        num_blocks, block_size = await _kv_cache(server)
        await server.complete(16, 4)  # warm-up, since the first completion compiles
        prefill = await _measure_prefill(server, args, max_model_len)
        decode = await _measure_decode(server, args, max_model_len)
        step_time, request_s = fit(decode, prefill)
        profile = Profile(
            server.model,
            step_time,
            request_s,
            num_blocks,
            block_size,
            max_model_len,
            args.max_num_seqs,
            args.max_num_batched_tokens,
            args.gpus,
            Measured(
                relative_error(step_time, request_s, decode, prefill),
                len(decode),
                len(prefill),
                args.seed,
                max_batch=max(sample.seqs for sample in decode),
                max_context_tokens=max(
                    round(sample.context_tokens / sample.seqs) for sample in decode
                ),
                max_prompt_tokens=max(sample.prompt_tokens for sample in prefill),
            ),
            args.usd_per_gpu_hour,
        )
        if not args.check_requests:
            return profile
        measured = replace(
            profile.measured,
            ordinary_check=await _check(server, profile, args, _ORDINARY_LOAD),
            check=await _check(server, profile, args, _OVERLOAD),
        )
        return replace(profile, measured=measured)


async def _identify(server: _Server, wanted: str | None) -> int:
    body = await server.text("/v1/models")
    try:
        models = json.loads(body)["data"]
        names = [model["id"] for model in models]
        server.model = wanted or names[0]
    except (ValueError, KeyError, TypeError, IndexError):
        raise ServerError(
            f"/v1/models: {body[:80]!r}; expected an OpenAI list of models"
        ) from None
    for model in models:
        if model["id"] == server.model:
            length = model.get("max_model_len")
            if not length:
                raise ServerError("/v1/models: no max_model_len; expected vLLM's")
            return int(length)
    raise ServerError(f"--model: {wanted}; expected one of {', '.join(names)}")


async def _kv_cache(server: _Server) -> tuple[int, int]:
    """Return the number and the size of KV blocks from ``vllm:cache_config_info``."""
    metrics = await server.text("/metrics")
    line = next(
        (x for x in metrics.splitlines() if x.startswith("vllm:cache_config_info{")), ""
    )
    found = [re.search(rf'[{{,]{key}="(\d+)"', line) for key in _KV_LABELS]
    blocks, size = (int(match[1]) if match else 0 for match in found)
    if blocks < 2 or size < 1:
        raise ServerError(
            "/metrics: no vllm:cache_config_info with num_gpu_blocks and block_size"
        )
    return blocks, size


_KV_LABELS = ("num_gpu_blocks", "block_size")


async def _preemptions(server: _Server) -> float:
    metrics = await server.text("/metrics")
    found = re.findall(r"^vllm:num_preemptions_total\S* (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, found))


async def _measure_prefill(
    server: _Server, args: argparse.Namespace, max_model_len: int
) -> list[PrefillSample]:
    """Measure single prompts, each short enough for the token budget of one step."""
    longest = min(args.max_num_batched_tokens, max_model_len - 1)
    lengths = sorted({max(1, longest * share // 16) for share in (1, 2, 4, 8, 12, 16)})
    progress = Progress("prefill", len(lengths) * args.repeats)
    samples, done = [], 0
    for length in lengths:
        seconds = []
        for _ in range(args.repeats):
            answer = await server.complete(length, 1)
            seconds.append(answer.token_s[0] - answer.sent_s)
            progress.show(done := done + 1)
        samples.append(PrefillSample(length, statistics.median(seconds)))
    return samples


async def _measure_decode(
    server: _Server, args: argparse.Namespace, max_model_len: int
) -> list[DecodeSample]:
    largest = min(args.largest_batch, args.max_num_seqs)
    batches = [n for n in (1, 2, 4, 8, 16, 32, 64, 128, 256) if n < largest] + [largest]
    room = max_model_len - args.tokens - 1
    contexts = sorted({min(32, room), min(512, room)})
    progress = Progress("decode", len(batches) * len(contexts) * args.repeats)
    samples, done = [], 0
    for prompt in contexts:
        for batch in batches:
            found = []
            for _ in range(args.repeats):
                found.append(await _decode_once(server, batch, prompt, args.tokens))
                progress.show(done := done + 1)
            context = batch * (prompt + args.tokens / 2)
            steps = [step for step in found if step is not None]
            if steps:
                samples.append(DecodeSample(batch, context, statistics.median(steps)))
    return samples


async def _decode_once(
    server: _Server, batch: int, prompt: int, tokens: int
) -> float | None:
    """Return the mean step time of a full batch, or None if it ran too few steps."""
    answers = await asyncio.gather(
        *(server.complete(prompt, tokens) for _ in range(batch))
    )
    start_s = max(answer.token_s[0] for answer in answers)
    end_s = min(answer.token_s[-1] for answer in answers)
    counts = [sum(start_s < t <= end_s for t in answer.token_s) for answer in answers]
    count = statistics.fmean(counts)
    return (end_s - start_s) / count if count >= 4 else None


async def _check(
    server: _Server, profile: Profile, args: argparse.Namespace, load: float
) -> Check:
    """Send a mixed load, and compare the result with the prediction.

    Args:
        load: the request rate as a share of the predicted capacity.
    """
    rng = random.Random(f"{args.seed} {load}")
    offered = _mixed_load(profile, args.check_requests, load, rng)
    before = await _preemptions(server)
    started_s = time.perf_counter()
    answers = await asyncio.gather(
        *(_send_at(server, sent, started_s) for sent in offered)
    )
    sent = [
        Sent(answer.sent_s - started_s, one.prompt_tokens, one.output_tokens)
        for answer, one in zip(answers, offered, strict=True)
    ]
    sent.sort(key=lambda one: one.at_s)
    measured = outcome(
        max(a.token_s[-1] for a in answers) - min(a.sent_s for a in answers),
        [a.token_s[0] - a.sent_s for a in answers],
        [
            (a.token_s[-1] - a.token_s[0]) / (len(a.token_s) - 1)
            for a in answers
            if len(a.token_s) > 1
        ],
    )
    preemptions = int(await _preemptions(server) - before)
    predicted, predicted_preemptions = predict(profile, sent)
    return compare(
        load, measured, preemptions, predicted, predicted_preemptions, len(offered)
    )


def _mixed_load(
    profile: Profile, n: int, load: float, rng: random.Random
) -> list[Sent]:
    """Generate mixed lengths at ``load`` times the predicted capacity."""
    window = profile.max_model_len
    sizes = [
        (
            rng.randint(16, min(1024, window // 2)),
            rng.randint(16, min(160, window // 4)),
        )
        for _ in range(n)
    ]
    at_once = [Sent(0.0, prompt, output) for prompt, output in sizes]
    capacity = predict(profile, at_once)[0].requests_per_s
    now_s = 0.0
    offered: list[Sent] = []
    for prompt, output in sizes:
        offered.append(Sent(now_s, prompt, output))
        now_s += rng.expovariate(load * capacity)
    return offered


async def _send_at(server: _Server, sent: Sent, started_s: float) -> _Answer:
    await asyncio.sleep(max(0.0, started_s + sent.at_s - time.perf_counter()))
    return await server.complete(sent.prompt_tokens, sent.output_tokens)
