"""Rates are fitted to made-up runs of known rates, and foretell what those rates come to."""

import math
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from green_tune import pace
from green_tune.budget import Amount
from green_tune.effort import Work
from green_tune.pace import Pace, Seen

WORK = Work(
    layers=2.0, train_gflop=100.0, train_passes=10.0, train_steps=5.0, eval_gflop=30.0,
    eval_passes=6.0, quality_examples=20.0, useful_tokens=1000.0, processed_tokens=1200.0,
)  # fmt: skip
PACE = Pace(
    train_s_per_gflop=0.5, train_s_per_layer_pass=0.1, train_s_per_layer_step=0.2,
    eval_s_per_gflop=0.25, eval_s_per_layer_pass=0.05, quality_s_per_example=0.3,
    setup_s=9.0, save_s=4.5, busy_w=200.0, loading_w=50.0,
)  # fmt: skip
RATES = (*pace.TRAIN, *pace.EVAL)


def seen(work: Work, true: Pace, **seconds: float) -> Seen:
    """A run at that pace, but for the phases whose seconds are given."""
    phases = true.phases(work)
    return Seen(work=work, phases=phases | {k: pace.amount(s, 100.0) for k, s in seconds.items()})


def drawn(dice: random.Random) -> Work:
    """The work of some run: models and micro-batches of all sizes."""
    passes = 10 ** dice.uniform(1, 3)
    return Work(
        layers=float(dice.choice([2, 16, 32])),
        train_gflop=10 ** dice.uniform(1, 4),
        train_passes=passes,
        train_steps=passes / dice.choice([1, 2, 8]),
        eval_gflop=10 ** dice.uniform(1, 3),
        eval_passes=10 ** dice.uniform(0.5, 2),
        quality_examples=64.0,
        useful_tokens=1e5,
        processed_tokens=1e5,
    )


def test_phases_are_rates_times_work_and_add_up() -> None:
    phases = PACE.phases(WORK)
    seconds = {name: each.runtime_h * 3600 for name, each in phases.items()}
    # 100 x 0.5 + 2 x 10 x 0.1 + 2 x 5 x 0.2; 30 x 0.25 + 2 x 6 x 0.05; 20 x 0.3
    assert seconds == pytest.approx(
        {"setup": 9.0, "train": 54.0, "eval": 8.1, "quality": 6.0, "save": 4.5}
    )
    watt_s = {name: each.energy_kwh * 3.6e6 for name, each in phases.items()}
    assert watt_s == pytest.approx(
        {"setup": 450.0, "train": 10800.0, "eval": 1620.0, "quality": 1200.0, "save": 225.0}
    )
    both = pace.total(phases)
    assert both.runtime_h == pytest.approx(81.6 / 3600)
    assert both.energy_kwh == pytest.approx(14295 / 3.6e6)
    assert PACE.phases(WORK, setup=False) == phases | {"setup": Amount()}


@pytest.mark.parametrize("rate", [-1e-9, math.inf, math.nan])
def test_a_pace_is_finite_and_not_negative(rate: float) -> None:
    for spec in fields(PACE):
        with pytest.raises(ValueError, match=spec.name):
            replace(PACE, **{spec.name: rate})


def test_a_pace_is_read_back_from_metrics_and_from_all_of_them_alone() -> None:
    metrics = PACE.to_metrics()
    assert metrics["pace.busy_w"] == 200.0
    assert Pace.read({**metrics, "val_loss": 1.0}) == PACE
    for name in metrics:
        assert Pace.read({k: v for k, v in metrics.items() if k != name}) is None
        assert Pace.read({**metrics, name: -1.0}) is Pace.read({**metrics, name: math.nan}) is None


@pytest.mark.parametrize("figure", [0.0, 1e200])
def test_a_pace_of_no_machine_is_not_read(figure: float) -> None:
    every = dict.fromkeys(PACE.to_metrics(), figure)
    assert Pace.read(every) is None
    for name in ("pace.busy_w", "pace.loading_w"):
        assert Pace.read({**PACE.to_metrics(), name: figure}) is None
    for name in RATES:
        assert (Pace.read({**PACE.to_metrics(), f"pace.{name}": figure}) is None) == bool(figure)


