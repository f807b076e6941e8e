"""The table of paths. Default-deny: what is not here is 403 or 404, and nothing of it goes upstream.

Paths are compared as they were sent. An encoded slash, a doubled one or a dot segment is another path, and unknown.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from aiohttp import web

from gateway.core.known_paths import shown, why_unmetered
from gateway.db.pool import LedgerAway
from gateway.endpoints.chat import ChatEndpoint
from gateway.endpoints.completions import CompletionsEndpoint
from gateway.endpoints.embeddings import EmbeddingsEndpoint
from gateway.endpoints.endpoint import Endpoint, ReadsForms
from gateway.endpoints.images import ImageEdits, ImageGenerations, ImageVariations
from gateway.endpoints.moderations import ModerationsEndpoint
from gateway.endpoints.responses import CompactEndpoint, ResponsesEndpoint
from gateway.endpoints.speech import SpeechEndpoint
from gateway.endpoints.transcription import TranscriptionEndpoint
from gateway.errors import Failure, LedgerUnavailable, MethodNotAllowed, NotFound, NotMetered
from gateway.metrics import Metrics
from gateway.request.handle import Gateway
from gateway.request.passed import Rule, matching
from gateway.request.passing import Passing
from gateway.web import azure, metered, models, passed, realtime, responses
from gateway.web.envelope import failure_response
from gateway.web.spool import Spools

_log = logging.getLogger("farebox.web")

PREFIX = "/v1"
# path below the prefix -> the endpoint that meters it
METERED: Mapping[str, Endpoint] = {
    "/chat/completions": ChatEndpoint(),
    "/completions": CompletionsEndpoint(),
    "/embeddings": EmbeddingsEndpoint(),
    "/moderations": ModerationsEndpoint(),
    "/responses": ResponsesEndpoint(),
    "/responses/compact": CompactEndpoint(),
    "/images/generations": ImageGenerations(),
    "/images/edits": ImageEdits(),
    "/images/variations": ImageVariations(),
    "/audio/speech": SpeechEndpoint(),
    "/audio/transcriptions": TranscriptionEndpoint("audio.transcriptions"),
    "/audio/translations": TranscriptionEndpoint("audio.translations"),
}
FORMS_ONLY = frozenset(path for path, endpoint in METERED.items() if getattr(endpoint, "forms_only", False))
_MODELS = PREFIX + "/models"
# Sessions over WebSocket, metered response by response. What lies below leads past the gateway, or has no usage.
_REALTIME = PREFIX + "/realtime"
_RESPONSES = PREFIX + "/responses/"

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request."""

    body_bytes_max: int
    body_seconds: float
    spools: Spools
    allowed: Callable[[], Sequence[Rule]] = tuple


def api_handler(gateway: Gateway, passing: Passing, limits: Limits, sessions: realtime.Sessions) -> Handler:
    """The handler of the API listener."""
    metered_paths = azure.other_names(METERED)
    metered_paths |= {PREFIX + path: (path, endpoint) for path, endpoint in METERED.items()}
    readers = {path for path, (_, endpoint) in metered_paths.items() if isinstance(endpoint, ReadsForms)}
    metrics = gateway.metrics

    async def route(request: web.BaseRequest) -> web.StreamResponse:
        path, _, _ = request.raw_path.partition("?")
        found = metered_paths.get(path)
        if found is not None and request.method == "POST":
            below, endpoint = found
            spools = limits.spools if path in readers else None
            return await metered.serve(
                gateway,
                endpoint,
                below,
                request,
                body_bytes_max=limits.body_bytes_max,
                body_seconds=limits.body_seconds,
                spools=spools,
                form_only=spools is not None and below in FORMS_ONLY,
            )
        rule, methods = _allowed(limits, request.method, path)
        if rule is not None:
            return await passed.serve(
                gateway,
                rule,
                request.raw_path.removeprefix(PREFIX),
                request,
                body_bytes_max=limits.body_bytes_max,
                body_seconds=limits.body_seconds,
            )
        if found is not None or methods:
            raise MethodNotAllowed(headers={"Allow": "POST" if found is not None else ", ".join(methods)})
        if path == _REALTIME:
            _only("GET", request)
            return await realtime.serve(gateway, sessions, request)
        if path.startswith(_RESPONSES):
            exchange = metered.Exchange(request, body_bytes_max=limits.body_bytes_max, body_seconds=limits.body_seconds)
            return await responses.serve(gateway, passing, request, path.removeprefix(_RESPONSES), exchange)
        if path == _MODELS or path.startswith(_MODELS + "/"):
            _only("GET", request)
            if path == _MODELS:
                return await models.list_models(gateway, request)
            return await models.get_model(gateway, request, path.removeprefix(_MODELS + "/"))
        deployment = azure.deployment_of(path, METERED)
        if deployment is None:
            raise refusal(path)
        _only("POST", request)
        below = deployment[1]
        takes_forms = PREFIX + below in readers
        return await azure.serve(
            gateway,
            deployment,
            request,
            body_bytes_max=limits.body_bytes_max,
            body_seconds=limits.body_seconds,
            spools=limits.spools if takes_forms else None,
            form_only=takes_forms and below in FORMS_ONLY,
        )

    return guarded(route, metrics)


def _only(method: str, request: web.BaseRequest) -> None:
    if request.method != method:
        raise MethodNotAllowed(headers={"Allow": method})


def _allowed(limits: Limits, method: str, path: str) -> tuple[Rule | None, list[str]]:
    # What has rules of its own, such as whose a response is, cannot be passed around them.
    if not path.startswith(PREFIX + "/") or path == _MODELS or path.startswith((_MODELS + "/", _RESPONSES)):
        return None, []
    return matching(limits.allowed(), method, path.removeprefix(PREFIX))


def refusal(path: str) -> Failure:
    """Why this path is not served: it is known and has no meter, or it is unknown."""
    why = why_unmetered(path.removeprefix(PREFIX)) if path.startswith(PREFIX + "/") else None
    if why is None:
        return NotFound(f"Unknown path {shown(path)}. Farebox serves only paths that it can meter.")
    return NotMetered(f"{shown(path)} is not served: {why}. Its operator may allow it.")


def guarded(route: Handler, metrics: Metrics) -> Handler:
    """Turn failures into replies; anything unexpected is a bug, counted and answered 500."""

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await route(request)
        except Failure as failure:
            metrics.refused.labels(_step(failure), failure.code).inc()
            # Frames that know the failure would else be kept by it until the collector comes.
            return failure_response(failure.with_traceback(None))
        except LedgerAway:
            away = LedgerUnavailable()
            metrics.refused.labels(_step(away), away.code).inc()
            return failure_response(away)
        except Exception as error:
            metrics.crashes.inc()
            _log.exception("a request crashed", exc_info=error)
            return failure_response(Failure("Farebox failed unexpectedly. The failure was recorded."))

    return handler


def _step(failure: Failure) -> str:
    """Which kind of failure this is: the second level of the tree in gateway/errors.py."""
    kinds = type(failure).__mro__
    return kinds[kinds.index(Failure) - 1].__name__.lower()
