"""When all that a trial can still become is dominated, and what that rule costs and saves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.dominance import Bound, Verdict, imputed, judge
from green_tune.results import Course, Evaluation, front


def course(losses: Sequence[float], kg: float = 1.0, of: int = 0, setup: float = 0.0) -> Course:
    """Validations at even distances from progress 0; `of` them in the whole schedule."""
    last = (of or len(losses)) - 1
    return [
        Evaluation(step=i, progress=i / last, val_loss=loss, emissions_kg=setup + kg * i / last)
        for i, loss in enumerate(losses)
    ]


FINISHED = [course([2.0, 1.0, 0.9, 0.85, 0.83 - i / 1000]) for i in range(4)]
BETTER = {"#4": course([2.0, 0.5, 0.4], kg=0.3), "#5": course([2.0, 0.6, 0.45], kg=0.2)}
WORSE = course([2.0, 1.5, 1.4], of=5)  # with two validations to come


def test_a_trial_that_can_only_end_dominated_is_stopped_with_the_reason() -> None:
    verdict = judge(WORSE, FINISHED, BETTER)
    assert verdict is not None
    assert verdict.by == "#4"
    assert verdict.val_loss_bound == pytest.approx(1.4 - 0.1)  # its own last drop is the largest
    assert verdict.emissions_kg == pytest.approx(1.0)
    assert verdict.saved_kg == pytest.approx(0.5)


def test_a_verdict_is_one_clear_line() -> None:
    verdict = Verdict(by="#4", val_loss_bound=0.4123, emissions_kg=0.0031, saved_kg=0.0018)
    line = "dominated by #4: at best 0.412 nats for 3.1 g; stopping it saves about 1.8 g"
    assert str(verdict) == line
    assert "for 1.2 kg; stopping it saves about 800 g" in str(
        replace(verdict, emissions_kg=1.2, saved_kg=0.8)
    )


@pytest.mark.parametrize(
    ("seen", "finished"),
    [
        ([], FINISHED),
        (WORSE[:1], FINISHED),
        (WORSE[:2], FINISHED),
        (WORSE, FINISHED[:3]),
        (WORSE, []),
        (course([2.0, 1.5, 1.4, 1.39, 1.38]), FINISHED),
    ],
    ids=["no course", "only a start", "one validation", "three finished", "none", "at its end"],
)
def test_without_evidence_nothing_is_stopped(seen: Course, finished: list[Course]) -> None:
    assert judge(seen, finished, BETTER) is None


def test_the_largest_drop_is_granted_where_four_have_finished() -> None:
    one_that_fell = [*FINISHED[:3], course([2.0, 1.0, 0.9, 0.6, 0.2])]
    assert judge(WORSE, FINISHED, {"#4": course([0.71], of=2)}) is not None
    assert judge(WORSE, one_that_fell, {"#4": course([0.71], of=2)}) is None
    verdict = judge(WORSE, one_that_fell, {"#4": course([0.69], of=2)})
    assert verdict is not None
    assert verdict.val_loss_bound == pytest.approx(1.4 - 0.7)


def test_a_trial_that_falls_faster_than_the_finished_ones_did_is_granted_its_own_drop() -> None:
    archive = {"#4": course([1.15], of=2)}
    assert judge(course([2.0, 1.3, 1.29], of=5), FINISHED, archive) is not None
    assert judge(course([2.0, 1.5, 1.29], of=5), FINISHED, archive) is None


def test_a_flat_end_of_others_still_grants_the_floor() -> None:
    flat = [course([1.5] * 5)] * 4
    seen = course([1.5, 1.4, 1.4], of=5)
    assert judge(seen, flat, {"#4": course([1.381], of=2)}) is None
    assert judge(seen, flat, {"#4": course([1.379], of=2)}) is not None


def test_each_moment_to_come_must_be_dominated_not_only_the_end() -> None:
    dear = [Evaluation(step=9, progress=1.0, val_loss=0.1, emissions_kg=0.9)]
    assert judge(WORSE, FINISHED, {"#4": dear}) is None  # at three quarters it is cheaper
    verdict = judge(WORSE, FINISHED, {"#4": dear, "#5": course([1.2, 1.2], kg=0.7)})
    assert verdict is not None
    assert verdict.by == "#4"


def test_only_a_part_of_the_modelled_spending_is_counted_on() -> None:
    def at(kg: float) -> dict[str, Course]:
        return {"#4": [Evaluation(step=9, progress=1.0, val_loss=0.1, emissions_kg=kg)]}

    assert judge(WORSE, FINISHED, at(0.74)) is None  # 0.75 kg expected, 0.725 counted on
    assert judge(WORSE, FINISHED, at(0.72)) is not None
    assert judge(WORSE, FINISHED, at(0.74), bound=Bound(safety=1.0)) is not None
    assert judge(WORSE, FINISHED, at(0.51), bound=Bound(safety=0.0)) is None
    assert judge(WORSE, FINISHED, at(0.49), bound=Bound(safety=0.0)) is not None


def test_finished_courses_on_other_grids_are_evidence_and_parts_of_courses_are_none() -> None:
    others = [course(np.linspace(2.0, 1.9, n).tolist()) for n in (2, 3, 8, 12)]
    assert judge(WORSE, others, BETTER) is not None
    late = [other[1:] for other in others[:1]]
    short = [other[:-1] for other in others[1:]]
    assert judge(WORSE, [*others[:3], *late], BETTER) is None
    assert judge(WORSE, [*others[:3], *short], BETTER) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_says_nothing(bad: float) -> None:
    broken = [*WORSE, Evaluation(step=3, progress=0.75, val_loss=bad, emissions_kg=0.75)]
    assert judge(broken, FINISHED, BETTER) == judge(WORSE, FINISHED, BETTER)
    assert judge(course([2.0, bad, bad, bad], of=5), FINISHED, BETTER) is None
    assert judge(course([2.0, 1.5, 1.4, 1.3, bad]), FINISHED, BETTER) is None
    ends_badly = [*FINISHED[:3], course([2.0, 1.0, 0.9, 0.8, bad])]
    assert judge(WORSE, ends_badly, BETTER) is None
    assert judge(WORSE, FINISHED, {"#4": course([bad if bad > 0 else math.nan] * 3)}) is None


def test_what_was_validated_twice_counts_once() -> None:
    twice = [WORSE[0], WORSE[1], replace(WORSE[1], val_loss=1.7)]
    assert judge(twice, FINISHED, BETTER) is None
    again = [*WORSE, replace(WORSE[2], val_loss=1.7)]
    assert judge(again, FINISHED, BETTER) == judge(WORSE, FINISHED, BETTER)


def test_a_sampler_is_told_the_median_end() -> None:
    loss, kg = imputed(WORSE, [*FINISHED[:2], course([2.0, 1.0, 0.9, 0.9, 0.1])])
    assert loss == pytest.approx(1.4 - 0.071)
    assert kg == pytest.approx(1.0)
    assert imputed(WORSE, []) == pytest.approx((1.4, 1.0))
    assert imputed(WORSE, [course([1.0, 1.0, 2.0])])[0] == pytest.approx(1.4)  # no rise is told
    one = [Evaluation(step=1, progress=0.25, val_loss=1.5, emissions_kg=0.2)]
    assert imputed(one, []) == pytest.approx((1.5, 0.8))
    assert imputed(WORSE[:1], []) == (2.0, 0.0)
    with pytest.raises(ValueError, match="no finite validation"):
        imputed(course([math.nan] * 3), FINISHED)


@pytest.mark.parametrize(
    "wrong",
    [{"quantile": 1.1}, {"safety": -0.1}, {"floor": math.nan}, {"evidence": 0}, {"evaluations": 1}],
)
def test_a_bound_that_bounds_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="not"):
        Bound(**wrong)  # type: ignore[arg-type]


def courses(low: float, high: float, longest_kg: float) -> st.SearchStrategy[Course]:
    losses = st.lists(st.floats(low, high), min_size=2, max_size=8)
    return st.builds(course, losses, st.floats(0.01, longest_kg), setup=st.floats(0, longest_kg))


# Of all kinds, and some such that stops do occur: in about one example of ten.
ARCHIVES = st.lists(courses(0.1, 4.0, 2.0), max_size=6) | st.lists(
    courses(0.1, 1.5, 0.3), min_size=1, max_size=6
)
FINISHEDS = st.lists(courses(0.1, 4.0, 1.0), max_size=8) | st.lists(
    courses(1.0, 1.5, 1.0), min_size=4, max_size=8
)
RUNNING = st.builds(
    lambda whole, part: whole[: max(1, round(part * len(whole)))],
    courses(0.1, 4.0, 1.0) | courses(1.5, 2.5, 3.0),
    st.floats(0.3, 1.0),
)


def named(courses: Sequence[Course]) -> dict[str, Course]:
    return {f"#{i}": points for i, points in enumerate(courses)}


@settings(deadline=None)
@given(RUNNING, FINISHEDS, ARCHIVES, ARCHIVES)
def test_a_larger_archive_never_lets_a_stopped_trial_go_on(
    seen: Course, finished: list[Course], archive: list[Course], more: list[Course]
) -> None:
    if judge(seen, finished, named(archive)):
        assert judge(seen, finished, named([*archive, *more]))


@settings(deadline=None)
@given(RUNNING, FINISHEDS, ARCHIVES, st.floats(0, 1), st.floats(0, 1))
def test_more_confidence_stops_no_more_trials(
    seen: Course, finished: list[Course], archive: list[Course], one: float, other: float
) -> None:
    low, high = sorted((one, other))
    if judge(seen, finished, named(archive), bound=Bound(quantile=high)):
        assert judge(seen, finished, named(archive), bound=Bound(quantile=low))


@settings(deadline=None)
@given(RUNNING, FINISHEDS, ARCHIVES)
def test_what_beats_all_others_in_loss_or_will_in_emissions_goes_on(
    seen: Course, finished: list[Course], archive: list[Course]
) -> None:
    points = [point for points in archive for point in points]
    best = min(point.val_loss for point in seen)
    leads = [point for point in points if point.val_loss >= best]
    assert judge(seen, finished, {"#0": leads}) is None
    dear = [replace(point, emissions_kg=point.emissions_kg + 100) for point in points]
    assert judge(seen, finished, {"#0": dear}) is None


@settings(deadline=None)
@given(RUNNING, FINISHEDS, ARCHIVES)
def test_a_stopped_trial_is_dominated_at_its_best_end(
    seen: Course, finished: list[Course], archive: list[Course]
) -> None:
    verdict = judge(seen, finished, named(archive))
    if verdict is None:
        return
    assert verdict.val_loss_bound <= min(point.val_loss for point in seen) - Bound().floor
    assert verdict.saved_kg >= 0
    assert verdict.emissions_kg >= seen[-1].emissions_kg
    assert any(
        point.val_loss <= verdict.val_loss_bound and point.emissions_kg <= verdict.emissions_kg
        for point in named(archive)[verdict.by]
    )
    assert imputed(seen, finished)[1] == verdict.emissions_kg


def falling(random: np.random.Generator, slow: float, noise: float) -> Course:
    """A whole course of a trial: its loss falls by a power law, with noise; its rate varies.

    A share of them learns slowly and ends lower than most, which the finished ones do not show.
    """
    a, b = 0.5 + abs(random.normal(0, 0.1)), random.uniform(0.5, 1.2)
    c, d = np.exp(random.uniform(2, 5)), random.uniform(0.4, 1.2)
    if random.random() < slow:
        a, c, d = 0.4, random.uniform(0.5, 4.0), random.uniform(0.8, 2.0)
    n = int(random.choice([4, 6, 8, 10]))
    g = np.arange(n + 1) / n
    loss = a + b * (1 + c * g) ** -d + random.normal(0, noise, n + 1)
    rates = np.exp(random.normal(0, 0.7)) * np.exp(random.normal(0, 0.05, n)) / n
    kg = random.uniform(0.05, 0.3) + np.concatenate([[0.0], np.cumsum(rates)])
    return [
        Evaluation(step=i, progress=float(g[i]), val_loss=float(loss[i]), emissions_kg=float(kg[i]))
        for i in range(n + 1)
    ]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Trials stopped, those of them that would have ended on the front, kg with and without it."""

    stopped: int
    missed: int
    spent_kg: float
    whole_kg: float


