"""What each kind of upstream presets, and where its calls go."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from gateway.core.variants import PRESETS, is_by_deployment, url_of
from gateway.settings import UpstreamSettings

_PLAIN: Mapping[str, Any] = {
    "auth": "bearer",
    "paths": "plain",
    "include_usage": True,
    "cap_member": "max_completion_tokens",
}
_OLD: Mapping[str, Any] = {"cap_member": "max_tokens"}
_UNASKED: Mapping[str, Any] = {"include_usage": False}
# kind -> in what it differs from OpenAI.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "openai": {},
    "azure": {"auth": "api-key", "paths": "deployments"},
    "vllm": {},
    "llamacpp": _OLD,
    "ollama": _OLD,
    "openrouter": _UNASKED,
    "groq": {},
    "deepseek": _OLD,
    "mistral": {**_OLD, **_UNASKED},
    "together": _OLD,
    "xai": {},
    "gemini": {},
    "litellm": {},
}


def settings_of(**given: Any) -> dict[str, Any]:
    settings = UpstreamSettings.model_validate({"name": "up", "base_url": "http://x/v1", **given})
    return {name: getattr(settings, name) for name in _PLAIN}


def test_every_kind_is_tried() -> None:
    assert set(KINDS) == set(get_args(UpstreamSettings.model_fields["kind"].annotation))
    assert set(PRESETS) <= set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_presets_what_is_not_set(kind: str) -> None:
    version = {"api_version": "2024-10-21"} if kind == "azure" else {}
    assert settings_of(kind=kind, **version) == {**_PLAIN, **KINDS[kind]}
    other = {"auth": "bearer", "paths": "plain", "include_usage": True, "cap_member": "max_completion_tokens"}
    assert settings_of(kind=kind, **other) == other
    opposite = {"auth": "api-key", "paths": "plain", "include_usage": False, "cap_member": "max_tokens"}
    assert settings_of(kind=kind, **opposite) == opposite


@pytest.mark.parametrize(
    ("version", "include_usage"),
    [("2024-06-01", False), ("2024-08-01-preview", False), ("2024-09-01-preview", True), ("2024-10-21", True),
     ("preview", True)],
)  # fmt: skip
def test_azure_takes_stream_options_from_a_version_on(version: str, include_usage: bool) -> None:
    assert settings_of(kind="azure", api_version=version)["include_usage"] is include_usage
    assert settings_of(kind="azure", api_version=version, include_usage=True)["include_usage"]


@pytest.mark.parametrize(
    ("base_url", "path", "model", "by_deployment", "api_version", "query", "url"),
    [
        ("https://x/v1", "/chat/completions", "m", False, None, {}, "https://x/v1/chat/completions"),
        ("https://x", "/chat/completions", "m", False, None, {"a": "1 2"}, "https://x/chat/completions?a=1+2"),
        (
            "https://r.example.com",
            "/chat/completions",
            "gpt 4/o",
            True,
            "2024-10-21",
            {},
            "https://r.example.com/openai/deployments/gpt%204%2Fo/chat/completions?api-version=2024-10-21",
        ),
        (
            "https://r.example.com/openai",
            "/embeddings",
            "m",
            True,
            "2024-10-21",
            {"a": "b"},
            "https://r.example.com/openai/deployments/m/embeddings?a=b&api-version=2024-10-21",
        ),
        # Not below a deployment.
        (
            "https://r.example.com",
            "/responses",
            "m",
            True,
            "2025-04-01-preview",
            {},
            "https://r.example.com/openai/responses?api-version=2025-04-01-preview",
        ),
        (
            "https://r.example.com/openai/v1",
            "/responses",
            "m",
            False,
            "preview",
            {},
            "https://r.example.com/openai/v1/responses?api-version=preview",
        ),
    ],
)
def test_where_a_call_goes(
    base_url: str,
    path: str,
    model: str,
    by_deployment: bool,
    api_version: str | None,
    query: Mapping[str, str],
    url: str,
) -> None:
    assert url_of(base_url, path, model, by_deployment=by_deployment, api_version=api_version, query=query) == url


def test_what_names_a_deployment() -> None:
    assert is_by_deployment("/chat/completions")
    assert not is_by_deployment("/responses")
