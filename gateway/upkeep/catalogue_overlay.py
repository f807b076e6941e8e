"""Overlay files: what the price data lacks (limits of a model, hidden reasoning), corrections, and new models.

A TOML file with tables `[model."NAME"]` and `[[family]]`. A family has a `match`, a shell pattern of names, and may
have a `provider`, whose names alone are meant; the first that matches counts. Every other field is optional:

    context_tokens_max, output_tokens_max, hidden_reasoning, owned_by
    rates.<name> = "2.50"       decimal string; given once, they are the whole price
    tiers = [{ above_input_tokens = 272_000, rates.input = "5" }]      only beside rates
    extra_rates.<name> = "0.03"                                        beside the rates that the data has
    derived_rates.<name> = "2 input"     so many times another meter's rate, in every tier, where the price has none
    multipliers.<tier> = "0.5"  what tiers of service cost; given once, these are all of them
    unpriced = "why"            the model is not offered
    like = "NAME"               priced and limited as that model is (not in a family)

A rate is per million tokens or characters (`input`, `characters`, …); per image, request, search or container
(`images`, `images/high/1024x1024`, `containers/4g`, …); or per time of sound (`audio_seconds`, `audio_minutes`,
`audio_hours`). Bad content raises InvalidPrice with the key named.
"""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

from gateway.core.catalogue import InvalidPrice, Rates, Tier, multipliers_from_json
from gateway.core.rate_units import read_multiplier, read_rate

OVERLAY_BYTES_MAX = 1 << 20
NAME_CHARACTERS_MAX = 256
TOKENS_MAX = 100_000_000
TIERS_MAX = 16

_Read = TypeVar("_Read")

_PRICE_FIELDS = ("rates", "unpriced", "like")


class Derived(NamedTuple):
    """A rate that is another meter's, so many ten-thousandths of it."""

    meter: str
    times_bp: int


@dataclass(frozen=True, slots=True)
class Note:
    """What one table of an overlay says of its models; None where it says nothing. At most one price field is given."""

    key: str
    context_tokens_max: int | None = None
    output_tokens_max: int | None = None
    hidden_reasoning: bool | None = None
    owned_by: str | None = None
    rates: Rates | None = None
    tiers: tuple[Tier, ...] = ()
    extra_rates: Rates | None = None
    derived_rates: Mapping[str, Derived] | None = None
    multipliers: Mapping[str, int] | None = None
    unpriced: str | None = None
    like: str | None = None

    @property
    def decides_price(self) -> bool:
        return any(getattr(self, name) is not None for name in _PRICE_FIELDS)


@dataclass(frozen=True, slots=True)
class Family:
    """A note on every name that matches `pattern`, at `provider` only where one is named."""

    pattern: str
    provider: str | None
    note: Note

    def covers(self, name: str, provider: str | None) -> bool:
        return self.provider in {None, provider} and fnmatchcase(name, self.pattern)


@dataclass(frozen=True, slots=True)
class Overlay:
    """One file: notes by exact name, and families in their order."""

    models: Mapping[str, Note]
    families: tuple[Family, ...]

    def notes_on(self, name: str, provider: str | None) -> list[Note]:
        """The exact note, then the first family that covers it: the earlier wins, field by field."""
        exact = [self.models[name]] if name in self.models else []
        note = next((family.note for family in self.families if family.covers(name, provider)), None)
        return exact if note is None else [*exact, note]


