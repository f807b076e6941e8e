"""Images: what they may cost, and what each kind of reply is charged, worked out by hand in nanos.

Prices (tests/support/studio.py): by the image 10 (low) or 160 (high), square, else 170; by tokens 5 for text, 8 for
images that are read, 30 for those that are made.
"""

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.catalogue import Meter
from gateway.core.usage import InvalidUsage, Limits
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.images import PARSED_BYTES_MAX, ImageEdits, ImageGenerations, ImageVariations, LargeImages
from gateway.errors import ModelNotFound
from gateway.request.meter import Ending
from tests.support.forms import File, form_of
from tests.support.studio import charge_of, charge_of_stream, offer_for

MADE, EDITED, VARIED = ImageGenerations(), ImageEdits(), ImageVariations()
LIMITS = Limits(1_000_000, 2_000)
IMAGE = File("image", b"\x89PNG" + bytes(100), "cat.png", "image/png")
USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"text_tokens": 12, "image_tokens": 8},
    "output_tokens": 272,
    "total_tokens": 292,
}
WITH_TEXT = USAGE | {"output_tokens_details": {"image_tokens": 250, "text_tokens": 22}}


def body(model: str = "gpt-image-1", **members: object) -> bytes:
    asked = {"model": model, "prompt": "A cat.", "size": "1024x1024", "quality": "low"} | members
    return orjson.dumps({name: value for name, value in asked.items() if value is not ...})


def reply(images: int = 1, **members: object) -> bytes:
    return orjson.dumps({"created": 1, "data": [{"b64_json": "AAAA"}] * images, **members})


def form(model: str = "gpt-image-1", *items: Any) -> list[Any]:
    return [("model", model), ("prompt", "A cat."), ("size", "1024x1024"), ("quality", "low"), *(items or (IMAGE,))]


def event(**members: object) -> bytes:
    return f"event: {members['type']}\ndata: {orjson.dumps(members).decode()}\n\n".encode()


PARTIAL = event(type="image_generation.partial_image", b64_json="A" * 500_000, partial_image_index=0)
COMPLETED = event(type="image_generation.completed", b64_json="A" * 700_000, usage=USAGE)
EXACT = 12 * 5 + 8 * 8 + 272 * 30


@pytest.mark.parametrize(
    ("model", "members", "sent", "charge", "basis"),
    [
        ("gpt-image-1", {}, reply(usage=USAGE), EXACT, "reported"),
        ("gpt-image-1", {"n": 3}, reply(3, usage=USAGE), EXACT, "reported"),
        # Text that is written while planning is charged where it has a price, and else is free.
        ("gpt-image-2", {}, reply(usage=WITH_TEXT), 124 + 250 * 30 + 22 * 10, "reported"),
        ("gpt-image-1", {}, reply(usage=WITH_TEXT), 124 + 250 * 30, "reported"),
        # Without usage: 6 bytes of prompt are 2 tokens, and a low square image 272 at most.
        ("gpt-image-1", {}, reply(), 2 * 5 + 272 * 30, "estimated"),
        ("gpt-image-1", {"n": 2}, reply(2), 2 * 5 + 2 * 272 * 30, "estimated"),
        ("gpt-image-1", {}, reply(usage={"total_tokens": -1, "output_tokens": 3}), 10 + 8_160, "estimated"),
        ("gpt-image-1", {"quality": ...}, reply(), 2 * 5 + 4_160 * 30, "estimated"),
        ("other-image", {}, reply(), 2 * 5 + 4_160 * 30, "estimated"),
        # By the image: counted, whatever the upstream says of tokens.
        ("by-image", {}, reply(), 10, "reported"),
        ("by-image", {"n": 4}, reply(4), 40, "reported"),
        ("by-image", {"n": 4}, reply(3), 30, "reported"),
        ("by-image", {"quality": "high"}, reply(usage=USAGE), 160, "reported"),
        ("by-image", {"quality": "high", "size": "1536x1024"}, reply(), 170, "reported"),
        ("by-image", {"quality": ...}, reply(), 170, "reported"),
        ("by-image", {"quality": "auto"}, reply(), 160, "reported"),
        ("by-image", {"quality": "auto", "size": "auto"}, reply(), 170, "reported"),
    ],
)
def test_a_reply_is_charged(model: str, members: dict[str, Any], sent: bytes, charge: int, basis: str) -> None:
    offer = offer_for(MADE, body(model, **members))
    found = charge_of(offer, sent)
    assert (found.cost_nanos, found.basis) == (charge, basis)
    assert found.cost_nanos <= offer.ceiling.nanos


