"""Which paths are known and not metered, and how a caller's path is named."""

import pytest

from gateway.core.known_paths import UNMETERED, shown, why_unmetered


@pytest.mark.parametrize(
    "path",
    ["/files", "/files/file-1/content", "/batches", "/fine_tuning/jobs", "/assistants", "/threads/t/runs", "/videos/v",
     "/vector_stores/vs_1/search", "/realtime/client_secrets", "/realtime/calls", "/containers", "/evals/e/runs",
     "/organization/usage/completions", "/chat/completions/chatcmpl-1", "/audio/voices", "/uploads/u/parts"],
)  # fmt: skip
def test_known(path: str) -> None:
    assert why_unmetered(path) in UNMETERED.values()


@pytest.mark.parametrize(
    "path",
    ["", "/", "/nothing", "/filesystem", "/files/", "/files//a", "/files/..", "/files/../models", "/files/%2e%2e",
     "/files/a b", "//files", "/FILES", "/audio", "/audio/speech", "/chat", "/files" + "/a" * 16, "files",
     "/files/" + "a" * 257],
)  # fmt: skip
def test_unknown(path: str) -> None:
    assert why_unmetered(path) is None


def test_a_path_is_named_within_bounds() -> None:
    assert shown("/v1/files") == "/v1/files"
    assert shown("/a\x7f\r\né ") == "/a?????"
    assert shown("/" + "a" * 500) == "/" + "a" * 199 + "…"
