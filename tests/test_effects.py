import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]

from green_tune import effects
from green_tune.document import Interval
from green_tune.effects import Floats, Ints

STORES = 400
RARE = 1e-6  # the chance that a test of a rate fails though the rate is right


def one_block(n: int) -> Ints:
    return np.zeros(n, dtype=np.int64)


def misses_allowed(tries: int, share: float = 0.05) -> int:
    return int(stats.binom.isf(RARE, tries, share))


def missed(intervals: Sequence[Interval], true: float) -> int:
    return sum(not found.low <= true <= found.high for found in intervals)


def test_codes_count_keys_in_the_order_of_their_first_occurrence() -> None:
    assert effects.codes(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
    assert effects.codes([]).tolist() == []


def test_means_and_centred_values_are_of_each_block() -> None:
    blocks, values = np.array([0, 1, 0, 1]), np.array([1.0, 10.0, 3.0, 30.0])

    assert effects.means(values, blocks).tolist() == [2.0, 20.0]
    assert effects.centred(values, blocks).tolist() == [-1.0, -10.0, 1.0, 10.0]


def test_an_interval_without_degrees_of_freedom_spans_everything() -> None:
    found = effects.student(1.0, 1.0, 0, 2)

    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (-math.inf, math.inf)


def test_a_regression_in_one_block_has_the_slope_of_scipy_and_an_error_not_below_it() -> None:
    dice = np.random.default_rng(1)
    x, noise = dice.normal(size=(2, 30))
    known = stats.linregress(x, y := 2 * x + noise)

    fit = effects.regress(y, [x], one_block(30))

    assert fit.slopes[0] == pytest.approx(known.slope)
    assert fit.errors[0] >= known.stderr * (1 - 1e-9)
    assert fit.free == 28
    half = stats.t.ppf(0.975, 28) * fit.errors[0]
    assert fit.interval(0).high == pytest.approx(known.slope + half)


def test_a_regression_with_dummies_for_blocks_is_the_same_as_within_blocks() -> None:
    dice = np.random.default_rng(2)
    blocks = np.repeat([0, 1, 2], [4, 9, 6])
    x, z, y = dice.normal(size=(3, 19))
    dummies = (blocks[:, None] == np.arange(3)).astype(float)

    known = np.linalg.lstsq(np.column_stack([x, z, dummies]), y, rcond=None)[0]

    assert effects.regress(y, [x, z], blocks).slopes == pytest.approx(known[:2])


def test_a_column_that_cannot_be_told_from_others_has_no_effect_of_its_own() -> None:
    dice = np.random.default_rng(3)
    x, y = dice.normal(size=(2, 20))
    constant = np.ones(20)

    fit = effects.regress(y, [x, 2 * x, dice.normal(size=20), constant], one_block(20))

    assert np.isnan(fit.slopes).tolist() == [True, True, False, True]
    assert math.isnan(fit.interval(0).estimate)


def test_a_contrast_in_one_cell_has_the_difference_of_means_and_is_as_wide_as_the_smaller() -> None:
    up, down = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 1.5, 1.0])
    y = np.concatenate([up, down])

    found = effects.contrast(y, np.arange(7) < 3, one_block(7))

    error = math.sqrt(up.var(ddof=1) / 3 + down.var(ddof=1) / 4)
    assert found.estimate == pytest.approx(up.mean() - down.mean())
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 2) * error)
    assert found.n == 7


def test_without_repeats_a_contrast_is_the_paired_test() -> None:
    dice = np.random.default_rng(4)
    a, b = dice.normal(size=(2, 8))
    known = stats.ttest_rel(a, b).confidence_interval()

    found = effects.contrast(np.concatenate([a, b]), np.arange(16) < 8, np.tile(np.arange(8), 2))

    assert (found.low, found.high) == pytest.approx(tuple(known))


def test_a_contrast_asks_only_the_cells_that_have_both() -> None:
    y = np.array([1.0, 1.2, 2.0, 2.2, 100.0, 101.0])
    upper = np.array([False, False, True, True, True, True])
    cells = np.array([0, 0, 0, 0, 1, 1])

    assert effects.contrast(y, upper, cells).estimate == pytest.approx(1.0)
    assert effects.contrast(y[2:], upper[2:], cells[2:]).n == 0


def test_a_contrast_is_adjusted_for_what_differs_between_the_levels() -> None:
    dice = np.random.default_rng(5)
    upper = np.arange(60) < 30
    x = dice.normal(size=60) + 2 * upper
    y = 1.0 * upper + 3.0 * x + dice.normal(scale=0.1, size=60)

    plain = effects.contrast(y, upper, one_block(60))
    held = effects.contrast(y, upper, one_block(60), [x])

    assert plain.estimate > 5
    assert held.estimate == pytest.approx(1.0, abs=0.2)
    assert held.low < 1.0 < held.high


def test_contrasts_cover_where_noise_is_uneven_and_runs_are_missing() -> None:
    dice = np.random.default_rng(6)
    found = []
    for _ in range(STORES):
        cells = np.repeat(np.arange(4), 6)
        upper = np.tile([True, True, False, False, False, False], 4)
        y = dice.normal(size=4)[cells] + dice.normal(size=24) * np.where(upper, 4.0, 1.0)
        kept = dice.random(24) < 0.7
        found.append(effects.contrast(y[kept], upper[kept], cells[kept]))

    assert missed(found, 0.0) <= misses_allowed(STORES)


