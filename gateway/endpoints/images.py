"""Images: `POST /v1/images/generations`, `/edits` and `/variations`, in JSON or as forms, streamed or not.

A model is priced by the image, by quality and size, or by tokens: of the prompt, of the images that it reads, of those
that it makes, and of what it writes while it plans. Images without usage are counted, which is exact for the first.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from gateway.core.catalogue import Meter
from gateway.core.estimate import tokens_from_bytes, utf8_bytes
from gateway.core.image_output import (
    IMAGE_OUTPUT_TOKENS_ESTIMATE,
    IMAGE_OUTPUT_TOKENS_MAX,
    PARTIAL_IMAGE_TOKENS,
    image_output_tokens_max,
)
from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.core.multipart import Form
from gateway.core.sse import BOM, EVENT_STREAM
from gateway.core.usage import Limits, Reading, read_token_usage, says_nothing
from gateway.core.usage_json import LargeReply
from gateway.endpoints.endpoint import NOTHING_SEEN, CallRequest, Changes, Described, InvalidRequest, Output, ReplySeen
from gateway.endpoints.form_request import FormNames, form_flag, form_whole, read_form_parts
from gateway.endpoints.json_reply import parse_reply, usage_in
from gateway.endpoints.json_request import (
    MODEL_CHARS_MAX,
    Names,
    changed_body,
    not_metered,
    read_flag,
    read_model,
    read_object,
    read_whole,
)
from gateway.endpoints.media_stream import MediaStream, error_event

IMAGES_MAX = 10
FRAMES_MAX = 16
PARTIALS_MAX = 3
IMAGES_IN_MAX = 64
IMAGE_INPUT_TOKENS_ESTIMATE = 4_160
TEMPLATE_TOKENS_MAX = 256
# Of what is written while an image is planned, an image.
TEXT_OUTPUT_TOKENS_MAX = 4_096
# No reply truthfully counts more.
OUTPUT_TOKENS_MAX = IMAGES_MAX * (FRAMES_MAX * IMAGE_OUTPUT_TOKENS_MAX + TEXT_OUTPUT_TOKENS_MAX)

# A larger reply is looked through for its usage and counted: parsing a megabyte of base64 takes three times as long.
PARSED_BYTES_MAX = 65_536
_QUOTES_MAX = 256  # in one piece, before stepping over them one by one costs more than it saves

_TOKENS = frozenset({Meter.INPUT, Meter.IMAGE_INPUT, Meter.IMAGE_OUTPUT})
BY_TOKENS = (_TOKENS | {Meter.OUTPUT}, _TOKENS)
_DECIDING = ("model", "n", "size", "quality", "stream", "partial_images", "output_format", "frame_count")
_ORDINARY = (
    *("background", "input_fidelity", "moderation", "output_compression", "response_format", "style", "user"),
    "complexity",
)
_JSON_NAMES = Names((*_DECIDING, "prompt", "svg", "image", "images", "mask", "markup"), _ORDINARY)
_FORM_NAMES = FormNames(
    frozenset((*_DECIDING, "prompt")), frozenset({"image", "image[]", "mask", "markup", "markup[]"})
)
_SIZE = re.compile(r"([1-9][0-9]{1,4})x([1-9][0-9]{1,4})")
_QUALITY = re.compile(r"[a-z0-9][a-z0-9_.-]{0,23}")
# Which rate prices an image whose quality or size is not given: first what upstreams take it for.
_QUALITIES_AUTO = ("high", "hd", "max", "xhigh", "medium", "standard", "low")
_QUALITIES_ABSENT = ("standard", *(quality for quality in _QUALITIES_AUTO if quality != "standard"))
_SIZES_AUTO = ("1536x1024", "1024x1536", "1024x1024")


class _Asked(NamedTuple):
    """What decides the cost of a request, in either form. `size` is "" or "auto" where the model chooses."""

    model: str
    images: int
    stream: bool
    partials: int
    size: str
    quality: str
    frames: int
    prompt_bytes: int
    images_in: int


class ImageGenerations:
    """`POST /v1/images/generations`, and what all three have in common."""

    name = "images.generations"
    described = Described(
        (Meter.IMAGES, Meter.INPUT, Meter.CACHED_INPUT, Meter.IMAGE_INPUT, Meter.IMAGE_OUTPUT, Meter.OUTPUT),
        "`n` images of the size and quality asked, or of the dearest, and the partial ones; bytes of the prompt; "
        "the model's most for each image given",
        "`usage`; else the images that came",
    )
    reads_images = False

    def read_request(self, body: bytes) -> CallRequest:
        request = read_object(body, _JSON_NAMES)
        if request.get("svg") is not None:
            raise not_metered("svg")
        model = read_model(request)
        prompt = _text(request, "prompt")
        if not prompt:
            raise InvalidRequest("'prompt' must be a string of at least one character.", param="prompt")
        images_in = sum(_count(request.get(name)) for name in ("image", "images", "mask", "markup"))
        if self.reads_images and not (_count(request.get("image")) or _count(request.get("images"))):
            raise InvalidRequest("'images' must name at least one image.", param="images")
        return self._request(
            _Asked(
                model,
                read_whole(request, "n", IMAGES_MAX) or 1,
                read_flag(request, "stream"),
                read_whole(request, "partial_images", PARTIALS_MAX, minimum=0) or 0,
                _size(_text(request, "size")),
                _quality(_text(request, "quality")),
                _frames(_text(request, "output_format"), read_whole(request, "frame_count", FRAMES_MAX)),
                utf8_bytes(prompt),
                images_in,
            )
        )

    def _request(self, asked: _Asked) -> CallRequest:
        if asked.images_in > IMAGES_IN_MAX:
            raise InvalidRequest(f"At most {IMAGES_IN_MAX} images are read.", param="image")
        if asked.stream and asked.images > 1:
            # Whether each event has the usage of its image or of all is not known of any upstream.
            raise not_metered("n")
        return _bounded(_UNBOUNDED._replace(model=asked.model, stream=asked.stream), asked, asked.model)

    def upstream_body(self, body: bytes, changes: Changes) -> bytes:
        return changed_body(body, model=changes.model)

    def reply_reader(self, content_type: str, _request: CallRequest) -> MediaStream | None:
        return MediaStream(ImageCounter()) if content_type.startswith(EVENT_STREAM) else None

    def large_reply(self) -> "LargeImages":
        return LargeImages()

    def error_end(self, document: Mapping[str, object]) -> bytes:
        return error_event(document)

    def read_reply(self, body: bytes) -> ReplySeen:
        reply = parse_reply(body)
        if reply is None:
            # Our parser refuses what a client's may not, such as a NaN: its images and its usage count all the same.
            looked = LargeImages()
            looked.feed(body.removeprefix(BOM))
            return ReplySeen(looked.usage, looked.count_output, False) if looked.is_complete else NOTHING_SEEN
        data = reply.get("data")
        count = sum(isinstance(item, dict) for item in data) if isinstance(data, list) else 0
        return ReplySeen(usage_in(reply), lambda: count, bool(reply.get("error")))

    def read_usage(self, usage: Mapping[str, object], limits: Limits) -> Reading | None:
        if says_nothing(usage):
            return None
        reading = read_token_usage(usage, Limits(limits.input_tokens_max, OUTPUT_TOKENS_MAX))
        if reading is None:
            return None
        quantities = dict(reading.quantities)
        if not _tells_apart(usage, "output_tokens_details"):
            _rename(quantities, Meter.OUTPUT, Meter.IMAGE_OUTPUT)
        if self.reads_images and not _tells_apart(usage, "input_tokens_details"):
            # Nobody says which were text: most of them are of images, which cost more.
            _rename(quantities, Meter.INPUT, Meter.IMAGE_INPUT)
        return Reading(quantities)


def _tells_apart(usage: Mapping[str, object], name: str) -> bool:
    """Whether details say which tokens were of text and which of images; others, such as what was cached, do not."""
    details = usage.get(name)
    return isinstance(details, dict) and ("text_tokens" in details or "image_tokens" in details)


class ImageEdits(ImageGenerations):
    """`POST /v1/images/edits`: JSON or a form."""

    name = "images.edits"
    reads_images = True
    forms_only = False
    needs_prompt = True

    def read_form(self, form: Form) -> CallRequest:
        fields, files = read_form_parts(form, _FORM_NAMES)
        if any(part.name.partition("[")[0].strip().lower() == "svg" for part in form.parts):
            raise not_metered("svg")
        model, prompt = fields.get("model", ""), fields.get("prompt", "")
        if not 0 < len(model) <= MODEL_CHARS_MAX:
            raise InvalidRequest(f"'model' must be a string of 1 to {MODEL_CHARS_MAX} characters.", param="model")
        if self.needs_prompt and not prompt:
            raise InvalidRequest("'prompt' must be a string of at least one character.", param="prompt")
        if not any(file.name.startswith("image") for file in files) or not all(file.size_bytes for file in files):
            raise InvalidRequest("'image' must be at least one file, and none may be empty.", param="image")
        partials = None if fields.get("partial_images") == "0" else form_whole(fields, "partial_images", PARTIALS_MAX)
        return self._request(
            _Asked(
                model,
                form_whole(fields, "n", IMAGES_MAX) or 1,
                form_flag(fields, "stream"),
                partials or 0,
                _size(fields.get("size", "")),
                _quality(fields.get("quality", "")),
                _frames(fields.get("output_format", ""), form_whole(fields, "frame_count", FRAMES_MAX)),
                utf8_bytes(prompt),
                len(files),
            )
        )


class ImageVariations(ImageEdits):
    """`POST /v1/images/variations`: a form without a prompt."""

    name = "images.variations"
    forms_only = True
    needs_prompt = False


class ImageCounter:
    """Counts the images of a stream; one of which only sketches came is one."""

    def __init__(self) -> None:
        self._images = 0
        self._has_partial = False

    def add(self, kind: str, event: Mapping[str, object] | None, size: int) -> None:  # noqa: ARG002 - the protocol
        if kind.endswith(".completed"):
            self._images += 1
        elif kind.endswith(".partial_image"):
            self._has_partial = True

    def count(self) -> int:
        return self._images or int(self._has_partial)


class LargeImages(LargeReply):
    """Megabytes of images that pass as they come: counted by the names of their members."""

    _NAMES = (b'"b64_json"', b'"url"')

    def __init__(self) -> None:
        super().__init__()
        self._counts = [0, 0]
        self._before = b""

    def look(self, data: bytes) -> None:
        # As much as may be the beginning of the longest name, and no more.
        kept = len(self._NAMES[0]) - 1
        if data.find(b'"') >= 0:
            before, first = self._before, data[:kept]
            for number, name in enumerate(self._NAMES):
                across = (before + first).count(name) - before.count(name) - first.count(name)
                self._counts[number] += _count_name(data, name) + across
        self._before = (self._before + data[-kept:])[-kept:]
        super().look(data)

    def seen(self) -> ReplySeen | None:
        """What was seen of a whole reply; None where it is to be parsed: it is small, or an error, or no reply."""
        if self._bytes <= PARSED_BYTES_MAX or not self.is_complete or not self.count_output():
            return None
        return ReplySeen(self.usage, self.count_output, False)

    def count_output(self) -> int:
        return max(self._counts)


def _count_name(data: bytes, name: bytes) -> int:
    """How often a name in quotes occurs. Base64 has no quotes, and a byte is found twenty times as fast as a name."""
    count, at = 0, data.find(b'"')
    for _ in range(_QUOTES_MAX):
        if at < 0:
            return count
        count += data.startswith(name, at)
        at = data.find(b'"', at + 1)
    return count + (data.count(name, at) if at >= 0 else 0)


_UNBOUNDED = CallRequest(
    model="",
    wants_usage=True,
    output=Output.NONE,
)


def _bounded(request: CallRequest, asked: _Asked, model: str) -> CallRequest:
    """`request` with the bounds of what is asked of this model, by its own name."""
    variants = _variants(asked)
    found = _SIZE.fullmatch(asked.size)
    size = None if found is None else (int(found[1]), int(found[2]))
    each = image_output_tokens_max(model, asked.quality, size) * asked.frames
    is_exact = size is not None and asked.quality not in ("", "auto") and each < IMAGE_OUTPUT_TOKENS_MAX
    made = asked.images * (each + asked.partials * PARTIAL_IMAGE_TOKENS)
    return request._replace(
        extra_max={
            Meter.INPUT: asked.prompt_bytes + TEMPLATE_TOKENS_MAX,
            Meter.IMAGE_INPUT: asked.images_in * IMAGE_TOKENS_MAX,
            Meter.IMAGE_OUTPUT: made,
            Meter.OUTPUT: asked.images * TEXT_OUTPUT_TOKENS_MAX,
            **dict.fromkeys(variants, asked.images),
        },
        extra_estimate={
            Meter.INPUT: tokens_from_bytes(asked.prompt_bytes),
            Meter.IMAGE_INPUT: asked.images_in * IMAGE_INPUT_TOKENS_ESTIMATE,
        },
        alternatives=(*BY_TOKENS, *(frozenset({variant}) for variant in variants)),
        output_units={
            Meter.IMAGE_OUTPUT: each if is_exact else min(each, IMAGE_OUTPUT_TOKENS_ESTIMATE),
            **dict.fromkeys(variants, 1),
        },
        counted=frozenset(variants),
        for_model=lambda made_so_far, name: made_so_far if name == model else _bounded(made_so_far, asked, name),
    )


def _variants(asked: _Asked) -> list[str]:
    """The meters by which an image may be priced, the likeliest first."""
    qualities = {"": _QUALITIES_ABSENT, "auto": _QUALITIES_AUTO}.get(asked.quality, (asked.quality,))
    sizes = {"": _SIZES_AUTO[::-1], "auto": _SIZES_AUTO}.get(asked.size, (asked.size,))
    return [f"{Meter.IMAGES}/{quality}/{size}" for quality in qualities for size in sizes]


def _size(size: str) -> str:
    if size not in ("", "auto") and not _SIZE.fullmatch(size):
        raise InvalidRequest("'size' must be 'auto' or WIDTHxHEIGHT, such as '1024x1024'.", param="size")
    return size


def _quality(quality: str) -> str:
    if quality and not _QUALITY.fullmatch(quality):
        raise InvalidRequest("'quality' must be a word, such as 'high'.", param="quality")
    return quality


def _frames(output_format: str, frames: int | None) -> int:
    """How many images a file is made of at most."""
    if output_format == "svg":
        raise not_metered("output_format")
    return (frames or FRAMES_MAX) if output_format == "gif" else 1


def _text(request: Mapping[str, object], name: str) -> str:
    value = request.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name!r} must be a string.", param=name)
    return value or ""


def _count(images: object) -> int:
    """How many images a member names: none, one, or a list of them."""
    return len(images) if isinstance(images, list) else int(images is not None)


def _rename(quantities: dict[str, int], source: str, target: str) -> None:
    if source in quantities:
        quantities[target] = quantities.get(target, 0) + quantities.pop(source)
