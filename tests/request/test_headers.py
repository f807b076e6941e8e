"""Which headers pass: the rule, without a socket."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from gateway.request.headers import hold_headers, reply_headers, request_headers
from gateway.request.hold import Hold


def hold(*, is_lowered: bool = False) -> Hold:
    return Hold("hold-1", "wallet", "key", 1_000, 64, is_lowered, 0.0)


def sent(**headers: str) -> dict[str, str]:
    given = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return {name.lower(): value for name, value in request_headers(given, "Bearer sk", hold())}


OURS = {"accept-encoding": "identity", "x-request-id": "hold-1", "authorization": "Bearer sk"}


@pytest.mark.parametrize(
    "name",
    ["Authorization", "api_key", "X_API_Key", "Cookie", "OpenAI_Organization", "OpenAI_Project", "Host", "Expect",
     "Transfer_Encoding", "Upgrade", "X_Forwarded_For", "X_Farebox_Receipt", "x_farebox_anything", "Content_Encoding",
     "X_Original_URL", "Idempotency_Key", "X_Rewrite_Url", "X_HTTP_Method_Override"],
)  # fmt: skip
def test_secrets_and_hop_by_hop_headers_stay_here(name: str) -> None:
    for spelling in (name, name.upper(), name.lower()):
        assert sent(**{spelling: "mine"}) == OURS


def test_other_headers_pass_in_every_spelling() -> None:
    assert sent(OpenAI_Beta="a", USER_AGENT="b", x_stainless_lang="c") == OURS | {
        "openai-beta": "a",
        "user-agent": "b",
        "x-stainless-lang": "c",
    }


def test_a_header_named_by_connection_is_hop_by_hop() -> None:
    assert sent(Connection="close, X-Hop", X_Hop="1", X_Ho="2") == OURS | {"x-ho": "2"}


def test_names_are_remembered_within_a_limit() -> None:
    for number in range(3_000):
        assert f"x-{number}" in sent(**{f"x_{number}": "v"})
    assert "cookie" not in sent(cOOkie="v")


def test_no_authorization_of_ours_means_none() -> None:
    assert "Authorization" not in dict(request_headers(CIMultiDict({"Authorization": "Bearer fb-x"}), None, hold()))


def test_fixed_headers_go_over_the_clients_own() -> None:
    given = CIMultiDict({"X-Title": "theirs", "User-Agent": "b", "Api-Key": "fb-x"})
    fixed = [("x-title", "ours"), ("api-key", "sk")]
    assert request_headers(given, None, hold(), fixed) == [
        ("User-Agent", "b"),
        ("x-title", "ours"),
        ("api-key", "sk"),
        ("Accept-Encoding", "identity"),
        ("X-Request-Id", "hold-1"),
    ]


def test_reply_headers_keep_what_is_the_upstreams() -> None:
    given = CIMultiDict(
        {
            "Content-Type": "a",
            "X-Request-Id": "req_1",
            "Set-Cookie": "c",
            "openai-organization": "o",
            "Idempotent-Replayed": "true",
        }
    )
    given.add("Via", "1")
    given.add("Via", "2")
    kept = reply_headers(CIMultiDictProxy(given))
    assert list(kept.items()) == [
        ("Content-Type", "a"),
        ("Via", "1"),
        ("Via", "2"),
        ("x-farebox-upstream-request-id", "req_1"),
    ]


def test_hold_headers_say_a_lowered_cap() -> None:
    plain = {"x-request-id": "hold-1", "x-farebox-hold": "hold-1", "x-farebox-billing-source": "balance"}
    assert hold_headers(hold()) == plain
    assert hold_headers(hold(is_lowered=True)) == plain | {"x-farebox-output-cap": "64"}
