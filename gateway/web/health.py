"""The ops listener: liveness, readiness, health with each check, and metrics."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from gateway.errors import MethodNotAllowed, NotFound
from gateway.metrics import Metrics
from gateway.web.envelope import json_response
from gateway.web.routes import Handler, guarded


@dataclass(frozen=True, slots=True)
class Check:
    """One check: whether it passes, and what it saw. Only `gates_ready` ones decide readiness."""

    name: str
    passes: bool
    detail: str
    gates_ready: bool = True


Checks = Callable[[], Awaitable[list[Check]]]


def ops_handler(checks: Checks, exposition: Callable[[], Awaitable[bytes]], metrics: Metrics) -> Handler:
    """`exposition` gives all metrics as Prometheus reads them."""

    async def route(request: web.BaseRequest) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(headers={"Allow": "GET, HEAD"})
        path, _, _ = request.raw_path.partition("?")
        match path:
            case "/livez":
                return json_response({"status": "ok"})
            case "/readyz":
                failed = [check for check in await checks() if check.gates_ready and not check.passes]
                ready = {"status": "unavailable" if failed else "ok", "failed": {c.name: c.detail for c in failed}}
                return json_response(ready, status=503 if failed else 200)
            case "/healthz":
                found = await checks()
                is_well = all(check.passes for check in found)
                health = {
                    "status": "ok" if is_well else "failing",
                    "checks": {c.name: {"status": "ok" if c.passes else "failing", "detail": c.detail} for c in found},
                }
                return json_response(health, status=200 if is_well else 503)
            case "/metrics":
                return web.Response(body=await exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
            case _:
                raise NotFound("Unknown path. The ops listener has /livez, /readyz, /healthz and /metrics.")

    return guarded(route, metrics)
