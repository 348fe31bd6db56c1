"""The front: what nothing else beats."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune.results import TrainResult, front

SMALL = st.integers(0, 5)  # few values, so that ties and equals occur
POINTS = st.lists(st.tuples(SMALL, SMALL), max_size=20) | st.lists(
    st.tuples(SMALL, SMALL, SMALL), max_size=20
)
Point = tuple[float, ...]


def beats(one: Point, other: Point) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def same(point: Point) -> Point:
    return point


def test_a_result_leaves_the_losses_to_their_curves() -> None:
    result = TrainResult(
        val_loss=1.0,
        val_bits_per_byte=0.5,
        start_val_loss=2.0,
        train_loss=1.1,
        steps=40,
        adapter_step=40,
        steps_planned=60,
        ended_because="enough",
        course=(),
        train_tokens=1000,
        processed_tokens=700,
        micro_batch_halvings=1,
        base_parameters=4096,
        trainable_parameters=128,
        memory_peak_gib=1.5,
        memory_estimate_gib=1.6,
    )
    assert result.to_metrics() == {
        "start_val_loss": 2.0,
        "steps": 40.0,
        "train_tokens": 1000.0,
        "processed_tokens": 700.0,
        "micro_batch_halvings": 1.0,
        "base_parameters": 4096.0,
        "trainable_parameters": 128.0,
        "memory_peak_gib": 1.5,
        "memory_estimate_gib": 1.6,
    }


@settings(deadline=None)
@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    assert front(points, same) == [p for p in points if not any(beats(q, p) for q in points)]


@settings(deadline=None)
@given(POINTS)
def test_all_else_is_beaten_by_the_front(points: list[Point]) -> None:
    best = front(points, same)
    assert all(any(beats(p, q) for p in best) for q in points if q not in best)
    assert front(best, same) == best


@settings(deadline=None)
@given(st.data(), POINTS)
def test_the_front_does_not_depend_on_the_order(data: st.DataObject, points: list[Point]) -> None:
    shuffled = data.draw(st.permutations(points))
    assert sorted(front(shuffled, same)) == sorted(front(points, same))


@settings(deadline=None)
@given(st.lists(st.tuples(SMALL, SMALL), min_size=1))
def test_along_a_front_one_objective_is_paid_with_the_other(points: list[tuple[int, int]]) -> None:
    best = sorted(set(front(points, same)))
    assert best
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in pairwise(best))


def test_equals_stay_and_the_given_order_with_them() -> None:
    runs = [("a", (2, 1)), ("b", (1, 2)), ("c", (2, 1)), ("d", (2, 2))]
    assert [name for name, _ in front(runs, lambda run: run[1])] == ["a", "b", "c"]


def test_the_best_of_each_objective_is_on_the_front() -> None:
    assert front([(0.5, 9.0), (0.4, 10.0), (0.6, 8.0), (0.6, 8.1)], lambda p: p) == [
        (0.5, 9.0),
        (0.4, 10.0),
        (0.6, 8.0),
    ]


def test_points_of_different_lengths_are_a_bug() -> None:
    with pytest.raises(ValueError, match="zip"):
        front([(1, 2), (0, 1, 2)], same)


def test_what_is_no_number_is_neither_beaten_nor_beats() -> None:
    lost = (math.nan, 1.0)
    assert front([lost, (1.0, 2.0), (2.0, 3.0), (0.5, 9.0)], same) == [lost, (1.0, 2.0), (0.5, 9.0)]