def read_overlay(path: Path) -> Overlay:
    """The overlay in the file `path`. Raises InvalidPrice, also where the file cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(OVERLAY_BYTES_MAX + 1)
        if len(content) > OVERLAY_BYTES_MAX:
            raise InvalidPrice(f"{path}: larger than {OVERLAY_BYTES_MAX} bytes")
        return parse_overlay(content.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InvalidPrice(f"{path}: {error}") from error
    except InvalidPrice as error:
        raise InvalidPrice(f"{path}: {error}") from None


def parse_overlay(text: str) -> Overlay:
    """The overlay in `text`. Raises InvalidPrice, tomllib.TOMLDecodeError."""
    document = tomllib.loads(text)
    if unknown := document.keys() - {"model", "family"}:
        raise InvalidPrice(f"{min(unknown)}: unknown; an overlay has model and family tables")
    models: dict[str, Note] = {}
    for name, table in _table(document.get("model", {}), "model").items():
        key = f'model."{name[:NAME_CHARACTERS_MAX]}"'
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or not name.isprintable() or name != name.strip():
            raise InvalidPrice(f"{key}: a model's name has 1 to {NAME_CHARACTERS_MAX} printable characters")
        models[name] = _note(_table(table, key), key)
    families: list[Family] = []
    listed = document.get("family", [])
    if not isinstance(listed, list):
        raise InvalidPrice("family: must be a list of tables, [[family]]")
    for index, item in enumerate(listed):
        key = f"family[{index}]"
        table = _table(item, key)
        pattern = _text(table.pop("match", None), f"{key}.match")
        provider = _text(table.pop("provider"), f"{key}.provider") if "provider" in table else None
        note = _note(table, f"{key} ({pattern})")
        if note.like is not None:
            raise InvalidPrice(f"{note.key}.like: only a single model can be like another")
        families.append(Family(pattern, provider, note))
    return Overlay(models, tuple(families))


def _note(table: dict[str, object], key: str) -> Note:
    readers: dict[str, Callable[[object, str], object]] = {
        "context_tokens_max": _tokens,
        "output_tokens_max": _tokens,
        "hidden_reasoning": _flag,
        "owned_by": _text,
        "rates": _rates,
        "tiers": _tiers,
        "extra_rates": _rates,
        "derived_rates": _derived,
        "multipliers": _multipliers,
        "unpriced": _text,
        "like": _text,
    }
    fields: dict[str, object] = {}
    for name, value in table.items():
        if name not in readers:
            raise InvalidPrice(f"{key}.{name}: unknown; the fields are {', '.join(readers)}")
        fields[name] = readers[name](value, f"{key}.{name}")
    if sum(name in fields for name in _PRICE_FIELDS) > 1:
        raise InvalidPrice(f"{key}: give one of {', '.join(_PRICE_FIELDS)}")
    if "tiers" in fields and "rates" not in fields:
        raise InvalidPrice(f"{key}.tiers: given without rates")
    return Note(key=key, **fields)  # type: ignore[arg-type]  # each reader returns its field's type


def _rates(value: object, key: str) -> Rates:
    table = _table(value, key)
    if not table:
        raise InvalidPrice(f"{key}: must have at least one meter")
    rates: dict[str, int] = {}
    for name, amount in table.items():
        meter, picos = _decimal(name, amount, f"{key}.{name}", read_rate)
        if meter in rates:
            raise InvalidPrice(f"{key}.{name}: {meter} is given twice")
        rates[meter] = picos
    return rates


def _decimal(name: str, amount: object, key: str, read: Callable[[str, Decimal], _Read]) -> _Read:
    # A float has already lost what the writer meant.
    if not isinstance(amount, str):
        raise InvalidPrice(f'{key}: must be a decimal string, such as "2.50"')
    try:
        return read(name, Decimal(amount))
    except InvalidOperation:
        raise InvalidPrice(f"{key}: {amount[:40]!r} is not a decimal number") from None
    except InvalidPrice as error:
        raise InvalidPrice(f"{key}: {error}") from None


def _multiplier(_name: str, amount: Decimal) -> int:
    return read_multiplier(amount)


def _multipliers(value: object, key: str) -> Mapping[str, int]:
    shares = {name: _decimal(name, amount, f"{key}.{name}", _multiplier) for name, amount in _table(value, key).items()}
    try:
        return multipliers_from_json(shares)
    except InvalidPrice as error:
        raise InvalidPrice(f"{key}: {error}") from None


def _derived(value: object, key: str) -> Mapping[str, Derived]:
    derived: dict[str, Derived] = {}
    for name, text in _table(value, key).items():
        place = f"{key}.{name}"
        times, _, source = _text(text, place).rpartition(" ")
        try:
            meter, _ = read_rate(name, Decimal(0))
            of_meter, _ = read_rate(source, Decimal(0))
        except InvalidPrice as error:
            raise InvalidPrice(f"{place}: {error}") from None
        derived[meter] = Derived(of_meter, _decimal(name, times or "1", place, _multiplier))
    return derived


def _tiers(value: object, key: str) -> tuple[Tier, ...]:
    if not isinstance(value, list) or len(value) > TIERS_MAX:
        raise InvalidPrice(f"{key}: must be a list of at most {TIERS_MAX} tables")
    tiers: list[Tier] = []
    for index, item in enumerate(value):
        place = f"{key}[{index}]"
        table = _table(item, place)
        above = _tokens(table.pop("above_input_tokens", None), f"{place}.above_input_tokens")
        if tiers and above <= tiers[-1].above_input_tokens:
            raise InvalidPrice(f"{place}.above_input_tokens: tiers must ascend")
        tiers.append(Tier(above, _rates(table.pop("rates", {}), f"{place}.rates")))
        if table:
            raise InvalidPrice(f"{place}.{min(table)}: unknown; a tier has above_input_tokens and rates")
    return tuple(tiers)


def _table(value: object, key: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidPrice(f"{key}: must be a table")
    return dict(value)


def _tokens(value: object, key: str) -> int:
    if type(value) is not int or not 1 <= value <= TOKENS_MAX:
        raise InvalidPrice(f"{key}: must be a whole number from 1 to {TOKENS_MAX}")
    return value


def _flag(value: object, key: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidPrice(f"{key}: must be true or false")
    return value


def _text(value: object, key: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS_MAX:
        raise InvalidPrice(f"{key}: must be a string of 1 to {NAME_CHARACTERS_MAX} characters")
    return value
