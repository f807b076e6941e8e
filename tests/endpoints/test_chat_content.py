"""What messages hold besides text is found, counted apart from the text, or refused."""

import base64
from typing import Any

import pytest

from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.endpoints.chat_content import Content, read_messages
from gateway.endpoints.endpoint import InvalidRequest
from tests.support.media_files import data_url, png, wav


def found(*parts: Any) -> Content:
    return read_messages([{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}])


def image(url: object, **members: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url} | members}


def test_text_is_only_text() -> None:
    assert found().is_text
    assert read_messages(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "audio": None}]
    ).is_text


def test_a_data_url_is_an_image_and_no_text() -> None:
    url = data_url(png(1_024, 1_024) + bytes(100_000))
    for given in (image(url), {"type": "image_url", "image_url": url}):
        content = found(given)
        assert content.media_bytes == len(url)
        assert [content.images[0].tokens_max(model) for model in ("gpt-6", "gpt-4o", "llama")] == [
            1_229,
            1_445,
            IMAGE_TOKENS_MAX,
        ]
    other = found(image("data:text/plain," + "a" * 9_000))
    assert (other.media_bytes, len(other.images)) == (0, 1)


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "data:image/png,abc", "data:image/png;base64,?!", 7, None]
)
def test_an_image_of_unknown_size_has_the_largest(url: object) -> None:
    assert found(image(url)).images[0].tokens_max("gpt-6") == 36_000
    assert found(image(url, detail="low")).images[0].tokens_max("gpt-6") == 308


def test_sound_and_what_only_the_upstream_has() -> None:
    data = base64.b64encode(wav(2)).decode()
    sound = found(*[{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}] * 2)
    assert (sound.sounds, sound.media_bytes) == (2, 2 * len(data))
    assert 40 <= sound.sound_tokens_max <= 42
    file = found({"type": "file", "file": {"file_id": "f"}})
    assert file.stored == "messages[0].content[1]"
    assert read_messages([{"role": "assistant", "audio": {"id": "a"}}]).unheard == "messages[0].audio"


def test_the_longer_cache_is_told_from_the_shorter() -> None:
    for ttl, caches_long in (("12h", True), ("30m", False), (None, False)):
        part = {"type": "text", "text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": ttl}}
        assert found(part).caches_long is caches_long


@pytest.mark.parametrize(
    ("part", "refused"),
    [
        ({"type": "video_url"}, ("messages[0].content[1]", "not_metered")),
        ({"type": "input_audio", "input_audio": {"url": "u"}}, ("messages[0].content[1]", "not_metered")),
        ({"type": "input_audio", "input_audio": {"data": "https://u"}}, ("messages[0].content[1]", "invalid_request")),
        ({"type": "text", "prompt_cache_breakpoint": "12h"},
         ("messages[0].content[1].prompt_cache_breakpoint", "not_metered")),
    ],
)  # fmt: skip
def test_what_has_no_meter_is_refused(part: object, refused: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        found(part)
    assert (caught.value.param, caught.value.code) == refused
