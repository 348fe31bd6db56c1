"""A second door to Optuna: which hyperparameters losses and emissions depend on.

Of one study's trials, or of runs of any kind pooled over models and tasks. It rebuilds a study in
memory from RunRecords and asks fANOVA; it reads no study storage and proposes nothing. How bars are
drawn is `pictures`.
"""

import math
import random
import statistics
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean, pstdev

import optuna
from optuna.distributions import FloatDistribution

from green_tune import blocks
from green_tune.blocks import Block
from green_tune.points import Point, every, points
from green_tune.results import RunRecord
from green_tune.space import SPACE

OBJECTIVES = ("val_loss", "emissions_kg")
NEEDED, ENOUGH = 15, 30  # trials: with fewer it is noise; with fewer it is to be doubted
LEVEL = 0.8  # of the intervals
RESAMPLES = 30  # of the trials; some 3 s for 40 trials of six hyperparameters on one core
TREES, RESAMPLED_TREES, POOLED_TREES = 64, 16, 8
SEED = 0
MOST = 150  # rows of a pool: 6 s for six hyperparameters on one core, and five times `ENOUGH`
ALIKE = 3  # runs of a block on one GPU: the mean of fewer says nothing of the others
HIDDEN = f"importance needs {NEEDED} finished {{what}}; there are {{there}}: with fewer it is noise"
DOUBTFUL = f"importance is rough below {ENOUGH} finished {{what}}; there are {{there}}"


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
    rows = [_row(point, space_names) for point in _ended(records)]
    return _importances(rows, RESAMPLED_TREES)


def explained(records: Sequence[RunRecord], names: Sequence[str]) -> list[Importance]:
    """The same of runs of any kind, pooled over models, tasks, data sets and GPUs.

    Losses count in standard deviations from the mean of their block, emissions as logarithms from
    the mean of their block on their GPU: only what differs within is explained. Left out is what
    stands there with fewer than `ALIKE` runs, a name that less than half of the runs have, and a
    run without one of the others. Of more than `MOST` runs it takes that many, drawn by `SEED`.
    Kilograms must be at one carbon intensity.
    """
    return _importances(_pooled(records, names), POOLED_TREES)


def remark(records: Sequence[RunRecord]) -> str:
    """Why importances are hidden, or how far to trust them; empty from `ENOUGH` trials on."""
    return _remark(len(_ended(records)), "trials")


def explained_remark(records: Sequence[RunRecord], names: Sequence[str]) -> str:
    """The same for what `explained` makes of these runs."""
    return _remark(len(_pooled(records, names)), "runs that compare")


def _remark(there: int, what: str) -> str:
    if there >= ENOUGH:
        return ""
    return (HIDDEN if there < NEEDED else DOUBTFUL).format(there=there, what=what)


def _importances(rows: Sequence[Row], resampled_trees: int) -> list[Importance]:
    if len(rows) < NEEDED:
        return []
    ranges = _ranges(rows)
    return [i for name in OBJECTIVES for i in _effects(rows, ranges, name, resampled_trees)]


def _pooled(records: Sequence[RunRecord], names: Sequence[str]) -> list[Row]:
    ended = [point for point in every(records) if point.ended and _is_finite(point)]
    rows = _adjusted(_complete([(point.record, _row(point, names)) for point in ended]))
    return random.Random(SEED).sample(rows, MOST) if len(rows) > MOST else rows


def _is_finite(point: Point) -> bool:
    return math.isfinite(point.val_loss) and 0 < point.emissions_kg < math.inf


def _complete(runs: Sequence[tuple[RunRecord, Row]]) -> list[tuple[RunRecord, Row]]:
    """Those that have every name that at least half of them have, and no other name."""
    times = Counter(name for _, (numbers, _) in runs for name in numbers)
    common = [name for name in times if 2 * times[name] >= len(runs)]
    return [
        (record, ({name: numbers[name] for name in common}, values))
        for record, (numbers, values) in runs
        if numbers.keys() >= set(common)
    ]


def _adjusted(runs: Sequence[tuple[RunRecord, Row]]) -> list[Row]:
    """Their rows, with objectives that compare, as `explained` says."""
    losses: dict[Block, list[float]] = defaultdict(list)
    logs: dict[tuple[Block, str], list[float]] = defaultdict(list)
    for record, (_, (loss, kg)) in runs:
        losses[blocks.block(record)].append(loss)
        logs[blocks.block(record), blocks.gpu(record)].append(math.log(kg))
    scales = {block: (fmean(found), pstdev(found) or 1.0) for block, found in losses.items()}
    means = {place: fmean(found) for place, found in logs.items() if len(found) >= ALIKE}
    rows = []
    for record, (numbers, (loss, kg)) in runs:
        block = blocks.block(record)
        mean, deviation = scales[block]
        if (place := (block, blocks.gpu(record))) in means:
            rows.append((numbers, ((loss - mean) / deviation, math.log(kg) - means[place])))
    return rows


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
    rows: Sequence[Row], ranges: dict[str, FloatDistribution], objective: str, resampled_trees: int
) -> list[Importance]:
    which, dice = OBJECTIVES.index(objective), random.Random(SEED)
    shares = _shares(rows, ranges, which, TREES)
    resampled = [
        _shares(dice.choices(rows, k=len(rows)), ranges, which, resampled_trees)
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