def study(seed: int, trials: int, slow: float, noise: float) -> Outcome:
    random = np.random.default_rng(seed)
    archive: dict[str, Course] = {}
    finished: list[Course] = []
    unseen: list[Evaluation] = []
    whole_kg = 0.0
    for trial in range(trials):
        points = falling(random, slow, noise)
        stops = (i for i in range(1, len(points)) if judge(points[:i], finished, archive))
        cut = next(stops, len(points))
        if cut == len(points):
            finished.append(points)
        else:
            unseen.append(points[-1])
        whole_kg += points[-1].emissions_kg
        archive[f"#{trial}"] = points[:cut]
    there = [point for points in archive.values() for point in points]
    best = front([*there, *unseen], lambda point: (point.val_loss, point.emissions_kg))
    spent_kg = sum(points[-1].emissions_kg for points in archive.values())
    return Outcome(
        stopped=len(unseen),
        missed=sum(point in unseen for point in best),
        spent_kg=spent_kg,
        whole_kg=whole_kg,
    )


@pytest.mark.parametrize("slow", [0.0, 0.15])
@pytest.mark.parametrize("noise", [0.005, 0.02])
def test_few_stopped_trials_would_have_been_on_the_front_and_energy_is_saved(
    slow: float, noise: float
) -> None:
    studies = [study(seed, trials=30, slow=slow, noise=noise) for seed in range(15)]
    stopped = sum(one.stopped for one in studies)
    missed = sum(one.missed for one in studies) / stopped
    saved = 1 - sum(one.spent_kg for one in studies) / sum(one.whole_kg for one in studies)
    assert stopped > 150
    assert missed < 0.05, f"{missed:.1%} of {stopped} stopped ones belong to the front"
    assert saved > 0.2, f"only {saved:.1%} saved"
