"""How large an effect is, and between what it surely lies: statistics over columns of numbers.

Runs come in blocks (what may be compared), so everything is about differences within a block. An
interval that cannot be known spans all that is possible, with NaN as its estimate. Nothing here
knows what a run is, or what follows from an effect: that is `claims`.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from green_tune.document import Interval

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
K = TypeVar("K", bound=Hashable)

LEVEL = 0.95
RESAMPLES = 1000
FEWEST_FREE = 3  # degrees of freedom that a correlation or a mean over cells needs
TINY = 1e-9  # relative; what is less is rounding


def codes(keys: Sequence[K]) -> Ints:
    """Equal keys as equal numbers, counted from 0 in the order in which they first occur."""
    seen: dict[K, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def centred(values: Floats, blocks: Ints) -> Floats:
    """Values less the mean of their block; of a table of columns, each column's."""
    return values - means(values, blocks)[blocks]


def means(values: Floats, blocks: Ints) -> Floats:
    """The mean of each block, by its code; 0 for a code that does not occur."""
    count = np.maximum(np.bincount(blocks), 1).astype(float)
    if values.ndim == 1:
        return np.asarray(np.bincount(blocks, values) / count)
    columns = [np.bincount(blocks, column) / count for column in values.T]
    return np.stack(columns, axis=1) if columns else np.zeros((len(count), 0))


def student(estimate: float, error: float, free: float, n: int, level: float = LEVEL) -> Interval:
    """Student's interval of an estimate with that standard error and degrees of freedom."""
    if not (free > 0 and math.isfinite(estimate) and math.isfinite(error)):
        return Interval(estimate=math.nan, low=-math.inf, high=math.inf, n=n, level=level)
    half = _quantile(free, level) * error
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half, n=n, level=level)


def _quantile(free: float, level: float) -> float:
    from scipy import special  # type: ignore[import-untyped]  # a fifth of a second

    return float(special.stdtrit(free, (1 + level) / 2))


# --- regression ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What each column of a regression adds to y per unit, with its standard error.

    NaN for a column that never varies within a block or is a sum of others: its effect cannot be
    told from theirs.
    """

    slopes: Floats
    errors: Floats
    free: int  # degrees of freedom
    n: int

    def interval(self, column: int, level: float = LEVEL) -> Interval:
        """Student's interval of one slope."""
        slope, error = float(self.slopes[column]), float(self.errors[column])
        return student(slope, error, self.free, self.n, level)


def regress(y: Floats, columns: Sequence[Floats], blocks: Ints) -> Fit:
    """Least squares with a constant for each block.

    A standard error is the larger of the classical one and HC3, which holds where the noise is not
    the same everywhere (Long and Ervin, The American Statistician 54, 2000).
    """
    x = centred(np.stack([*columns], axis=1).astype(float), blocks)
    size = np.sqrt((x**2).sum(axis=0))
    scale = np.where(size > 0, size, 1.0)
    x, y = x / scale, centred(y, blocks)
    inverse, rank = _inverse(x)
    slopes = inverse @ (x.T @ y)
    free = len(y) - len(np.unique(blocks)) - rank
    rest = y - x @ slopes
    told = np.abs(inverse @ (x.T @ x) - np.eye(len(scale))).max(axis=1, initial=0.0) < TINY**0.5
    told &= size > TINY
    errors = _errors(x, rest, inverse, blocks, free)
    return Fit(
        slopes=np.where(told, slopes / scale, np.nan),
        errors=np.where(told, errors / scale, np.nan),
        free=free,
        n=len(y),
    )


def _errors(x: Floats, rest: Floats, inverse: Floats, blocks: Ints, free: int) -> Floats:
    classical = np.diag(inverse) * (rest @ rest) / max(free, 1)
    leverage = 1 / np.bincount(blocks)[blocks] + np.einsum("ij,jk,ik->i", x, inverse, x)
    kept = np.maximum(1 - leverage, TINY**0.5)
    scaled = (x @ inverse) * (np.where(leverage < 1 - TINY**0.5, rest, 0.0) / kept)[:, None]
    errors: Floats = np.sqrt(np.maximum(classical, (scaled**2).sum(axis=0)))
    return errors


