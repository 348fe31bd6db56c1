"""The benchmark of early stops: what a false stop is, and what its page compares."""

import pytest

from benchmarks import stopping
from benchmarks.sampling import EVALS, Done
from benchmarks.stopping import CASES, Case, false_stops
from benchmarks.surrogate import Problem, World
from green_tune.results import Evaluation

Point = tuple[float, float]


def done(*true: Point, end: Point | None = None) -> Done:
    """A trial with these validations; stopped after them where it would have had another end."""
    course = [
        Evaluation(step=i, progress=i / EVALS, val_loss=loss, emissions_kg=kg)
        for i, (loss, kg) in enumerate(true)
    ]
    return Done(
        course=course,
        true=true,
        true_end=end or true[-1],
        begun_kg=0.0,
        stopped=end is not None,
        proposal_cpu_s=0.0,
    )


WHOLE = done((3.0, 0.1), (1.5, 0.5), (1.0, 1.0))


@pytest.mark.parametrize(
    ("end", "by_all", "by_ends"),
    [
        ((1.2, 1.2), 0, 0),  # beaten by the other's end
        ((1.6, 0.6), 0, 1),  # beaten by what the other had on its way
        ((1.2, 0.6), 1, 1),
        ((0.9, 2.0), 1, 1),
    ],
)
def test_a_stop_is_false_where_the_true_end_would_be_on_the_front(
    end: Point, by_all: int, by_ends: int
) -> None:
    stopped = done((3.0, 0.2), (2.0, 0.55), end=end)

    assert false_stops([WHOLE, stopped]) == {"false": by_all, "false ends": by_ends}


def test_a_trial_that_ran_to_its_end_is_no_stop() -> None:
    assert false_stops([WHOLE, done((0.5, 0.5))]) == {"false": 0, "false ends": 0}


def test_without_the_rule_nothing_is_stopped_and_with_it_some_are() -> None:
    world = World(Problem.draw(0), EVALS)
    without, ruled = (
        stopping.tried(world, Case(sampler="random", told=told), 0) for told in ("", "imputed")
    )

    assert (without["stopped"], without["false"], without["false ends"]) == (0, 0, 0)
    assert ruled["false"] <= ruled["stopped"]
    assert ruled["stopped"] > 0
    assert ruled["trials 40 cost"] < without["trials 40 cost"]


def test_the_page_compares_each_sampler_with_itself_unstopped() -> None:
    world = World(Problem.draw(0), EVALS)
    plain = stopping.tried(world, Case(sampler="random"), 0)
    changed = {
        **plain,
        "carbon 10": plain["carbon 10"] + 0.25,
        "trials 40 cost": plain["trials 40 cost"] / 2,
        "stopped": 30.0,
        "false": 3.0,
    }
    found = {case.name: [changed if case.told else plain] * 2 for case in CASES}

    page = stopping.page(found, {"machine": "any"})

    assert "0.250 ± 0.000" in page
    assert "50%" in page
    assert page.count("6 of 60 (10.0%)") == sum(bool(case.told) for case in CASES)
