"""The sampling benchmark: what its problems, its studies and its scores mean. It ranks nothing."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from benchmarks import sampling, surrogate
from benchmarks.sampling import (
    CARBON,
    DEFAULT,
    EVALS,
    METHODS,
    Done,
    Length,
    Method,
    dominated,
    run,
)
from benchmarks.surrogate import Problem, World
from green_tune.results import Course
from green_tune.samplers import NAMES

WORLD = World(Problem.draw(0), EVALS)
RANDOM = Method(sampler="random")
SHORT = Length(trials=12, carbon=0)


def test_longer_training_costs_more_and_first_learns() -> None:
    values = surrogate.drawn(np.random.default_rng(0), 50)
    loss, kg = zip(
        *(WORLD.problem.run(values, np.full(50, p), EVALS) for p in (0.0, 0.5, 1.0)), strict=True
    )

    assert (np.diff(kg, axis=0) > 0).all()
    assert np.median(loss[1]) < np.median(loss[0])


def test_the_true_front_is_a_whole_and_random_points_are_less() -> None:
    values = surrogate.drawn(np.random.default_rng(1), 5000)
    loss, kg = WORLD.problem.run(values, np.ones(5000), EVALS)
    points = list(zip(loss.tolist(), kg.tolist(), strict=True))

    assert 0 < WORLD.share(points[:10], points[:10]) < WORLD.share(points, points) <= 1
    assert WORLD.share([], []) == 0


def test_a_user_chooses_by_what_was_seen_and_gets_what_is_true() -> None:
    best, kg = 1.2, WORLD.reference[1] / 2
    lucky = WORLD.share([(best, kg), (best + 0.1, kg)], [(9.0, kg), (best, kg)])

    assert lucky == 0


def test_a_study_goes_on_until_it_has_both_trials_and_carbon() -> None:
    by_trials = run(WORLD, RANDOM, seed=0, length=SHORT)
    by_carbon = run(WORLD, RANDOM, seed=0, length=Length(trials=1, carbon=10))

    assert len(by_trials) == 12
    assert by_carbon[-2].ended_kg < 10 * WORLD.random_trial_kg <= by_carbon[-1].ended_kg
    assert all(len(one.course) == EVALS + 1 for one in by_trials)


@pytest.mark.parametrize("name", [DEFAULT, *(name for name in NAMES if name != "gp")])
def test_every_method_finds_something(name: str) -> None:
    done = run(WORLD, METHODS[name], seed=0, length=SHORT)

    assert 0 < sampling.scores(WORLD, done)["trials 10 all"] < 1.5


def halves(course: Course, finished: Sequence[Course], archive: Mapping[str, Course]) -> bool:
    return course[-1].progress >= 0.5 and len(finished) >= 3


def test_a_rule_ends_trials_and_the_sampler_hears_what_was_asked() -> None:
    asked = {told: run(WORLD, METHODS["tpe"], seed=0, ends=halves, told=told, length=SHORT)
             for told in ("imputed", "as it ended")}  # fmt: skip

    for done in asked.values():
        assert [one.stopped for one in done] == [False] * 3 + [True] * 9
        assert all(one.course[-1].progress == 0.5 for one in done if one.stopped)
    imputed, ended = ([one.course for one in done] for done in asked.values())
    assert imputed[:6] == ended[:6]  # the start, which no result changes
    assert imputed[6:] != ended[6:]


def test_stopped_trials_cost_only_what_they_had() -> None:
    def cost_kg(done: list[Done]) -> float:
        return done[-1].ended_kg

    whole, stopped = (run(WORLD, RANDOM, seed=1, ends=ends, length=Length(trials=30, carbon=0))
                      for ends in (sampling.never, dominated))  # fmt: skip

    assert any(one.stopped for one in stopped)
    assert cost_kg(stopped) < cost_kg(whole)


def test_the_page_has_a_row_for_every_method() -> None:
    done = run(WORLD, RANDOM, seed=0, length=SHORT)
    found = {"one": [sampling.scores(WORLD, done)] * 2, "other": [sampling.scores(WORLD, done)] * 2}

    page = sampling.page(found, {"machine": "any"})

    assert page.count("| one ") == page.count("| other") == 3
    assert f"carbon {CARBON[-1]} all" in page
    assert "± 0.000" in page


def test_the_page_compares_with_the_default_problem_by_problem() -> None:
    scores = sampling.scores(WORLD, run(WORLD, RANDOM, seed=0, length=SHORT))
    better = {key: value + 0.25 for key, value in scores.items()}

    page = sampling.page({DEFAULT: [scores] * 2, "ours": [better, scores]}, {"machine": "any"})

    assert "0.125 ± 0.125, 1 of 2" in page
