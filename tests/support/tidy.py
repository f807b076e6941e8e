"""The rules of the house that no linter knows. Each takes the house and returns what breaks it, as "file:line: what".

tests/test_tidy.py runs every rule on this repository, and shows on a planted fault that each of them can fail.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
TOP_LEVEL = {"gateway", "sql", "tests", "deploy", "pyproject.toml", "Makefile", "README.md", "LICENSE", "CHANGELOG.md"}
READMES = ("README.md", "gateway/README.md", "sql/README.md")
MONEY_MODULES = ("core/money", "core/pricing", "core/ceiling", "request/meter")
MONEY_FILES = tuple(f"gateway/{module}.py" for module in MONEY_MODULES)
# The embedded server is started before there is an event loop, and stopped after it.
BEFORE_THE_LOOP = tuple(f"gateway/db/embedded{part}.py" for part in ("", "_directory", "_process"))
# These two must be able to say what nobody else may.
THE_RULES = ("tests/support/tidy.py", "tests/test_tidy.py")
SKIPPED_FOLDERS = ("node_modules", "__pycache__", "build", "dist")


@dataclass(frozen=True)
class Source:
    """One file; `path` is relative to the house."""

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Everything in a Python file."""
        return list(ast.walk(ast.parse(self.text, self.path)))

    def at(self, line: int | ast.AST, what: str) -> str:
        return f"{self.path}:{line if isinstance(line, int) else getattr(line, 'lineno', 1)}: {what}"


class House:
    """A checkout: the files that git knows or would take, or all of them where there is no git."""

    def __init__(self, root: Path) -> None:
        self.paths = sorted(path for path in _listed(root) if (root / path).is_file())
        self.sources = [Source(path, text) for path in self.paths if (text := _text(root / path)) is not None]

    def of(self, folder: str, *suffixes: str, but: tuple[str, ...] = ()) -> Iterator[Source]:
        """The files below `folder` ("" for all) with one of these suffixes, but for the paths that begin as `but`."""
        for source in self.sources:
            path = source.path
            if path.startswith(folder) and path.endswith(suffixes or "") and not path.startswith(but):
                yield source


