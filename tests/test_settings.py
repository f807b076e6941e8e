"""Settings: every bad value is one line that names its key and quotes no secret; the environment goes over the file."""

from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr

from gateway.settings import InvalidSettings, Settings, check, load, read

UPSTREAM = '[[upstream]]\nname = "a"\nbase_url = "http://x/v1"\n'
ALLOW = '[[allow]]\npath = "/files"\nupstream = "b"\n'
SECRET = "sk-very-secret"


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "farebox.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "value", "key"),
    [
        ("PORT", "x", "port"),
        ("PORT", "", "port"),
        ("PORT", "65536", "port"),
        ("OPS_PORT", "-1", "ops_port"),
        ("WORKERS", "0", "workers"),
        ("WORKERS", "65", "workers"),
        ("LOG_LEVEL", "loud", "log_level"),
        ("BODY_BYTES_MAX", "1023", "body_bytes_max"),
        ("BODY_SECONDS", "0", "body_seconds"),
        ("DRAIN_SECONDS", "inf", "drain_seconds"),
        ("DRAIN_SECONDS", "nan", "drain_seconds"),
        ("STOP_SECONDS", "86401", "stop_seconds"),
        ("HOLD_VALID_SECONDS", "1.5", "hold_valid_seconds"),
        ("HOLD_VALID_SECONDS", "1", "hold_valid_seconds"),
        ("MIN_OUTPUT_TOKENS", "0", "min_output_tokens"),
        ("IDEMPOTENCY_SECRET", SECRET, "idempotency_secret"),
        ("IDEMPOTENCY_KEEP_SECONDS", "59", "idempotency_keep_seconds"),
        ("IDEMPOTENCY_REPLY_BYTES_MAX", "1023", "idempotency_reply_bytes_max"),
        ("LANE_BATCH_OPERATIONS_MAX", "513", "lane_batch_operations_max"),
        ("JOURNAL_BYTES_MAX", "1e3", "journal_bytes_max"),
        ("DATABASE_URL", SECRET, "database_url"),
        ("DATABASE_URL", f"mysql://u:{SECRET}@a/x", "database_url"),
        ("DATABASE_URL", f"postgresql://u:{SECRET}@a,b/x?target_session_attrs=any", "database_url"),
        ("LISTEN_DATABASE_URL", f"postgresql://u:{SECRET}@a,/x", "listen_database_url"),
        ("UPSTREAM_API_KEY", SECRET, "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", "ftp://x", "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", "http://", "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", "http://[::1", "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", "http://x:99999/v1", "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", f"http://x/v1?key={SECRET}", "upstream.0.base_url"),
        ("UPSTREAM_BASE_URL", f"http://me:{SECRET}@x/v1", "upstream.0.base_url"),
        ("NO_SUCH", "1", "FAREBOX_NO_SUCH"),
        ("UPSTREAM", "1", "FAREBOX_UPSTREAM"),
        ("ALIASES", "{}", "FAREBOX_ALIASES"),
        ("UPSTREAM_TOTAL_SECONDS", "1", "FAREBOX_UPSTREAM_TOTAL_SECONDS"),
    ],
)
def test_a_bad_value_is_one_line_that_names_its_key(name: str, value: str, key: str) -> None:
    with pytest.raises(InvalidSettings) as refused:
        load({f"FAREBOX_{name}": value})
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"{key}: ")
    assert SECRET not in line


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("port = 1\nnope = 2\nbody_seconds = 0\n", ["body_seconds: ", "nope: unknown setting"]),
        (UPSTREAM + "nope = 1\nidle_seconds = -1\n", ["upstream.0.idle_seconds: ", "upstream.0.nope: unknown setting"]),
        (UPSTREAM * 2, ["settings: upstream: two upstreams have the same name"]),
        (UPSTREAM.replace('"a"', '"A b"'), ["upstream.0.name: "]),
        (UPSTREAM + 'missing_usage = "guess"\n', ["upstream.0.missing_usage: "]),
        (UPSTREAM + 'cap_member = "n"\n', ["upstream.0.cap_member: "]),
        (UPSTREAM + 'kind = "other"\n', ["upstream.0.kind: "]),
        (UPSTREAM + 'kind = "azure"\n', ["upstream.0: api_version: paths by deployment need one"]),
        (UPSTREAM + 'api_version = "a&b"\n', ["upstream.0.api_version: "]),
        (UPSTREAM + 'headers = { "Authorization" = "x" }\n', ["upstream.0.headers: 'Authorization' is no header that"]),
        (UPSTREAM + 'headers = { "a b" = "x" }\n', ["upstream.0.headers: 'a b' is no header that"]),
        (UPSTREAM + 'headers = { "x-a" = "b\\r\\nc: d" }\n', ["upstream.0.headers: the value of x-a must be"]),
        (UPSTREAM + "weight = -1\norder = 1001\n", ["upstream.0.order: ", "upstream.0.weight: "]),
        (UPSTREAM + "calls_in_flight_max = 0\n", ["upstream.0.calls_in_flight_max: "]),
        (UPSTREAM + 'api_key_env = "NOT_THERE"\n', ["upstream.0: api_key_env: the environment has no NOT_THERE"]),
        (UPSTREAM + ALLOW, ["settings: allow: /files: there is no upstream named b"]),
        (ALLOW.replace("/files", "/a/../b"), ["allow.0.path: "]),
        (ALLOW.replace("/files", "/a/{other}"), ["allow.0.path: "]),
        (ALLOW + 'methods = ["GET", "CONNECT"]\n', ["allow.0.methods.1: "]),
        (ALLOW + "methods = []\n", ["allow.0.methods: "]),
        ("upstream = 1\n", ["upstream: "]),
        ("[aliases]\na = 1\n", ["aliases.a: "]),
        ("port = [\n", ["{path}: "]),
        (b"port = '\xff'\n", ["{path}: "]),
    ],
)
def test_a_bad_file_is_a_line_a_problem(tmp_path: Path, text: str | bytes, lines: list[str]) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidSettings) as refused:
        load({}, config=path)
    found = str(refused.value).splitlines()
    assert len(found) == len(lines)
    for line, expected in zip(found, lines, strict=True):
        assert line.startswith(expected.format(path=path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(InvalidSettings, match=r"missing\.toml: cannot be read"):
        load({"FAREBOX_CONFIG": str(missing)})


FILE = UPSTREAM + 'api_key_env = "FROM_THERE"\n[aliases]\nbest = "m"\n'


@pytest.mark.parametrize(
    ("environment", "port"),
    [({}, 8080), ({"FAREBOX_CONFIG": "file"}, 1), ({"FAREBOX_CONFIG": "file", "FAREBOX_PORT": "2"}, 2)],
)
def test_later_sources_win(tmp_path: Path, environment: Mapping[str, str], port: int) -> None:
    path = write(tmp_path, "port = 1\n")
    named = {name: str(path) if value == "file" else value for name, value in environment.items()}
    assert load(named).port == port


def test_a_config_that_is_given_goes_over_the_one_in_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "port = 1\n")
    assert load({"FAREBOX_CONFIG": str(tmp_path / "missing"), "PATH": "x", "farebox_nope": "1"}, config=path).port == 1


def test_upstreams_and_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_THERE", SECRET)
    path = write(tmp_path, FILE)
    settings = load({}, config=path)
    assert [upstream.api_key for upstream in settings.upstream] == [SecretStr(SECRET)]
    assert settings.aliases == {"best": "m"}
    assert SECRET not in repr(settings)
    only = {"FAREBOX_UPSTREAM_BASE_URL": "https://y/v1/", "FAREBOX_UPSTREAM_API_KEY": "k"}
    (default,) = load(only, config=path).upstream
    assert (default.name, default.base_url, default.api_key) == ("default", "https://y/v1", SecretStr("k"))


def test_every_default_is_valid_and_every_setting_has_a_unit() -> None:
    defaults = Settings()
    assert Settings.model_validate(defaults.model_dump()) == defaults
    assert load({}) == defaults
    plain = {"port", "ops_port", "workers"}
    units = (
        "_seconds",
        "_bytes_max",
        "_tokens",
        "_operations_max",
        "_entries_max",
        "_in_flight_max",
        "_second_max",
        "_days",
    )
    for name, value in defaults.model_dump().items():
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in plain:
            assert name.endswith(units)


def test_what_was_read_can_be_checked_again_elsewhere(tmp_path: Path) -> None:
    """A worker is given the document as JSON, secrets and all."""
    path = write(tmp_path, UPSTREAM + 'api_key = "k"\nrename = { a = "b" }\n[aliases]\nbest = "m"\n')
    environment = {"FAREBOX_PORT": "2", "FAREBOX_DATA_DIRECTORY": str(tmp_path), "FAREBOX_STOP_SECONDS": "0.5"}
    document = read(environment, config=path)
    assert check(orjson.loads(orjson.dumps(document))) == load(environment, config=path)


def test_the_directory_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load({}).directory() == tmp_path / ".farebox"
    assert load({"FAREBOX_DATA_DIRECTORY": "~/d"}).directory() == tmp_path / "home" / "d"
