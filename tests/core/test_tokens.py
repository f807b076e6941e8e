"""A bound by tokens: which models have one, and that no way of cutting or joining texts makes it too low."""

import pytest
from hypothesis import given, settings, target
from hypothesis import strategies as st

from gateway.core.tokens import (
    CUT_TOKENS,
    ENDS_TOKENS,
    PIECE_CHARS,
    TEXT_BYTES_MIN,
    Encoding,
    Text,
    encoding_of,
    tokens_saved,
)
from gateway.request.recount import counter

O200K, CL100K = Encoding("o200k_base", 100), Encoding("cl100k_base", 100)


@pytest.mark.parametrize(
    ("model", "encoding"),
    [
        ("gpt-4o", O200K),
        ("gpt-4o-mini-2024-07-18", O200K),
        ("gpt-4.1-nano", O200K),
        ("gpt-5", O200K),
        ("gpt-5.6-mini", O200K),
        ("gpt-oss-120b", O200K),
        ("chatgpt-4o-latest", O200K),
        ("o1", O200K),
        ("o3-mini", O200K),
        ("o4-mini", O200K),
        ("openai/gpt-4o", O200K),
        ("ft:gpt-4o-mini:acme::id", O200K),
        ("gpt-4", CL100K),
        ("gpt-4-turbo", CL100K),
        ("gpt-3.5-turbo", CL100K),
        ("text-embedding-3-small", CL100K),
        ("gpt-6", Encoding("o200k_base", 130)),
        ("gpt-6.1-mini", Encoding("o200k_base", 130)),
        ("gpt-7", None),
        ("gpt-40", None),
        ("gpt-50", None),
        ("o200", None),
        ("my-gpt-4o", None),
        ("mistral-large", None),
        ("llama-3.1-70b", None),
        ("gemini-2.5-pro", None),
        ("", None),
    ],
)
def test_only_a_model_whose_vocabulary_is_known_has_an_encoding(model: str, encoding: Encoding | None) -> None:
    assert encoding_of(model) == encoding


@pytest.mark.parametrize(
    ("text", "times", "percent", "saved"),
    [
        ("a" * (TEXT_BYTES_MIN - 1), 1, 100, 0),
        ("a" * 100, 1, 100, 100 - (25 + CUT_TOKENS + ENDS_TOKENS)),
        ("a" * 1_000, 2, 100, 2 * (1_000 - (250 + CUT_TOKENS + ENDS_TOKENS))),
        ("a" * 1_000, 1, 130, 1_000 - 388),
        ("a\n" * 500, 1, 100, 1_000 - (250 + CUT_TOKENS + ENDS_TOKENS)),
        ("a\n" * 500, 2, 100, 0),
        ("ü" * 1_000, 1, 100, 2_000 - (250 + CUT_TOKENS + ENDS_TOKENS)),
        ("a" * 2 * PIECE_CHARS, 1, 100, 2 * PIECE_CHARS - (PIECE_CHARS // 2 + 2 * CUT_TOKENS + ENDS_TOKENS)),
    ],
)
def test_what_is_saved_is_bytes_less_tokens(text: str, times: int, percent: int, saved: int) -> None:
    assert tokens_saved([Text(text, times)], lambda piece: len(piece) // 4, percent) == saved


def test_a_text_with_more_tokens_than_bytes_saves_nothing() -> None:
    assert tokens_saved([Text("a" * 100), Text("b" * 100)], lambda piece: 9 * len(piece)) == 0


# Bytes that stress a vocabulary: words, quotes, marks, white space, scripts of two to four bytes, long runs.
FRAGMENTS = st.one_of(
    st.sampled_from(
        (
            "word",
            " Word",
            "'s",
            '"',
            '\\"',
            "\n",
            " \n",
            "  ",
            "\t",
            "ö",
            "漢字",
            "👩‍💻",
            "ﷺ",
            "a",
            "aA",
            "123",
            "1",
            "_-",
            "=",
        )
    ),
    st.text(max_size=6),
)


@pytest.mark.parametrize("encoding", ["o200k_base", "cl100k_base"])
def test_cuts_and_joints_cost_no_more_than_they_are_allowed(encoding: str) -> None:
    count = counter(encoding)

    @settings(max_examples=8, deadline=None, database=None)
    @given(before=st.lists(FRAGMENTS, max_size=8), repeated=st.lists(FRAGMENTS, min_size=1, max_size=5))
    def check(before: list[str], repeated: list[str]) -> None:
        unit = "".join(repeated) or "a"
        text = "".join(before) + unit * (PIECE_CHARS // len(unit) + 40)
        pieces = [text[start : start + PIECE_CHARS] for start in range(0, len(text), PIECE_CHARS)]
        more = count(text) - sum(map(count, pieces))
        target(more, label="tokens that a cut adds")
        assert more <= (len(pieces) - 1) * CUT_TOKENS
        # Two texts that a template puts side by side.
        left, right = "".join(before) + unit * 9, unit * 7 + "".join(before)
        more = count(left + right) - count(left) - count(right)
        assert more <= 2 * ENDS_TOKENS
        # No token is less than a byte of text: what the bound by bytes stands on.
        assert count(left) <= len(left.encode())

    check()
