"""When to stop early: what a gram CO2e still gains, against the least that a user wants for it.

Pure functions over the course of the validation loss; who stops, and what is restored, is
`training`'s affair.
"""

from collections.abc import Sequence
from itertools import pairwise

IN_A_ROW = 2  # one validation alone may be noise

Course = Sequence[tuple[float, float]]  # validation loss in nats, g CO2e emitted until then


def gain_per_g(before: tuple[float, float], after: tuple[float, float]) -> float:
    """Nats of validation loss that each gram between two validations has gained."""
    gained, spent = before[0] - after[0], after[1] - before[1]
    return gained / spent if spent > 0 else float("inf") * (1 if gained > 0 else -1)


def exhausted(course: Course, least: float) -> bool:
    """True when each of the last two stretches gained less than `least` nats per gram."""
    last = course[-IN_A_ROW - 1 :]
    if len(last) <= IN_A_ROW:
        return False
    return all(gain_per_g(a, b) < least for a, b in pairwise(last))
