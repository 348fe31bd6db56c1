"""A second door to Optuna: which hyperparameters a study's losses and emissions depend on.

It rebuilds a study in memory from RunRecords and asks fANOVA; it reads no study storage and
proposes nothing. How bars are drawn is `pictures`.
"""

import math
import random
import statistics
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution

from green_tune.points import Point, points
from green_tune.results import RunRecord
from green_tune.space import SPACE

OBJECTIVES = ("val_loss", "emissions_kg")
NEEDED, ENOUGH = 15, 30  # trials: with fewer it is noise; with fewer it is to be doubted
LEVEL = 0.8  # of the intervals
RESAMPLES = 30  # of the trials; some 3 s for 40 trials of six hyperparameters on one core
TREES, RESAMPLED_TREES = 64, 16
SEED = 0
HIDDEN = f"importance needs {NEEDED} finished trials; there are {{there}}: with fewer it is noise"
DOUBTFUL = f"importance is rough below {ENOUGH} finished trials; there are {{there}}"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The share of an objective's variance, 0 to 1, that one hyperparameter alone explains.

    `low` and `high` hold it in `LEVEL` of the resamples of the trials.
    """

    name: str
    objective: str
    share: float
    low: float
    high: float


Row = tuple[dict[str, float], tuple[float, float]]


def importances(records: Sequence[RunRecord], space_names: Sequence[str]) -> list[Importance]:
    """The main effect of each hyperparameter on loss and on emissions, the largest first.

    fANOVA (Hutter et al. 2014) over the trials that ran to their end, sizes as powers of two,
    rates as logarithms. What never varied, or is no number, has no line. The intervals are
    percentiles of a seeded bootstrap over trials, widened to hold the share itself. Empty below
    `NEEDED` trials; `remark` says so.
    """
    ended = _ended(records)
    if len(ended) < NEEDED:
        return []
    rows = [_row(point, space_names) for point in ended]
    ranges = _ranges(rows)
    return [found for objective in OBJECTIVES for found in _effects(rows, ranges, objective)]


def remark(records: Sequence[RunRecord]) -> str:
    """Why importances are hidden, or how far to trust them; empty from `ENOUGH` trials on."""
    there = len(_ended(records))
    if there >= ENOUGH:
        return ""
    return (HIDDEN if there < NEEDED else DOUBTFUL).format(there=there)


def _ended(records: Sequence[RunRecord]) -> list[Point]:
    """One stopped early has another schedule than its hyperparameters say."""
    return [point for point in points(records) if point.ended]


def _row(point: Point, names: Sequence[str]) -> Row:
    numbers = {name: _scaled(name, point.record.params.get(name, "")) for name in names}
    return {name: x for name, x in numbers.items() if math.isfinite(x)}, point.pair


def _scaled(name: str, text: str) -> float:
    """A value on the scale on which the sampler searches it; NaN where it is no such number."""
    scale = SPACE[name].scale if name in SPACE else "linear"
    try:
        return math.log2(float(text)) if scale in ("log", "powers of two") else float(text)
    except ValueError:
        return math.nan


def _ranges(rows: Sequence[Row]) -> dict[str, FloatDistribution]:
    """What varied, in all of the trials, and between what and what."""
    everywhere = set.intersection(*(set(numbers) for numbers, _ in rows))
    ends = {
        name: (min(numbers[name] for numbers, _ in rows), max(n[name] for n, _ in rows))
        for name in sorted(everywhere)
    }
    return {name: FloatDistribution(low, high) for name, (low, high) in ends.items() if low < high}


def _effects(
    rows: Sequence[Row], ranges: dict[str, FloatDistribution], objective: str
) -> list[Importance]:
    which, dice = OBJECTIVES.index(objective), random.Random(SEED)
    shares = _shares(rows, ranges, which, TREES)
    resampled = [
        _shares(dice.choices(rows, k=len(rows)), ranges, which, RESAMPLED_TREES)
        for _ in range(RESAMPLES if shares else 0)
    ]
    found = [_between(name, objective, shares[name], resampled) for name in shares]
    return sorted(found, key=lambda importance: -importance.share)


def _between(
    name: str, objective: str, share: float, resampled: Sequence[dict[str, float]]
) -> Importance:
    drawn = [shares[name] for shares in resampled if shares]
    cuts = statistics.quantiles(drawn, n=round(2 / (1 - LEVEL)), method="inclusive")
    low, high = min(share, cuts[0]), max(share, cuts[-1])
    return Importance(name=name, objective=objective, share=share, low=low, high=high)


def _shares(
    rows: Sequence[Row], ranges: dict[str, FloatDistribution], which: int, trees: int
) -> dict[str, float]:
    """Empty where the objective does not vary, or no hyperparameter does: nothing to explain."""
    if not ranges or len({values[which] for _, values in rows}) == 1:
        return {}
    with _quiet():
        study = optuna.create_study(directions=["minimize"] * len(OBJECTIVES))
        study.add_trials([_trial(row, ranges) for row in rows])
        forest = optuna.importance.FanovaImportanceEvaluator(n_trees=trees, seed=SEED)
        found = forest.evaluate(study, list(ranges), target=lambda trial: trial.values[which])
    return {name: min(max(float(share), 0.0), 1.0) for name, share in found.items()}


def _trial(row: Row, ranges: dict[str, FloatDistribution]) -> optuna.trial.FrozenTrial:
    numbers, values = row
    return optuna.trial.create_trial(
        params={name: numbers[name] for name in ranges},
        distributions=dict(ranges),
        values=list(values),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """What Optuna may still change, and a line for each study, are no news to a reader."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
