"""Azure's form of the API, for clients that speak it: the model is named in the path, as a deployment.

`/openai/deployments/MODEL/chat/completions` is `/v1/chat/completions` with that model in its body, whatever the body
says, as it is at Azure; `/openai/v1/…` is `/v1/…`. The api-version in the query decides nothing here.
"""

from collections.abc import Mapping
from urllib.parse import unquote

from aiohttp import web

from gateway.core.json_members import MalformedJson, with_members
from gateway.core.multipart import Form, boundary_of
from gateway.core.variants import is_by_deployment
from gateway.endpoints.endpoint import Endpoint
from gateway.endpoints.json_request import has_too_many_values
from gateway.request.handle import Gateway
from gateway.web.metered import Exchange, serve_exchange
from gateway.web.spool import Spools

PREFIX = "/openai"
_DEPLOYMENTS = PREFIX + "/deployments/"


def other_names(paths: Mapping[str, Endpoint]) -> dict[str, tuple[str, Endpoint]]:
    """What else the paths of the route table, below their prefix, are called here without a deployment."""
    names = {f"{PREFIX}/v1{path}": (path, endpoint) for path, endpoint in paths.items()}
    return names | {PREFIX + path: (path, endpoint) for path, endpoint in paths.items() if not is_by_deployment(path)}


def deployment_of(path: str, paths: Mapping[str, Endpoint]) -> tuple[str, str, Endpoint] | None:
    """(model, path below the prefix, endpoint) of a path by deployment; None for any other."""
    if not path.startswith(_DEPLOYMENTS):
        return None
    name, slash, below = path.removeprefix(_DEPLOYMENTS).partition("/")
    endpoint = paths.get(slash + below)
    if endpoint is None or not name or not is_by_deployment(slash + below):
        return None
    return unquote(name), slash + below, endpoint


class DeploymentExchange(Exchange):
    """An exchange whose path names the model: from here on its body does."""

    model = ""

    async def read_body(self) -> bytes | Form:
        body = await super().read_body()
        if not isinstance(body, bytes):
            boundary = boundary_of(self.headers.get("Content-Type", ""))
            assert boundary is not None, "it was read by it"
            return body.with_field(boundary, "model", self.model.encode("utf-8", "replace"))
        try:
            return body if has_too_many_values(body) else with_members(body, {"model": self.model})
        except MalformedJson:
            return body  # the endpoint says what is wrong with it


async def serve(
    gateway: Gateway,
    deployment: tuple[str, str, Endpoint],
    request: web.BaseRequest,
    *,
    body_bytes_max: int,
    body_seconds: float,
    spools: Spools | None,
    form_only: bool,
) -> web.StreamResponse:
    """Serve one metered call. Raises Failure."""
    model, path, endpoint = deployment
    exchange = DeploymentExchange(
        request, body_bytes_max=body_bytes_max, body_seconds=body_seconds, spools=spools, form_only=form_only
    )
    exchange.model = model
    return await serve_exchange(gateway, endpoint, path, exchange)
