"""A form is read one way, whatever pieces it comes in, or not at all."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.multipart import (
    FIELD_BYTES_MAX,
    HEAD_BYTES_MAX,
    PARTS_MAX,
    Form,
    FormScanner,
    MalformedForm,
    Part,
    boundary_of,
)
from tests.support.forms import BOUNDARY, File, form_bytes

AUDIO = File("file", b"\r\n--not the boundary\r\n\r\n--\x00\xff", "speech.wav", "audio/wav")


def scan(body: bytes, cuts: list[int] | None = None) -> tuple[Part, ...]:
    scanner = FormScanner(BOUNDARY.encode())
    at = 0
    for cut in [*sorted(cuts or []), len(body)]:
        scanner.feed(body[at:cut])
        at = max(at, cut)
    return scanner.finish()


def form_of(body: bytes) -> Form:
    stream = io.BytesIO(body)

    def read(start: int, size: int) -> bytes:
        stream.seek(start)
        return stream.read(size)

    return Form(scan(body), len(body), read)


def test_parts_and_where_they_stand() -> None:
    body = form_bytes(AUDIO, ("model", "whisper-1"), ("prompt", ""))
    file, model, prompt = scan(body)
    assert (file.name, file.filename, file.content_type, file.value) == ("file", "speech.wav", "audio/wav", None)
    assert body[file.start : file.end] == AUDIO.content
    assert (model.name, model.filename, model.value) == ("model", None, b"whisper-1")
    assert body[model.start : model.end] == b"whisper-1"
    assert (prompt.value, prompt.size_bytes) == (b"", 0)


@settings(max_examples=150, deadline=None)
@given(
    contents=st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from([b"\r\n", b"--", BOUNDARY[:5].encode(), b"\r", b"x"]))),
        max_size=4,
    ),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
def test_any_split_reads_the_same(contents: list[tuple[bool, list[bytes]]], cuts: list[int]) -> None:
    items = [
        File(f"f{number}", b"".join(content), "x.bin") if is_file else (f"f{number}", b"".join(content).decode())
        for number, (is_file, content) in enumerate(contents)
    ]
    body = form_bytes(*items)
    whole = scan(body)
    assert scan(body, cuts) == whole == scan(body, list(range(len(body))))
    assert [body[part.start : part.end] for part in whole] == [b"".join(content) for _, content in contents]


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from(
            [
                b"--" + BOUNDARY.encode(),
                b"\r\n--" + BOUNDARY.encode(),
                b"--",
                b"\r\n",
                b"\r\n\r\n",
                b"\n",
                b'Content-Disposition: form-data; name="model"',
                b'; filename="a"',
                b"Content-Type: x",
                b"m",
                b'"',
                b"\xff",
            ]
        ),
        max_size=20,
    ),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
def test_any_bytes_are_read_the_same_in_any_pieces(pieces: list[bytes], cuts: list[int]) -> None:
    def outcome(where: list[int]) -> tuple[Part, ...] | None:
        try:
            return scan(b"".join(pieces), where)
        except MalformedForm:
            return None

    assert outcome(cuts) == outcome([])


HEAD = b'Content-Disposition: form-data; name="model"'


def one_part(head: bytes, content: bytes = b"m") -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (BOUNDARY.encode(), head, content, BOUNDARY.encode())


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        HEAD.replace(b'"', b""),
        HEAD.lower(),
        HEAD + b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 1",
        HEAD + b"\r\nContent-Transfer-Encoding: 8bit",
    ],
)
def test_spellings_of_a_field(head: bytes) -> None:
    (part,) = scan(one_part(head))
    assert (part.name, part.value) == ("model", b"m")


def test_a_filename_may_be_encoded() -> None:
    (part,) = scan(one_part(HEAD + b"; filename*=utf-8''na%C3%AFve.wav"))
    assert (part.filename, part.value) == ("utf-8''na%C3%AFve.wav", None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--",
        b"preamble\r\n" + one_part(HEAD),
        one_part(HEAD) + b"epilogue",
        one_part(HEAD) + b"\r\n",
        one_part(HEAD)[:-4],
        one_part(HEAD)[:-6],
        one_part(HEAD).replace(b"\r\n", b"\n"),
        one_part(b""),
        one_part(b"Content-Type: text/plain"),
        one_part(HEAD + b"\r\n" + HEAD),
        one_part(HEAD + b'; name="file"'),
        one_part(HEAD + b"; name*=utf-8''file"),
        one_part(HEAD + b'\r\n; filename="x"'),
        one_part(HEAD + b'\r\n filename="x"'),
        one_part(HEAD + b"\r\nContent-Transfer-Encoding: base64"),
        one_part(HEAD + b"\nX: y"),
        one_part(HEAD.replace(b"model", b"mod\xe9l")),
        one_part(HEAD.replace(b"model", b"mod%65l")),
        one_part(HEAD.replace(b"model", b'mo\\"del')),
        one_part(HEAD.replace(b"model", b"")),
        one_part(HEAD.replace(b"model", b"m" * 201)),
        one_part(HEAD.replace(b"form-data", b"attachment")),
        one_part(HEAD + b"\r\nX: " + b"x" * HEAD_BYTES_MAX),
        one_part(HEAD, b"x" * (FIELD_BYTES_MAX + 1)),
        form_bytes(*[("x", "y")] * (PARTS_MAX + 1)),
        form_bytes(*[(f"x{number}", "y" * FIELD_BYTES_MAX) for number in range(5)]),
        one_part(HEAD).replace(BOUNDARY.encode() + b"\r\nC", BOUNDARY.encode() + b" \r\nC"),
        one_part(HEAD, b"--" + BOUNDARY.encode() + b"\r\n" + HEAD + b"\r\n\r\nother"),
        one_part(HEAD, b"m\n--" + BOUNDARY.encode() + b"\r\n" + HEAD + b"\r\n\r\nother"),
        one_part(HEAD, b"m\r--" + BOUNDARY.encode() + b"--"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedForm):
        scan(body)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b"', None),
        ('multipart/form-data; boundary="a:b"', b"a:b"),
        ("multipart/form-data; boundary=----WebKitFormBoundaryAb1", b"----WebKitFormBoundaryAb1"),
        ("multipart/form-data; boundary=a; boundary*=utf-8''b", None),
        ("multipart/form-data", None),
        ("multipart/form-data; boundary=", None),
        ("multipart/form-data; boundary=a; boundary=b", None),
        ("multipart/form-data; boundary=" + "b" * 71, None),
    ],
)
def test_the_boundary(content_type: str, boundary: bytes | None) -> None:
    if boundary is None:
        with pytest.raises(MalformedForm):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary
    assert boundary_of("application/json; boundary=abc") is None


def test_a_value_is_replaced_where_it_stands() -> None:
    form = form_of(form_bytes(AUDIO, ("model", "mine"), ("language", "en")))
    renamed = b"".join(form.with_value("model", b"theirs-2"))
    assert renamed == form_bytes(AUDIO, ("model", "theirs-2"), ("language", "en"))
    assert form.size_with("model", b"theirs-2") == len(renamed)


def test_the_digest_is_of_what_is_said() -> None:
    form = form_of(form_bytes(AUDIO, ("model", "m")))
    other = form_bytes(AUDIO, ("model", "m")).replace(BOUNDARY.encode(), b"another")
    scanner = FormScanner(b"another")
    scanner.feed(other)
    same = Form(scanner.finish(), len(other), lambda start, size: other[start : start + size])
    assert form.digest() == same.digest()
    assert form.digest() != form_of(form_bytes(AUDIO, ("model", "n"))).digest()
    assert form.digest() != form_of(form_bytes(AUDIO._replace(content=b"x"), ("model", "m"))).digest()


@pytest.mark.parametrize("value", [b"", b"model", b"whisper-1", b"m" * 300])
@pytest.mark.parametrize("already", [[], [("model", "other")], [("model", "")]])
def test_a_field_is_set_where_it_stands_or_in_front(already: list[tuple[str, str]], value: bytes) -> None:
    before = form_of(form_bytes(("language", "en"), *already, File("file", b"RIFF" * 50), ("prompt", "Hi")))
    after = before.with_field(BOUNDARY.encode(), "model", value)
    whole = b"".join(after.bytes_of(0, after.size_bytes))
    assert len(whole) == after.size_bytes
    assert set(after.parts) == set(scan(whole)), "what it says of itself is what stands there"
    assert {part.name: whole[part.start : part.end] for part in after.parts} == {
        "model": value, "language": b"en", "file": b"RIFF" * 50, "prompt": b"Hi"
    }  # fmt: skip
    for at in range(after.size_bytes):
        assert whole.startswith(after.read(at, 7), at)
        assert after.read(at, 7)
    assert b"".join(after.with_value("model", b"again")).count(b"again") == 1


def test_a_field_that_is_given_twice_is_for_others_to_refuse() -> None:
    form = form_of(form_bytes(("model", "one"), ("model", "two")))
    assert form.with_field(BOUNDARY.encode(), "model", b"three") is form