def _inverse(x: Floats) -> tuple[Floats, int]:
    """The pseudoinverse of X'X, and its rank."""
    values, vectors = np.linalg.eigh(x.T @ x)
    large = values > TINY * max(float(values.max(initial=0.0)), TINY)
    inverse = (vectors[:, large] / values[large]) @ vectors[:, large].T
    return inverse, int(large.sum())


# --- cells: the same asked of several levels ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Groups:
    """Means of y in each cell at each level, with what is needed for errors of their differences.

    Each level has a noise of its own, the same in all cells. Where a level has no two runs in any
    cell, that of all levels together stands in.
    """

    cell: Ints
    level: Ints
    mean: Floats
    count: Floats
    covariates: Floats
    slopes: Floats  # the inverse of X'X of what is adjusted for
    noise: Floats  # variance by level
    free: Floats  # degrees of freedom by level; 0 where its noise is that of all
    pooled: float
    df: float
    n: int

    def difference(self, up: Ints, down: Ints, level: float = LEVEL) -> Interval:
        """The mean over the groups `up` less that over `down`; of the groups' own noise alone."""
        estimate, error, free = self.test(up, down)
        runs = int(self.count[up].sum() + self.count[down].sum())
        return student(estimate, error, free, runs, level)

    def test(self, up: Ints, down: Ints) -> tuple[float, float, float]:
        """The difference, its standard error and its degrees of freedom.

        These are the fewer of the levels' (Hsu 1938): Welch's are too many where they are few.
        """
        weights = np.concatenate([np.full(len(g), s / len(g)) for g, s in ((up, 1), (down, -1))])
        at = np.concatenate([up, down])
        kinds = self.level[at]
        away = weights @ self.covariates[at]
        variance = float((weights**2 / self.count[at]) @ self.noise[kinds])
        variance += self.pooled * float(away @ self.slopes @ away)
        free = float(np.where(self.free[kinds] > 0, self.free[kinds], self.df).min())
        return float(weights @ self.mean[at]), math.sqrt(variance), free


def groups(y: Floats, level: Ints, cells: Ints, given: Sequence[Floats] = ()) -> Groups:
    """The groups of runs at one level in one cell, adjusted for `given` by common slopes.

    A column of `given` that does not vary within the groups is left out.
    """
    pairs, group = np.unique(np.stack([cells, level]), axis=1, return_inverse=True)
    group = group.reshape(-1).astype(np.int64)
    x = np.stack([*given], axis=1).astype(float) if given else np.zeros((len(y), 0))
    within = centred(x, group)
    varies = (within**2).sum(axis=0) > TINY
    x, within = x[:, varies] - x[:, varies].mean(axis=0), within[:, varies]
    inverse, rank = _inverse(within)
    slopes = inverse @ (within.T @ y)
    y = y - x @ slopes
    rest = centred(y, group)
    count = np.bincount(group).astype(float)
    alone = len(y) - len(count)
    df = max(float(alone - rank), 0.0)
    pooled = float(rest @ rest) / df if df else math.nan
    kinds = int(level.max(initial=0)) + 1
    free = np.bincount(level, minlength=kinds) - np.bincount(pairs[1], minlength=kinds)
    free = np.maximum(free * (df / alone if alone else 0.0), 0.0)
    squares = np.bincount(level, rest**2, minlength=kinds)
    own = free > TINY
    return Groups(
        cell=pairs[0], level=pairs[1], mean=means(y, group), count=count,
        covariates=means(x, group), slopes=inverse, pooled=pooled, df=df, n=len(y),
        noise=np.where(own, squares / np.where(own, free, 1.0), pooled),
        free=np.where(own, free, 0.0),
    )  # fmt: skip


