"""What a request to the Responses API reads: text, images, and what only the upstream knows the size of. Pure.

Input is walked to its leaves, for images and files may stand in messages, in the outputs of tools and in screenshots.
Kinds of items and parts that are not known here are refused: they could not be bounded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.core.catalogue import Meter
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.json_request import not_metered

TOOLS_MAX = 1_024
# What a search or a container may be given per request; each may read the context anew.
TOOL_CALLS_MAX = 1_000

_ITEMS = frozenset(
    {
        "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
        "computer_call", "computer_call_output", "custom_tool_call", "custom_tool_call_output", "file_search_call",
        "function_call", "function_call_output", "image_generation_call", "item_reference", "local_shell_call",
        "local_shell_call_output", "message", "reasoning", "shell_call", "shell_call_output", "web_search_call",
    }
)  # fmt: skip
_PARTS = frozenset(
    {
        "computer_screenshot", "input_file", "input_image", "input_text", "output_text", "reasoning_text", "refusal",
        "summary_text", "text",
    }
)  # fmt: skip
_IMAGES = frozenset({"computer_screenshot", "image_generation_call", "input_image"})
_FILES = ("file_id", "file_url", "file_data")

# The client runs these itself: they cost what their text costs.
_FREE_TOOLS = frozenset(
    {"apply_patch", "computer", "computer_use", "computer_use_preview", "custom", "function", "local_shell"}
)
_SEARCHES = frozenset({"web_search", "web_search_2025_08_26", "web_search_preview", "web_search_preview_2025_03_11"})
CONTAINER = f"{Meter.CONTAINERS}/1g"


@dataclass(slots=True)
class Asked:
    """What was found. `url_bytes` are those of data URLs, which are no text; `stored` and `unowned` name members."""

    images: int = 0
    url_bytes: int = 0
    stored: str | None = None
    unowned: str | None = None
    caches_long: bool = False
    fees: dict[str, int] = field(default_factory=dict)  # of hosted tools, by meter


def read_input(value: object, asked: Asked) -> None:
    """Take in `input`: a string, or a list of items. Raises InvalidRequest."""
    if value is None or isinstance(value, str):
        return
    if not isinstance(value, list):
        raise InvalidRequest("'input' must be a string or a list.", param="input")
    for position, item in enumerate(value):
        where = f"input[{position}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"Item {position} of the input must be an object.", param=where)
        kind = item.get("type") or "message"
        if not isinstance(kind, str) or kind not in _ITEMS:
            raise not_metered(where)
        if kind == "item_reference":
            asked.stored = asked.unowned = "input"
        elif kind == "reasoning" and not item.get("encrypted_content"):
            asked.stored = "input"  # its text is the upstream's alone
        for member in ("content", "output"):
            _check_parts(item.get(member), f"{where}.{member}")
        _walk(item, asked, where)


def _check_parts(parts: object, where: str) -> None:
    if not isinstance(parts, list):
        return
    for position, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else ""
        # The output of a shell is a list of streams, without types.
        if kind is not None and (not isinstance(kind, str) or kind not in _PARTS):
            raise not_metered(f"{where}[{position}]")


def _walk(item: Mapping[str, object], asked: Asked, where: str) -> None:
    waiting: list[object] = [item]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            kind = value.get("type")
            if kind == "input_audio":
                raise not_metered(where)
            if isinstance(kind, str) and kind in _IMAGES:
                asked.images += 1
                image = value.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                # Any other kind of data might be taken for text, and counts as such.
                if isinstance(url, str) and url.startswith("data:image/"):
                    asked.url_bytes += len(url)
            elif any(value.get(name) is not None for name in _FILES):
                asked.stored = "input"
            caching = value.get("prompt_cache_breakpoint")
            if isinstance(caching, dict) and caching.get("ttl") == "12h":
                asked.caches_long = True


def read_tools(tools: object, tool_calls_max: int | None, asked: Asked) -> None:
    """Take in `tools`: those of the upstream have fees of their own, as often as they may be called.

    Raises InvalidRequest.
    """
    if tools is None:
        return
    if not isinstance(tools, list) or len(tools) > TOOLS_MAX:
        raise InvalidRequest(f"'tools' must be a list of at most {TOOLS_MAX}.", param="tools")
    for position, tool in enumerate(tools):
        where = f"tools[{position}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or not isinstance(kind, str):
            raise InvalidRequest("Each tool must be an object with a 'type'.", param=where)
        if kind in _FREE_TOOLS or (kind == "shell" and _is_local(tool)):
            continue
        if kind in _SEARCHES:
            meter: str = Meter.WEB_SEARCHES
        elif kind == "file_search":
            meter = Meter.FILE_SEARCHES
        elif kind == "code_interpreter":
            meter = CONTAINER
            _read_container(tool.get("container"), where, asked)
        else:
            raise not_metered(where)
        if tool_calls_max is None:
            raise InvalidRequest(
                f"With the tool {kind!r} give 'max_tool_calls', for each call has a fee and reads the context anew.",
                param="max_tool_calls",
                code="not_metered",
            )
        asked.fees[meter] = tool_calls_max


def _is_local(tool: Mapping[str, object]) -> bool:
    environment = tool.get("environment")
    return isinstance(environment, dict) and environment.get("type") == "local"


def _read_container(container: object, where: str, asked: Asked) -> None:
    """A container that is made for this call, of the size that is the default. Raises InvalidRequest."""
    if isinstance(container, str):
        asked.unowned = f"{where}.container"
    elif not isinstance(container, dict) or container.get("type") != "auto":
        raise not_metered(f"{where}.container")
    elif container.get("memory_limit") not in (None, "1g"):
        raise not_metered(f"{where}.container.memory_limit")
