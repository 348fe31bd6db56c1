"""What a quote says on the screen, and in its run: offers side by side, and what they rest on."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from green_tune import cells, fit
from green_tune.conformal import LEVEL, Width
from green_tune.effort import Texts
from green_tune.footprint import GRAMS_PER_KG
from green_tune.intensity import Intensity
from green_tune.memory import FRAGMENTATION
from green_tune.offer import Offer
from green_tune.order import Order
from green_tune.quote import with_intervals
from green_tune.trim import Proposal

LAYERS = {"same": "measured", "fit": "fit", "probe": "probe", "table": "table"}


def title(order: Order) -> str:
    """What is quoted: `sweep of 10 trials: tiny on sentiment`."""
    models = dict.fromkeys(unit.config.model for unit in order.units)
    tasks = dict.fromkeys(unit.config.task for unit in order.units)
    trials = round(sum(unit.times for unit in order.units if unit.kind == "trial"))
    again = order.runs - trials
    repeats = f" and at most {again} repeats" if again else ""
    of = {"train": "one run", "sweep": f"a sweep of {trials} trials{repeats}"}
    what = of.get(order.command) or f"a grid of {order.runs} runs"
    return f"{what}: {', '.join(models)} on {', '.join(tasks)}"


def report(order: Order, offers: Sequence[Offer], zone: Intensity, width: int = 80) -> str:
    """All offers, for a terminal of so many columns."""
    lines = _filled(f"Quote for {title(order)}", width)
    detailed = [offer for offer in offers if offer.parts and offer.here] or [
        offer for offer in offers if offer.parts
    ][: len(offers) == 1]
    for offer in detailed:
        lines += ["", *details(offer, zone, width)]
    if len(offers) > 1:
        lines += ["", cells.to_text(_table(offers), width)]
        lines += _footnotes(offers, zone, width)
    if any(offer.memory for offer in offers):
        lines += ["", memory(offers, width)]
    for reason in (*_left_out(offers), *_reasons(offers)):
        lines += ["", *_filled(reason, width)]
    return "\n".join(lines)


def details(offer: Offer, zone: Intensity, width: int = 80) -> Iterator[str]:
    """One offer, line by line."""
    amount, (low_h, high_h) = offer.amount, offer.runtime.interval(offer.amount.runtime_h)
    low, high = offer.energy.interval(1.0)
    where, indent = "here" if offer.here else "not in this machine", " " * 11
    yield from _filled(f"on {offer.device} ({where}): {_room(offer)}, {offer.how}", width)
    yield f"runtime    {cells.duration(amount.runtime_h)}" + _range(
        cells.duration(low_h), cells.duration(high_h)
    )
    yield f"energy     {amount.energy_kwh:.3g} kWh" + _range(
        f"{amount.energy_kwh * low:.3g}", f"{amount.energy_kwh * high:.3g}"
    )
    grams = amount.emissions_kg * GRAMS_PER_KG
    yield f"emissions  {grams:.3g} g CO2e" + _range(f"{grams * low:.3g}", f"{grams * high:.3g}")
    yield from _filled(zone.note, width, indent)
    yield from _filled(offer.note, width, "rests on   ")
    note = f"{LEVEL * 100:.0f} % {offer.energy.note}{_whole(offer)}"
    yield from _filled(note, width, indent)
    for text in _shares(offer):
        yield from _filled(text, width, indent)


def tokens(
    texts: Mapping[Any, Texts], offers: Sequence[Offer], assumed: bool, width: int = 80
) -> str:
    """How many tokens there are to train on, and how many will be computed for them."""
    offer = next((offer for offer in offers if offer.parts), None)
    examples = sum(len(each.train) for each in texts.values())
    if offer is None:
        return f"{examples:,} training examples"
    work = offer.work
    how = "assumed: four characters each" if assumed else "counted with the base's tokenizer"
    ratio = work.processed_tokens / work.useful_tokens if work.useful_tokens else 1.0
    text = (
        f"{examples:,} training examples; over all epochs and runs {work.useful_tokens:,.0f} "
        f"useful tokens ({how}), for which {work.processed_tokens:,.0f} are computed, padding "
        f"included and shared prompts once ({ratio:.2f} for each), in {work.train_steps:,.0f} steps"
    )
    return "\n".join(_filled(text, width))


def memory(offers: Sequence[Offer], width: int = 80) -> str:
    """What a training takes of the memory, part by part, and what there is; like GPUs in a row."""
    heads = ("weights", "adapter", "optim.", "activ.", "logits", "work.")
    table = cells.new_table("gpu", *heads, "total", "usable", "")
    alike: dict[tuple[str, ...], list[Offer]] = {}
    for offer in offers:
        if offer.memory:
            alike.setdefault(_memory_row(offer), []).append(offer)
    lines = []
    for row, some in alike.items():
        least = min(fit.usable_gib(offer.device) for offer in some)
        most = max(fit.usable_gib(offer.device) for offer in some)
        usable = f"{least:.1f}" if least == most else f"{least:.0f}..{most:.0f}"
        *parts, fits = row
        first = some[0].device.gpu_type
        table.add_row(first + "+" * (len(some) > 1), *parts, usable, fits)
        if len(some) > 1:
            others = ", ".join(offer.device.gpu_type for offer in some[1:])
            lines += _filled(others, width, f"{first}+: ")
    note = f"GiB, modelled; the total with {FRAGMENTATION - 1:.0%} for fragmentation"
    return "\n".join([cells.to_text(table, width), *lines, note])


def _memory_row(offer: Offer) -> tuple[str, ...]:
    names = ("weights", "adapter", "optimizer", "activations", "logits", "workspace")
    parts = [f"{getattr(offer.memory, f'{name}_gib'):.1f}" for name in names]
    assert offer.memory is not None
    return (*parts, f"{offer.memory.total_gib:.1f}", "fits" if offer.parts else "no room")


def trimmed(found: Sequence[Proposal], offer: Offer, budget_kg: float, others: str) -> str:
    """What would stay within a budget."""
    grams, budget = offer.amount.emissions_kg * GRAMS_PER_KG, budget_kg * GRAMS_PER_KG
    held = _held(offer, grams, budget, "g", offer.energy)
    if grams <= budget:
        return held
    lines = [f"{held}{'; what would stay within:' if found else ', whatever is lowered'}"]
    lines += [f"  {p}  ({p.emissions_kg * GRAMS_PER_KG:.3g} g)" for p in found]
    return "\n".join([*lines, *([others] if others else [])])


def limits(offer: Offer, energy_kwh: float, runtime_h: float) -> list[str]:
    """Whether it stays within other budgets, where they are not 0; nothing to lower is sought."""
    said = []
    if energy_kwh:
        said.append(_held(offer, offer.amount.energy_kwh, energy_kwh, "kWh", offer.energy))
    if runtime_h:
        said.append(_held(offer, offer.amount.runtime_h, runtime_h, "h", offer.runtime))
    return said


def _held(offer: Offer, figure: float, budget: float, unit: str, width: Width) -> str:
    where, (_, high) = offer.device.gpu_type, width.interval(figure)
    if figure > budget:
        return f"on {where}: over the budget of {budget:.3g} {unit} by {figure - budget:.3g} {unit}"
    risk = f", though it may be up to {high:.3g} {unit}" if high > budget else ""
    return f"on {where}: within the budget of {budget:.3g} {unit}{risk}"


def cheaper(offers: Sequence[Offer], budget_kg: float) -> str:
    """Other devices on which an order would stay within a budget, the cheapest first."""
    within = [
        offer
        for offer in offers
        if offer.parts and not offer.here and offer.amount.emissions_kg <= budget_kg
    ]
    ordered = sorted(within, key=lambda offer: offer.amount.emissions_kg)
    named = [
        f"gpu={o.device.gpu_type} ({o.amount.emissions_kg * GRAMS_PER_KG:.3g} g)" for o in ordered
    ]
    return f"  or elsewhere: {', '.join(named[:4])}" if named else ""


def rows(offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """The offers as rows of a table for machines."""
    return [_row(offer) for offer in offers]


def _row(offer: Offer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "gpu": offer.device.gpu_type,
        "here": offer.here,
        "fits": bool(offer.parts),
        "plan": offer.how,
        "memory_gib": round(offer.memory.total_gib, 2) if offer.memory else None,
        "usable_gib": round(fit.usable_gib(offer.device), 2),
        "refusal": offer.refusal,
    }
    if not offer.parts:
        return row
    figures = with_intervals(offer.amount, offer.runtime, offer.energy)
    return row | figures | {"evidence": offer.layer, "rests_on": offer.note}


def _table(offers: Sequence[Offer]) -> Any:
    table = cells.new_table("gpu", "plan", "GiB", "time", "kWh", "g CO2e", "90 % interval", "from")
    for offer in offers:
        need = f"{offer.memory.total_gib:.1f}" if offer.memory else ""
        if not offer.parts:
            table.add_row(_name(offer), offer.how, need, "", "", "", "", "")
            continue
        amount, grams = offer.amount, offer.amount.emissions_kg * GRAMS_PER_KG
        low, high = offer.energy.interval(grams)
        table.add_row(
            _name(offer),
            offer.how,
            need,
            cells.duration(amount.runtime_h),
            f"{amount.energy_kwh:.3g}",
            f"{grams:.3g}",
            f"{low:.3g} to {high:.3g}",
            LAYERS[offer.layer],
        )
    return table


def _footnotes(offers: Sequence[Offer], zone: Intensity, width: int) -> list[str]:
    fitting = [offer for offer in offers if offer.parts]
    texts = [f"carbon intensity{', ' if zone.assumed else ': '}{zone.note}"]
    assumed = {LAYERS[offer.layer]: None for offer in fitting if not offer.energy.errors}
    if assumed:
        texts.append(
            f"interval assumed, with too few past errors of such quotes: {', '.join(assumed)}"
        )
    texts += [f"90 % interval{text}" for text in dict.fromkeys(map(_whole, fitting)) if text]
    if any(offer.layer == "table" for offer in fitting):
        texts.append("table: peak rates times a stated share, an order of magnitude")
    return [line for text in texts for line in _filled(text, width)] if fitting else []


def _left_out(offers: Sequence[Offer]) -> list[str]:
    """What of a grid would not be run."""
    return [
        f"{', '.join(unfit)} would be left out, for want of room, on "
        + ", ".join(offer.device.gpu_type for offer in offers if offer.unfit == unfit)
        for unfit in dict.fromkeys(offer.unfit for offer in offers if offer.unfit)
    ]


def _reasons(offers: Sequence[Offer]) -> list[str]:
    """Why there is no figure: where nothing has room, and wherever it is not for its memory."""
    refused = [offer for offer in offers if offer.refusal]
    named = [offer for offer in refused if len(refused) == len(offers) or not offer.memory]
    return list(dict.fromkeys(offer.refusal for offer in named))


def _name(offer: Offer) -> str:
    return f"{offer.device.gpu_type} (here)" if offer.here else offer.device.gpu_type


def _room(offer: Offer) -> str:
    if not offer.memory:
        return "memory not known"
    return f"fits, {offer.memory.total_gib:.1f} of {fit.usable_gib(offer.device):.1f} GiB"


def _filled(text: str, width: int, label: str = "") -> list[str]:
    """A text after its label, in lines; `a100-40` is one word."""
    rest = " " * len(label)
    return textwrap.wrap(
        text, width, initial_indent=label, subsequent_indent=rest, break_on_hyphens=False
    )


def brief(offer: Offer, zone: Intensity) -> str:
    """An offer in a few lines, for a command whose GPU is not here."""
    if offer.refusal:
        return "\n".join(_filled(offer.refusal, 80))
    amount, grams = offer.amount, offer.amount.emissions_kg * GRAMS_PER_KG
    low, high = offer.energy.interval(grams)
    text = (
        f"There it would need {_room(offer).removeprefix('fits, ')} ({offer.how}), and take about "
        f"{cells.duration(amount.runtime_h)}, {amount.energy_kwh:.3g} kWh and {grams:.3g} g CO2e "
        f"({low:.3g} to {high:.3g}, {offer.energy.note}; {zone.note}). By {offer.note}."
    )
    if offer.unfit:
        text += f" {', '.join(offer.unfit)} would be left out, for want of room."
    return "\n".join(_filled(text, 80))


def _range(low: str, high: str) -> str:
    return f"  ({low} to {high})"


def _whole(offer: Offer) -> str:
    """Of a search: what would make it cheaper than its interval says, which has none of it."""
    kinds = {part.unit.kind for part in offer.parts}
    repeats = " and all repeats are run" if "repeat" in kinds else ""
    return f", if none is ended early{repeats}" if "trial" in kinds else ""


def _shares(offer: Offer) -> Iterator[str]:
    if offer.session.runtime_h:
        grams = offer.session.emissions_kg * GRAMS_PER_KG
        yield f"of it {grams:.3g} g before, between and after the runs"
    each = [part.quote.amount.emissions_kg * GRAMS_PER_KG for part in offer.parts]
    if len(each) > 1:
        yield f"a run takes {min(each):.3g} to {max(each):.3g} g"
        return
    phases = offer.parts[0].quote.evidence.phases
    whole = sum(spent.energy_kwh for spent in phases.values()) or 1.0
    shown = sorted(phases.items(), key=lambda item: -item[1].energy_kwh)
    shares = {name: f"{spent.energy_kwh / whole:.0%}" for name, spent in shown}
    yield f"of it {', '.join(f'{name} {share}' for name, share in shares.items() if share != '0%')}"
