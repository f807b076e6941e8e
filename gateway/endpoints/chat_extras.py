"""What few chats ask for, and what bounds it: sound in and out, images, files, predictions, searches, long caches.

Where the bound is that of what the upstream has stored, it is as large as can be, and the ceiling cuts it to the
model's context (gateway/core/ceiling.py).
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

import orjson

from gateway.core.catalogue import Meter
from gateway.core.image_tokens import IMAGE_TOKENS_MAX
from gateway.core.pricing import Quantities
from gateway.endpoints.chat_content import IMAGE_TOKENS_ESTIMATE, Content, Image, is_long_cache
from gateway.endpoints.endpoint import CallRequest, InvalidRequest
from gateway.endpoints.json_request import not_metered

# More than any context.
UNBOUNDED_TOKENS = 2**40

_SPOKEN = (Meter.OUTPUT, Meter.AUDIO_OUTPUT)
_ONE_SEARCH: Quantities = MappingProxyType({Meter.WEB_SEARCHES: 1})
_MEDIA = (Meter.AUDIO_INPUT, Meter.IMAGE_INPUT)


def with_extras(call: CallRequest, request: Mapping[str, object], content: Content) -> CallRequest:
    """`call` with the bounds of all that is not text. Raises InvalidRequest."""
    most: dict[str, int] = {}
    usual: dict[str, int] = {}
    if content.sounds or content.unheard:
        most[Meter.AUDIO_INPUT] = UNBOUNDED_TOKENS if content.unheard else content.sound_tokens_max
        usual[Meter.AUDIO_INPUT] = content.sound_tokens_estimate
    if content.stored:
        most[Meter.IMAGE_INPUT] = UNBOUNDED_TOKENS
    if (predicted := _object(request, "prediction")) is not None:
        # What of it is rejected is billed as output, on top of the cap.
        most[Meter.OUTPUT] = call.choices * len(orjson.dumps(predicted))
    if _speaks(request):
        call = call._replace(outputs=_SPOKEN, output_units={Meter.AUDIO_OUTPUT: 1})
        if Meter.OUTPUT in most:
            most[Meter.AUDIO_OUTPUT] = most[Meter.OUTPUT]  # whichever it is billed as
    caching = request.get("prompt_cache_options")
    if content.caches_long or (caching is not None and is_long_cache(caching, "prompt_cache_options")):
        # All of the input may be written to the cache, whatever else it counts as.
        media = len(content.images) * IMAGE_TOKENS_MAX + sum(most.get(meter, 0) for meter in _MEDIA)
        most[Meter.CACHE_WRITE_12H] = call.input_tokens_max + media
        usual[Meter.INPUT] = call.input_tokens_estimate
        call = call._replace(input_tokens_max=0, input_tokens_estimate=0)
    call = call._replace(
        extra_max=most,
        extra_estimate=usual,
        stored=content.stored or content.unheard,
        for_model=partial(_seeing, content.images) if content.images else searching,
    )
    return _searched(call) if _object(request, "web_search_options") is not None else call


def _seeing(images: list[Image], call: CallRequest, model: str) -> CallRequest:
    most = call.extra_max.get(Meter.IMAGE_INPUT, 0) + sum(image.tokens_max(model) for image in images)
    usual = min(most, len(images) * IMAGE_TOKENS_ESTIMATE)
    return searching(
        call._replace(
            extra_max={**call.extra_max, Meter.IMAGE_INPUT: most},
            extra_estimate={**call.extra_estimate, Meter.IMAGE_INPUT: usual},
        ),
        model,
    )


def searching(call: CallRequest, model: str) -> CallRequest:
    """A model whose name says that it searches does so without being asked."""
    return _searched(call) if "-search-" in model else call


def _searched(call: CallRequest) -> CallRequest:
    """One search a call has a fee, and what it finds is read as input, of any length."""
    return call._replace(
        input_tokens_max=UNBOUNDED_TOKENS, extra_max={**call.extra_max, **_ONE_SEARCH}, fixed=_ONE_SEARCH
    )


def _speaks(request: Mapping[str, object]) -> bool:
    modalities = request.get("modalities")
    if modalities is None:
        return _object(request, "audio") is not None
    if not isinstance(modalities, list) or any(item not in ("text", "audio") for item in modalities):
        raise not_metered("modalities")
    return "audio" in modalities or _object(request, "audio") is not None


def _object(request: Mapping[str, object], name: str) -> Mapping[str, object] | None:
    value = request.get(name)
    if value is not None and not isinstance(value, dict):
        raise InvalidRequest(f"{name!r} must be an object.", param=name)
    return value
