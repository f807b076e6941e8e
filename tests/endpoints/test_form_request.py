"""Fields of forms, whatever the endpoint (see test_transcription.py and test_images.py for each)."""

import pytest

from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.form_request import FormNames, form_flag, form_whole, read_form_parts
from tests.support.forms import File, form_of

NAMES = FormNames(frozenset({"n", "model"}), frozenset({"image", "image[]"}))


def test_fields_and_files() -> None:
    form = form_of(("n", "3"), ("user", "a"), ("user", "b"), File("image[]", b"x"), File("image[]", b"y"))
    fields, files = read_form_parts(form, NAMES)
    assert fields == {"n": "3"}
    assert [file.name for file in files] == ["image[]", "image[]"]


@pytest.mark.parametrize("value", ["0", "-1", "11", "1.0", "", " 1", "1e0", "\u0661", "true", "1" * 10])
def test_what_is_no_whole_number(value: str) -> None:
    with pytest.raises(InvalidRequest):
        form_whole({"n": value}, "n", 10)
    assert form_whole({"n": "10"}, "n", 10) == 10
    assert form_whole({}, "n", 10) is None


def test_flags() -> None:
    assert [form_flag({"s": value}, "s") for value in ("true", "True", "1", "false", "0", "")] == [True] * 3 + [
        False
    ] * 3
    assert form_flag({}, "s") is False
    with pytest.raises(InvalidRequest):
        form_flag({"s": "yes"}, "s")


@pytest.mark.parametrize("name", ["N", "n[]", "n[0]", "Image", "image[0]", "IMAGE[]", "n "])
def test_other_spellings_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_form_parts(form_of((name, "1")), NAMES)
    assert caught.value.code == "duplicate_member"
