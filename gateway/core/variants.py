"""The kinds of upstreams, and how each differs from OpenAI. Pure: the settings of an upstream begin with these.

A kind only presets switches that can each be set by themselves: servers of one kind differ by release, too.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlencode

# Members of UpstreamSettings that a kind presets; a kind that is not here differs in nothing that we send.
_MAX_TOKENS = {"cap_member": "max_tokens"}
PRESETS: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "azure": {"auth": "api-key", "paths": "deployments"},
        "llamacpp": _MAX_TOKENS,
        "ollama": _MAX_TOKENS,
        # Its usage comes unasked, in the last event.
        "openrouter": {"include_usage": False},
        "deepseek": _MAX_TOKENS,
        "together": _MAX_TOKENS,
        # It answers stream_options, as any member that it does not know, with 422; its usage comes unasked.
        "mistral": {"include_usage": False, **_MAX_TOKENS},
    }
)
# From here on Azure takes stream_options; before, it answers them with 400.
_AZURE_STREAM_OPTIONS_DATE = "2024-09-01"
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
# What Azure serves below a deployment; anything else is asked of the resource, its model in the body.
_BY_DEPLOYMENT = frozenset(
    {
        "/audio/speech",
        "/audio/transcriptions",
        "/audio/translations",
        "/chat/completions",
        "/completions",
        "/embeddings",
        "/images/edits",
        "/images/generations",
    }
)


def preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """An upstream's settings as given, on top of what its kind says of those that were not."""
    kind = given.get("kind")
    settings = {**PRESETS.get(kind, {}), **given} if isinstance(kind, str) else dict(given)
    version = settings.get("api_version")
    if kind == "azure" and isinstance(version, str) and _DATE.match(version):
        settings.setdefault("include_usage", version[:10] >= _AZURE_STREAM_OPTIONS_DATE)
    return settings


def url_of(
    base_url: str, path: str, model: str, *, by_deployment: bool, api_version: str | None, query: Mapping[str, str]
) -> str:
    """Where a call to `path` (below the prefix, encoded, with any query) for `model` goes, by its name there."""
    if by_deployment:
        base = base_url.removesuffix("/openai") + "/openai"
        url = f"{base}/deployments/{quote(model, safe='')}{path}" if path in _BY_DEPLOYMENT else base + path
    else:
        url = base_url + path
    asked = {**query, **({} if api_version is None else {"api-version": api_version})}
    return f"{url}{'&' if '?' in path else '?'}{urlencode(asked)}" if asked else url


def is_by_deployment(path: str) -> bool:
    """Whether Azure's form of this path names the model."""
    return path in _BY_DEPLOYMENT
