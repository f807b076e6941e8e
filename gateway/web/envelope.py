"""Failures as HTTP: OpenAI's envelope, on every surface."""

import orjson
from aiohttp import web
from multidict import CIMultiDict

from gateway.clock import new_id
from gateway.errors import Failure


def failure_response(failure: Failure) -> web.Response:
    """The reply for a failure; one that never got a hold gets a request id of its own."""
    headers = CIMultiDict(failure.headers)
    headers.setdefault("x-request-id", new_id())
    headers["Content-Type"] = "application/json"
    return web.Response(status=failure.status, body=orjson.dumps(failure.document()), headers=headers)


def json_response(document: object, *, status: int = 200) -> web.Response:
    """A JSON reply of our own."""
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        headers={"Content-Type": "application/json", "x-request-id": new_id()},
    )
