"""What a response says of itself: its id, its usage with the fees of hosted tools, its output. Pure."""

import re
from collections.abc import Mapping

from gateway.core.catalogue import Meter
from gateway.core.estimate import OutputCounter, utf8_bytes
from gateway.core.usage import TOKENS_MAX, InvalidUsage
from gateway.endpoints.endpoint import Made
from gateway.endpoints.responses_input import CONTAINER

# Where the calls of hosted tools travel in the raw usage: what the upstream counted, and what we counted ourselves.
_REPORTED, _SEEN = "tool_usage", "hosted_calls"
_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})
# What may stand in a path as it is.
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.=~:+-]{0,255}")


def made_of(response: Mapping[str, object]) -> Made | None:
    """The id of a response, and whether it has ended; None for what is none."""
    response_id = response.get("id")
    if not isinstance(response_id, str) or not _ID.fullmatch(response_id):
        return None
    status = response.get("status")
    # A server that names no status has done its work when it replies.
    return Made(response_id, status is None or (isinstance(status, str) and status in _ENDED))


class HostedCalls:
    """Counts the calls of hosted tools by their output items."""

    __slots__ = ("_containers", "_file_searches", "_web_searches")

    def __init__(self) -> None:
        self._web_searches = self._file_searches = 0
        self._containers: set[str] = set()

    def add(self, item: object) -> None:
        """One item of the output. A search that opens a page it has found is no search."""
        if not isinstance(item, dict):
            return
        kind = item.get("type")
        if kind == "web_search_call":
            action = item.get("action")
            if not isinstance(action, dict) or action.get("type") in (None, "search"):
                self._web_searches += 1
        elif kind == "file_search_call":
            self._file_searches += 1
        elif kind in ("code_interpreter_call", "shell_call"):
            container = item.get("container_id")
            if isinstance(container, str):
                self._containers.add(container)

    def counts(self) -> dict[str, int]:
        """By meter, without those that saw nothing."""
        counted = {
            Meter.WEB_SEARCHES: self._web_searches,
            Meter.FILE_SEARCHES: self._file_searches,
            CONTAINER: len(self._containers),
        }
        return {meter: count for meter, count in counted.items() if count}


def usage_of(response: Mapping[str, object], seen: HostedCalls | None = None) -> dict[str, object] | None:
    """The raw usage of a response with all that tells the fees; None where it has none.

    `seen` are the calls of a stream; the items of a whole response say more.
    """
    usage = response.get("usage")
    if not isinstance(usage, dict):
        return None
    output = response.get("output")
    if isinstance(output, list) and output:
        seen = HostedCalls()
        for item in output:
            seen.add(item)
    return {**usage, _REPORTED: response.get("tool_usage"), _SEEN: seen.counts() if seen is not None else {}}


def read_fees(usage: Mapping[str, object]) -> dict[str, int]:
    """Calls of hosted tools by meter, from what `usage_of` gave. Raises InvalidUsage."""
    seen, reported = usage.get(_SEEN), usage.get(_REPORTED)
    fees: dict[str, int] = dict(seen) if isinstance(seen, dict) else {}
    if not isinstance(reported, dict):
        return fees
    searches = reported.get("web_search")
    if isinstance(searches, dict) and (count := searches.get("num_requests")) is not None:
        if type(count) is not int or not 0 <= count <= TOKENS_MAX:
            raise InvalidUsage(f"num_requests {str(count)[:40]!r} is no count")
        fees[Meter.WEB_SEARCHES] = count
        if not count:
            del fees[Meter.WEB_SEARCHES]
    images = reported.get("image_gen")
    if isinstance(images, dict) and images.get("total_tokens"):
        raise InvalidUsage("images were generated, which was not asked for")
    return fees


def count_items(output: object) -> int:
    """The tokens of a whole response's output, estimated from its text."""
    counter = OutputCounter()
    for item in output if isinstance(output, list) else []:
        if isinstance(item, dict) and (size := _item_bytes(item)):
            counter.add(size)
    return counter.tokens


def _item_bytes(item: Mapping[str, object]) -> int:
    size = 0
    for name in ("arguments", "input", "code", "encrypted_content"):
        text = item.get(name)
        size += utf8_bytes(text) if isinstance(text, str) else 0
    for name in ("content", "summary"):
        parts = item.get(name)
        for part in parts if isinstance(parts, list) else []:
            text = (part.get("text") or part.get("refusal")) if isinstance(part, dict) else None
            size += utf8_bytes(text) if isinstance(text, str) else 0
    return size
