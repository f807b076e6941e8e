"""The README's table of endpoints is what the route table says, and has no hole."""

import difflib

import pytest

from gateway.core.catalogue import METERS
from gateway.web.routes import METERED
from tests.support.surface import OTHERS, OUTCOME_TESTS, README, ROOT, WITHOUT_OUTCOME_TESTS, readme_with, rows, table


def test_the_readme_says_what_the_route_table_says() -> None:
    text = README.read_text(encoding="utf-8")
    wanted = readme_with(text, table())
    stale = difflib.unified_diff(text.splitlines(), wanted.splitlines(), "README.md", "route table", lineterm="", n=0)
    assert text == wanted, "run `make docs`:\n" + "\n".join(stale)


@pytest.mark.parametrize("path", [*METERED, *OTHERS])
def test_no_cell_is_empty_and_every_word_is_true(path: str) -> None:
    described = rows()[path]
    assert described.ceiling
    assert described.usage
    known = set(METERS)
    for meter in described.meters:
        assert str(meter).partition("/")[0] in {name.partition("/")[0] for name in known}, f"{meter} is no meter"
    assert described.meters or path in OTHERS, "a metered endpoint has meters"
    assert bool(OUTCOME_TESTS.get(path)) != (path in WITHOUT_OUTCOME_TESTS), "name the tests of its outcomes"
    for test in OUTCOME_TESTS.get(path, ()):
        assert (ROOT / "tests" / test).is_file(), test
    assert not any("|" in cell or "\n" in cell for cell in (described.ceiling, described.usage))


def test_a_readme_without_a_place_for_it_is_refused() -> None:
    with pytest.raises(ValueError, match="must have the lines"):
        readme_with("# Farebox\n", table())
