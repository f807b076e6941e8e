"""The paths of kept responses: `/v1/responses/{id}` and what is below it, and `/v1/responses/input_tokens`."""

import re
from urllib.parse import unquote

from aiohttp import web

from gateway.errors import MethodNotAllowed, NotFound, ResponseNotFound
from gateway.request.by_id import What, about, count_input_tokens
from gateway.request.handle import Gateway
from gateway.request.passing import Passing
from gateway.web.metered import Exchange

_BELOW = {"cancel": ("POST", What.CANCEL), "input_items": ("GET", What.INPUT_ITEMS)}
_ID = re.compile(r"[!-~]{1,256}")
# A query goes upstream as it is.
_QUERY = re.compile(r"[!-~]{0,4096}")


async def serve(
    gateway: Gateway, passing: Passing, request: web.BaseRequest, below: str, exchange: Exchange
) -> web.StreamResponse:
    """Serve what is below `/v1/responses/`. Raises Failure, LedgerAway."""
    name, _, more = below.partition("/")
    response_id = unquote(name)
    if not _ID.fullmatch(response_id):
        raise NotFound
    try:
        if below == "input_tokens":
            _check(request, "POST")
            finish = await count_input_tokens(gateway, passing, exchange, exchange)
        else:
            what = _what(request, more)
            query = request.raw_path.partition("?")[2]
            if not _QUERY.fullmatch(query):
                raise ResponseNotFound("The query of the path is not one that can be passed on.")
            finish = await about(gateway, passing, what, response_id, query, exchange, exchange)
    except BaseException:
        exchange.break_off()
        raise
    return await exchange.finish(finish)


def _what(request: web.BaseRequest, more: str) -> What:
    if not more:
        _check(request, "GET", "DELETE")
        return What.GET if request.method == "GET" else What.DELETE
    if more not in _BELOW:
        raise NotFound
    method, what = _BELOW[more]
    _check(request, method)
    return what


def _check(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        raise MethodNotAllowed(headers={"Allow": ", ".join(methods)})
