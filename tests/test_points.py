"""What a study has reached: every validation counts, and nothing twice."""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune import points
from green_tune.results import EVALUATIONS, RunRecord, front, hypervolume

START = datetime(2026, 11, 22, tzinfo=UTC)
SMALL = st.integers(1, 5)  # few values, so that ties and equals occur
PAIRS = st.lists(st.tuples(SMALL, SMALL), max_size=20)


def trial(
    number: int,
    loss: float = 1.0,
    kg: float = 0.01,
    *,
    course: Sequence[tuple[int, float, float, float]] = (),
    status: str = "FINISHED",
    start_loss: float | None = 3.0,
    kind: str = "trial",
    steps: int = 40,
    tags: Mapping[str, str] | None = None,
) -> RunRecord:
    known = {"emissions_kg": kg, "steps": float(steps)}
    known |= {"val_loss": loss} if status == "FINISHED" else {}
    known |= {} if start_loss is None else {"start_val_loss": start_loss}
    return RunRecord(
        run_id=f"{number:032x}",
        name=f"trial-{number}",
        kind=kind,
        status=status,
        started=START + timedelta(minutes=number),
        metrics=known,
        tags={"green_tune.trial": str(number), EVALUATIONS: json.dumps(course), **(tags or {})},
    )


COURSE = [(0, 0.0, 3.0, 0.001), (20, 0.5, 2.0, 0.005), (40, 1.0, 1.0, 0.009)]


def test_validations_on_the_way_and_the_end_are_points_and_the_start_is_none() -> None:
    way, end = points.points([trial(4, course=COURSE)])
    assert (way.step, way.progress, way.pair, way.ended) == (20, 0.5, (2.0, 0.005), False)
    assert (end.step, end.progress, end.pair, end.ended) == (40, 1.0, (1.0, 0.01), True)
    assert [points.label(point) for point in (way, end)] == ["#4 at 50 %", "#4"]


def test_the_last_validation_is_the_end_and_costs_what_the_trial_cost() -> None:
    assert 0.009 not in [point.emissions_kg for point in points.points([trial(0, course=COURSE)])]


@pytest.mark.parametrize("text", ["after step 20 of 40", "at its second validation"])
def test_a_trial_that_was_stopped_has_an_end_that_is_no_full_schedules(text: str) -> None:
    stopped = trial(1, 2.0, 0.006, course=COURSE[:2], tags={"stopped_early": text})
    (end,) = points.points([stopped])
    assert (end.step, end.progress, end.pair, end.ended) == (20, 0.5, (2.0, 0.006), False)
    assert points.ended_front([stopped]) == []


def test_a_trial_without_a_course_has_its_end_alone() -> None:
    (end,) = points.points([trial(0, course=[])])
    assert (end.step, end.progress, end.ended) == (40, 1.0, True)


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING"])
def test_what_did_not_finish_has_no_points(status: str) -> None:
    assert points.points([trial(0, course=COURSE, status=status)]) == []


def test_a_sweeps_own_run_is_no_trial() -> None:
    assert points.points([trial(0, kind="sweep")]) == []


@pytest.mark.parametrize("kind", ["train", "cell", "trial", "repeat"])
def test_runs_of_any_kind_have_points_where_all_are_asked_for(kind: str) -> None:
    run = trial(4, course=COURSE, kind=kind)
    assert [point.pair for point in points.every([run])] == [(2.0, 0.005), (1.0, 0.01)]
    assert points.every([trial(4, course=COURSE, kind=kind, status="FAILED")]) == []
    assert points.points([run]) == (points.every([run]) if kind == "trial" else [])


def at(pairs: Sequence[tuple[float, float]]) -> list[points.Point]:
    return points.points([trial(number, *pair) for number, pair in enumerate(pairs)])


@settings(deadline=None)
@given(PAIRS)
def test_the_front_is_what_nothing_dominates_and_the_cheapest_comes_first(
    pairs: list[tuple[float, float]],
) -> None:
    found = [point.pair for point in points.front_of(at(pairs))]
    assert sorted(found) == sorted(front(pairs, lambda pair: pair))
    assert [kg for _, kg in found] == sorted(kg for _, kg in found)


def test_best_and_greenest_break_ties_by_the_other_objective() -> None:
    found = at([(1.0, 5.0), (1.0, 4.0), (2.0, 1.0), (3.0, 1.0)])
    best, greenest = points.best(found), points.greenest(found)
    assert best is not None
    assert greenest is not None
    assert (best.pair, greenest.pair) == ((1.0, 4.0), (2.0, 1.0))
    assert points.best([]) is None
    assert points.greenest([]) is None


