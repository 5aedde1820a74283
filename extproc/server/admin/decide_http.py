"""The decision API over HTTP, with JSON messages, and an endpoint for nginx.

Errors follow the Connect protocol: status 400 and {"code": ..., "message": ...}.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from google.protobuf import json_format

from extproc.server.services.codec import BUDGET_HEADER, MODEL_HEADER, POOL_HEADER
from extproc.server.services.cooperative import TimeSlices
from extproc.server.services.decide import DECIDE, OBSERVE, Api, InvalidArgumentError
from extproc.wire import router_pb2 as pb

DECISION_HEADER = "x-llm-decision"
"""Response header with the decision in base64, which the client returns to Observe."""

_LOCATION = re.compile(r"[@/A-Za-z0-9_.-]{1,64}")


class HttpApi:
    """Serves the API's methods, and ``POST /decide``, which takes a bare body.

    Args:
        api: makes the decisions.
        slices: runs the parsing steps of several bodies in turn.
    """

    def __init__(self, api: Api, slices: TimeSlices) -> None:
        self._api = api
        self._slices = slices

    def add_routes(self, app: web.Application) -> None:
        """Register the handlers with an application."""
        router = app.router
        router.add_post(DECIDE, _json_method(pb.DecideRequest, self._decide))
        router.add_post(OBSERVE, _json_method(pb.ObserveRequest, self._observe))
        router.add_post("/decide", self._post_decide)

    async def _decide(self, question: pb.DecideRequest) -> pb.DecideResponse:
        reading = self._api.begin_parsing(question)
        await self._slices.finish(reading.step)
        return self._api.decide(question, reading)

    async def _observe(self, request: pb.ObserveRequest) -> pb.ObserveResponse:
        return self._api.observe(request)

    async def _post_decide(self, request: web.Request) -> web.Response:
        """Decide a request from its body; response headers repeat the answer.

        ``?path=``, ``?hint=`` and ``?model=`` supply the data that the body does not
        contain. With ``?accel=PREFIX`` the response has ``x-accel-redirect:
        PREFIX<pool>``, which makes nginx pass the unchanged request to the location of
        that name.
        """
        accel = request.query.get("accel", "")
        if accel and not _LOCATION.fullmatch(accel):
            return _refuse("accel: expected the prefix of a location's name")
        question = pb.DecideRequest(
            path=request.query.get("path", ""),
            category_hint=request.query.get("hint", ""),
            model=request.query.get("model", ""),
        )
        try:
            question.body = await request.read()
        except web.HTTPRequestEntityTooLarge:
            answer = self._api.decide_unread(question, request.content_length or 0)
        else:
            answer = await self._decide(question)
        headers = {
            POOL_HEADER: answer.pool,
            BUDGET_HEADER: str(answer.budget_tokens),
            DECISION_HEADER: base64.b64encode(answer.decision).decode(),
        }
        if answer.model:
            headers[MODEL_HEADER] = answer.model
        if accel and answer.pool:
            headers["x-accel-redirect"] = f"{accel}{answer.pool}"
        return web.json_response(_as_json(answer), headers=headers)


def _json_method(
    kind: Any, method: Callable[[Any], Awaitable[Any]]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        # With this content type, a browser sends a preflight request (CORS) before a
        # request to another origin, so a web page cannot secretly make a visitor's
        # browser teach the router.
        if request.content_type != "application/json":
            return _refuse("content-type: expected application/json", 415)
        try:
            message = json_format.Parse(await request.read(), kind())
            return web.json_response(_as_json(await method(message)))
        except json_format.ParseError as error:
            return _refuse(f"not a {kind.DESCRIPTOR.name}: {error}")
        except InvalidArgumentError as error:
            return _refuse(str(error))

    return answer


def _as_json(message: Any) -> dict[str, Any]:
    fields: dict[str, Any] = json_format.MessageToDict(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )
    return fields


def _refuse(message: str, status: int = 400) -> web.Response:
    return web.json_response(
        {"code": "invalid_argument", "message": message}, status=status
    )
