"""The table of endpoints in the README, from the route table. `python -m tests.support.surface` writes it anew.

What an endpoint meters, and how, it says itself (`described`); which tests walk its outcome matrix is said here.
"""

from collections.abc import Mapping
from pathlib import Path

from gateway.endpoints.endpoint import Described
from gateway.endpoints.realtime import RealtimeEndpoint
from gateway.web.routes import METERED, PREFIX

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MEDIA = "request/test_outcomes_media.py"
BEGIN, END = "<!-- endpoints -->\n", "<!-- /endpoints -->\n"

# What is served without an endpoint of the request flow.
OTHERS: Mapping[str, Described] = {
    "GET /v1/realtime": RealtimeEndpoint.described,
    "GET, DELETE /v1/responses/{id}, …/cancel, …/input_items": Described(
        (), "nothing is held", "free for the wallet that made the response; what ran in the background is settled once"
    ),
    "POST /v1/responses/input_tokens": Described((), "nothing is held", "free"),
    "GET /v1/models, /v1/models/{model}": Described((), "nothing is held", "free, and answered here"),
}
# Routes whose rows of the outcome matrix have no test yet. The list only shrinks.
WITHOUT_OUTCOME_TESTS: frozenset[str] = frozenset()
# Path -> the tests of its rows of the outcome matrix, below tests/.
OUTCOME_TESTS: Mapping[str, tuple[str, ...]] = {
    "/chat/completions": ("request/test_outcomes.py", "request/test_outcomes_broken.py"),
    "/completions": ("request/test_outcomes_endpoints.py",),
    "/embeddings": ("request/test_outcomes_endpoints.py",),
    "/moderations": ("request/test_outcomes_endpoints.py",),
    "GET /v1/realtime": (
        "request/test_open_session.py",
        "request/test_session.py",
    ),
    **dict.fromkeys(("/images/generations", "/images/edits", "/images/variations"), (MEDIA,)),
    **dict.fromkeys(("/audio/speech", "/audio/transcriptions", "/audio/translations"), (MEDIA,)),
    "/responses": ("request/test_responses_outcomes.py",),
    "/responses/compact": ("request/test_responses_outcomes.py",),
    "GET, DELETE /v1/responses/{id}, …/cancel, …/input_items": ("web/test_responses.py",),
    "POST /v1/responses/input_tokens": ("web/test_responses.py",),
    "GET /v1/models, /v1/models/{model}": ("web/test_models.py",),
}


def rows() -> dict[str, Described]:
    """Every route, and what it says of itself."""
    return {path: endpoint.described for path, endpoint in METERED.items()} | dict(OTHERS)


def table() -> str:
    """The table in Markdown."""
    lines = [
        "| endpoint | meters | ceiling | usage | outcome tests |",
        "|---|---|---|---|---|",
    ]
    for path, described in rows().items():
        shown = f"POST {PREFIX}{path}" if path.startswith("/") else path
        meters = ", ".join(described.meters) or "none"
        tests = ", ".join(f"[{Path(test).stem}](tests/{test})" for test in OUTCOME_TESTS.get(path, ())) or "none"
        lines.append(f"| `{shown}` | {meters} | {described.ceiling} | {described.usage} | {tests} |")
    return "\n".join(lines) + "\n"


def readme_with(text: str, made: str) -> str:
    """The README with the table in its place. Raises ValueError where its place is not marked."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + made + end + after


def main() -> None:
    README.write_text(readme_with(README.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
