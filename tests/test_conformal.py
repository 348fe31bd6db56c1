"""Nine of ten: by the very rank, and by twenty thousand draws."""

import math
import random

import pytest

from green_tune import conformal
from green_tune.conformal import NEWEST, Width


def off_by(*steps: int) -> list[float]:
    """Ratios that are so many steps of 1 % off, by turns too high and too low."""
    return [1.01 ** (step if number % 2 else -step) for number, step in enumerate(steps)]


def test_the_rank_is_that_of_split_conformal_prediction() -> None:
    for n in range(conformal.FEWEST, NEWEST + 1):
        rank = -(-9 * (n + 1) // 10)  # ceil(0.9 (n + 1)), in whole numbers
        steps = random.Random(n).sample(range(1, n + 1), n)
        found = conformal.width(off_by(*steps), assumed=2.0)
        assert found.errors == n
        assert found.factor == pytest.approx(1.01**rank)


@pytest.mark.parametrize(("n", "rank"), [(9, 9), (10, 10), (19, 18), (20, 19), (100, 91)])
def test_the_rank_at_a_few_sizes(n: int, rank: int) -> None:
    found = conformal.width(off_by(*range(1, n + 1)), assumed=2.0)
    assert found.factor == pytest.approx(1.01**rank)
    assert found.errors == n


def test_below_nine_errors_the_width_is_assumed_and_says_so() -> None:
    found = conformal.width(off_by(*range(1, 9)), assumed=2.5)
    assert found == Width(factor=2.5)
    assert found.note == "interval assumed"
    assert conformal.width([], assumed=1.0) == Width(factor=1.0)
    known = conformal.width(off_by(*range(1, 10)), assumed=2.5)
    assert known.note == "interval from the errors of 9 quotes"


@pytest.mark.parametrize("n", [9, 20])
def test_the_next_one_is_within_as_often_as_was_promised(n: int) -> None:
    dice = random.Random(n)
    rank, draws, held = -(-9 * (n + 1) // 10), 20_000, 0
    for _ in range(draws):
        # Skewed, biased and with a heavy tail: nothing is asked of the distribution.
        *past, actual = (1.3 * dice.paretovariate(3) for _ in range(n + 1))
        low, high = conformal.width(past, assumed=1.0).interval(1.0)
        held += low <= actual <= high
    assert rank / (n + 1) >= 0.9
    assert held / draws == pytest.approx(rank / (n + 1), abs=0.01)  # five standard deviations


def test_half_and_twice_are_equally_far() -> None:
    low, high = conformal.width([2.0] * 9, assumed=1.0).interval(10.0)
    assert (low, high) == pytest.approx((5.0, 20.0))
    assert conformal.width([0.5] * 9, assumed=1.0).factor == pytest.approx(2.0)
    assert conformal.width([1.0] * 9, assumed=3.0).interval(10.0) == (10.0, 10.0)


def test_only_the_newest_errors_count() -> None:
    old, new = [10.0] * 300, [1.1] * NEWEST
    found = conformal.width([*old, *new], assumed=1.0)
    assert found.factor == pytest.approx(1.1)
    assert found.errors == NEWEST
    assert conformal.width([*new, *old], assumed=1.0).factor == pytest.approx(10.0)


def test_a_lower_level_is_narrower_and_needs_fewer() -> None:
    found = conformal.width(off_by(1, 2, 3), assumed=9.0, level=0.5)
    assert found.factor == pytest.approx(1.01**2)
    assert found.errors == 3


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_a_ratio_that_cannot_be_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        conformal.width([1.0, ratio], assumed=2.0)


@pytest.mark.parametrize("assumed", [0.99, 0.0, -1.0])
def test_an_interval_that_does_not_hold_its_own_figure_is_refused(assumed: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        conformal.width([1.0] * 20, assumed=assumed)