@pytest.mark.parametrize(
    ("pieces", "ending", "charge"),
    [
        ([PARTIAL, PARTIAL, COMPLETED], Ending.COMPLETED, EXACT),
        ([PARTIAL, PARTIAL], Ending.BROKE, 10 + 272 * 30),
        ([PARTIAL], Ending.CLIENT_GONE, 10 + 272 * 30),
        # Most of its last event: an image in all but name.
        ([COMPLETED[:600_000]], Ending.CLIENT_GONE, 10 + 272 * 30),
        ([COMPLETED[:200_000]], Ending.CLIENT_GONE, 10),
        ([event(type="image_generation.completed", b64_json="AA")], Ending.COMPLETED, 10 + 272 * 30),
        ([event(type="image_edit.completed", b64_json="AA", usage=USAGE)], Ending.COMPLETED, EXACT),
    ],
)
def test_a_stream_is_charged(pieces: list[bytes], ending: Ending, charge: int) -> None:
    offer = offer_for(MADE, body(stream=True, partial_images=3))
    found = charge_of_stream(offer, "text/event-stream", *pieces, ending=ending)
    assert found.cost_nanos == charge <= offer.ceiling.nanos


def test_nothing_came() -> None:
    offer = offer_for(MADE, body())
    assert charge_of(offer, b'{"error":{"message":"no"}}').is_void
    assert charge_of_stream(offer, "text/event-stream", ending=Ending.BROKE).is_void
    assert charge_of(offer_for(MADE, body("by-image")), reply(0)).cost_nanos == 0


@pytest.mark.parametrize(
    ("members", "image_output"),
    [
        ({}, 272),
        ({"n": 10}, 2_720),
        ({"stream": True, "partial_images": 3}, 272 + 300),
        ({"partial_images": 0}, 272),
        ({"quality": "high"}, 7_024),
        ({"quality": "auto", "size": "auto"}, 23_719),
        ({"quality": None, "size": None}, 23_719),
        ({"output_format": "gif", "frame_count": 4}, 1_088),
        ({"output_format": "gif"}, 16 * 272),
        ({"size": "3840x2160", "quality": "high"}, 13_342),
    ],
)
def test_the_bounds(members: dict[str, Any], image_output: int) -> None:
    request = MADE.read_request(body(**members))
    assert request.extra_max[Meter.IMAGE_OUTPUT] == image_output
    assert request.extra_max[Meter.INPUT] == 6 + 256


def test_the_bound_is_that_of_the_model_by_its_own_name() -> None:
    request = MADE.read_request(body("my-alias"))
    assert request.extra_max[Meter.IMAGE_OUTPUT] == 23_719
    assert request.for_model is not None
    assert request.for_model(request, "gpt-image-1").extra_max[Meter.IMAGE_OUTPUT] == 272


