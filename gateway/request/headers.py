"""Which headers pass, and which do not: hop-by-hop ones, secrets of either side, and those that are ours to set."""

from collections.abc import Mapping, Sequence

from multidict import CIMultiDict

from gateway.request.hold import Hold

_HOP_BY_HOP = frozenset(
    {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
     "transfer-encoding", "upgrade"}
)  # fmt: skip
# Ours to set, or the client's secrets, or where the client is, or would make some servers run another path or method.
_NOT_SENT = _HOP_BY_HOP | {
    "host", "content-length", "content-encoding", "expect", "accept-encoding", "authorization", "api-key", "x-api-key",
    "openai-organization", "openai-project", "cookie", "forwarded", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-proto", "x-real-ip", "x-request-id", "x-http-method", "x-http-method-override", "x-method-override",
    "x-original-url", "x-rewrite-url",
    # Clients choose it, and all of them have one account there: another's reply could come back.
    "idempotency-key",
}  # fmt: skip
# Ours to set, or whose account the upstream knows us by.
_NOT_RETURNED = _HOP_BY_HOP | {
    "content-length", "content-encoding", "date", "set-cookie", "openai-organization", "openai-project", "alt-svc",
    "x-request-id", "idempotent-replayed",
}  # fmt: skip


class _Verdicts(dict[str, bool]):
    """Whether a header passes, by its name as written; remembered for the names that are common."""

    def __init__(self, stopped: frozenset[str]) -> None:
        super().__init__()
        self._stopped = stopped

    def __missing__(self, name: str) -> bool:
        lower = name.lower()
        passes = lower not in self._stopped and not lower.startswith("x-farebox-")
        if len(self) < _NAMES_MAX:
            self[name] = passes
        return passes


_NAMES_MAX = 1_000  # clients choose the names, so there is a limit to what is remembered
_IS_SENT = _Verdicts(_NOT_SENT)
_IS_RETURNED = _Verdicts(_NOT_RETURNED)


def request_headers(
    headers: Mapping[str, str],
    authorization: str | None,
    hold: Hold,
    fixed: Sequence[tuple[str, str]] = (),
) -> list[tuple[str, str]]:
    """The client's headers, without what is hop-by-hop, secret or ours; those that are `fixed` go over its own."""
    is_sent = _IS_SENT
    sent = [header for header in headers.items() if is_sent[header[0]]]
    connection = headers.get("Connection")
    if connection is not None and connection.lower() not in ("keep-alive", "close"):
        named = {name.strip().lower() for name in connection.split(",")}  # hop-by-hop by the client's word
        sent = [header for header in sent if header[0].lower() not in named]
    if fixed:
        replaced = {name.lower() for name, _ in fixed}
        sent = [header for header in sent if header[0].lower() not in replaced]
        sent.extend(fixed)
    # Usage is read from the bytes that are relayed, so they must come plain.
    sent.append(("Accept-Encoding", "identity"))
    sent.append(("X-Request-Id", hold.hold_id))
    if authorization is not None:
        sent.append(("Authorization", authorization))
    return sent


def hold_headers(hold: Hold) -> dict[str, str]:
    """What every reply says of its hold; on a stream this is known before the cost is."""
    if hold.is_none:
        return {"x-request-id": hold.hold_id, "x-farebox-billing-source": "none"}
    headers = {"x-request-id": hold.hold_id, "x-farebox-hold": hold.hold_id, "x-farebox-billing-source": "balance"}
    if hold.is_lowered:
        headers["x-farebox-output-cap"] = str(hold.output_tokens_max)
    return headers


def reply_headers(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """The upstream's headers, without what is hop-by-hop or names its account. Its request id moves aside for ours."""
    kept: CIMultiDict[str] = CIMultiDict()
    is_returned = _IS_RETURNED
    for name, value in headers.items():
        if is_returned[name]:
            kept.add(name, value)
    request_id = headers.get("x-request-id")
    if request_id is not None:
        kept["x-farebox-upstream-request-id"] = request_id
    return kept
