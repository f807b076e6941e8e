"""Reading requests in JSON, and changing them: what every endpoint with a JSON body has in common. Pure.

A member that decides the cost must be there once and spelled as the API spells it: parsers differ on which of two
counts, and on case, so that the upstream might read another value than we do.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

import orjson

from gateway.core.json_members import MalformedJson, duplicate_member, member_values, parse, with_members
from gateway.endpoints.endpoint import InvalidRequest

MODEL_CHARS_MAX = 256
OUTPUT_TOKENS_CAP_MAX = 2**31 - 1
TIER_CHARS_MAX = 64
MEMBERS_MAX = 256
# Quotes and opening brackets, counted without a parse. The event loop stands still while a body is read: 20 MB of `[]`
# took 6 s, a million of them 0.3 s. It is more than the text of any context has.
VALUES_MAX = 1_000_000

# A letter or an underscore spelled as an escape, which a parser reads as the same name.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


class Names:
    """The members of a request: those that decide what it costs, and those known to cost nothing in themselves."""

    __slots__ = ("deciding", "known", "needles")

    def __init__(self, deciding: Iterable[str], ordinary: Iterable[str] = ()) -> None:
        self.deciding = frozenset(deciding)
        # Listed so that an ordinary request needs no case-folding.
        self.known = self.deciding | frozenset(ordinary)
        self.needles = {name: b'"%b"' % name.encode() for name in sorted(self.deciding)}


def has_too_many_values(body: bytes) -> bool:
    """Whether reading it would keep the event loop for too long."""
    return len(body) > VALUES_MAX and sum(body.count(mark) for mark in (b'"', b"[", b"{")) > VALUES_MAX


def read_object(body: bytes, names: Names) -> dict[str, object]:
    """The request, with every deciding member given once at most. Raises InvalidRequest."""
    if has_too_many_values(body):
        raise InvalidRequest(f"The body has more than {VALUES_MAX} strings, lists and objects.", code="body_too_large")
    try:
        request = parse(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The body is not valid JSON: {error.msg}.", code="invalid_json") from None
    if not isinstance(request, dict):
        raise InvalidRequest("The body must be a JSON object.")
    _refuse_ambiguous(body, request, names)
    return request


def _refuse_ambiguous(body: bytes, request: dict[str, object], names: Names) -> None:
    if len(request) > MEMBERS_MAX:
        raise InvalidRequest(f"The body has more than {MEMBERS_MAX} members.")
    needles = names.needles
    suspect = body.find(b"\\u") >= 0 and _ESCAPED_LETTER.search(body) is not None
    for name in request:
        if (needle := needles.get(name)) is not None:
            # A name that is spelled twice may be nested, or a value; only then is it worth looking into.
            suspect = suspect or body.count(needle) > 1
        elif name not in names.known and (folded := name.casefold()) in names.deciding:
            raise InvalidRequest(f"{name!r} must be spelled {folded!r}.", param=folded, code="duplicate_member")
    if not suspect:
        return
    try:
        duplicate = duplicate_member(body, names.deciding)
    except MalformedJson as error:
        raise unreadable(error) from None
    if duplicate is not None:
        raise InvalidRequest(f"{duplicate!r} is given twice.", param=duplicate, code="duplicate_member")


def read_model(request: Mapping[str, object], default: str | None = None) -> str:
    """The model asked for; `default` where the API has one and the request names none. Raises InvalidRequest."""
    model = request.get("model")
    if model is None and default is not None:
        return default
    if not isinstance(model, str) or not 0 < len(model) <= MODEL_CHARS_MAX:
        raise InvalidRequest(f"'model' must be a string of 1 to {MODEL_CHARS_MAX} characters.", param="model")
    return model


def read_flag(request: Mapping[str, object], name: str) -> bool:
    """True or false; false where it is absent or null. Raises InvalidRequest."""
    value = request.get(name)
    if value is not None and type(value) is not bool:
        raise InvalidRequest(f"{name!r} must be true or false.", param=name)
    return value is True


def read_whole(request: Mapping[str, object], name: str, maximum: int, *, minimum: int = 1) -> int | None:
    """A whole number from `minimum` to `maximum`, or None where it is absent or null. Raises InvalidRequest."""
    value = request.get(name)
    if value is None:
        return None
    if type(value) is not int or not minimum <= value <= maximum:
        raise InvalidRequest(f"{name!r} must be a whole number from {minimum} to {maximum}.", param=name)
    return value


def read_tier(request: Mapping[str, object]) -> str:
    """The tier of service asked for; "" where none is. Whether it has a price is not decided here."""
    tier = request.get("service_tier")
    if tier is None:
        return ""
    if not isinstance(tier, str) or len(tier) > TIER_CHARS_MAX:
        raise InvalidRequest("'service_tier' must be the name of a tier of service.", param="service_tier")
    return tier


def is_token_list(value: list[object], kinds: Collection[type] | None = None) -> bool:
    """Whether this is a list of tokens, at least one; `kinds` are the types in it, where they are known."""
    return bool(value) and (kinds or set(map(type, value))) == {int} and min(value) >= 0  # type: ignore[type-var, operator]


def read_wants_usage(body: bytes, request: Mapping[str, object], *, stream: bool) -> bool:
    """Whether the client asks for the usage of its stream, in `stream_options`. Raises InvalidRequest."""
    options = request.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise InvalidRequest("'stream_options' must be an object.", param="stream_options")
    if not stream:
        raise InvalidRequest("'stream_options' is only allowed with 'stream': true.", param="stream_options")
    if any(name != "include_usage" and name.casefold() == "include_usage" for name in options):
        raise _usage_twice()
    if body.count(b'"include_usage"') > 1 or _ESCAPED_LETTER.search(body) is not None:
        # Which of two counts is up to the parser; one that the upstream reads as false leaves us without usage.
        try:
            raw = member_values(body, frozenset({"stream_options"}))["stream_options"]
            twice = duplicate_member(raw, frozenset({"include_usage"}))
        except MalformedJson as error:
            raise unreadable(error) from None
        if twice is not None:
            raise _usage_twice()
    wanted = options.get("include_usage")
    if wanted is not None and type(wanted) is not bool:
        raise InvalidRequest("'include_usage' must be true or false.", param="stream_options.include_usage")
    return wanted is True


def _usage_twice() -> InvalidRequest:
    return InvalidRequest(
        "'include_usage' must be given once, and spelled so.", param="stream_options", code="duplicate_member"
    )


def unreadable(error: MalformedJson) -> InvalidRequest:
    """The refusal of a body that our parser reads and our scanner does not."""
    return InvalidRequest(f"The body cannot be read: {error}.", code="invalid_json")


def not_metered(param: str) -> InvalidRequest:
    """The refusal of what would cost something that no meter counts."""
    return InvalidRequest(f"{param!r} asks for something that is not metered here.", param=param, code="not_metered")


def refuse_present(request: Mapping[str, object], names: frozenset[str]) -> None:
    """Refuse those of `names` that are given and not null: each has a cost without a meter. Raises InvalidRequest."""
    if not names.isdisjoint(request):
        for name in sorted(names):
            if request.get(name) is not None:
                raise not_metered(name)


def changed_body(
    body: bytes, *, model: str | None, members: Callable[[bytes], Mapping[str, object]] | None = None
) -> bytes:
    """`body` with another model, and what `members` makes of it; `body` itself if nothing changes.

    Raises InvalidRequest.
    """
    try:
        changes = dict(members(body)) if members is not None else {}
        if model is not None:
            changes["model"] = model
        if not changes:
            return body
        changed = with_members(body, changes)
    except MalformedJson as error:
        raise unreadable(error) from None
    return body if changed == body else changed


def usage_member(body: bytes) -> dict[str, object]:
    """The member that asks for the usage of a stream. Raises MalformedJson."""
    options = member_values(body, frozenset({"stream_options"})).get("stream_options", b"null")
    wanted = b'{"include_usage":true}' if options == b"null" else with_members(options, {"include_usage": True})
    return {"stream_options": orjson.Fragment(wanted)}


def cap_members(body: bytes, names: frozenset[str], cap_member: str, default: str, tokens: int) -> dict[str, object]:
    """The members that cap the output at `tokens`: those of `names` that the client gave, else `cap_member`.

    The client's own member is kept, since some models refuse the other; but an upstream that reads only one member
    (`cap_member` is then not the `default`) would not see a cap under another name. Raises MalformedJson.
    """
    given = {name for name, value in member_values(body, names).items() if value != b"null"}
    if not given or cap_member != default:
        given.add(cap_member)
    return dict.fromkeys(sorted(given), tokens)
