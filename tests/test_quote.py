"""A quote's figures, its intervals, and how it is forecast again while the run goes on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batches import example

from green_tune import evidence, quote
from green_tune.budget import Amount
from green_tune.conformal import Width
from green_tune.effort import Texts
from green_tune.errors import ConfigError
from green_tune.evidence import ASSUMED, Evidence, Known, Layer
from green_tune.footprint import Basis, Footprint
from green_tune.hardware import Device
from green_tune.job import Job
from green_tune.quote import Quote
from green_tune.ranks import Rank
from green_tune.results import RunRecord

MakeJob = Callable[..., Job]
BASIS = Basis(g_per_kwh=400.0, pue=1.5)  # 0.6 kg for each kWh
PHASES = {
    "setup": Amount(runtime_h=0.5, energy_kwh=0.1),
    "train": Amount(runtime_h=1.5, energy_kwh=0.9),
}
PARTS = st.floats(0, 1, allow_subnormal=False)  # a training before may have switched those off
AMOUNTS = st.floats(0, 1e6, allow_subnormal=False)


def rested(layer: Layer = "fit") -> Evidence:
    return Evidence(layer=layer, phases=PHASES, note="runs of before")


def quoted(runtime: Width | None = None, energy: Width | None = None, times: float = 1) -> Quote:
    phases = {name: amount.times(times) for name, amount in PHASES.items()}
    return Quote(
        evidence=replace(rested(), phases=phases),
        runtime=runtime or Width(factor=2.0, errors=9),
        energy=energy or Width(factor=1.25, errors=12),
        basis=BASIS,
    )


def past(job: Job, ratios: Sequence[float], layer: str = "fit", **tags: str) -> list[RunRecord]:
    """Runs that were quoted 1 kWh and 2 h, and took so many times as much; half as far in time."""
    return [
        RunRecord(
            run_id=f"{number:032x}",
            name="a run",
            kind="train",
            status="FINISHED",
            started=datetime(2026, 11, 22, tzinfo=UTC) + timedelta(hours=number),
            metrics={
                "quote.energy_kwh": 1.0,
                "quote.energy_error": ratio - 1,
                "quote.runtime_h": 2.0,
                "quote.runtime_error": math.sqrt(ratio) - 1,
            },
            tags={
                "gpu_type": job.device.gpu_type,
                "device": str(job.device),
                "quote.evidence": layer,
                "energy_valid": "true",
                **tags,
            },
        )
        for number, ratio in enumerate(ratios)
    ]


def made(job: Job, records: Sequence[RunRecord], layer: Layer = "fit") -> Quote:
    return Quote.of(rested(layer), Known(records=records), job, BASIS)


def test_an_interval_comes_from_the_errors_of_its_evidence_on_this_device(
    make_job: MakeJob,
) -> None:
    job = make_job()
    ratios = [1.1, 0.9, 1.44, 1.2, 1 / 1.3, 1.0, 1.05, 1.15, 0.95]
    found = made(job, past(job, ratios))
    assert found.energy.factor == pytest.approx(1.44)
    assert found.energy.errors == 9
    assert found.runtime.factor == pytest.approx(1.2)
    assert found.runtime.errors == 9
    others = [
        *past(job, [9.0] * 20, "probe"),
        *past(job, [9.0] * 20, device="another CPU, 8 GiB"),
        *past(job, [9.0] * 20, gpu_type="t4"),
        *past(job, [9.0] * 20, **{"green_tune.reused": "another run"}),
    ]
    assert made(job, past(job, ratios) + others) == found


@pytest.mark.parametrize("layer", evidence.LAYERS)
def test_an_interval_is_assumed_where_there_are_too_few_errors(
    make_job: MakeJob, layer: Layer
) -> None:
    job = make_job()
    found = made(job, past(job, [1.01] * 8, layer), layer)
    assert found.energy == found.runtime == Width(factor=ASSUMED[layer])
    tags = found.to_tags()
    assert tags == {
        "quote.evidence": layer, "quote.note": "runs of before; interval assumed",
    }  # fmt: skip
    known = made(job, past(job, [1.01] * 9, layer), layer)
    assert known.to_tags()["quote.note"].endswith("interval from the errors of 9 quotes")


def test_time_may_be_known_where_energy_is_not_trusted(make_job: MakeJob) -> None:
    job = make_job()
    found = made(job, past(job, [1.21] * 9, energy_valid="false"))
    assert found.energy == Width(factor=ASSUMED["fit"])
    assert found.runtime.factor == pytest.approx(1.1)
    assert found.runtime.errors == 9


def test_a_quote_is_noted_with_its_intervals() -> None:
    assert quoted().to_metrics() == pytest.approx(
        {
            "quote.runtime_h": 2.0, "quote.runtime_low_h": 1.0, "quote.runtime_high_h": 4.0,
            "quote.energy_kwh": 1.0, "quote.energy_low_kwh": 0.8, "quote.energy_high_kwh": 1.25,
            "quote.emissions_kg": 0.6, "quote.emissions_low_kg": 0.48,
            "quote.emissions_high_kg": 0.75,
        }
    )  # fmt: skip


def test_errors_are_how_much_more_it_took_than_was_said() -> None:
    actual = Footprint(runtime_h=3.0, energy_cpu_kwh=0.1, energy_gpu_kwh=0.6, energy_ram_kwh=0.1)
    assert quoted().errors(actual) == pytest.approx(
        {"quote.runtime_error": 0.5, "quote.energy_error": -0.2}
    )
    assert quoted(times=0).errors(actual) == {}


def test_errors_of_quotes_are_what_later_intervals_are_made_of(make_job: MakeJob) -> None:
    job = make_job()
    before = quoted()
    came = [Footprint(runtime_h=2.0, energy_cpu_kwh=kwh) for kwh in (1.7, *[1.0] * 8)]
    (blank,) = past(job, [1.0])
    noted = before.to_metrics()
    records = [replace(blank, metrics=noted | before.errors(each)) for each in came]
    found = made(job, records)
    assert found.energy.factor == pytest.approx(1.7)
    assert found.runtime.factor == pytest.approx(1.0)


def texts() -> Texts:
    some = [example(list(range(20)), number=number) for number in range(24)]
    return Texts(train=some, validation=some[:4], groups=list(range(24)))


def test_a_trial_is_foretold_without_the_setup_and_the_start_of_a_run(make_job: MakeJob) -> None:
    job = make_job(batch_size=8, evals=3)
    alone, trial = (
        quote.foretell(job, texts(), Known(), BASIS, "a config", kind=kind)
        for kind in ("train", "trial")
    )
    assert alone
    assert trial
    assert alone[0].train_steps == trial[0].train_steps == 3
    assert alone[0].eval_passes * 3 == trial[0].eval_passes * 4
    assert alone[1].evidence.layer == trial[1].evidence.layer == "table"
    setups = [each[1].evidence.phases["setup"].runtime_h * 3600 for each in (alone, trial)]
    assert setups[0] > setups[1] == pytest.approx(evidence.SETUP_OF_A_TRIAL_S)
    assert alone[1].amount.emissions_kg == pytest.approx(alone[1].amount.energy_kwh * 0.6)


def test_nothing_is_foretold_of_an_unknown_shape_or_of_several_processes(
    make_job: MakeJob,
) -> None:
    job = make_job()
    several = replace(job, rank=Rank(world=2, here=2), devices=job.devices * 2)
    for other in (replace(job, shape=None), several):
        assert quote.foretell(other, texts(), Known(), BASIS, "", kind="train") is None


def test_a_gpu_of_which_nothing_is_known_is_refused(make_job: MakeJob) -> None:
    strange = Device(kind="cuda", name="Mystery 9000", memory_gib=24.0, capability=(8, 0))
    job = replace(make_job(), devices=(strange,))
    with pytest.raises(ConfigError, match="Mystery 9000"):
        quote.foretell(job, texts(), Known(), BASIS, "", kind="train")


@pytest.mark.parametrize(
    ("spent", "done", "expected"),
    [
        ({}, {"setup": 0.0, "train": 0.0}, 1.0),  # the quote
        ({"setup": 0.2}, {"train": 0.0}, 0.2 + 0.9),  # what is not mentioned is over
        ({"setup": 0.1, "train": 0.45}, {"train": 0.5}, 1.0),  # as quoted
        ({"setup": 0.1, "train": 0.9}, {"train": 0.5}, 0.1 + (0.9 + 0.045) / 0.55),
        ({"setup": 0.1, "train": 2.0}, {"train": 1.0}, 2.1),  # what was spent
        ({"setup": 0.1, "train": 0.3, "between": 0.4}, {"train": 1.0}, 0.8),
    ],
)
def test_a_run_under_way_is_forecast_from_what_it_has_spent(
    spent: dict[str, float], done: dict[str, float], expected: float
) -> None:
    assert quote.expected_kwh(PHASES, spent, done) == pytest.approx(expected)


@given(factor=st.floats(0.01, 100.0), parts=st.lists(PARTS, min_size=2, max_size=9))
def test_a_forecast_goes_from_the_quote_to_what_was_spent_and_never_back(
    factor: float, parts: list[float]
) -> None:
    """A training that takes `factor` times what was quoted, evenly."""
    total = 0.9 * factor
    errors = [
        abs(quote.expected_kwh(PHASES, {"train": total * part}, {"setup": 1.0, "train": part})
            - total)
        for part in (0.0, *sorted(parts), 1.0)
    ]  # fmt: skip
    assert errors[0] == pytest.approx(abs(0.9 - total))
    assert errors[-1] == pytest.approx(0.0)
    assert all(later <= error + 1e-9 for error, later in pairwise(errors))


@given(
    spent=st.dictionaries(st.sampled_from(["setup", "train", "between"]), AMOUNTS),
    done=st.dictionaries(st.sampled_from(["setup", "train"]), PARTS),
)
def test_no_forecast_is_below_what_is_spent(
    spent: dict[str, float], done: dict[str, float]
) -> None:
    assert quote.expected_kwh(PHASES, spent, done) >= sum(spent.values()) * (1 - 1e-12)


def test_several_runs_take_what_each_takes_as_often_as_it_is_run() -> None:
    amount, runtime, energy = quote.together([(quoted(), 2), (quoted(times=3), 1)])
    assert amount.energy_kwh == pytest.approx(5.0)
    assert amount.runtime_h == pytest.approx(10.0)
    assert amount.emissions_kg == pytest.approx(3.0)
    assert runtime.factor == pytest.approx(2.0)  # as wide as one alone
    assert runtime.errors == 9
    assert energy.factor == pytest.approx(1.25)
    assert energy.errors == 12


def test_widths_of_several_count_by_what_each_takes_and_are_known_as_the_least_known() -> None:
    narrow, wide = Width(factor=1.2, errors=30), Width(factor=3.0)
    some: Any = [(quoted(energy=narrow), 2), (quoted(energy=wide, times=3), 1)]
    _, _, energy = quote.together(some)
    # 2 kWh of 5 are as narrow, 3 as wide.
    assert energy.factor == pytest.approx(1.2**0.4 * 3.0**0.6)
    assert energy.note == "interval assumed"


def test_no_run_takes_nothing() -> None:
    assert quote.together([]) == (Amount(), Width(factor=1.0), Width(factor=1.0))
