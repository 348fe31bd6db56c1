import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from green_tune import counts
from green_tune.effects import Bools, Ints


def table(both: int, inside: int, best: int, neither: int) -> tuple[Bools, Bools, Ints]:
    sizes = [both, inside, best, neither]
    rows = [np.repeat(kind, sizes).astype(bool) for kind in ([1, 1, 0, 0], [1, 0, 1, 0])]
    return rows[0], rows[1], np.zeros(sum(sizes), dtype=np.int64)


@pytest.mark.parametrize(("hits", "of"), [(0, 5), (3, 10), (6, 6), (1, 1)])
def test_a_share_has_the_exact_interval_of_scipy(hits: int, of: int) -> None:
    known = stats.binomtest(hits, of).proportion_ci(method="exact")

    found = counts.share(hits, of)

    assert (found.low, found.high) == pytest.approx((known.low, known.high))
    assert found.estimate == hits / of


@pytest.mark.parametrize("cells", [(5, 8, 2, 15), (3, 1, 4, 9), (1, 6, 7, 1)])
def test_odds_in_one_block_have_the_conditional_interval_of_scipy(
    cells: tuple[int, int, int, int],
) -> None:
    both, inside, best, neither = cells
    known = stats.contingency.odds_ratio([[both, inside], [best, neither]], kind="conditional")
    interval = known.confidence_interval(0.95)

    found = counts.odds(*table(*cells))

    assert found.estimate == pytest.approx(known.statistic, rel=1e-4)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


def test_odds_over_blocks_are_those_of_each_where_blocks_are_alike() -> None:
    inside, best, blocks = table(6, 10, 4, 20)
    twice = [np.tile(row, 2) for row in (inside, best)]

    one = counts.odds(inside, best, blocks)
    two = counts.odds(twice[0], twice[1], np.concatenate([blocks, blocks + 1]))

    assert two.estimate == pytest.approx(one.estimate)
    assert one.low < two.low < two.estimate < two.high < one.high


@pytest.mark.parametrize("cells", [(4, 9, 0, 0), (0, 0, 3, 7), (2, 0, 3, 0), (0, 5, 0, 5)])
def test_counts_that_could_not_be_otherwise_leave_the_odds_open(
    cells: tuple[int, int, int, int],
) -> None:
    found = counts.odds(*table(*cells))

    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (0.0, math.inf)


def test_no_rows_leave_the_odds_open() -> None:
    found = counts.odds(*table(0, 0, 0, 0))

    assert (found.low, found.high, found.n) == (0.0, math.inf, 0)


def test_odds_at_the_end_of_what_is_possible_have_one_bound() -> None:
    found = counts.odds(*table(6, 2, 0, 12))

    assert found.estimate == found.high == math.inf
    assert found.low > 1


@given(st.tuples(*[st.integers(0, 12)] * 4))
@settings(deadline=None)
def test_the_interval_excludes_one_when_a_tail_of_the_exact_test_is_small(
    cells: tuple[int, int, int, int],
) -> None:
    both, inside, best, _ = cells
    chance = stats.hypergeom(sum(cells), both + inside, both + best)

    found = counts.odds(*table(*cells))

    assert (found.low > 1) is bool(chance.sf(both - 1) < 0.025)
    assert (found.high < 1) is bool(chance.cdf(both) < 0.025)


@pytest.mark.parametrize(
    ("chances", "shown"),
    [
        ([], 0),
        ([0.02], 1),
        ([0.03], 0),
        ([0.001, 0.001, 0.001], 3),
        ([0.001, 0.02, 0.9], 1),
        ([0.02, 0.001, 0.001], 3),
        ([0.02, 0.02, 0.02], 0),  # three are looked at: the first has to be below 0.025 / 3
    ],
)
def test_so_many_hypotheses_are_shown_to_hold(chances: list[float], shown: int) -> None:
    assert counts.at_least(chances) == shown
