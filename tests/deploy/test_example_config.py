"""deploy/farebox.example.toml is the reference of all settings: complete, true to the defaults, and loadable."""

import re
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from gateway.settings import AllowSettings, Settings, UpstreamSettings, load

EXAMPLE = Path(__file__).parents[2] / "deploy" / "farebox.example.toml"
# "#name = value" is a setting that is commented out; "# words" is prose.
_SETTING = re.compile(r"^#(?=[\w\[\"])", re.MULTILINE)
# These have no default, or one that only the code can know, and show an example value.
_SHOWN_BY_EXAMPLE = {"data_directory", "rename", "aliases", "query", "headers"}


def uncommented() -> str:
    return _SETTING.sub("", EXAMPLE.read_text())


def document() -> dict[str, Any]:
    return tomllib.loads(uncommented())


def test_as_it_ships_it_changes_nothing() -> None:
    assert load({}, config=EXAMPLE) == Settings()


def test_with_everything_uncommented_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "from the environment")
    config = tmp_path / "farebox.toml"
    config.write_text(uncommented())
    settings = load({}, config=config)
    key = settings.upstream[0].api_key
    assert key is not None
    assert key.get_secret_value() == "from the environment"


def test_no_setting_is_missing_and_none_is_invented() -> None:
    shown = document()
    assert set(shown) == set(Settings.model_fields)
    assert set(shown["upstream"][0]) == set(UpstreamSettings.model_fields)
    assert set(shown["allow"][0]) == set(AllowSettings.model_fields)


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (Settings, document()),
        (UpstreamSettings, document()["upstream"][0]),
        (AllowSettings, document()["allow"][0]),
    ],
    ids=["top", "upstream", "allow"],
)
def test_each_value_shown_is_the_default(model: type[BaseModel], shown: dict[str, Any]) -> None:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if default in (None, PydanticUndefined, ()) or name in _SHOWN_BY_EXAMPLE:
            continue
        value = tuple(shown[name]) if isinstance(shown[name], list) else shown[name]
        assert not isinstance(default, SecretStr)
        assert value == default, f"{name}: the example says {value}, the default is {default}"


def test_each_setting_is_explained_in_the_line_above_it() -> None:
    lines = EXAMPLE.read_text().splitlines()
    for above, line in pairwise(lines):
        if _SETTING.match(line) and not above.startswith("#["):
            assert re.match(r"# .+[.:)]$", above), f"{line}: no sentence above it, but {above!r}"


def test_a_setting_without_a_default_says_so() -> None:
    whole = EXAMPLE.read_text()
    for model, text in ((Settings, whole), (UpstreamSettings, whole[whole.index("#[[upstream]]") :])):
        for name, field in model.model_fields.items():
            if field.get_default(call_default_factory=True) in (None, PydanticUndefined):
                above = re.search(rf"^(# .*)\n#{name} = ", text, re.MULTILINE)
                assert above, name
                assert re.search(r"\(no default\)|\(default: ", above[1]), f"{name}: say that it has no default"
