"""`GET /v1/models` and `/v1/models/{id}`: what the key may use."""

from urllib.parse import unquote

from aiohttp import web

from gateway.core.catalogue import Model
from gateway.errors import ModelNotFound
from gateway.request.handle import Gateway
from gateway.web.envelope import json_response


async def list_models(gateway: Gateway, request: web.BaseRequest) -> web.StreamResponse:
    """Every model on offer to this key, by name. Raises Unauthenticated."""
    principal = await gateway.authenticator.authenticate(request.headers, request.remote or "")
    names = gateway.shelf().names(principal)
    return json_response({"object": "list", "data": [_document(name, model) for name, model in names]})


async def get_model(gateway: Gateway, request: web.BaseRequest, raw_name: str) -> web.StreamResponse:
    """One model, by name or alias. Raises Unauthenticated, ModelNotFound."""
    principal = await gateway.authenticator.authenticate(request.headers, request.remote or "")
    wanted = unquote(raw_name)
    for name, model in gateway.shelf().names(principal):
        if name == wanted:
            return json_response(_document(name, model))
    raise ModelNotFound(param="model")


def _document(name: str, model: Model) -> dict[str, object]:
    created = int(model.created_at.timestamp()) if model.created_at is not None else 0
    return {"id": name, "object": "model", "created": created, "owned_by": model.owned_by}
