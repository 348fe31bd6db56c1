"""How far off a forecast may be, by how far off those before it were.

Split conformal prediction (Vovk et al. 2005; Lei et al. 2018, arXiv:1604.04173): of n past errors
that are exchangeable with the next one, the next is within the ceil((n + 1) x level)-th smallest
with a probability of at least `level`, whatever their distribution. Errors are ratios of what came
to what was said, on a logarithmic scale, so that half and twice are equally far.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.9
FEWEST = 9  # errors below which no finite interval has a level of 0.9
NEWEST = 200  # errors that count: machines and versions change


@dataclass(frozen=True, kw_only=True)
class Width:
    """What a forecast is multiplied and divided by for its interval, at least 1.

    `errors` is the number of past errors behind it; 0: it is assumed.
    """

    factor: float
    errors: int = 0

    @property
    def note(self) -> str:
        """How it is known, in a few words."""
        if not self.errors:
            return "interval assumed"
        return f"interval from the errors of {self.errors} quotes"

    def interval(self, figure: float) -> tuple[float, float]:
        """The lower and the upper end around a figure."""
        return figure / self.factor, figure * self.factor


def width(ratios: Sequence[float], assumed: float, level: float = LEVEL) -> Width:
    """The width by past ratios of actual to said, the newest last; `assumed` where they are few.

    Raises:
        ValueError: a ratio is not positive and finite, or `assumed` is below 1.
    """
    if assumed < 1 or not all(0 < ratio < math.inf for ratio in ratios):
        raise ValueError(f"ratios are positive and finite, and assumed at least 1: {assumed}")
    scores = sorted(abs(math.log(ratio)) for ratio in ratios[-NEWEST:])
    rank = math.ceil((len(scores) + 1) * level)
    if rank > len(scores):
        return Width(factor=assumed)
    return Width(factor=math.exp(scores[rank - 1]), errors=len(scores))
