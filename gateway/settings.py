"""All settings and limits in one record, checked at start. Every one has a unit in its name.

Sources, later ones win: defaults, a TOML file (FAREBOX_CONFIG or --config), FAREBOX_<NAME> in the environment.
FAREBOX_UPSTREAM_BASE_URL and FAREBOX_UPSTREAM_API_KEY stand for one upstream named "default".
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from gateway.core.dsn import InvalidDsn, parse_dsn
from gateway.core.variants import preset

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Port = Annotated[int, Field(ge=0, le=65_535)]
WORKERS_MAX = 64
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
# What frames a request, or is ours to say; `auth` chooses the form of the key.
_HEADERS_OF_OURS = frozenset(
    {"accept-encoding", "authorization", "connection", "content-length", "content-type", "expect", "host", "te",
     "trailer", "transfer-encoding", "upgrade", "x-request-id"}
)  # fmt: skip


class InvalidSettings(ValueError):
    """The configuration cannot be used; one line each says which key and why."""


class UpstreamSettings(BaseModel):
    """One upstream. Those that serve a model are asked in the order of gateway/request/routing.py.

    `kind` presets what else is said here where it is not (gateway/core/variants.py).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    kind: Literal[
        "openai", "azure", "vllm", "llamacpp", "ollama", "openrouter", "groq", "deepseek", "mistral", "together", "xai",
        "gemini", "litellm",
    ] = "openai"  # fmt: skip
    base_url: str
    api_key: SecretStr | None = None
    api_key_env: str | None = None
    auth: Literal["bearer", "api-key"] = "bearer"
    paths: Literal["plain", "deployments"] = "plain"
    api_version: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    query: Mapping[str, str] = Field(default_factory=dict, max_length=16)
    headers: Mapping[str, SecretStr] = Field(default_factory=dict, max_length=32)
    models: tuple[str, ...] = ("*",)
    rename: Mapping[str, str] = Field(default_factory=dict)
    include_usage: bool = True
    missing_usage: Literal["estimate", "ceiling", "free"] = "estimate"
    order: int = Field(default=0, ge=-1_000, le=1_000)
    weight: int | None = Field(default=None, ge=0, le=1_000_000)
    calls_in_flight_max: int | None = Field(default=None, ge=1)
    open_after_failures: int = Field(default=5, ge=0, le=1_000)
    open_at_error_percent: int = Field(default=50, ge=1, le=100)
    open_window_seconds: Seconds = 30.0
    open_seconds: Seconds = 10.0
    price_bp: int = Field(default=10_000, ge=0, le=1_000_000)
    cap_member: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    connect_seconds: Seconds = 5.0
    first_byte_seconds: Seconds = 590.0
    idle_seconds: Seconds = 120.0
    total_seconds: Seconds = 3_600.0

    @field_validator("base_url")
    @classmethod
    def _plain_http_url(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL without query, such as https://api.example.com/v1")
        if parts.username is not None:
            raise ValueError("takes no user or password; set api_key or api_key_env")
        _ = parts.port  # raises ValueError where it is out of range
        return value.rstrip("/")

    @model_validator(mode="before")
    @classmethod
    def _as_its_kind(cls, given: Any) -> Any:
        return preset(given) if isinstance(given, dict) else given

    @field_validator("headers")
    @classmethod
    def _headers_can_be_sent(cls, value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name, content in value.items():
            if not _HEADER_NAME.fullmatch(name) or name.lower() in _HEADERS_OF_OURS:
                raise ValueError(f"{name!r} is no header that can be set here")
            if not content.get_secret_value().isprintable():
                raise ValueError(f"the value of {name} must be printable")
        return value

    @model_validator(mode="after")
    def _deployments_have_a_version(self) -> Self:
        if self.paths == "deployments" and self.api_version is None:
            raise ValueError("api_version: paths by deployment need one, such as 2024-10-21")
        return self

    @model_validator(mode="after")
    def _key_from_environment(self) -> Self:
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env)
            if not key:
                raise ValueError(f"api_key_env: the environment has no {self.api_key_env}")
            object.__setattr__(self, "api_key", SecretStr(key))
        return self


class AllowSettings(BaseModel):
    """A path without a meter that is passed on all the same: free, or at a model's price of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = Field(pattern=r"^(/([A-Za-z0-9_-][A-Za-z0-9._-]*|\{id\}))+$", max_length=256)
    methods: tuple[Literal["GET", "POST", "DELETE", "PUT", "PATCH"], ...] = Field(default=("GET",), min_length=1)
    upstream: str
    model: str | None = Field(default=None, min_length=1, max_length=256)


class Settings(BaseModel):
    """What `farebox serve` runs with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: Port = 8080
    ops_host: str = "127.0.0.1"
    ops_port: Port = 8081
    data_directory: Path | None = None
    database_url: SecretStr | None = None
    listen_database_url: SecretStr | None = None
    workers: int = Field(default=1, ge=1, le=WORKERS_MAX)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    top_up_url: str | None = None

    upstream: tuple[UpstreamSettings, ...] = ()
    aliases: Mapping[str, str] = Field(default_factory=dict)
    allow: tuple[AllowSettings, ...] = ()
    catalogue_overlay: Path | None = None

    body_bytes_max: int = Field(default=20 * 2**20, ge=1_024, le=2**30)
    form_bytes_max: int = Field(default=64 * 2**20, ge=1_024, le=2**32)
    form_disk_bytes_max: int = Field(default=2**30, ge=1_024, le=2**40)
    body_seconds: Seconds = 60.0
    header_bytes_max: int = Field(default=65_536, ge=8_190, le=2**20)
    header_seconds: Seconds = 15.0
    keep_alive_seconds: Seconds = 75.0
    reply_buffer_bytes_max: int = Field(default=2**20, ge=4_096, le=2**28)

    session_idle_seconds: Seconds = 600.0
    session_frame_bytes_max: int = Field(default=16 * 2**20, ge=4_096, le=2**28)

    min_output_tokens: int = Field(default=16, ge=1, le=1_000_000)
    hold_slice_tokens: int = Field(default=4_096, ge=16, le=10_000_000)
    stored_context: Literal["ceiling", "refuse"] = "ceiling"
    auto_service_tier: str = Field(default="default", pattern=r"^[a-z][a-z0-9_-]{0,31}$")
    recount_refused: bool = True
    unowned_references: Literal["refuse", "allow"] = "refuse"
    background_total_seconds: Seconds = 86_400.0
    background_look_seconds: Seconds = 1.0
    calls_in_flight_max: int = Field(default=10_000, ge=1)
    hold_valid_seconds: int = Field(default=60, ge=2, le=86_400)
    drain_seconds: Seconds = 30.0
    idempotency_secret: SecretStr | None = Field(default=None, min_length=32)
    idempotency_keep_seconds: int = Field(default=86_400, ge=60, le=7 * 86_400)
    idempotency_reply_bytes_max: int = Field(default=2**20, ge=1_024, le=2**26)
    stop_seconds: Seconds = 8.0

    key_cache_seconds: Seconds = 5.0
    key_cache_entries_max: int = Field(default=100_000, ge=1)
    unknown_keys_per_second_max: int = Field(default=50, ge=1)

    lane_batch_operations_max: int = Field(default=512, ge=1, le=512)
    lane_queue_operations_max: int = Field(default=20_000, ge=1)
    lane_statement_seconds: Seconds = 5.0
    lane_wait_seconds: Seconds = 2.0
    journal_bytes_max: int = Field(default=256 * 2**20, ge=4_096)
    sweep_seconds: Seconds = 10.0
    invariants_seconds: Seconds = 300.0
    seal_seconds: Seconds = 30.0
    seal_entries_max: int = Field(default=256, ge=1, le=1_024)
    seal_age_seconds: Seconds = 300.0
    usage_retention_days: int | None = Field(default=None, ge=62, le=36_500)

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _postgresql_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_dsn(value.get_secret_value())
            except InvalidDsn as error:
                raise ValueError(f"not a PostgreSQL URL: {error}") from None
        return value

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [upstream.name for upstream in self.upstream]
        if len(set(names)) != len(names):
            raise ValueError("upstream: two upstreams have the same name")
        for rule in self.allow:
            if names and rule.upstream not in names:
                raise ValueError(f"allow: {rule.path}: there is no upstream named {rule.upstream}")
        return self

    def directory(self) -> Path:
        """Where the embedded PostgreSQL, the journal and the demo key live."""
        return (self.data_directory or default_directory()).expanduser().absolute()


def default_directory() -> Path:
    """`.farebox` in the working directory."""
    return Path(".farebox")


def load(environment: Mapping[str, str], *, config: Path | None = None) -> Settings:
    """Read and check everything. Raises InvalidSettings with one line per problem."""
    return check(read(environment, config=config))


def read(environment: Mapping[str, str], *, config: Path | None = None) -> dict[str, Any]:
    """The file with the environment over it, not checked yet. Raises InvalidSettings."""
    document: dict[str, Any] = {}
    if config is None and "FAREBOX_CONFIG" in environment:
        config = Path(environment["FAREBOX_CONFIG"])
    if config is not None:
        try:
            document = tomllib.loads(config.read_text(encoding="utf-8"))
        except OSError as error:
            raise InvalidSettings(f"{config}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InvalidSettings(f"{config}: {error}") from None
    document.update(_from_environment(environment))
    return document


def check(document: Mapping[str, Any]) -> Settings:
    """Raises InvalidSettings with one line per problem."""
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise InvalidSettings("\n".join(_lines(error))) from None


_NOT_SETTINGS = frozenset({"FAREBOX_CONFIG", "FAREBOX_KILL_AT", "FAREBOX_API_KEY"})
_NESTED = frozenset({"upstream", "aliases", "allow"})


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    upstream: dict[str, str] = {}
    for name, value in environment.items():
        if not name.startswith("FAREBOX_") or name in _NOT_SETTINGS:
            continue
        key = name.removeprefix("FAREBOX_").lower()
        if key in ("upstream_base_url", "upstream_api_key"):
            upstream[key.removeprefix("upstream_")] = value
        elif key in Settings.model_fields and key not in _NESTED:
            values[key] = value
        else:
            raise InvalidSettings(f"{name}: unknown setting")
    if upstream:
        values["upstream"] = [{"name": "default", **upstream}]
    return values


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for problem in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "unknown setting"
        lines.append(f"{where}: {message}")
    return lines