def test_regressions_cover_where_noise_grows_with_what_is_asked() -> None:
    dice = np.random.default_rng(7)
    found = []
    for _ in range(STORES):
        blocks = np.repeat([0, 1], [12, 8])
        x, noise = dice.uniform(0, 1, 20), dice.standard_t(4, 20)
        y = blocks + x + noise * (0.1 + 2 * x**2)
        found.append(effects.regress(y, [x], blocks).interval(0))

    assert missed(found, 1.0) <= misses_allowed(STORES)


def test_ranks_are_those_of_scipy_within_each_block() -> None:
    values = np.array([3.0, 1.0, 1.0, 7.0, 2.0, 2.0])
    blocks = np.array([0, 0, 0, 1, 1, 1])

    found = effects.ranks(values, blocks)

    for block in (0, 1):
        known = stats.rankdata(values[blocks == block])
        assert found[blocks == block] == pytest.approx((known - 2) / 4)


@pytest.mark.parametrize("seed", range(5))
def test_in_one_block_it_is_the_correlation_of_scipy(seed: int) -> None:
    x, y = np.random.default_rng(seed).integers(0, 6, size=(2, 15)).astype(float)

    found = effects.spearman(x, y, one_block(15))

    assert found.estimate == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found.n == 15
    assert -1 <= found.low < found.estimate < found.high <= 1


def test_a_partial_correlation_is_that_of_the_textbook() -> None:
    dice = np.random.default_rng(8)
    z = dice.normal(size=40)
    x, y = z + dice.normal(size=40), z + dice.normal(size=40)
    xy, xz, yz = (stats.spearmanr(*pair).statistic for pair in ((x, y), (x, z), (y, z)))

    found = effects.spearman(x, y, one_block(40), [z])

    assert found.estimate == pytest.approx((xy - xz * yz) / math.sqrt((1 - xz**2) * (1 - yz**2)))


def test_a_difference_between_blocks_is_no_correlation() -> None:
    dice = np.random.default_rng(9)
    blocks = np.repeat([0, 1], 20)
    x, y = dice.normal(size=(2, 40)) + 100 * blocks

    assert effects.spearman(x, y, one_block(40)).low > 0.5
    assert effects.spearman(x, y, blocks).low < 0 < effects.spearman(x, y, blocks).high


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_rows_leave_a_correlation_open(n: int) -> None:
    x = np.arange(n, dtype=float)

    found = effects.spearman(x, x, one_block(n))

    assert math.isnan(found.estimate)
    assert (found.low, found.high) == (-1.0, 1.0)


def test_what_never_varies_or_is_held_already_correlates_with_nothing() -> None:
    x = np.random.default_rng(0).normal(size=20)

    assert math.isnan(effects.spearman(np.ones(20), x, one_block(20)).estimate)
    assert math.isnan(effects.spearman(x, x[::-1], one_block(20), [x]).estimate)


def test_rows_with_a_nan_are_left_out() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20))
    x[3], y[7] = math.nan, math.nan

    assert effects.spearman(x, y, one_block(20)).n == 18


@pytest.mark.parametrize("sizes", [[8], [5, 5, 5], [3] * 8, [30]])
def test_null_correlations_are_called_effects_as_often_as_the_level_says(sizes: list[int]) -> None:
    dice = np.random.default_rng(10)
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    pairs = [dice.normal(size=(2, len(blocks))) for _ in range(STORES)]
    found = [effects.spearman(x, y, blocks) for x, y in pairs]

    assert missed(found, 0.0) <= misses_allowed(STORES)


def test_the_bootstrap_is_seeded_and_near_the_formula() -> None:
    x, z = np.random.default_rng(11).normal(size=(2, 80))
    y, blocks = x + z, np.repeat([0, 1], 40)
    formula = effects.spearman(x, y, blocks)
    resampled = [effects.spearman(x, y, blocks, bootstrap=True) for _ in range(2)]

    assert resampled[0] == resampled[1]
    assert resampled[0].estimate == formula.estimate
    assert resampled[0].low == pytest.approx(formula.low, abs=0.1)
    assert resampled[0].high == pytest.approx(formula.high, abs=0.1)


def bounds(found: Interval) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high


def rows(n: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.integers(-50, 50).map(float), min_size=n, max_size=n)


@given(x=rows(12), y=rows(12), shift=st.integers(-9, 9))
@settings(deadline=None)
def test_a_constant_on_a_block_and_the_order_of_rows_change_no_correlation(
    x: list[float], y: list[float], shift: int
) -> None:
    a, b, blocks = np.array(x), np.array(y), np.repeat([0, 1], 6)
    moved: Floats = b + shift * blocks
    order = np.random.default_rng(0).permutation(12)

    found = bounds(effects.spearman(a, b, blocks))

    assert bounds(effects.spearman(a, moved, blocks)) == pytest.approx(found, nan_ok=True)
    again = effects.spearman(a[order], b[order], blocks[order])
    assert bounds(again) == pytest.approx(found, nan_ok=True, abs=1e-7)


@given(y=rows(12), shift=st.integers(-9, 9))
@settings(deadline=None)
def test_a_constant_on_a_cell_changes_no_contrast_and_a_factor_scales_it(
    y: list[float], shift: int
) -> None:
    cells, upper = np.repeat([0, 1, 2], 4), np.tile([True, True, False, False], 3)
    values = np.array(y)

    found = effects.contrast(values, upper, cells)
    moved = effects.contrast(values + shift * cells, upper, cells)
    scaled = effects.contrast(1000 * values, upper, cells)

    assert bounds(moved) == pytest.approx(bounds(found), abs=1e-6)
    assert bounds(scaled) == pytest.approx(tuple(1000 * v for v in bounds(found)), abs=1e-6)