def test_what_is_read_is_bounded_by_the_image() -> None:
    mask = File("mask", b"\x89PNG")
    two = form("gpt-image-1", IMAGE._replace(name="image[]"), IMAGE._replace(name="image[]"), mask)
    assert offer_for(EDITED, two).request.extra_max[Meter.IMAGE_INPUT] == 3 * 48_600
    urls = [{"image_url": "https://x/y.png"}, {"file_id": "file-1"}]
    assert offer_for(EDITED, body(images=urls)).request.extra_max[Meter.IMAGE_INPUT] == 2 * 48_600
    plain = {name: value for name, value in USAGE.items() if name != "input_tokens_details"}
    assert charge_of(offer_for(EDITED, form()), reply(usage=plain)).cost_nanos == 20 * 8 + 272 * 30
    assert charge_of(offer_for(EDITED, form()), reply(usage=USAGE)).cost_nanos == EXACT
    variation: list[Any] = [("model", "by-image"), ("size", "1024x1024"), ("n", "2"), IMAGE]
    assert charge_of(offer_for(VARIED, variation), reply(2)).cost_nanos == 2 * 170


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        ({"model": None}, ("model", "invalid_request")),
        ({"model": []}, ("model", "invalid_request")),
        ({"prompt": None}, ("prompt", "invalid_request")),
        ({"prompt": ["a"]}, ("prompt", "invalid_request")),
        *[({"n": value}, ("n", "invalid_request")) for value in (0, -1, 11, 1.5, "2", True, [2])],
        ({"stream": "true"}, ("stream", "invalid_request")),
        ({"stream": True, "n": 2}, ("n", "not_metered")),
        *[({"partial_images": value}, ("partial_images", "invalid_request")) for value in (-1, 4, "1", False)],
        *[({"frame_count": value}, ("frame_count", "invalid_request")) for value in (0, 17, "2")],
        *[({"size": value}, ("size", "invalid_request")) for value in ("big", "0x0", "1x1", "-1x1024", "1024X1024", 7)],
        *[({"size": value}, ("size", "invalid_request")) for value in ("1024x1024 ", "100000x1024")],
        *[({"quality": value}, ("quality", "invalid_request")) for value in ("HIGH", "a/b", "ü", 1, "x" * 25)],
        ({"output_format": "svg"}, ("output_format", "not_metered")),
        ({"svg": {"model": "gpt-6"}}, ("svg", "not_metered")),
        ({"N": 1}, ("n", "duplicate_member")),
    ],
)
def test_bad_requests_are_refused(members: dict[str, Any], refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        MADE.read_request(body(**members))
    assert (caught.value.param, caught.value.code) == refused


@pytest.mark.parametrize(
    ("items", "refused"),
    [
        ([("prompt", "x"), IMAGE], ("model", "invalid_request")),
        ([("model", "m"), IMAGE], ("prompt", "invalid_request")),
        ([("model", "m"), ("prompt", "x")], ("image", "invalid_request")),
        ([("model", "m"), ("prompt", "x"), File("mask", b"x")], ("image", "invalid_request")),
        ([*form(), ("n", "0")], ("n", "invalid_request")),
        ([*form(), ("n", "1"), ("n", "2")], ("n", "duplicate_member")),
        ([*form(), ("N", "2")], ("n", "duplicate_member")),
        ([*form(), ("size[]", "1x1")], ("size", "duplicate_member")),
        ([*form(), ("svg[model]", "gpt-6")], ("svg", "not_metered")),
        ([*form(), ("output_format", "svg")], ("output_format", "not_metered")),
        ([*form(), ("stream", "true"), ("n", "2")], ("n", "not_metered")),
        ([*form(), ("image", "text")], ("image", "invalid_request")),
        (form("m", IMAGE._replace(content=b"")), ("image", "invalid_request")),
        (form("m", *[IMAGE] * 65), ("image", "invalid_request")),
    ],
)
def test_bad_forms_are_refused(items: list[Any], refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        EDITED.read_form(form_of(*items))
    assert (caught.value.param, caught.value.code) == refused


def test_no_image_to_edit_and_no_price() -> None:
    with pytest.raises(InvalidRequest):
        EDITED.read_request(body())
    with pytest.raises(ModelNotFound):
        offer_for(MADE, body("by-time"))


@pytest.mark.parametrize("piece", [1, 7, 1_000])
def test_large_replies_are_counted_as_they_pass(piece: int) -> None:
    sent = orjson.dumps({"data": [{"url": None, "b64_json": "A" * 500, "revised_prompt": '"url"'}] * 3, "usage": USAGE})
    large = LargeImages()
    out = b"".join(large.feed(sent[at : at + piece]) for at in range(0, len(sent), piece)) + large.finish()
    assert out == sent
    assert (large.count_output(), large.usage, large.is_complete) == (3, USAGE, True)


@pytest.mark.parametrize("wrong", [{"output_tokens": 10**8, "total_tokens": 10**8 + 20}, {"total_tokens": 3}])
def test_usage_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidUsage):
        MADE.read_usage(USAGE | wrong, LIMITS)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b'"b64_json"', b'"url"', b'"', b'"b64_', b'json"', b'"ur', b"AAAA"]), max_size=12),
    st.lists(st.integers(0, 80), max_size=6),
)
def test_images_are_counted_wherever_the_reads_fall(parts: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(parts)
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    images = LargeImages()
    for start, end in itertools.pairwise([0, *ends, len(whole)]):
        images.look(whole[start:end])
    assert images.count_output() == max(whole.count(b'"b64_json"'), whole.count(b'"url"'))


def test_a_large_reply_says_the_same_whether_it_is_parsed_or_looked_through() -> None:
    usage = {"input_tokens": 9, "output_tokens": 272, "total_tokens": 281}
    data = [{"b64_json": "A" * PARSED_BYTES_MAX, "revised_prompt": 'a "url" and a "b64_json"'}] * 3
    whole = orjson.dumps({"created": 1, "data": data, "usage": usage})
    images, parsed = LargeImages(), MADE.read_reply(whole)
    for start in range(0, len(whole), 50_000):
        images.look(whole[start : start + 50_000])
    seen = images.seen()
    assert seen is not None
    assert (seen.usage, seen.count_output(), seen.failed) == (parsed.usage, parsed.count_output(), parsed.failed)
    assert (seen.usage, seen.count_output()) == (usage, 3)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"data":[{"b64_json":"AAAA"}]}',
        b'{"error":{"message":"%b"}}' % (b"x" * PARSED_BYTES_MAX),
        b'{"data":[{"b64_json":"%b"}]' % (b"A" * PARSED_BYTES_MAX),
        b"<html>%b</html>" % (b"x" * PARSED_BYTES_MAX),
    ],
)
def test_what_is_small_or_no_image_is_parsed(answer: bytes) -> None:
    images = LargeImages()
    images.look(answer)
    assert images.seen() is None
