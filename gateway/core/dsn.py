"""A PostgreSQL URL: which servers it names, and what of it is ours rather than the driver's.

postgresql://user:password@a:5432,b:5432/farebox?target_session_attrs=read-write&connect_timeout=2&statement_cache_size=0
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

HOSTS_MAX = 16
CONNECT_SECONDS = 4.0
CONNECT_SECONDS_MAX = 5.0  # and for all hosts together
STATEMENTS_MAX = 10_000
# A ledger is written to: a URL that looks for anything else would only ever find servers that refuse it.
_WRITABLE_TARGETS = frozenset({"read-write", "primary"})
_ANY_TARGET = "any"


class InvalidDsn(ValueError):
    """The URL cannot be used; the message names its parts, never its password."""


@dataclass(frozen=True, slots=True)
class Dsn:
    """`driver_dsn` has neither our own parameters nor, where there are several, the hosts.

    `hosts` is empty where the driver finds the one host itself. `statements_max` is how many statements a connection
    keeps prepared, None for the driver's default.
    """

    driver_dsn: str
    hosts: tuple[tuple[str, int], ...]
    target: str
    connect_seconds: float
    statements_max: int | None


def parse_dsn(text: str) -> Dsn:
    """Raises InvalidDsn."""
    try:
        parts = urlsplit(text)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        if "," not in parts.netloc:
            _ = parts.port  # raises ValueError where it is none
    except ValueError as error:
        raise InvalidDsn("is not a URL") from error
    if parts.scheme not in ("postgresql", "postgres"):
        raise InvalidDsn(f"the scheme is {parts.scheme or 'missing'!r}, not postgresql")
    connect_seconds = _number(query.pop("connect_timeout", None), "connect_timeout", 0.1, CONNECT_SECONDS_MAX)
    statements_max = _number(query.pop("statement_cache_size", None), "statement_cache_size", 0, STATEMENTS_MAX)
    target = query.pop("target_session_attrs", "")
    account, at, place = parts.netloc.rpartition("@")
    hosts = _hosts(place, query) if "," in place or "," in query.get("host", "") else ()
    if target and target not in _WRITABLE_TARGETS | {_ANY_TARGET}:
        raise InvalidDsn(f"target_session_attrs is {target!r}, not read-write: the ledger is written to")
    if hosts and target == _ANY_TARGET:
        raise InvalidDsn("target_session_attrs is 'any': of several hosts only the one that takes writes will do")
    if hosts:
        place = ""
        for name in ("host", "port"):
            query.pop(name, None)
    driver_dsn = urlunsplit(("postgresql", account + at + place, parts.path, urlencode(query), ""))
    return Dsn(
        driver_dsn,
        hosts,
        target or ("read-write" if hosts else _ANY_TARGET),
        CONNECT_SECONDS if connect_seconds is None else connect_seconds,
        None if statements_max is None else int(statements_max),
    )


def _hosts(place: str, query: dict[str, str]) -> tuple[tuple[str, int], ...]:
    """Each host with its port: `a:1,b:2` in the place, or host=a,b and port=1,2 in the query."""
    if place:
        found = [_host(unquote(one)) for one in place.split(",")]
    else:
        names = query["host"].split(",")
        ports = query.get("port", "5432").split(",")
        if len(ports) == 1:
            ports *= len(names)
        if len(ports) != len(names):
            raise InvalidDsn(f"{len(names)} hosts, but {len(ports)} ports")
        found = [(name, _port(port)) for name, port in zip(names, ports, strict=True)]
    if not all(name for name, _ in found):
        raise InvalidDsn("one of the hosts is empty")
    if len(found) > HOSTS_MAX:
        raise InvalidDsn(f"{len(found)} hosts, {HOSTS_MAX} at most")
    return tuple(found)


def _host(text: str) -> tuple[str, int]:
    if text.startswith("["):
        name, closed, port = text[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            raise InvalidDsn("an IPv6 address is not closed by ]")
        return name, _port(port[1:] or "5432")
    name, _, port = text.partition(":")
    return name, _port(port or "5432")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65_536:
        raise InvalidDsn(f"{text!r} is not a port")
    return int(text)


def _number(text: str | None, name: str, least: float, most: float) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= most:
        raise InvalidDsn(f"{name} is {text!r}, not a number from {least:g} to {most:g}")
    return value
