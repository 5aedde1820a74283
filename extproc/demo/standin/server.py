"""A stand-in for a vLLM server, with its API, limits and timing, but without a model.

    python -m extproc.demo.standin --port 8000 --max-model-len 8192 --max-num-seqs 64

Prompts are counted with a real tokenizer, requests pass through vLLM's scheduler in
real time, and a prompt that is too long is rejected with vLLM's message. Flags that
correspond to flags of vLLM have the same names.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from aiohttp import web

from extproc.demo.standin.engine import Engine, Generation, StepTime
from extproc.demo.standin.metrics import Progress, Telemetry
from extproc.demo.standin.request import Job, RequestRefusedError, ServedApi, read_job
from extproc.demo.standin.response import Answer, Responder
from extproc.demo.standin.serving import serve
from extproc.demo.standin.tokenizer import Tokenizer
from extproc.fleet.scheduler import SchedulerLimits

# vLLM's server accepts bodies of any size; this limit protects a laptop's memory.
_MAX_BODY_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one stand-in."""

    name: str
    limits: SchedulerLimits
    step_time: StepTime
    mean_output_tokens: float
    """Mean length of outputs that no limit truncates; > 0."""


class StandIn:
    """The HTTP server. Use it from one event loop only."""

    def __init__(self, settings: Settings, tokenizer: Tokenizer) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._engine = Engine(settings.limits, settings.step_time)
        self._telemetry = Telemetry(settings.name, self._engine)
        self._started = int(time.time())

    def application(self) -> web.Application:
        """Return the application; it runs the engine while it is served."""
        app = web.Application(client_max_size=_MAX_BODY_BYTES)
        app.cleanup_ctx.append(self._run_engine)
        app.router.add_get("/health", self._health)
        app.router.add_get("/ping", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        for endpoint in ServedApi:
            app.router.add_post(endpoint, self._generate)
        app.on_response_prepare.append(self._sign)
        return app

    async def _run_engine(self, _: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self._engine.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _sign(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the stand-in's name and the router's request headers to the response."""
        response.headers["x-standin"] = self._settings.name
        for header in ("x-llm-pool", "x-llm-budget", "x-request-id"):
            if header in request.headers:
                response.headers[header] = request.headers[header]

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "stand-in"})

    async def _models(self, _: web.Request) -> web.Response:
        model = {
            "id": "stand-in",
            "object": "model",
            "created": self._started,
            "owned_by": "vllm",
            "root": "stand-in",
            "parent": None,
            "max_model_len": self._settings.limits.max_model_len,
        }
        return web.json_response({"object": "list", "data": [model]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=self._telemetry.exposition(),
            headers={"content-type": self._telemetry.content_type},
        )

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        endpoint = ServedApi(request.path)
        raw = await request.read()
        try:
            # This runs in a thread, because counting a long prompt would block all
            # other requests.
            job = await asyncio.to_thread(
                read_job,
                endpoint,
                raw,
                self._tokenizer,
                self._settings.limits.max_model_len,
            )
        except RequestRefusedError as refused:
            return web.json_response(refused.body(endpoint), status=refused.status)
        if endpoint is ServedApi.EMBEDDINGS:
            # Pooling is a prefill without output; the one output token here represents
            # its step.
            answers = [Answer(i, 1, False, 0) for i in range(len(job.prompt_tokens))]
        else:
            answers = self._plan(job)
        responder = Responder(job, answers)
        generation = self._engine.submit(
            (job.prompt_tokens[answer.index // job.choices], answer.output_tokens)
            for answer in answers
        )
        # If the client disconnects, leaving this block early aborts the sequences.
        with generation, self._telemetry.request(answers) as progress:
            if job.stream and endpoint is not ServedApi.EMBEDDINGS:
                return await self._stream(request, responder, generation, progress)
            async for index in generation:
                answers[index].produced += 1
                progress.token()
            return web.json_response(responder.document())

    def _plan(self, job: Job) -> list[Answer]:
        """Choose the length of each answer, up to its limit."""
        window = self._settings.limits.max_model_len
        answers = []
        for index in range(len(job.prompt_tokens) * job.choices):
            room = window - job.prompt_tokens[index // job.choices]
            limit = min(room, job.max_tokens or room)
            length = random.Random(job.seed + index).expovariate(
                1 / self._settings.mean_output_tokens
            )
            natural = limit + 1 if job.to_the_limit else 1 + int(length)
            answers.append(
                Answer(
                    index=index,
                    output_tokens=min(limit, natural),
                    cut=natural > limit,
                    seed=job.seed,
                )
            )
        return answers

    async def _stream(
        self,
        request: web.Request,
        responder: Responder,
        generation: Generation,
        progress: Progress,
    ) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_type = "text/event-stream"
        response.charset = "utf-8"
        await response.prepare(request)
        for event in responder.begin():
            await response.write(event)
        async for index in generation:
            answer = responder.answers[index]
            answer.produced += 1
            progress.token()
            await response.write(responder.token(answer))
        for event in responder.end():
            await response.write(event)
        await response.write_eof()
        return response


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare vLLM's flags under vLLM's names, and the stand-in's own flags."""
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument("--name", default="stand-in", help="value of header x-standin")
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument(
        "--num-gpu-blocks-override",
        type=int,
        help="KV-cache blocks (default: a quarter of what max-num-seqs full windows"
        " would take, and at least one full window)",
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="how many times faster than an A100"
    )
    parser.add_argument(
        "--mean-output-tokens",
        type=float,
        default=48.0,
        help="mean length of outputs that no limit truncates",
    )


def settings(args: argparse.Namespace) -> Settings:
    """Return the settings from the flags.

    Raises:
        ValueError: a limit is out of range.
    """
    window_blocks = -(-args.max_model_len // args.block_size)
    num_blocks = args.num_gpu_blocks_override or 1 + window_blocks * max(
        1, args.max_num_seqs // 4
    )
    limits = SchedulerLimits(
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        num_blocks=num_blocks,
        block_size=args.block_size,
    )
    return Settings(
        name=args.name,
        limits=limits,
        step_time=StepTime(speed=args.speed),
        mean_output_tokens=args.mean_output_tokens,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stand-in."""
    parser = argparse.ArgumentParser(
        prog="python -m extproc.demo.standin",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        chosen = settings(args)
    except ValueError as error:
        parser.error(str(error))
    asyncio.run(_main(chosen, args.host, args.port))
    return 0


async def _main(chosen: Settings, host: str, port: int) -> None:
    await serve(StandIn(chosen, Tokenizer()).application(), host, port)
