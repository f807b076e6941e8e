"""A PostgreSQL URL: what is ours is taken out of it, and what cannot work is refused without quoting a password."""

import pytest

from gateway.core.dsn import CONNECT_SECONDS, HOSTS_MAX, Dsn, InvalidDsn, parse_dsn

DEFAULTS = (CONNECT_SECONDS, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://u:p@a/x", Dsn("postgresql://u:p@a/x", (), "any", *DEFAULTS)),
        ("postgres://a", Dsn("postgresql://a", (), "any", *DEFAULTS)),
        ("postgresql://u@/x?host=/s&port=6", Dsn("postgresql://u@/x?host=%2Fs&port=6", (), "any", *DEFAULTS)),
        (
            "postgresql://a/x?target_session_attrs=primary&connect_timeout=2&statement_cache_size=0",
            Dsn("postgresql://a/x", (), "primary", 2.0, 0),
        ),
        (
            "postgresql://u:p%2Fq@a,b:6/x?sslmode=require",
            Dsn("postgresql://u:p%2Fq@/x?sslmode=require", (("a", 5432), ("b", 6)), "read-write", *DEFAULTS),
        ),
        ("postgresql://[::1]:5,[::2]/x", Dsn("postgresql:/x", (("::1", 5), ("::2", 5432)), "read-write", *DEFAULTS)),
        ("postgresql:///x?host=a,/s&port=6", Dsn("postgresql:/x", (("a", 6), ("/s", 6)), "read-write", *DEFAULTS)),
        ("postgresql:///x?host=a,b&port=6,7", Dsn("postgresql:/x", (("a", 6), ("b", 7)), "read-write", *DEFAULTS)),
    ],
)
def test_what_is_ours_is_taken_out(text: str, expected: Dsn) -> None:
    assert parse_dsn(text) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "scheme"),
        ("mysql://a/x", "'mysql'"),
        ("a:secret@b", "scheme"),
        ("postgresql://u:secret@[::1/x", "not a URL"),
        ("postgresql://a/x?y", "not a URL"),
        ("postgresql://u:secret@a:port/x", "not a URL"),
        ("postgresql://u:secret@a,/x", "empty"),
        ("postgresql://a,b:x/x", "'x' is not a port"),
        ("postgresql://a,b:0/x", "'0' is not a port"),
        ("postgresql://a,b:65536/x", "'65536' is not a port"),
        ("postgresql://[::1]x,b/x", "]"),
        ("postgresql:///x?host=a,b&port=1,2,3", "2 hosts, but 3 ports"),
        (f"postgresql://{','.join('a' * (HOSTS_MAX + 1))}/x", f"{HOSTS_MAX} at most"),
        ("postgresql://a/x?target_session_attrs=standby", "read-write"),
        ("postgresql://a/x?target_session_attrs=prefer-standby", "read-write"),
        ("postgresql://a,b/x?target_session_attrs=any", "takes writes"),
        ("postgresql://a/x?connect_timeout=0", "connect_timeout is '0'"),
        ("postgresql://a/x?connect_timeout=nan", "connect_timeout is 'nan'"),
        ("postgresql://a/x?statement_cache_size=-1", "statement_cache_size is '-1'"),
    ],
)
def test_what_cannot_work_is_refused(text: str, says: str) -> None:
    with pytest.raises(InvalidDsn) as refused:
        parse_dsn(text)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)
