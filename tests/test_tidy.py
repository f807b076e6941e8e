"""The ratchet: rules of the house that hold everywhere, today and after the next change (tests/support/tidy.py)."""

import inspect
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.support import tidy
from tests.support.tidy import House

# Modules without a test file of their own, one a line. The list only shrinks.
WITHOUT_A_TEST: frozenset[str] = frozenset({"gateway/endpoints/endpoint.py"})

# Every public function of the rules that takes a house; those that ask for them are given the excuses above.
RULES = {
    name: rule
    for name, rule in inspect.getmembers(tidy, inspect.isfunction)
    if not name.startswith("_") and "house" in inspect.signature(rule).parameters and name != "modules_without_a_test"
}


def findings(name: str, house: House, excused: frozenset[str]) -> list[str]:
    """What `house` does against a rule."""
    rule = RULES[name]
    found: list[str] = rule(house, excused) if "excused" in inspect.signature(rule).parameters else rule(house)
    return found


@cache
def repository() -> House:
    return House(Path(__file__).parents[1])


@pytest.mark.parametrize("name", RULES)
def test_the_house_keeps_its_rule(name: str) -> None:
    found = findings(name, repository(), WITHOUT_A_TEST)
    reason = " ".join((RULES[name].__doc__ or "").split())
    assert not found, "\n".join([reason, *found])


