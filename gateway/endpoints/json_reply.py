"""Reads a whole reply as JSON. Pure."""

import orjson

from gateway.core.json_members import parse
from gateway.core.sse import BOM


def parse_reply(body: bytes) -> dict[str, object] | None:
    """The object that a reply is; None for anything else, such as a proxy's HTML page."""
    try:
        reply = parse(body.removeprefix(BOM))
    except orjson.JSONDecodeError:
        return None
    return reply if isinstance(reply, dict) else None


def usage_in(reply: dict[str, object]) -> dict[str, object] | None:
    """The raw usage in a reply."""
    usage = reply.get("usage")
    return usage if isinstance(usage, dict) else None
