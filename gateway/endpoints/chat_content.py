"""What the messages of a chat hold besides text: images, sound, files, and what the upstream has stored. Pure."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import NamedTuple

from gateway.core.image_tokens import HEADER_BYTES_MAX, IMAGE_TOKENS_MAX, Size, image_size, image_tokens_max
from gateway.endpoints.chat_sound import sound_tokens
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.json_request import not_metered

IMAGE_TOKENS_ESTIMATE = 1_445
_PARTS = frozenset({"file", "image_url", "input_audio", "refusal", "text"})
_HEADER_CHARS_MAX = HEADER_BYTES_MAX // 3 * 4


class Image(NamedTuple):
    """`head` is the beginning of its file in base64, or "" where only the upstream can see it."""

    detail: str
    head: str

    def tokens_max(self, model: str) -> int:
        """The most that it can count for this model."""
        unsized = image_tokens_max(model, self.detail)
        if not self.head or unsized == IMAGE_TOKENS_MAX:
            return unsized
        return image_tokens_max(model, self.detail, self._size())

    def _size(self) -> Size | None:
        try:
            return image_size(base64.b64decode(self.head[: len(self.head) // 4 * 4], validate=True))
        except (binascii.Error, ValueError):
            return None


@dataclass(slots=True)
class Content:
    """`media_bytes` are those of images and sound in the body, which are not text. `stored` and `unheard` name what is
    upstream only, and may be of any size: a file, and sound that the model made before."""

    images: list[Image] = field(default_factory=list)
    media_bytes: int = 0
    sounds: int = 0
    sound_tokens_max: int = 0
    sound_tokens_estimate: int = 0
    stored: str | None = None
    unheard: str | None = None
    caches_long: bool = False

    @property
    def is_text(self) -> bool:
        """Whether there is nothing but text."""
        return not (self.images or self.sounds or self.stored or self.unheard or self.caches_long)


# What most requests hold; nobody may add to it.
_TEXT_ONLY = Content()


def read_messages(messages: object) -> Content:
    """Raises InvalidRequest."""
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a list with at least one message.", param="messages")
    found: Content | None = None
    for position, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidRequest(f"Message {position} must be an object.", param=f"messages[{position}]")
        if message.get("audio") is not None:
            found = found or Content()
            found.unheard = found.unheard or f"messages[{position}].audio"
        content = message.get("content")
        if content is None or isinstance(content, str):
            continue
        param = f"messages[{position}].content"
        if not isinstance(content, list):
            raise InvalidRequest(f"The content of message {position} must be a string or a list.", param=param)
        found = found or Content()
        for number, part in enumerate(content):
            _read_part(part, found, f"{param}[{number}]")
    return found or _TEXT_ONLY


def is_long_cache(options: object, param: str) -> bool:
    """Whether these options ask for the longer of the two lifetimes that have a price. Raises InvalidRequest."""
    lifetime = options.get("ttl") if isinstance(options, dict) else 0
    if lifetime not in (None, "30m", "12h"):
        raise not_metered(param)
    return lifetime == "12h"


def _read_part(part: object, found: Content, param: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _PARTS:
        raise not_metered(param)
    caching = part.get("prompt_cache_breakpoint")
    if caching is not None and is_long_cache(caching, f"{param}.prompt_cache_breakpoint"):
        found.caches_long = True
    if kind == "image_url":
        _read_image(part.get("image_url"), found)
    elif kind == "input_audio":
        _read_sound(part.get("input_audio"), found, param)
    elif kind == "file":
        # A file is its text and a picture of each page, however small it is.
        found.stored = found.stored or param


def _read_image(image: object, found: Content) -> None:
    url = image.get("url") if isinstance(image, dict) else image
    detail = image.get("detail") if isinstance(image, dict) else None
    head = ""
    # Any other kind of data might be taken for text, and counts as such.
    if isinstance(url, str) and url.startswith("data:image/"):
        found.media_bytes += len(url)
        start = url.find(";base64,", 0, 128)
        if start >= 0:
            head = url[start + 8 : start + 8 + _HEADER_CHARS_MAX]
    found.images.append(Image(detail if isinstance(detail, str) else "auto", head))


def _read_sound(sound: object, found: Content, param: str) -> None:
    data = sound.get("data") if isinstance(sound, dict) else None
    if not isinstance(data, str):
        raise not_metered(param)
    try:
        tokens = sound_tokens(data)
    except ValueError:
        raise InvalidRequest("The data of 'input_audio' must be a file in base64.", param=param) from None
    found.sounds += 1
    found.media_bytes += len(data)
    found.sound_tokens_max += tokens.most
    found.sound_tokens_estimate += tokens.estimate
