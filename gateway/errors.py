"""Every failure a caller can see, as a tree. The docstring of a leaf is its default message.

    Failure
    ├── Refused          the caller's side: change the request, the key or the funds
    │   ├── Unauthenticated  MalformedRequest  NotFound  MethodNotAllowed  ModelNotFound  BodyTooLarge
    │   ├── UnsupportedMediaType  RequestTimedOut  InsufficientFunds  WalletSuspended  TooManyAttempts
    │   ├── IdempotencyKeyReused  IdempotentCallRunning  IdempotentReplyLost  UpgradeRequired  SessionEnded  NotMetered
    │   ├── ResponseNotFound  ResponseUnfinished
    ├── UpstreamFailed   the upstream's side: nothing was charged
    │   ├── UpstreamUnreachable  UpstreamTimedOut  UpstreamUnusable  UpstreamsBusy
    └── Unavailable      our side, and worth retrying
        ├── LedgerUnavailable  Overloaded  Stopping

Anything else is a bug: 500, counted.
"""

from collections.abc import Mapping


class Failure(Exception):
    """The request could not be served."""

    status = 500
    code = "internal_error"
    type = "server_error"
    retry_after_seconds: int | None = None
    # OpenAI's SDKs retry 408, 409, 429 and 5xx unless told not to (x-should-retry).
    should_retry: bool | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        details: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.message = message or " ".join((self.__doc__ or "").split())
        super().__init__(self.message)
        if code is not None:
            self.code = code
        self.param = param
        self.details = details or {}
        self.headers = dict(headers or {})
        if self.retry_after_seconds is not None:
            self.headers.setdefault("retry-after", str(self.retry_after_seconds))
        if self.should_retry is not None:
            self.headers.setdefault("x-should-retry", "true" if self.should_retry else "false")

    def document(self) -> dict[str, object]:
        """OpenAI's envelope."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code, **self.details}
        return {"error": error}


class Refused(Failure):
    """The request was refused."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class Unauthenticated(Refused):
    """No valid API key was given. Send it as `Authorization: Bearer fb-…`."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class TooManyAttempts(Refused):
    """Too many unknown API keys were tried from this address. Wait a second and try again."""

    status = 429
    code = "too_many_attempts"
    type = "rate_limit_error"
    retry_after_seconds = 1


class MalformedRequest(Refused):
    """The request body cannot be read."""


class NotFound(Refused):
    """Unknown path. Farebox serves only paths that it can meter."""

    status = 404
    code = "unknown_path"


class NotMetered(Refused):
    """This path is not served here: Farebox has no meter for it."""

    status = 403
    code = "not_metered"
    type = "permission_error"


class MethodNotAllowed(Refused):
    """This path does not take that method."""

    status = 405
    code = "method_not_allowed"


class ModelNotFound(Refused):
    """The model does not exist here, has no price, or may not be used with this key."""

    status = 404
    code = "model_not_found"


class BodyTooLarge(Refused):
    """The request body is larger than this gateway accepts."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(Refused):
    """Send the body as `Content-Type: application/json`."""

    status = 415
    code = "unsupported_media_type"


class RequestTimedOut(Refused):
    """The request body did not arrive in time."""

    status = 408
    code = "request_timed_out"
    should_retry = False


class InsufficientFunds(Refused):
    """The wallet does not cover what this call may cost."""

    status = 402
    code = "insufficient_funds"
    type = "insufficient_funds"
    should_retry = False
    available_nanos: int | None = None  # what there is, where a hold was refused


class WalletSuspended(Refused):
    """The wallet is suspended. Ask its operator to reopen it."""

    status = 403
    code = "wallet_suspended"
    type = "permission_error"


class IdempotencyKeyReused(Refused):
    """This Idempotency-Key was used for another request. Use a new key for a new request."""

    status = 422
    code = "idempotency_key_reused"
    type = "idempotency_error"


class IdempotentCallRunning(Refused):
    """The call with this Idempotency-Key is still running. Nothing more was charged. Ask again for its reply."""

    status = 409
    code = "idempotent_call_running"
    type = "idempotency_error"
    retry_after_seconds = 1


class IdempotentReplyLost(Refused):
    """The call with this Idempotency-Key was charged, and its reply was not kept. Nothing more was charged.
    Use a new key to ask anew, and to be charged anew."""

    status = 409
    code = "idempotent_reply_lost"
    type = "idempotency_error"
    should_retry = False


class UpgradeRequired(Refused):
    """Open this path as a WebSocket (`Upgrade: websocket`, version 13)."""

    status = 426
    code = "upgrade_required"


class SessionEnded(Refused):
    """The session was silent for too long, or reached its longest time, and was ended."""

    status = 408
    code = "session_ended"
    should_retry = False


class ResponseNotFound(Refused):
    """This wallet has no such response."""

    status = 404
    code = "response_not_found"


class ResponseUnfinished(Refused):
    """The response is still being made. Cancel it, and delete it then."""

    status = 409
    code = "response_unfinished"
    should_retry = False


class UpstreamFailed(Failure):
    """The upstream failed before it answered. Nothing was charged."""

    status = 502
    code = "upstream_failed"
    type = "upstream_error"


class UpstreamUnreachable(UpstreamFailed):
    """The upstream could not be reached. Nothing was charged."""

    code = "upstream_unreachable"


class UpstreamTimedOut(UpstreamFailed):
    """The upstream did not answer in time. Nothing was charged."""

    status = 504
    code = "upstream_timed_out"


class UpstreamUnusable(UpstreamFailed):
    """The upstream broke off before its answer was complete."""

    code = "upstream_broke"


class UpstreamsBusy(UpstreamFailed):
    """Every upstream of this model has as many calls as it may have at once. Nothing was charged. Try again shortly."""

    status = 503
    code = "upstreams_busy"
    retry_after_seconds = 1


class Unavailable(Failure):
    """Farebox cannot take this call now. Try again shortly."""

    status = 503
    code = "unavailable"
    retry_after_seconds = 2


class LedgerUnavailable(Unavailable):
    """The ledger cannot be reached, so no new call is started. Nothing was charged. Try again shortly."""

    code = "ledger_unavailable"


class Overloaded(Unavailable):
    """More calls are waiting than this gateway takes on. Try again shortly."""

    code = "overloaded"


class Stopping(Unavailable):
    """This gateway is shutting down. Try again: another may answer."""

    code = "stopping"
