"""The demo upstream: what `farebox` meters when nobody has configured a real one.

It answers chat completions with a short canned text, at once or word by word, and reports honest usage: one output
token per word, and input by a simple rule (`prompt_tokens`). It knows no keys and keeps nothing. The gateway talks to
it over a socket like to any other upstream, so that a first try exercises the real path.
"""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import orjson
from aiohttp import web

MODELS = ("demo-chat", "demo-free")
# As the shipped catalogue says of these models.
CONTEXT_TOKENS_MAX = 16_384
OUTPUT_TOKENS_MAX = 4_096
CHOICES_MAX = 16
BODY_BYTES_MAX = 4 * 1024 * 1024
PAUSE_SECONDS = 0.02

Json = dict[str, object]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PAUSE = web.AppKey("pause", float)


class Refused(Exception):
    """A request the demo does not answer, as OpenAI would say it."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the demo reads of a chat request. `output_tokens_cap` is per choice."""

    model: str
    prompt_tokens: int
    prompt_characters: int
    stream: bool
    include_usage: bool
    choices: int
    output_tokens_cap: int


def demo_app(*, pause_seconds: float = PAUSE_SECONDS) -> web.Application:
    """An application to be run on a loopback port. `pause_seconds` passes between the words of a stream."""
    app = web.Application(client_max_size=BODY_BYTES_MAX, middlewares=[envelope])
    app[PAUSE] = pause_seconds
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_get("/v1/models", list_models)
    return app


@web.middleware
async def envelope(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal in OpenAI's envelope, aiohttp's own 404, 405 and 413 included."""
    try:
        return await handler(request)
    except Refused as refused:
        return _error(refused.status, refused.message, refused.param, refused.code)
    except web.HTTPException as refused:
        return _error(refused.status, f"{request.method} {request.path}: {refused.reason}.", None, None)


async def list_models(_: web.Request) -> web.Response:
    """OpenAI's list of models."""
    models = [{"id": name, "object": "model", "created": 0, "owned_by": "farebox"} for name in MODELS]
    return _json({"object": "list", "data": models})


@asynccontextmanager
async def demo_upstream() -> AsyncIterator[str]:
    """The demo upstream on a free loopback port, while the context lasts; its base URL."""
    runner = web.AppRunner(demo_app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, shutdown_timeout=0.5)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """A `chat.completion`, or its chunks."""
    asked = read_chat_request(await request.read())
    all_words = answer(asked)
    words = all_words[: asked.output_tokens_cap]
    finish_reason = "stop" if len(words) == len(all_words) else "length"
    head: Json = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion.chunk" if asked.stream else "chat.completion",
        "created": int(time.time()),
        "model": asked.model,
    }
    if asked.stream:
        return await _stream(request, asked, head, words, finish_reason)
    message = {"role": "assistant", "content": "".join(words), "refusal": None}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": finish_reason}
        for index in range(asked.choices)
    ]
    return _json({**head, "choices": choices, "usage": usage(asked, len(words))})


async def _stream(
    request: web.Request, asked: ChatRequest, head: Json, words: list[str], finish_reason: str
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    await response.prepare(request)
    tail: Json = {"usage": None} if asked.include_usage else {}
    deltas: Iterator[tuple[Json, str | None]] = itertools.chain(
        [({"role": "assistant", "content": ""}, None)],
        (({"content": word}, None) for word in words),
        [({}, finish_reason)],
    )
    for delta, reason in deltas:
        for index in range(asked.choices):
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
            await response.write(_event({**head, "choices": [choice], **tail}))
        if "content" in delta and request.app[PAUSE]:
            await asyncio.sleep(request.app[PAUSE])
    if asked.include_usage:
        await response.write(_event({**head, "choices": [], "usage": usage(asked, len(words))}))
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def answer(asked: ChatRequest) -> list[str]:
    """The canned answer, a list of tokens: words, each but the first with its space."""
    text = (
        f"Hello from Farebox! Your prompt had {asked.prompt_characters:,} characters, "
        f"which this demo counts as {asked.prompt_tokens:,} tokens. "
        "I am a canned answer, yet metered like a real one: a hold was placed before the first word, "
        "and the exact cost is settled after the last. "
        "Set FAREBOX_UPSTREAM_BASE_URL to talk to a real model."
    )
    first, *rest = text.split()
    return [first, *(f" {word}" for word in rest)]


def usage(asked: ChatRequest, words: int) -> Json:
    """OpenAI's usage object; a word is a token."""
    completion_tokens = words * asked.choices
    return {
        "prompt_tokens": asked.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": asked.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def prompt_tokens(texts: list[str]) -> int:
    """Three to begin with, three per message, and one for each started four bytes of its text."""
    return 3 + sum(3 - (-len(text.encode(errors="replace")) // 4) for text in texts)


def read_chat_request(body: bytes) -> ChatRequest:
    """Raises Refused, naming the field."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        document = None
    if not isinstance(document, dict):
        raise Refused(400, "The body must be a JSON object.")
    model = document.get("model")
    if model not in MODELS:
        raise Refused(
            404, f"The model {model!r} does not exist; try {MODELS[0]}.", param="model", code="model_not_found"
        )
    texts = _texts(document.get("messages"))
    tokens = prompt_tokens(texts)
    if tokens > CONTEXT_TOKENS_MAX:
        message = f"The context is {CONTEXT_TOKENS_MAX} tokens long; your messages have {tokens}."
        raise Refused(400, message, param="messages", code="context_length_exceeded")
    stream = document.get("stream") is True
    options = document.get("stream_options")
    if options is not None and not (stream and isinstance(options, dict)):
        raise Refused(400, "stream_options is an object, and only for a stream.", param="stream_options")
    caps = [_whole(document, name, OUTPUT_TOKENS_MAX) for name in ("max_completion_tokens", "max_tokens")]
    return ChatRequest(
        model=model,
        prompt_tokens=tokens,
        prompt_characters=sum(map(len, texts)),
        stream=stream,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        choices=_whole(document, "n", CHOICES_MAX) or 1,
        output_tokens_cap=min(cap for cap in (*caps, OUTPUT_TOKENS_MAX) if cap is not None),
    )


def _texts(messages: object) -> list[str]:
    """The text of each message."""
    if not isinstance(messages, list) or not messages:
        raise Refused(400, "messages must be a list with at least one message.", param="messages")
    return [_text(message, f"messages.{number}") for number, message in enumerate(messages)]


def _text(message: object, param: str) -> str:
    """The text of one message; none where its content is null, as in a call of a tool."""
    if not isinstance(message, dict):
        raise Refused(400, "A message must be an object.", param=param)
    content = message.get("content") or ""
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if len(texts) != len(parts):
        raise Refused(400, "The demo reads text only.", param=f"{param}.content")
    return "".join(texts)


def _whole(document: dict[str, object], name: str, most: int) -> int | None:
    """A whole number from 1 to `most`, or None where it is absent or null."""
    value = document.get(name)
    if value is not None and (type(value) is not int or not 1 <= value <= most):
        raise Refused(400, f"{name} must be a whole number from 1 to {most}.", param=name)
    return value


def _event(document: Json) -> bytes:
    return b"data: " + orjson.dumps(document) + b"\n\n"


def _json(document: Json, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


def _error(status: int, message: str, param: str | None, code: str | None) -> web.Response:
    error: Json = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return _json({"error": error}, status)
