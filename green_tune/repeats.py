"""The best trials on further seeds: which they are, how they spread, and which differences count.

One run of each config says nothing about chance. Pure functions over records; who runs the
repeats is `sweep`'s affair.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev

from green_tune import points
from green_tune.results import TRIAL, RunRecord
from green_tune.space import Dimension

LEVEL = 0.95  # of the test: at most one of twenty pairs that are equal is called different
LARGEST = 2**31
SPACE = {
    name: Dimension(name=name, scale="linear", values=(0, LARGEST)) for name in ("trial", "seed")
}
OBJECTIVES = {"val_loss": "loss", "emissions_kg": "emissions"}


@dataclass(frozen=True, kw_only=True)
class Spread:
    """One trial over its seeds: means and standard deviations, in nats and kg."""

    trial: str
    roles: tuple[str, ...]
    values: dict[str, tuple[float, ...]]

    @property
    def seeds(self) -> int:
        """How many."""
        return len(self.values["val_loss"])

    def mean(self, objective: str) -> float:
        """Over the seeds."""
        return mean(self.values[objective])

    def deviation(self, objective: str) -> float:
        """Sample standard deviation over the seeds; 0 for one alone."""
        return stdev(self.values[objective]) if self.seeds > 1 else 0.0


def finalists(trials: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """The trials worth repeating, by number, and what each is: best, knee, greenest, or several.

    Of the front of those that ran to their end; a knee only where there is one.
    """
    front = points.ended_front(trials)
    chosen = {
        "best": points.best(front),
        "knee": points.knee(front),
        "greenest": points.greenest(front),
    }
    found: dict[str, tuple[str, ...]] = {}
    for role, point in chosen.items():
        if point:
            number = point.record.tags[TRIAL]
            found[number] = (*found.get(number, ()), role)
    return found


def spreads(trials: Sequence[RunRecord], repeats: Sequence[RunRecord]) -> list[Spread]:
    """Each finalist with all of its seeds, the trial itself among them; the lowest loss first."""
    done = [r for r in (*trials, *repeats) if r.status == "FINISHED" and not r.ended_early]
    found = []
    for number, roles in finalists(trials).items():
        mine = [record for record in done if record.tags[TRIAL] == number]
        values = {name: tuple(r.metrics[name] for r in mine) for name in OBJECTIVES}
        found.append(Spread(trial=number, roles=roles, values=values))
    return sorted(found, key=lambda spread: spread.mean("val_loss"))


def ties(found: Sequence[Spread]) -> list[tuple[str, str, str]]:
    """Pairs of trials, and the objective in which chance alone may set them apart.

    Welch's t-test (Biometrika 34, 1947) at 5 %, two-sided; with two or three seeds only large
    differences are told from chance.
    """
    return [
        (one.trial, other.trial, OBJECTIVES[name])
        for one, other in combinations(found, 2)
        for name in OBJECTIVES
        if not _differ(one.values[name], other.values[name])
    ]


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    if min(len(one), len(other)) < 2:  # noqa: PLR2004 - one alone has no spread
        return False
    if stdev(one) == stdev(other) == 0:
        return one[0] != other[0]
    from scipy import stats  # type: ignore[import-untyped]  # most of a second, for few sweeps

    return bool(stats.ttest_ind(one, other, equal_var=False).pvalue < 1 - LEVEL)
