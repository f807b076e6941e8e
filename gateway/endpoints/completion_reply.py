"""Reads a whole reply of chat or text completions: its usage, its output, its tier of service. Pure."""

import orjson

from gateway.core.estimate import OutputCounter
from gateway.core.json_members import parse
from gateway.core.sse import BOM
from gateway.core.usage_json import LargeReply
from gateway.endpoints.chat_stream import ChatStream, count_choices, is_error
from gateway.endpoints.endpoint import NOTHING_SEEN, ReplySeen
from gateway.endpoints.json_reply import usage_in


def read_completion(body: bytes) -> ReplySeen:
    """A reply that is no JSON object, such as a proxy's HTML page, holds no output and is not charged."""
    body = body.removeprefix(BOM)
    try:
        reply = parse(body)
    except orjson.JSONDecodeError:
        return _unparsed(body)
    if not isinstance(reply, dict):
        return NOTHING_SEEN
    failed = is_error(reply)
    choices = None if failed else reply.get("choices")
    tier = reply.get("service_tier")
    return ReplySeen(
        usage_in(reply),
        lambda: _output_tokens(choices),
        failed,
        tier if isinstance(tier, str) else "",
    )


def _unparsed(body: bytes) -> ReplySeen:
    """A reply that our parser refuses and a client's may not: a NaN, bad UTF-8, deep nesting, events under a wrong
    content type. Its usage counts all the same."""
    if body.lstrip().startswith((b"data:", b"event:", b":")):
        stream = ChatStream(remove_usage=False)
        stream.feed(body)
        stream.finish()
        return ReplySeen(stream.usage, stream.output_tokens_estimate, stream.failed, stream.service_tier)
    scanned = LargeReply()
    scanned.feed(body)
    return ReplySeen(scanned.usage, scanned.count_output if scanned.is_complete else int, False)


def _output_tokens(choices: object) -> int:
    counter = OutputCounter()
    count_choices(choices, counter)
    return counter.tokens
