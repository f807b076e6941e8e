"""The tree of failures: each leaf is complete in itself, and every one is OpenAI's envelope."""

from collections.abc import Iterator

import pytest

from gateway import errors
from gateway.errors import Failure, Refused, Unavailable, UpstreamFailed


def leaves(kind: type[Failure] = Failure) -> Iterator[type[Failure]]:
    below = kind.__subclasses__()
    for child in below:
        yield from leaves(child)
    if not below:
        yield kind


LEAVES = {leaf.__name__: leaf for leaf in leaves() if leaf.__module__ == errors.__name__}
# (status, code, type, Retry-After, x-should-retry). What SDKs would try again by themselves, but in vain, says so.
EXPECTED = {
    "Unauthenticated": (401, "invalid_api_key", "authentication_error", None, None),
    "TooManyAttempts": (429, "too_many_attempts", "rate_limit_error", "1", None),
    "MalformedRequest": (400, "invalid_request", "invalid_request_error", None, None),
    "NotFound": (404, "unknown_path", "invalid_request_error", None, None),
    "NotMetered": (403, "not_metered", "permission_error", None, None),
    "MethodNotAllowed": (405, "method_not_allowed", "invalid_request_error", None, None),
    "ModelNotFound": (404, "model_not_found", "invalid_request_error", None, None),
    "BodyTooLarge": (413, "body_too_large", "invalid_request_error", None, None),
    "UnsupportedMediaType": (415, "unsupported_media_type", "invalid_request_error", None, None),
    "RequestTimedOut": (408, "request_timed_out", "invalid_request_error", None, "false"),
    "InsufficientFunds": (402, "insufficient_funds", "insufficient_funds", None, "false"),
    "WalletSuspended": (403, "wallet_suspended", "permission_error", None, None),
    "IdempotencyKeyReused": (422, "idempotency_key_reused", "idempotency_error", None, None),
    "IdempotentCallRunning": (409, "idempotent_call_running", "idempotency_error", "1", None),
    "IdempotentReplyLost": (409, "idempotent_reply_lost", "idempotency_error", None, "false"),
    "UpgradeRequired": (426, "upgrade_required", "invalid_request_error", None, None),
    "SessionEnded": (408, "session_ended", "invalid_request_error", None, "false"),
    "ResponseNotFound": (404, "response_not_found", "invalid_request_error", None, None),
    "ResponseUnfinished": (409, "response_unfinished", "invalid_request_error", None, "false"),
    "UpstreamUnreachable": (502, "upstream_unreachable", "upstream_error", None, None),
    "UpstreamTimedOut": (504, "upstream_timed_out", "upstream_error", None, None),
    "UpstreamUnusable": (502, "upstream_broke", "upstream_error", None, None),
    "UpstreamsBusy": (503, "upstreams_busy", "upstream_error", "1", None),
    "LedgerUnavailable": (503, "ledger_unavailable", "server_error", "2", None),
    "Overloaded": (503, "overloaded", "server_error", "2", None),
    "Stopping": (503, "stopping", "server_error", "2", None),
}


def test_the_table_has_every_leaf() -> None:
    assert set(LEAVES) == set(EXPECTED)
    assert len({(code, status) for status, code, *_ in EXPECTED.values()}) == len(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_leaf_is_complete(name: str) -> None:
    status, code, kind, retry_after, should_retry = EXPECTED[name]
    failure = LEAVES[name]()
    assert (failure.status, failure.code, failure.type) == (status, code, kind)
    assert failure.headers.get("retry-after") == retry_after
    assert failure.headers.get("x-should-retry") == should_retry
    assert LEAVES[name].__doc__ is not None
    message = " ".join(LEAVES[name].__doc__.split())  # type: ignore[union-attr]
    assert message.endswith(".")
    assert str(failure) == message
    assert failure.document() == {"error": {"message": message, "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize("name", EXPECTED)
def test_each_kind_has_its_statuses(name: str) -> None:
    kind = LEAVES[name].__mro__[1]
    statuses = {Refused: range(400, 500), UpstreamFailed: (502, 503, 504), Unavailable: (503,)}
    assert kind in statuses
    assert LEAVES[name].status in statuses[kind]


def test_a_failure_can_say_more_without_changing_its_kind() -> None:
    failure = errors.ModelNotFound(
        "No such model.", code="model_not_priced", param="model", details={"asked": "x"}, headers={"retry-after": "9"}
    )
    assert failure.document()["error"] == {
        "message": "No such model.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_priced",
        "asked": "x",
    }
    assert errors.Overloaded(headers={"retry-after": "9"}).headers == {"retry-after": "9"}
    fresh = errors.ModelNotFound()
    assert (fresh.code, fresh.headers, fresh.details) == ("model_not_found", {}, {})
