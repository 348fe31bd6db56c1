"""How often, and whether that is more than chance: exact statistics of counts.

Nothing here knows what is counted.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from green_tune.document import Interval
from green_tune.effects import LEVEL, Bools, Floats, Ints


def share(hits: int, of: int, level: float = LEVEL) -> Interval:
    """A share with the exact interval of Clopper and Pearson (Biometrika 26, 1934)."""
    from scipy import special  # type: ignore[import-untyped]

    tail = (1 - level) / 2
    low = float(special.betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(special.betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    estimate = hits / of if of else math.nan
    return Interval(estimate=estimate, low=low, high=high, n=of, level=level)


def odds(inside: Bools, best: Bools, blocks: Ints, level: float = LEVEL) -> Interval:
    """The common odds ratio, over blocks, of being `best` when `inside` to when not.

    The conditional estimate and its exact interval (Mehta, Patel and Gray, JASA 80, 1985): it
    excludes 1 when the exact test of blocks of hypergeometric counts does, one tail for each side.
    """
    hits = int((inside & best).sum())
    weights, least = _hypergeometric(inside, best, blocks)
    most = least + len(weights) - 1
    tail = (1 - level) / 2
    counts = np.arange(least, most + 1, dtype=float)

    def chance(log_odds: float, kept: Bools) -> float:
        tilted = weights + log_odds * counts
        tilted = np.exp(tilted - tilted.max())
        return float(tilted[kept].sum() / tilted.sum())

    def mean(log_odds: float) -> float:
        tilted = weights + log_odds * counts
        tilted = np.exp(tilted - tilted.max())
        return float(tilted @ counts / tilted.sum())

    low = 0.0 if hits == least else _root(lambda z: chance(z, counts >= hits) - tail)
    high = math.inf if hits == most else _root(lambda z: tail - chance(z, counts <= hits))
    between = least < hits < most
    estimate = _root(lambda z: mean(z) - hits) if between else (low if hits == least else high)
    estimate = estimate if least < most else math.nan
    return Interval(estimate=estimate, low=low, high=high, n=len(best), level=level)


def _root(rising: Callable[[float], float]) -> float:
    from scipy import optimize

    return math.exp(float(optimize.brentq(rising, -60.0, 60.0)))


def _hypergeometric(inside: Bools, best: Bools, blocks: Ints) -> tuple[Floats, int]:
    """Logarithms of the chances of each number of hits by chance alone, and the least number."""
    from scipy import special

    size = np.bincount(blocks)
    rows, drawn = (np.bincount(blocks, v, len(size)).astype(int) for v in (inside, best))
    chances, least = np.ones(1), 0
    for n, k, m in zip(size.tolist(), rows.tolist(), drawn.tolist(), strict=True):
        x = np.arange(max(0, m - (n - k)), min(k, m) + 1)
        ways = special.gammaln([k + 1, n - k + 1]).sum() - (
            special.gammaln(x + 1) + special.gammaln(k - x + 1)
            + special.gammaln(m - x + 1) + special.gammaln(n - k - m + x + 1)
        )  # fmt: skip
        chances = np.convolve(chances, np.exp(ways - ways.max()))
        chances, least = chances / chances.sum(), least + int(x[0])
    return np.log(np.maximum(chances, 1e-300)), least


def at_least(chances: Sequence[float], level: float = LEVEL) -> int:
    """Of how many hypotheses it is shown that they hold, given each one's p-value.

    The partial conjunction of Benjamini and Heller (Biometrics 64, 2008) by Bonferroni, which
    holds however the p-values depend on one another. `level` is that of an interval: this is one
    of its two ends.
    """
    ordered = sorted(chances)
    shown = 0
    for u, p in enumerate(ordered, start=1):
        if (len(ordered) - u + 1) * p > (1 - level) / 2:
            break
        shown = u
    return shown
