"""Prices as they are shown: for people in the unit of each meter, for machines in documents."""

from collections.abc import Mapping, Sequence

from gateway.cli.output import NOTHING, moment, rates_document, tiers_document
from gateway.core.catalogue import Meter, Model, Price, Rates, rates_to_json
from gateway.core.rate_units import format_multiplier, format_rate, rate_name, unit_of

RATE_COLUMNS = ("input>", "cached>", "cache write>", "output>")
_IN_COLUMNS = (Meter.INPUT, Meter.CACHED_INPUT, Meter.CACHE_WRITE, Meter.OUTPUT)


def rate_cells(rates: Rates) -> list[str]:
    """The rates that have a column."""
    return [format_rate(meter, rates[meter]) if meter in rates else NOTHING for meter in _IN_COLUMNS]


def other_rates_cell(rates: Rates) -> str:
    """The rates that have none: audio_output 64.00, images 0.04/image."""
    names = [name for name in rates_to_json(rates) if name not in _IN_COLUMNS]
    return ", ".join(rate_text(name, rates[name]) for name in names)


def rate_text(meter: str, picos: int) -> str:
    """One rate with its name, and its unit unless that is a million tokens."""
    unit = unit_of(meter)
    ending = "" if unit == "1M tokens" else f"/{unit}"
    return f"{rate_name(meter)} {format_rate(meter, picos)}{ending}"


def tiers_cell(one: Price) -> str:
    """From how many tokens other rates count."""
    return ", ".join(f"above {tier.above_input_tokens}" for tier in one.tiers)


def multipliers_cell(multipliers: Mapping[str, int]) -> str:
    """What other tiers of service cost: flex x0.50."""
    return ", ".join(f"{name} x{format_multiplier(share)}" for name, share in sorted(multipliers.items()))


def limit_cells(model: Model | None) -> Sequence[object]:
    """A model's two limits, in tokens."""
    return (model.context_tokens_max, model.output_tokens_max) if model is not None else (NOTHING, NOTHING)


def rate_rows(one: Price) -> list[tuple[str, ...]]:
    """Each rate with its unit, and what it is in each tier."""
    steps = [one.rates, *(tier.rates for tier in one.tiers)]
    meters = rates_to_json({meter: picos for rates in steps for meter, picos in rates.items()})
    return [
        (
            rate_name(meter),
            *(format_rate(meter, rates[meter]) if meter in rates else "" for rates in steps),
            unit_of(meter),
        )
        for meter in meters
    ]


def limits_document(model: Model | None) -> dict[str, object] | None:
    """A model's limits."""
    if model is None:
        return None
    return {
        "context_tokens_max": model.context_tokens_max,
        "output_tokens_max": model.output_tokens_max,
        "hidden_reasoning": model.hidden_reasoning,
        "owned_by": model.owned_by,
    }


def multipliers_document(multipliers: Mapping[str, int]) -> dict[str, str]:
    """Multipliers as decimal strings."""
    return {name: format_multiplier(share) for name, share in sorted(multipliers.items())}


def price_document(one: Price) -> dict[str, object]:
    """One version of a price."""
    return {
        "price_id": one.price_id,
        "effective_from": moment(one.effective_from),
        "source": one.source,
        **rates_document(one.rates),
        "tiers": tiers_document(one.tiers),
        "multipliers": multipliers_document(one.multipliers),
    }