def contrast(
    y: Floats, upper: Bools, cells: Ints, given: Sequence[Floats] = (), level: float = LEVEL
) -> Interval:
    """How much larger y is where `upper` is true, as a mean over the cells that have both.

    The error comes from runs that are alike (same cell, same level), or from how the difference
    varies over the cells, whichever has more degrees of freedom. What all levels' noise together
    says of one that has no runs alike is taken only where there are few cells.
    """
    sides = [np.isin(cells, cells[side]) for side in (upper, ~upper)]
    both = sides[0] & sides[1]
    if not both.any():
        return student(math.nan, math.nan, 0, 0, level)
    found = groups(y[both], upper[both].astype(np.int64), cells[both], [g[both] for g in given])
    up, down = (np.flatnonzero(found.level == side) for side in (1, 0))
    apart = found.mean[up] - found.mean[down]  # both are in the order of the cells
    free = len(apart) - 1
    if free <= found.free.min() or (free < FEWEST_FREE and free < found.df):
        return found.difference(up, down, level)
    error = float(apart.std(ddof=1)) / math.sqrt(len(apart)) if free else math.nan
    return student(float(apart.mean()), error, free, found.n, level)


# --- ranks --------------------------------------------------------------------------------------


def ranks(values: Floats, blocks: Ints) -> Floats:
    """Ranks within each block from -0.5 to 0.5 around 0; equals share their mean rank."""
    order = np.lexsort((values, blocks))
    v, b = values[order], blocks[order]
    new = np.ones(len(v), dtype=bool)
    new[1:] = (v[1:] != v[:-1]) | (b[1:] != b[:-1])
    tie = np.cumsum(new, dtype=np.int64) - 1
    place = means(np.arange(len(v), dtype=float), tie)[tie] if len(v) else v
    ranked = np.empty(len(v))
    ranked[order] = place
    ranked = centred(ranked, blocks) if len(v) else ranked
    return np.asarray(ranked / (np.bincount(blocks)[blocks] + 1))


def spearman(
    x: Floats,
    y: Floats,
    blocks: Ints,
    given: Sequence[Floats] = (),
    *,
    level: float = LEVEL,
    bootstrap: bool = False,
) -> Interval:
    """Spearman's correlation within blocks, with the ranks of `given` held.

    The interval is Fisher's with the variance of Bonett and Wright (Psychometrika 65, 2000), with
    a degree of freedom less for each block and each of `given`; `bootstrap` takes the spread over
    seeded resamples within blocks instead, widened for the same degrees of freedom. Rows with a NaN
    are left out.
    """
    whole = np.isfinite(np.stack([x, y, *given])).all(axis=0)
    blocks = blocks[whole]
    others = [ranks(column[whole], blocks) for column in given]
    table = np.stack(others, axis=1) if others else np.zeros((len(blocks), 0))
    inverse, rank = _inverse(table)
    a, b = (ranks(v[whole], blocks) for v in (x, y))
    sizes = float(a @ a), float(b @ b)
    a, b = (v - table @ (inverse @ (table.T @ v)) for v in (a, b))
    free = len(blocks) - len(np.unique(blocks)) - 1 - rank
    moved = all(float(v @ v) > TINY * max(s, TINY) for v, s in zip((a, b), sizes, strict=True))
    if free < FEWEST_FREE or not moved:
        return Interval(estimate=math.nan, low=-1.0, high=1.0, n=len(blocks), level=level)
    r = float(a @ b / math.sqrt((a @ a) * (b @ b)))
    error = math.sqrt((1 + r * r / 2) / (free - 1))
    if bootstrap:
        error = _resampled(a, b, blocks) * math.sqrt(len(blocks) / (free + 1))
    at = math.atanh(max(-1 + TINY, min(1 - TINY, r)))
    half = _quantile(free, level) * error
    return Interval(
        estimate=r, low=math.tanh(at - half), high=math.tanh(at + half), n=len(blocks), level=level
    )


def _resampled(a: Floats, b: Floats, blocks: Ints) -> float:
    """The standard deviation of Fisher's z of the correlation, over resamples within blocks."""
    dice = np.random.default_rng(0)
    order = np.argsort(blocks, kind="stable")
    a, b, sizes = a[order], b[order], np.bincount(blocks)[blocks][order]
    first = np.concatenate([[0], np.flatnonzero(np.diff(blocks[order])) + 1])
    begin = np.repeat(first, sizes[first])
    found = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        at = begin + (dice.random(len(a)) * sizes).astype(np.int64)
        u, v = a[at], b[at]
        found[i] = (u @ v) / max(math.sqrt((u @ u) * (v @ v)), TINY)
    return float(np.arctanh(np.clip(found, TINY - 1, 1 - TINY)).std(ddof=1))
