"""The yardstick: the least that a well-written aiohttp relay does, and nothing else. `bare_relay UPSTREAM_URL`.

Prints `listening PORT` and serves until it is terminated.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

HOP_BY_HOP = frozenset(
    ("connection", "host", "keep-alive", "proxy-authenticate", "te", "trailer", "transfer-encoding", "upgrade")
)
REQUEST_BYTES_MAX = 64 * 1024 * 1024
SESSION = web.AppKey("session", aiohttp.ClientSession)
UPSTREAM = web.AppKey("upstream", str)


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in HOP_BY_HOP)


async def relay(request: web.Request) -> web.StreamResponse:
    body = await request.read()
    async with request.app[SESSION].request(
        request.method, request.app[UPSTREAM] + request.raw_path, data=body, headers=end_to_end(request.headers)
    ) as upstream:
        response = web.StreamResponse(status=upstream.status, headers=end_to_end(upstream.headers))
        await response.prepare(request)
        async for data in upstream.content.iter_any():
            await response.write(data)
        await response.write_eof()
        return response


async def main() -> None:
    app = web.Application(client_max_size=REQUEST_BYTES_MAX)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    ) as session:
        app[SESSION], app[UPSTREAM] = session, sys.argv[1]
        app.router.add_route("*", "/{path:.*}", relay)
        # A client that leaves ends its upstream call too.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(f"listening {runner.addresses[0][1]}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
