from datetime import UTC, datetime

import pytest

from gateway.core.catalogue import Meter, Model, Price, Rates, Tier
from gateway.upkeep.catalogue_source import Catalogue, CatalogueEntry, Skipped
from gateway.upkeep.price_check import Kind, ModelChange, Part, PartChange, compare
from gateway.upkeep.price_import import SET_BY_HAND

AT = datetime(2026, 1, 1, tzinfo=UTC)
RATES: Rates = {Meter.INPUT: 2, Meter.OUTPUT: 8}
TIERS = (Tier(100, {Meter.INPUT: 4}),)
FLEX = {"flex": 5_000}
LIMITS = Model("m", 1_000, 100)
ENTRY = CatalogueEntry(LIMITS, RATES, TIERS, "genai-prices", FLEX)


def price(source: str = "genai-prices", model: str = "m") -> Price:
    return Price(1, model, AT, source, RATES, TIERS, FLEX)


@pytest.mark.parametrize(
    ("entry", "part", "before", "after"),
    [
        (CatalogueEntry(LIMITS, {**RATES, Meter.INPUT: 3}, TIERS, "x", FLEX), Part("rate", "input"), 2, 3),
        (CatalogueEntry(LIMITS, {Meter.INPUT: 2}, TIERS, "x", FLEX), Part("rate", "output"), 8, None),
        (CatalogueEntry(LIMITS, {**RATES, "images/a": 0}, TIERS, "x", FLEX), Part("rate", "images/a"), None, 0),
        (CatalogueEntry(LIMITS, RATES, (), "x", FLEX), Part("rate", "input", 100), 4, None),
        (CatalogueEntry(LIMITS, RATES, TIERS, "x", {"flex": 6_000}), Part("multiplier", "flex"), 5_000, 6_000),
        (CatalogueEntry(Model("m", 9, 100), RATES, TIERS, "x", FLEX), Part("limit", "context_tokens_max"), 1_000, 9),
        (CatalogueEntry(Model("m", 1_000, 9), RATES, TIERS, "x", FLEX), Part("limit", "output_tokens_max"), 100, 9),
        (
            CatalogueEntry(Model("m", 1_000, 100, hidden_reasoning=True), RATES, TIERS, "x", FLEX),
            Part("limit", "hidden_reasoning"),
            "no",
            "yes",
        ),
    ],
)
def test_one_part_that_is_stated_otherwise_is_the_one_that_is_said(
    entry: CatalogueEntry, part: Part, before: int | str | None, after: int | str | None
) -> None:
    found = compare([price()], [LIMITS], Catalogue((entry,), ()))
    assert found.changes == (ModelChange("m", Kind.CHANGED, (PartChange(part, before, after),)),)
    assert found.unchanged == 0


def test_what_is_the_same_or_set_by_hand_is_no_difference() -> None:
    assert compare([price()], [LIMITS], Catalogue((ENTRY,), ())).unchanged == 1
    by_hand = compare([price(f"{SET_BY_HAND}me")], [], Catalogue((ENTRY,), ()))
    assert (by_hand.changes, by_hand.unchanged, by_hand.kept) == ((), 0, ("m",))


def test_models_come_and_go_with_a_reason() -> None:
    found = compare([price(model="old"), price(model="gone")], [], Catalogue((ENTRY,), (Skipped("old", "retired"),)))
    said = [(change.model, change.kind, change.reason) for change in found.changes]
    assert said == [
        ("gone", Kind.REMOVED, "the catalogue does not name it"),
        ("m", Kind.NEW, ""),
        ("old", Kind.REMOVED, "retired"),
    ]
    assert len(found.changes[1].parts) == 8
