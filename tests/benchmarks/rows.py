"""Rows of the benchmark beside chat: what is asked, what the mock answers, and whether the gateway serves its path."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

from gateway.core.catalogue import METERS
from gateway.web.routes import METERED

MEDIA_MODEL = "bench-media"
# A megabyte of base64, 2,000 numbers and 40 pieces of sound: what replies of these endpoints are like.
IMAGE_CHARS = 1_000_000
DIMENSIONS = 2_000
SOUND_CHUNKS, SOUND_CHUNK_BYTES = 40, 4_096
UPLOAD_BYTES = 5_000_000
SAMPLES_PER_SECOND = 16_000
# A whole reply that no relay should hold.
LARGE_MODEL = "bench-large"
LARGE_BYTES = 20_000_000
_BOUNDARY = "benchmark-3f2a9c"


class Row(NamedTuple):
    """One request, asked in a closed loop. `marker` is in the reply; `reply_bytes_min` says that all of it came."""

    name: str
    path: str  # below /v1
    content_type: str
    body: bytes
    connections: int
    marker: bytes
    reply_bytes_min: int


class Reply(NamedTuple):
    """What the mock answers on a path: bytes to write one after the other, each in a turn of its own."""

    content_type: str
    pieces: tuple[bytes, ...]
    is_chunked: bool = False


def _dump(document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _json_row(
    name: str, path: str, members: Mapping[str, object], connections: int, marker: bytes, reply_bytes_min: int
) -> Row:
    body = _dump({"model": MEDIA_MODEL, **members})
    return Row(name, path, "application/json", body, connections, marker, reply_bytes_min)


def _sound() -> bytes:
    """A WAV of silence: 16 bits, one channel."""
    data = bytes(UPLOAD_BYTES)
    size, rate = len(data), SAMPLES_PER_SECOND
    head = [b"RIFF", (36 + size).to_bytes(4, "little"), b"WAVEfmt ", (16).to_bytes(4, "little")]
    head += [number.to_bytes(2, "little") for number in (1, 1)]
    head += [number.to_bytes(4, "little") for number in (rate, 2 * rate)]
    head += [number.to_bytes(2, "little") for number in (2, 16)]
    return b"".join([*head, b"data", size.to_bytes(4, "little"), data])


def _upload() -> Row:
    part = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    fields = {"model": MEDIA_MODEL, "response_format": "json"}
    body = "".join(f'{part}"{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()).encode()
    body += f'{part}"file"; filename="talk.wav"\r\nContent-Type: audio/wav\r\n\r\n'.encode()
    body += _sound() + f"\r\n--{_BOUNDARY}--\r\n".encode()
    kind = f"multipart/form-data; boundary={_BOUNDARY}"
    return Row("upload", "/audio/transcriptions", kind, body, 4, b'"usage":{', 50)


ROWS = (
    _json_row("embeddings", "/embeddings", {"input": "What a relay does, in a few words."}, 64, b'"usage":{', 20_000),
    _json_row(
        "images",
        "/images/generations",
        {"prompt": "A relay at dusk", "n": 1, "size": "1024x1024", "quality": "low"},
        64,
        b'"usage":{',
        IMAGE_CHARS,
    ),
    _json_row(
        "speech",
        "/audio/speech",
        {"input": "A relay carries what it is given.", "voice": "alloy", "response_format": "mp3"},
        64,
        b"\r\n\r\n",
        SOUND_CHUNKS * SOUND_CHUNK_BYTES,
    ),
    _upload(),
)


def served_rows() -> tuple[Row, ...]:
    """Those whose path the gateway serves."""
    return tuple(row for row in ROWS if row.path in METERED)


def replies() -> dict[bytes, Reply]:
    """What the mock answers, by path."""
    vector = [math.sin(number) / 30 for number in range(1, DIMENSIONS + 1)]
    embeddings = {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "model": MEDIA_MODEL,
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }
    images = {
        "created": 1_760_000_000,
        "data": [{"b64_json": "A" * IMAGE_CHARS}],
        "usage": {
            "input_tokens": 9,
            "output_tokens": 272,
            "total_tokens": 281,
            "input_tokens_details": {"text_tokens": 9, "image_tokens": 0},
        },
    }
    seconds = -(-UPLOAD_BYTES // (2 * SAMPLES_PER_SECOND))
    heard = {"text": "A relay carries what it is given.", "usage": {"type": "duration", "seconds": seconds}}
    sound = bytes(SOUND_CHUNK_BYTES)
    return {
        b"/v1/embeddings": Reply("application/json", (_dump(embeddings),)),
        b"/v1/images/generations": Reply("application/json", (_dump(images),)),
        b"/v1/audio/speech": Reply("audio/mpeg", (sound,) * SOUND_CHUNKS, is_chunked=True),
        b"/v1/audio/transcriptions": Reply("application/json", (_dump(heard),)),
    }


def large_reply() -> Reply:
    """A chat completion of LARGE_BYTES, its usage at the end."""
    message = {"role": "assistant", "content": "word " * (LARGE_BYTES // 5)}
    usage = {"prompt_tokens": 88, "completion_tokens": 200, "total_tokens": 288}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    body = _dump({"id": "chatcmpl-1", "object": "chat.completion", "model": LARGE_MODEL, "choices": choices})
    whole = body[:-1] + b',"usage":' + _dump(usage) + b"}"
    return Reply("application/json", tuple(whole[at : at + 65_536] for at in range(0, len(whole), 65_536)))


# Every meter has a rate, so that no row is refused for its price.
RATES: Mapping[str, int] = dict.fromkeys(METERS, 1_000)
