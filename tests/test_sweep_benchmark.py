"""The arithmetic of the sweep benchmark, on sweeps made by hand."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from benchmarks import sweep
from benchmarks.sweep import Side
from green_tune.footprint import Segment
from green_tune.results import EVALUATIONS, Evaluation, RunRecord, to_tag

START = datetime(2026, 11, 23, tzinfo=UTC)
HOUR_S = 3600


def segment(phase: str, begun_h: float, kwh: float) -> Segment:
    return Segment(
        phase=phase,
        started_s=START.timestamp() + begun_h * HOUR_S,
        runtime_h=1.0,
        energy_cpu_kwh=kwh,
        energy_gpu_kwh=0.0,
        energy_ram_kwh=0.0,
    )


def trial(begun_h: float, losses: tuple[float, ...], kg: float, early: bool = False) -> RunRecord:
    """One hour of training with validations spread over it, the first before any step."""
    last = len(losses) - 1
    planned = 2 * last if early else last
    course = [
        Evaluation(step=i, progress=i / planned, val_loss=loss, emissions_kg=1 + kg * i / last)
        for i, loss in enumerate(losses)
    ]
    return RunRecord(
        run_id=f"{begun_h}",
        name="",
        kind="trial",
        status="FINISHED",
        started=START + timedelta(hours=begun_h),
        metrics={"runtime_h": 1.0},
        tags={EVALUATIONS: to_tag(course)},
    )


PLAIN = Side(
    trials=[trial(1, (5, 4, 3), 2.0), trial(3, (5, 3, 2), 2.0)],
    segments=[segment("setup", 0, 4), segment("train", 1, 2), segment("setup", 2, 4),
              segment("train", 3, 2)],
    kg_per_kwh=1.0,
)  # fmt: skip
GREEN = Side(
    trials=[trial(1, (5, 2, 2), 2.0)],
    segments=[segment("setup", 0, 4), segment("train", 1, 2), segment("between", 2, 9)],
    kg_per_kwh=1.0,
)
LIMIT = (4.0, 4.0)


def test_only_ends_are_results_of_the_baseline_and_every_validation_of_green() -> None:
    assert sweep.reached(PLAIN.trials[0], every=False) == [(3, 2.0)]
    assert sweep.reached(PLAIN.trials[0], every=True) == [(4, 1.0), (3, 2.0)]
    assert sweep.reached(trial(1, (5, 4, 3), 2.0, early=True), every=False) == []
    assert sweep.reached(replace(PLAIN.trials[0], status="FAILED"), every=True) == []


def test_what_was_spent_counts_everything_until_a_trial_ended() -> None:
    assert PLAIN.course(LIMIT, every=False) == [(6.0, 2.0), (12.0, 4.0)]
    assert GREEN.course(LIMIT, every=True) == [(6.0, 6.0)]
    assert GREEN.total_kg == 15.0


def test_the_ratio_is_of_what_was_spent_when_the_baselines_front_was_reached() -> None:
    found = sweep.compared(PLAIN, GREEN, LIMIT)
    assert found["plain_g"] == 12_000
    assert found["green_g"] == 6000
    assert found["ratio"] == found["ratio_ends"] == 0.5
    assert found["ratio_without_setup"] == 0.5
    assert found["green_final"] == 1.5
    never = replace(GREEN, trials=[trial(1, (5, 5, 5), 2.0)])
    assert sweep.compared(PLAIN, never, LIMIT)["ratio"] == float("inf")


def test_the_reference_is_made_of_the_baselines_ends() -> None:
    assert sweep.reference([PLAIN]) == pytest.approx((2.75, 2.0))


def test_phases_say_where_it_went() -> None:
    assert {name: kg for name, kg in GREEN.phases().items() if kg} == {
        "setup": 4.0,
        "train": 2.0,
        "between": 9.0,
    }


def test_a_replayed_stop_is_wrong_if_a_later_point_was_on_the_front() -> None:
    good = [trial(i, (5, 2, 1.9, 1.8, 1.7), 1.0 + i / 100) for i in range(4)]
    hopeless = trial(5, (5, 4.9, 4.8, 4.7, 4.6), 4.0)
    late = trial(6, (5, 4.9, 4.8, 4.7, 0.5), 4.0)
    found = sweep.replayed([Side(trials=[*good, hopeless], segments=[], kg_per_kwh=1.0)])
    assert (found["stopped"], found["wrong"]) == (1, 0)
    assert found["saved"] > 0
    found = sweep.replayed([Side(trials=[*good, late], segments=[], kg_per_kwh=1.0)])
    assert (found["stopped"], found["wrong"]) == (1, 1)