def _listed(root: Path) -> list[str]:
    git = shutil.which("git")
    if git is not None and (root / ".git").exists():
        command = [git, "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        return [path for path in subprocess.check_output(command, text=True, timeout=60).split("\0") if path]
    found = [path.relative_to(root) for path in root.rglob("*")]
    skipped = (*SKIPPED_FOLDERS, "*.egg-info", ".*")
    return [
        str(path) for path in found if not any(p.match(s) for p in (path, *path.parents) for s in skipped if p.name)
    ]


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


# Sizes and places ----------------------------------------------------------------------------------------------------


def functions_are_short(house: House) -> list[str]:
    """A function fits on a screen or two: 70 lines, tests included. Split it where its story has a comma."""
    return [
        source.at(node, f"{node.name} has {length} lines, {FUNCTION_LINES_MAX} are allowed")
        for source in house.of("", ".py")
        for node in source.nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    ]


def files_are_small(house: House) -> list[str]:
    """A file is one idea: 400 lines of Python, SQL or JavaScript at most."""
    return [
        source.at(FILE_LINES_MAX + 1, f"the file has {len(source.lines)} lines, {FILE_LINES_MAX} are allowed")
        for source in house.of("", ".py", ".sql", ".js", ".mjs")
        if len(source.lines) > FILE_LINES_MAX
    ]


def the_top_level_is_closed(house: House) -> list[str]:
    """Everything has a folder: the top level holds what design section 3 lists, dot-files, and nothing else."""
    tops = {path.split("/")[0] for path in house.paths}
    return [f"{top}:1: this does not belong to the top level" for top in sorted(tops - TOP_LEVEL) if top[0] != "."]


def folders_have_their_readme(house: House) -> list[str]:
    """The map, and the map of the SQL, are part of the house."""
    return [f"{path}:1: this README is missing" for path in READMES if path not in house.paths]


# Tests mirror sources ------------------------------------------------------------------------------------------------


def mirror(module: str) -> str:
    """gateway/core/sse.py -> tests/core/test_sse.py."""
    path = PurePosixPath(module)
    return str(PurePosixPath("tests", *path.parts[1:-1], f"test_{path.name}"))


def modules_without_a_test(house: House) -> list[str]:
    """Every module of the gateway whose mirrored test file does not exist."""
    modules = [path for path in house.paths if path.startswith("gateway/") and path.endswith(".py")]
    named = [path for path in modules if not path.endswith(("__init__.py", "__main__.py"))]
    return [path for path in named if mirror(path) not in house.paths]


def sources_have_their_tests(house: House, excused: frozenset[str]) -> list[str]:
    """Whoever changes a module knows where its tests are: tests/<same folder>/test_<name>.py."""
    missing = [path for path in modules_without_a_test(house) if path not in excused]
    return [f"{path}:1: {mirror(path)} does not exist" for path in missing]


def excuses_are_needed(house: House, excused: frozenset[str]) -> list[str]:
    """The list of modules without a test of their own only shrinks."""
    stale = sorted(excused - set(modules_without_a_test(house)))
    return [
        f"{path}:1: it has its test, or is gone: take it off WITHOUT_A_TEST in tests/test_tidy.py" for path in stale
    ]


# SQL -----------------------------------------------------------------------------------------------------------------

_QUERY_NAME = re.compile(r"^-- name: (\w+)")
_STATEMENT = re.compile(
    r"\s*(select\s.*\sfrom\s|insert\s+into\s|update\s+\w+\s+(as\s+\w+\s+)?set\s|delete\s+from\s|with\s+\w+\s+as\s*\("
    r"|(create|alter|drop|lock)\s+(unlogged\s+|temp\w*\s+|unique\s+|or\s+replace\s+)*(table|index|function|type|view)\s"
    r"|truncate\s+\w|select\s+(\d|\w+\()|(un)?listen\s+\w+\s*;?\s*$|notify\s+\w+)",
    re.IGNORECASE | re.DOTALL,
)


def named_queries_are_used(house: House) -> list[str]:
    """Dead SQL is read, migrated and reviewed for nothing: every named statement is asked for by its name."""
    said = {value for source in house.of("gateway/", ".py") for value, _ in _strings(source)}
    return [
        source.at(number, f"nothing in gateway/ uses the query {found[1]}")
        for source in house.of("sql/queries/", ".sql")
        for number, line in enumerate(source.lines, 1)
        if (found := _QUERY_NAME.match(line)) and found[1] not in said
    ]


def sql_functions_are_used(house: House) -> list[str]:
    """A function file is named for its function, and some query or other function calls it."""
    findings = []
    for source in house.of("sql/functions/", ".sql"):
        name = PurePosixPath(source.path).stem
        callers = [*house.of("sql/functions/", ".sql", but=(source.path,)), *house.of("sql/queries/", ".sql")]
        if not re.search(rf"\bFUNCTION {name}\b", source.text):
            findings.append(source.at(1, f"the file does not define a function {name}"))
        elif not any(re.search(rf"\b{name}\s*\(", caller.text) for caller in callers):
            findings.append(source.at(1, f"no query and no other function calls {name}"))
    return findings


def sql_stays_in_files(house: House) -> list[str]:
    """SQL has one home, sql/, where it is named, explained, linted and tested; Python asks for it by name."""
    return [
        source.at(line, "this string is SQL: give it a name in sql/queries/")
        for source in house.of("gateway/", ".py")
        for value, line in _strings(source)
        if _STATEMENT.match(value)
    ]


def _strings(source: Source) -> Iterator[tuple[str, int]]:
    """Every string that is not a docstring, with its line; what an f-string inserts reads as x."""
    skipped = {id(n.value) for n in source.nodes if isinstance(n, ast.Expr)}
    skipped |= {id(part) for n in source.nodes if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in source.nodes:
        if isinstance(node, ast.JoinedStr):
            parts = [str(p.value) if isinstance(p, ast.Constant) else "x" for p in node.values]
            yield "".join(parts), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value, node.lineno


# Banned calls, each with its reason ----------------------------------------------------------------------------------


def _calls(source: Source) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name; what is no name in it reads as nothing: loop().create_task is .create_task."""
    for node in source.nodes:
        if isinstance(node, ast.Call):
            yield _dotted(node.func), node


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return f"{_dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def _banned(house: House, folder: str, pattern: str, reason: str, but: tuple[str, ...] = ()) -> list[str]:
    return [
        source.at(call, f"{name}(): {reason}")
        for source in house.of(folder, ".py", but=but)
        for name, call in _calls(source)
        if re.fullmatch(pattern, name)
    ]


def nothing_prints(house: House) -> list[str]:
    """What the gateway says is a JSON log line or a metric; only the command line speaks to people."""
    return _banned(house, "gateway/", "print", "log it, or raise it", but=("gateway/cli/",))


def nothing_blocks_the_loop(house: House) -> list[str]:
    """One blocked wake-up delays every stream of the process."""
    reason = "it blocks every call in the process; await asyncio.sleep"
    return _banned(house, "gateway/", r"(time\.)?sleep", reason, but=BEFORE_THE_LOOP)


def tasks_start_in_one_place(house: House) -> list[str]:
    """The event loop keeps weak references only: a task that nobody holds may vanish, and its crash with it."""
    reason = "use gateway.tasks.spawn, which keeps the task and reports its crash"
    return _banned(house, "gateway/", r"(.*\.)?(create_task|ensure_future)", reason, but=("gateway/tasks.py",))


def times_have_a_zone(house: House) -> list[str]:
    """A naive time means another moment on another machine."""
    return [
        source.at(call, f"{name}(): say the zone: datetime.now(UTC)")
        for source in house.of("", ".py")
        for name, call in _calls(source)
        if re.fullmatch(r"(.*\.)?datetime\.(utcnow|utcfromtimestamp|today)", name)
        or (re.fullmatch(r"(.*\.)?datetime\.now", name) and not call.args and not call.keywords)
    ]


def money_is_whole(house: House) -> list[str]:
    """Money is integers, divided only by name: a float loses nanos from nine million units on."""
    return [
        source.at(node, "money is whole numbers: no float, no /")
        for source in house.of("gateway/", ".py")
        if source.path in MONEY_FILES
        for node in source.nodes
        if (isinstance(node, ast.Call) and _dotted(node.func) == "float")
        or (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Div))
        or (isinstance(node, ast.Constant) and isinstance(node.value, float))
    ]


def one_json_parser(house: House) -> list[str]:
    """Two parsers disagree on duplicates, NaN and depth, and what one admits the other may price."""
    return [
        source.at(node, "use orjson: it refuses NaN, and is the gateway's only parser")
        for source in house.of("gateway/", ".py")
        for node in source.nodes
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "json" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "json")
    ]


def nothing_is_swallowed(house: House) -> list[str]:
    """A bug that leaves no trace is found by a customer. Name what may fail, or log it."""
    return [
        source.at(node, "this swallows every failure: name the ones that may happen")
        for source in house.of("", ".py")
        for node in source.nodes
        if (isinstance(node, ast.ExceptHandler) and _is_silent(node))
        or (
            isinstance(node, ast.Call) and _dotted(node.func).endswith("suppress") and any(map(_is_anything, node.args))
        )
    ]


def _is_silent(node: ast.ExceptHandler) -> bool:
    is_empty = all(isinstance(statement, ast.Pass) for statement in node.body)
    return is_empty and (node.type is None or _is_anything(node.type))


def _is_anything(node: ast.expr) -> bool:
    names = node.elts if isinstance(node, ast.Tuple) else [node]
    return any(_dotted(name) in ("Exception", "BaseException") for name in names)


# Words ---------------------------------------------------------------------------------------------------------------

_OTHER_WORDS = re.compile(r"(?<![a-z])(reservations?|pre-?debit\w*|budgets?|spend[ _-]?logs?)(?![a-z])", re.IGNORECASE)
_LEFTOVERS = re.compile(r"\b(TODO|FIXME|XXX)\b")
# The glossary may say which words are not ours.
_GLOSSARY = re.compile(r"\W*Not:")


def words_are_ours(house: House) -> list[str]:
    """One thing has one name (design section 2): hold, charge, cap, usage event, and no second word for any of them."""
    return _said(house, _OTHER_WORDS, "is not one of our words: see the glossary in gateway/README.md")


def nothing_is_left_over(house: House) -> list[str]:
    """What is still to do is in the tracker; what is in the tree is done."""
    return _said(house, _LEFTOVERS, "is a note to oneself: do it, or write it down elsewhere")


def _said(house: House, words: re.Pattern[str], what: str) -> list[str]:
    return [
        source.at(number, f"{found[0]!r} {what}")
        for source in house.of("", but=THE_RULES)
        for number, line in enumerate(source.lines, 1)
        if (found := words.search(line)) and not _GLOSSARY.match(line)
    ]