def off(found: Pace, works: Sequence[Work]) -> float:
    """How far a pace is from the true one, in the median."""
    pairs = [(found.train_s(work), PACE.train_s(work)) for work in works]
    pairs += [(found.eval_s(work), PACE.eval_s(work)) for work in works]
    return median(abs(said / true - 1) for said, true in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_a_fit_finds_the_rates_that_made_the_runs(seed: int) -> None:
    dice = random.Random(seed)
    wrong = {name: getattr(PACE, name) * 5 ** dice.uniform(-1, 1) for name in RATES}
    start = replace(PACE, **wrong)
    found = pace.fitted(start, [seen(drawn(dice), PACE) for _ in range(40)])
    works = [drawn(dice) for _ in range(50)]
    assert off(found, works) < off(start, works) / 10
    rest = [spec.name for spec in fields(PACE) if spec.name not in RATES]
    assert [getattr(found, name) for name in rest] == pytest.approx(
        [getattr(PACE, name) for name in rest]
    )


@given(times=st.floats(1e-4, 1e4), seed=st.integers(0, 10**6))
def test_how_fast_the_start_is_does_not_matter_only_its_proportions(
    times: float, seed: int
) -> None:
    dice = random.Random(seed)
    runs = [seen(drawn(dice), PACE, train=dice.uniform(1, 1e4)) for _ in range(4)]
    start = replace(PACE, **{name: getattr(PACE, name) * times for name in RATES})
    found, same = pace.fitted(start, runs), pace.fitted(PACE, runs)
    for name in RATES:
        assert getattr(found, name) == pytest.approx(getattr(same, name), rel=1e-6, abs=1e-12)


def test_one_run_scales_a_pace_and_leaves_its_proportions() -> None:
    found = pace.fitted(PACE, [seen(WORK, PACE, train=108.0, eval=8.1 / 4)])
    for name in pace.TRAIN:
        assert getattr(found, name) == pytest.approx(2 * getattr(PACE, name))
    for name in pace.EVAL:
        assert getattr(found, name) == pytest.approx(getattr(PACE, name) / 4)


def test_runs_that_differ_in_size_bend_the_proportions() -> None:
    small, large = replace(WORK, train_gflop=1.0), replace(WORK, train_gflop=10_000.0)
    runs = [seen(small, PACE, train=5 * PACE.train_s(small)), seen(large, PACE)] * 10
    found = pace.fitted(PACE, runs)
    assert found.train_s(small) == pytest.approx(5 * PACE.train_s(small), rel=0.1)
    assert found.train_s(large) == pytest.approx(PACE.train_s(large), rel=0.1)


def test_phases_without_time_leave_what_was_known_of_them() -> None:
    gone = {name: Amount() for name in ("eval", "setup", "quality", "save")}
    run = Seen(work=WORK, phases={**seen(WORK, PACE, train=540.0).phases, **gone})
    lacking = Seen(work=WORK, phases={"train": run.phases["train"]})
    for runs in ([run], [lacking], [run, lacking]):
        found = pace.fitted(PACE, runs)
        assert found.train_s(WORK) == pytest.approx(540.0)
        kept = {name: getattr(PACE, name) for name in pace.TRAIN} | {"busy_w": PACE.busy_w}
        assert replace(found, **kept) == PACE


def test_a_run_without_time_does_not_pull_others_along() -> None:
    told = seen(WORK, PACE, train=108.0)
    silent = Seen(work=WORK, phases={"train": Amount()})
    assert pace.fitted(PACE, [told, silent]).train_s(WORK) == pytest.approx(108.0)


def test_nothing_is_fitted_to_no_run() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pace.fitted(PACE, [])


TIMES = st.floats(1e-6, 1e6) | st.just(0.0)


@given(
    seconds=st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=8),
    seed=st.integers(0, 10**6),
)
def test_no_fit_is_negative_whatever_runs_took(
    seconds: list[tuple[float, float]], seed: int
) -> None:
    dice = random.Random(seed)
    runs = [seen(drawn(dice), PACE, train=train, eval=evals) for train, evals in seconds]
    found = pace.fitted(PACE, runs)  # a Pace refuses what is negative or not finite
    assert found.train_s(WORK) >= 0


def test_setup_is_the_median_and_watts_are_those_of_all_runs_together() -> None:
    def run(setup: float, train_s: float, watts: float) -> Seen:
        phases = {"setup": pace.amount(setup, 30.0), "train": pace.amount(train_s, watts)}
        return Seen(work=WORK, phases=phases)

    found = pace.fitted(PACE, [run(8, 300, 100), run(10, 100, 300), run(600, 0, 0)])
    assert found.setup_s == pytest.approx(10.0)
    assert found.busy_w == pytest.approx((300 * 100 + 100 * 300) / 400)
    assert found.loading_w == pytest.approx(30.0)


def test_a_prediction_costs_what_it_did_for_each_example() -> None:
    runs = [seen(WORK, PACE, quality=seconds) for seconds in (20.0, 40.0, 200.0)]
    assert pace.fitted(PACE, runs).quality_s_per_example == pytest.approx(2.0)
    none = replace(WORK, quality_examples=0.0)
    found = pace.fitted(PACE, [seen(none, PACE, quality=5.0)])
    assert found.quality_s_per_example == PACE.quality_s_per_example


def test_a_scaled_pace_is_right_for_all_runs_together_and_for_training_alone() -> None:
    other = replace(WORK, train_gflop=7.0)
    runs = [seen(WORK, PACE, train=60.0), seen(other, PACE, train=90.0)]
    found = pace.scaled(PACE, runs)
    assert found.train_s(WORK) + found.train_s(other) == pytest.approx(150.0)
    assert found.train_s(WORK) / found.train_s(other) == pytest.approx(
        PACE.train_s(WORK) / PACE.train_s(other)
    )
    assert found.eval_s(WORK) == PACE.eval_s(WORK)
    assert pace.scaled(PACE, []) == PACE
