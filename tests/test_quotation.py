"""What a quote says: every figure with its unit and its interval, within 80 columns."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest
from test_offer import CPU, L4, NOTHING, T4, market

from green_tune import intensity, quotation
from green_tune.conformal import Width
from green_tune.fit import as_device
from green_tune.hardware import GPUS, Device
from green_tune.offer import Market, Offer, Part
from green_tune.trim import Proposal

WORLD, GIVEN = intensity.resolve("world"), intensity.resolve("56")
EVERY = [CPU, *(as_device(gpu) for gpu in GPUS)]
LONG = replace(
    CPU, name="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (Sapphire Rapids), 208 CPUs"
)


def offers_of(wanted: Market, devices: Sequence[Device]) -> list[Offer]:
    return [wanted.offer(each, NOTHING, here=each.kind == "cpu") for each in devices]


def lines_of(text: str) -> list[str]:
    """The lines, none of which is longer than a terminal."""
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80, max(lines, key=len)
    return lines


def row(text: str, start: str) -> str:
    (line,) = (line for line in lines_of(text) if line.startswith(start))
    return line


def numbers(text: str) -> list[float]:
    return [float(each) for each in re.findall(r"\d[\d.e+-]*", text)]


@pytest.mark.parametrize(
    ("command", "asked", "devices"),
    [
        ("train", {}, [LONG]),
        ("train", {}, EVERY),
        ("train", {"model": "llama-2-7b", "precision": "fp32", "quantization": "none"}, EVERY),
        ("train", {"model": "llama-2-7b", "precision": "fp32", "quantization": "none"}, [T4]),
        ("train", {"precision": "fp16"}, EVERY),
        ("sweep", {"model": "gemma-7b", "task": "summarization", "epochs": "1..50"}, EVERY),
        ("grid", {"model": "tiny,tiny-wide,llama-2-7b,mistral-7b,gemma-2b"}, EVERY),
    ],
)
def test_no_line_is_longer_than_a_terminal(
    command: str, asked: dict[str, str], devices: Sequence[Device]
) -> None:
    wanted = market(command, **asked)
    offers = offers_of(wanted, devices)
    lines_of(quotation.report(wanted.order, offers, WORLD))
    lines_of(quotation.tokens(wanted.texts, offers, assumed=True))
    for each in offers:
        lines_of(quotation.brief(each, WORLD))


def test_one_offer_is_told_with_units_intervals_and_what_it_rests_on() -> None:
    wanted = market("train")
    (made,) = offers_of(wanted, [CPU])
    text = quotation.report(wanted.order, [made], WORLD)
    assert text.startswith("Quote for one run: tiny on sentiment\n\non Xeon, 16 GiB (here): fits, ")
    low, high = made.energy.interval(made.amount.energy_kwh)
    energy = row(text, "energy")
    assert numbers(energy) == pytest.approx([made.amount.energy_kwh, low, high], rel=0.005)
    assert " kWh " in energy
    grams = row(text, "emissions").replace("CO2e", "")
    kg = made.amount.emissions_kg
    assert numbers(grams) == pytest.approx([kg * 1e3, kg * 400, kg * 2500], rel=0.005)
    seconds = made.amount.runtime_h * 3600
    runtime = row(text, "runtime")
    assert (
        runtime == f"runtime    {seconds:.1f} s  ({seconds / 2.5:.1f} s to {seconds * 2.5:.1f} s)"
    )
    assert row(text, "rests on").endswith("rates assumed of a CPU: an order of magnitude")
    assert "           90 % interval assumed" in text.splitlines()
    assert "           assumed: world average at 475 g/kWh" in text.splitlines()


def with_errors(part: Part) -> Part:
    """As if thirty quotes like it had been made before."""
    known = Width(factor=1.3, errors=30)
    return replace(part, quote=replace(part.quote, runtime=known, energy=known))


def test_what_is_not_assumed_is_not_called_so() -> None:
    wanted = market("train")
    (made,) = offers_of(wanted, [CPU])
    parts = tuple(with_errors(part) for part in made.parts)
    text = quotation.report(wanted.order, [replace(made, parts=parts)], GIVEN)
    assert "           given at 56 g/kWh" in text.splitlines()
    assert "           90 % interval from the errors of 30 quotes" in text.splitlines()
    assert "assumed" not in text.replace("rates assumed of a CPU", "")
    counted = quotation.tokens(wanted.texts, [made], assumed=False)
    assert "assumed" not in counted
    assert "assumed: four characters each" in " ".join(
        quotation.tokens(wanted.texts, [made], assumed=True).split()
    )


def test_gpus_stand_side_by_side_with_their_figures() -> None:
    wanted = market("sweep", model="llama-2-7b", trials="4")
    offers = offers_of(wanted, [CPU, T4, L4])
    text = quotation.report(wanted.order, offers, GIVEN)
    assert "Quote for a sweep of 4 trials: llama-2-7b on sentiment" in text
    assert "does not fit" in next(x for x in text.splitlines() if x.startswith("cpu (here)"))
    for made in offers[1:]:
        line = next(x for x in text.splitlines() if x.startswith(made.device.gpu_type))
        kg = made.amount.emissions_kg
        *_, kwh, grams, low, high = numbers(line)
        assert [kwh, grams, low, high] == pytest.approx(
            [made.amount.energy_kwh, kg * 1e3, kg * 400, kg * 2500], rel=0.005
        )
    assert "carbon intensity: given at 56 g/kWh" in text
    assert "table: peak rates times a stated share" in text
    assumed = "interval assumed, with too few past errors of such quotes: table"
    assert assumed in text.splitlines()
    known = [
        replace(made, parts=tuple(with_errors(part) for part in made.parts)) for made in offers
    ]
    assert assumed not in quotation.report(wanted.order, known, GIVEN)


def test_the_memory_of_gpus_that_are_alike_is_told_once() -> None:
    wanted = market("train", model="gemma-2b")
    text = quotation.memory(offers_of(wanted, [as_device(gpu) for gpu in GPUS]))
    named = set(re.findall(r"[a-z]+\d+\w*(?:-\w+)?", text))
    assert {gpu.name for gpu in GPUS} <= named
    assert len(lines_of(text)) < len(GPUS)
    parts = numbers(row(text, "t4 "))[1:]
    assert sum(parts[:6]) * 1.06 == pytest.approx(parts[6], abs=0.35)  # each is rounded


def test_it_is_said_why_there_is_no_figure() -> None:
    wanted = market("train", precision="bf16")
    text = quotation.report(wanted.order, offers_of(wanted, [T4, L4]), GIVEN)
    assert "precision=bf16 would be emulated on t4; use fp16 or auto" in text
    alone = quotation.report(wanted.order, offers_of(wanted, [T4]), GIVEN)
    assert alone.splitlines()[-1].startswith("precision=bf16 would be emulated")


def test_what_a_grid_leaves_out_is_named_with_where() -> None:
    wanted = market("grid", model="tiny,llama-2-7b", task="qa")
    offers = offers_of(wanted, [CPU, T4])
    left_out = "llama-2-7b would be left out, for want of room"
    assert f"{left_out}, on cpu" in quotation.report(wanted.order, offers, GIVEN)
    assert left_out not in quotation.report(wanted.order, offers[1:], GIVEN)
    assert left_out in " ".join(quotation.brief(offers[0], GIVEN).split())


def test_a_sweep_says_what_its_runs_share_and_that_none_is_ended_early() -> None:
    wanted = market("sweep")
    (made,) = offers_of(wanted, [CPU])
    text = quotation.report(wanted.order, [made], GIVEN)
    (shared,) = numbers(row(text, "           of it "))[:1]
    assert shared == pytest.approx(made.session.emissions_kg * 1e3, rel=0.005)
    assert "           90 % interval assumed, if none is ended early" in text.splitlines()
    again = market("sweep", repeats="3")
    offers = offers_of(again, [CPU, T4])
    repeats = "90 % interval assumed, if none is ended early and all repeats are run"
    assert repeats in " ".join(quotation.report(again.order, offers, GIVEN).split())
    beside = lines_of(quotation.report(again.order, offers_of(again, [L4, T4]), GIVEN))
    assert "90 % interval, if none is ended early and all repeats are run" in beside
    one = market("train")
    assert "ended early" not in quotation.report(one.order, offers_of(one, [CPU]), GIVEN)


@pytest.mark.parametrize(
    ("times", "line"),
    [
        (3.0, "within the budget of {budget:.3g} {unit}"),
        (1.5, "within the budget of {budget:.3g} {unit}, though it may be up to {high:.3g} {unit}"),
        (0.5, "over the budget of {budget:.3g} {unit} by {budget:.3g} {unit}"),
    ],
)
def test_energy_and_time_are_held_against_their_budgets(times: float, line: str) -> None:
    (made,) = offers_of(market("sweep"), [CPU])
    kwh, hours = made.amount.energy_kwh, made.amount.runtime_h
    assert quotation.limits(made, times * kwh, times * hours) == [
        f"on cpu: {line}".format(budget=times * figure, high=2.5 * figure, unit=unit)
        for figure, unit in ((kwh, "kWh"), (hours, "h"))
    ]
    assert quotation.limits(made, 0.0, 0.0) == []


@pytest.mark.parametrize(
    ("times", "line"),
    [
        (3.0, "on cpu: within the budget of {budget:.3g} g"),
        (1.5, "on cpu: within the budget of {budget:.3g} g, though it may be up to {high:.3g} g"),
        (0.5, "on cpu: over the budget of {budget:.3g} g by {budget:.3g} g, whatever is lowered"),
    ],
)
def test_a_budget_is_held_against_the_figure_and_its_upper_end(times: float, line: str) -> None:
    (made,) = offers_of(market("train"), [CPU])
    kg = made.amount.emissions_kg
    said = quotation.trimmed([], made, times * kg, "")
    assert said == line.format(budget=times * kg * 1e3, high=2.5 * kg * 1e3)


def test_proposals_are_told_with_their_grams_and_where_else_it_would_be_cheaper() -> None:
    here, t4, l4 = offers_of(market("train"), [CPU, T4, L4])
    found = [Proposal(changes={"epochs": "1", "evals": "2"}, emissions_kg=0.00123)]
    budget_kg = t4.amount.emissions_kg * 1.5
    dear = replace(here, session=here.amount.times(50))
    others = quotation.cheaper([dear, l4, t4], budget_kg)
    t4_g, l4_g = (each.amount.emissions_kg * 1e3 for each in (t4, l4))
    assert t4_g < l4_g
    assert others == f"  or elsewhere: gpu=t4 ({t4_g:.3g} g), gpu=l4 ({l4_g:.3g} g)"
    first, *rest = quotation.trimmed(found, dear, budget_kg, others).splitlines()
    assert first.startswith(f"on cpu: over the budget of {budget_kg * 1e3:.3g} g by ")
    assert rest == ["  epochs=1 evals=2  (1.23 g)", others]
    assert quotation.cheaper([dear, l4, t4], 0.9 * t4_g / 1e3) == ""


def test_the_rows_for_machines_hold_what_the_screen_says() -> None:
    offers = offers_of(market("train", precision="bf16"), [T4, L4])
    refused, made = json.loads(json.dumps(quotation.rows(offers)))
    assert (refused["gpu"], refused["fits"], refused["memory_gib"]) == ("t4", False, None)
    assert "bf16" in refused["refusal"]
    assert not {name for name in refused if name.startswith(("runtime", "energy", "emissions"))}
    for name, figure in (
        ("runtime{}_h", offers[1].amount.runtime_h),
        ("energy{}_kwh", offers[1].amount.energy_kwh),
        ("emissions{}_kg", offers[1].amount.emissions_kg),
    ):
        ends = [made[name.format(end)] for end in ("_low", "", "_high")]
        assert ends == pytest.approx([figure / 2.5, figure, figure * 2.5])
    assert made["evidence"] == "table"
