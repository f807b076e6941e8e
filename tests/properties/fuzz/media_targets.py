"""Targets for what clients upload and say in sessions: forms, files of sound, frames. See targets.py."""

import contextlib
from email import message_from_string

from gateway.core.audio_containers import audio_length
from gateway.core.audio_length import NotAudio
from gateway.core.multipart import FIELDS_BYTES_MAX, FormScanner, MalformedForm, Part
from gateway.endpoints.endpoint import InvalidRequest
from gateway.endpoints.realtime_events import read_upstream
from gateway.endpoints.realtime_frames import read_client, with_event_id, with_models
from tests.properties.fuzz.reads import reads_of
from tests.support.sounds import aac, flac, mp3, mp4, opus, wav, webm

BOUNDARY = b"b0"


def form(data: bytes) -> None:
    """A form is refused in one way only; what is found does not depend on the reads, and a plain parser finds it."""
    whole, reads = reads_of(data)
    found: list[tuple[Part, ...] | None] = []
    for pieces in ([whole], reads):
        scanner = FormScanner(BOUNDARY)
        try:
            for read in pieces:
                scanner.feed(read)
            found.append(scanner.finish())
        except MalformedForm:
            found.append(None)
    assert found[0] == found[1]
    if found[0] is None:
        return
    # By RFC 2046: what stands between delimiters, each after a line end, the last one with two hyphens.
    _, *bodies, end = (b"\r\n" + whole).split(b"\r\n--" + BOUNDARY)
    assert end in (b"--", b"--\r\n")
    assert len(bodies) == len(found[0])
    for part, body in zip(found[0], bodies, strict=True):
        head, _, content = body.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        assert whole[part.start : part.end] == content
        assert part.value in (None, content)
        # Of the disposition alone: for a file's name this parser looks into the content type as well.
        headers = message_from_string(head.decode())
        assert part.name == headers.get_param("name", header="content-disposition")
        assert (part.value is None) == (headers.get_param("filename", header="content-disposition") is not None)
    assert sum(len(part.value or b"") for part in found[0]) <= FIELDS_BYTES_MAX


def sound(data: bytes) -> None:
    """Any file lasts some time, and is charged for no more than it is held for; or it is no sound."""
    read_bytes = 0

    def read(at: int, size: int) -> bytes:
        nonlocal read_bytes
        piece = data[at : at + size]
        read_bytes += len(piece)
        return piece

    with contextlib.suppress(NotAudio):
        length = audio_length(read, len(data))
        assert 0 < length.milliseconds_estimate <= length.milliseconds_max
    assert read_bytes <= 64 * len(data) + 64


def frames(data: bytes) -> None:
    """Any frame of a session is refused by name or bounded, and goes out as the same event."""
    with contextlib.suppress(InvalidRequest):
        frame = read_client(data)
        assert min(frame.text_bytes, frame.audio_bytes, frame.images) >= 0
        names_models = frame.starts or frame.session is not None
        sent = with_models(frame, "other", "another") if names_models else frame.data
        again = read_client(with_event_id(frame, sent, "event_1"))
        assert again.event_id == "event_1"
        assert (again.type, again.starts, again.audio_bytes) == (frame.type, frame.starts, frame.audio_bytes)
        assert again.output_cap == frame.output_cap
    seen = read_upstream(data)
    assert min(seen.text_bytes, seen.audio_bytes) >= 0


FORM = (
    b'--b0\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--b0\r\nContent-Disposition: form-data; name='
    b'"file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\r\n--b\r\n--b0--\r\n'
)
FRAMES = (
    b'{"type":"session.update","session":{"type":"realtime","model":"m","audio":{"input":{"transcription":{"model":"t"}}}}}',
    b'{"type":"response.create","event_id":"e","response":{"max_output_tokens":9,"input":[{"type":"message","content":[]}]}}',
    b'{"type":"input_audio_buffer.append","audio":"AAAA"}',
    b'{"type":"conversation.item.create","item":{"type":"message","content":[{"type":"input_text","text":"Hi"}]}}',
    b'{"type":"response.done","response":{"id":"r","status":"completed","usage":{"total_tokens":3}}}',
    b'{"type":"response.output_audio.delta","response_id":"r","delta":"AAAA"}',
)
MEDIA_SEEDS = (
    *(bytes((1, at)) + FORM for at in range(0, 256, 3)),
    *FRAMES,
    *(wav(50), mp3(3), aac(3), opus(3), flac(2), mp4(3, claimed_ms=200), webm(3)),
)