def test_the_knee_is_farthest_below_the_chord_on_axes_of_equal_length() -> None:
    # From (0, 1) over (1/4, 1/2) and (1/2, 1/8) to (1, 0): 1/4 and 3/8 below the chord.
    bend = points.knee(at([(10.0, 1.0), (6.0, 2.0), (3.0, 3.0), (2.0, 5.0), (11.0, 9.0)]))
    assert bend is not None
    assert bend.pair == (3.0, 3.0)


def test_two_points_and_a_front_that_bends_outwards_have_no_knee() -> None:
    assert points.knee(at([(2.0, 1.0), (1.0, 2.0)])) is None
    assert points.knee(at([(3.0, 1.0), (2.9, 2.0), (1.0, 3.0)])) is None


def test_the_reference_lies_a_margin_beyond_the_worst_trial_that_ended() -> None:
    stopped = trial(2, 2.9, 9.0, tags={"stopped_early": "after step 20 of 40"})
    loss, kg = points.reference([trial(0, 2.0, 1.0), trial(1, 1.0, 4.0), stopped]) or (0, 0)
    assert (loss, kg) == pytest.approx((2.0 * 1.05, 4.0 * 1.05))


def test_one_training_that_diverged_does_not_make_all_others_look_good() -> None:
    loss, _ = points.reference([trial(0, 2.0), trial(1, 900.0)]) or (0, 0)
    assert loss == 3.0
    loss, _ = points.reference([trial(0, 2.0, start_loss=None)]) or (0, 0)
    assert loss == pytest.approx(2.1)


def test_without_a_trial_that_ended_there_is_neither_reference_nor_gain() -> None:
    stopped = trial(2, tags={"stopped_early": "after step 20 of 40"})
    assert points.reference([stopped]) is None
    assert points.gained([stopped]) == []


def test_gains_are_counted_in_the_order_of_starts_with_failures_in_the_cost() -> None:
    first = trial(0, 2.0, 0.010, course=[(20, 0.5, 2.5, 0.004)])
    failed = trial(1, kg=0.003, status="FAILED")
    running = trial(2, kg=0.5, status="RUNNING")
    reused = trial(3, 1.0, 0.020, tags={"green_tune.reused": "f" * 32})
    records = [reused, running, failed, first]
    limit = points.reference(records)
    assert limit == pytest.approx((2.1, 0.021))
    assert limit is not None
    one, two, three = points.gained(records)
    assert [step.spent_kg for step in (one, two, three)] == pytest.approx([0.010, 0.013, 0.013])
    assert one.hypervolume == one.hypervolume_ended == pytest.approx(0.1 * 0.011)
    assert (two.hypervolume, two.hypervolume_ended) == (one.hypervolume, one.hypervolume_ended)
    assert three.hypervolume == pytest.approx(hypervolume([(2.0, 0.010), (1.0, 0.020)], limit))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(SMALL, SMALL, SMALL, SMALL), min_size=1, max_size=8))
def test_no_trial_makes_a_hypervolume_smaller_and_the_way_only_adds(
    rows: list[tuple[int, int, int, int]],
) -> None:
    records = [
        trial(i, loss, kg + 5, start_loss=9.0, course=[(20, 0.5, way, way_kg)])
        for i, (loss, kg, way, way_kg) in enumerate(rows)
    ]
    course = points.gained(records)
    every = [step.hypervolume for step in course]
    limit = points.reference(records)
    assert limit is not None
    assert every == sorted(every)
    assert all(s.hypervolume >= s.hypervolume_ended for s in course)
    assert math.isclose(every[-1], hypervolume([p.pair for p in points.points(records)], limit))


def test_what_was_taken_over_costs_nothing_now() -> None:
    assert points.spent_kg(trial(0, kg=0.5)) == 0.5
    assert points.spent_kg(trial(0, kg=0.5, tags={"green_tune.reused": "f"})) == 0.0


def test_a_run_that_is_no_trial_is_named_by_its_id() -> None:
    run = RunRecord(run_id="abcdef0123456", name="", kind="train", status="FINISHED", started=START)
    assert points.name(run) == "abcdef01"


def test_intensities_say_what_was_assumed_and_name_each_zone_once() -> None:
    world = {"intensity_zone": "world average", "intensity_g_per_kwh": "475"}
    assumed = trial(0, tags=world | {"intensity_assumed": "true"})
    known = trial(1, tags={"intensity_zone": "France", "intensity_g_per_kwh": "56", "pue": "1.2"})
    text = "France at 56 g/kWh x PUE 1.2; assumed: world average at 475 g/kWh"
    assert points.intensities([known, assumed, assumed]) == text
    assert points.is_assumed([known, assumed])
    assert not points.is_assumed([known])
    assert points.intensities([]) == "no intensity"