# What breaks each rule: files of a house, and the findings' beginnings. Every other file in it is in order.
_LONG = "def f() -> None:\n" + "    pass\n" * 70
_QUERY = "-- name: {0}\n-- {0}.\nSELECT {0}();\n"
_FUNCTION = "CREATE OR REPLACE FUNCTION {0}() RETURNS void LANGUAGE sql AS $$ $$;\n"
PLANTED: Mapping[str, tuple[Mapping[str, str], list[str]]] = {
    "functions_are_short": ({"tests/test_a.py": f"\n{_LONG}"}, ["tests/test_a.py:2: f has 71 lines"]),
    "files_are_small": (
        {"gateway/a.py": "a = 1\n" * 401, "sql/a.sql": "--\n" * 400, "deploy/a.mjs": "//\n" * 402},
        ["deploy/a.mjs:401: the file has 402", "gateway/a.py:401: the file has 401"],
    ),
    "the_top_level_is_closed": ({"utils.py": "", ".gitignore": "", "gateway/utils.py": ""}, ["utils.py:1: "]),
    "folders_have_their_readme": ({"README.md": "", "sql/README.md": ""}, ["gateway/README.md:1: "]),
    "sources_have_their_tests": (
        {"gateway/core/a.py": "", "gateway/core/b.py": "", "gateway/core/__init__.py": "", "tests/core/test_b.py": ""},
        ["gateway/core/a.py:1: tests/core/test_a.py does not exist"],
    ),
    "excuses_are_needed": ({"gateway/a.py": "", "tests/test_a.py": "", "gateway/b.py": ""}, ["gateway/a.py:1: "]),
    "named_queries_are_used": (
        {
            "sql/queries/a.sql": _QUERY.format("used") + "\n" + _QUERY.format("dead"),
            "gateway/a.py": '"""dead"""\nfetch("used")\n',
        },
        ["sql/queries/a.sql:5: nothing in gateway/ uses the query dead"],
    ),
    "sql_functions_are_used": (
        {
            "sql/functions/used.sql": _FUNCTION.format("used"),
            "sql/functions/dead.sql": _FUNCTION.format("dead") + "-- SELECT dead();",
            "sql/functions/other.sql": _FUNCTION.format("misnamed"),
            "sql/queries/a.sql": _QUERY.format("used"),
        },
        ["sql/functions/dead.sql:1: no query", "sql/functions/other.sql:1: the file does not define"],
    ),
    "sql_stays_in_files": (
        {
            "gateway/a.py": '"""Select a wallet from all."""\nx = "SELECT balance FROM wallets"\n'
            'y = f"""\n  with t as ({x}) insert"""\nz = f"UPDATE {x} SET a = 1"\n'
            'ok = ["update now", "select a model", "deleted from it", "with funds as they are", "listen to me"]\n',
            "tests/test_a.py": 'x = "DELETE FROM wallets"\n',
        },
        ["gateway/a.py:2: ", "gateway/a.py:3: ", "gateway/a.py:5: "],
    ),
    "nothing_prints": (
        {"gateway/web/a.py": "\nprint(1)\n", "gateway/cli/a.py": "print(1)\n", "gateway/b.py": "blueprint(1)\n"},
        ["gateway/web/a.py:2: print(): "],
    ),
    "nothing_blocks_the_loop": (
        {"gateway/a.py": "await asyncio.sleep(1)\ntime.sleep(1)\n", "gateway/db/embedded.py": "time.sleep(1)\n"},
        ["gateway/a.py:2: time.sleep(): "],
    ),
    "tasks_start_in_one_place": (
        {
            "gateway/a.py": "asyncio.create_task(x)\nasyncio.get_running_loop().create_task(x)\nensure_future(x)\n",
            "gateway/tasks.py": "loop.create_task(x)\n",
        },
        ["gateway/a.py:1: ", "gateway/a.py:2: ", "gateway/a.py:3: "],
    ),
    "times_have_a_zone": (
        {"tests/test_a.py": "datetime.now(UTC)\ndatetime.now()\ndatetime.datetime.utcnow()\n"},
        ["tests/test_a.py:2: ", "tests/test_a.py:3: "],
    ),
    "money_is_whole": (
        {"gateway/core/money.py": "a = 1 // 2\nb = 1 / 2\nc = float(a)\nd = 0.5\n", "gateway/a.py": "b = 1 / 2\n"},
        ["gateway/core/money.py:2: ", "gateway/core/money.py:3: ", "gateway/core/money.py:4: "],
    ),
    "one_json_parser": (
        {"gateway/a.py": "import orjson\nimport json\nfrom json import loads\n", "tests/a.py": "import json\n"},
        ["gateway/a.py:2: ", "gateway/a.py:3: "],
    ),
    "nothing_is_swallowed": (
        {
            "gateway/a.py": "try:\n    f()\nexcept Exception:\n    pass\n"
            "try:\n    f()\nexcept ValueError:\n    pass\nexcept Exception:\n    log()\n"
            "with contextlib.suppress(BaseException):\n    f()\nwith suppress(OSError):\n    f()\n"
        },
        ["gateway/a.py:3: ", "gateway/a.py:11: "],
    ),
    "words_are_ours": (
        {
            "deploy/a.md": "A hold.\nA Reservation, or a pre-debit.\nNot: reservation, budget.\n",
            "gateway/a.py": "token_budget = 1\nbudgetary = 1\nspend_logs = 1\n",
        },
        ["deploy/a.md:2: 'Reservation'", "gateway/a.py:1: 'budget'", "gateway/a.py:3: 'spend_logs'"],
    ),
    "nothing_is_left_over": ({"sql/a.sql": "-- todo lists\n-- TODO: more\n"}, ["sql/a.sql:2: 'TODO'"]),
}


@pytest.mark.parametrize("name", RULES)
def test_each_rule_can_fail(name: str, tmp_path: Path) -> None:
    files, expected = PLANTED[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    excused = frozenset({"gateway/a.py", "gateway/b.py"}) if name == "excuses_are_needed" else frozenset()
    found = findings(name, House(tmp_path), excused)
    assert len(found) == len(expected), found
    for finding, beginning in zip(found, expected, strict=True):
        assert finding.startswith(beginning)


def test_what_git_ignores_is_no_part_of_the_house() -> None:
    with_git = repository().paths
    assert "gateway/app.py" in with_git
    assert not [path for path in with_git if path.startswith((".venv/", ".artifacts/"))]


def test_a_house_without_git_leaves_out_what_is_made(tmp_path: Path) -> None:
    for path in ("gateway/a.py", ".venv/b.py", "gateway/__pycache__/c.py", "tests/node_modules/x/d.py", "a.egg-info/e"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    assert House(tmp_path).paths == ["gateway/a.py"]
