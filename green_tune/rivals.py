"""Claims about GPUs: whose rate is higher, and whose total is the lowest.

GPUs are compared on the same config where they ran the same; where they never did, on the same
task and base model with the hyperparameters adjusted for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from green_tune import columns, counts, effects, settle
from green_tune.columns import FEWEST_RUNS, Runs
from green_tune.document import Answer, Finding, Interval
from green_tune.effects import Bools, Ints
from green_tune.settle import CONTRADICTED, OPEN, SUPPORTED

GPUS = ("t4", "l4", "a100")  # by their rates, as the claim has them
FEWEST_CELLS = 3  # that "mostly" needs
FEWEST_REPEATS = 4  # degrees of freedom, for a verdict on each cell


def rates(every: Runs) -> Finding:
    """Supported where both steps up are shown at 95 %, contradicted where a step down is.

    Supporting takes both intervals, so it is wrong no more often than either (an intersection-union
    test). Contradicting takes one of the two, which are wrong on that side in 2.5 % each.
    """
    runs = every.where(np.isin(every.family, GPUS) & columns.positive(every.rate))
    here = [name for name in GPUS if name in runs.family]
    pairs = list(pairwise(here))
    found = {pair: ratio(runs, *pair) for pair in pairs}
    whole = len(here) == len(GPUS)
    answer = OPEN
    if whole and all(each.low > 0 for each in found.values()):
        answer = SUPPORTED
    elif any(each.high < 0 for each in found.values()):
        answer = CONTRADICTED
    steps = [f"{b.upper()} / {a.upper()} {settle.times(i)}" for (a, b), i in found.items()]
    return Finding(
        name="rates",
        claim="The emissions rate rises from T4 to L4 to A100",
        answer=answer,
        effect=settle.counted("; ".join(steps) or "No two of these GPUs have run the same", runs),
        runs=runs.ids,
        settle=_settle_rates(every, here, found) if answer == OPEN else "",
    )


def ratio(runs: Runs, lower: str, upper: str) -> Interval:
    """The logarithm of one GPU's rate over another's."""
    pair = runs.where(np.isin(runs.family, (lower, upper)))
    cells, given = columns.cells(pair)
    return effects.contrast(np.log(pair.rate), np.array(pair.family) == upper, cells, given)


def _settle_rates(
    every: Runs, here: Sequence[str], found: Mapping[tuple[str, str], Interval]
) -> str:
    missing = [name.upper() for name in GPUS if name not in here]
    if missing:
        count = FEWEST_RUNS * len(missing)
        cost = settle.cost(
            count, settle.cheapest(every), "a guess from the cheapest config that is here"
        )
        return f"{count} runs, {FEWEST_RUNS} seeds each on {', '.join(missing)}, {cost}"
    if not all(math.isfinite(each.estimate) for each in found.values()):
        count = FEWEST_RUNS * len(GPUS)
        what = f"one config with {FEWEST_RUNS} seeds on each GPU"
        return f"{what}: {count} runs, {settle.price(every, count)}"
    risen = all(each.estimate > 0 for each in found.values())
    needs = [settle.more(i, abs(i.estimate)) for i in found.values() if risen or i.estimate <= 0]
    return settle.likely(every, max(needs) if risen else min(needs), "seeds of what has run")


def totals(every: Runs) -> Finding:
    """Supported where the A100 is shown to be the lowest in more than half of the cells.

    A cell is one config on one task and base model, or these alone where GPUs share no config.
    """
    runs = every.where(np.isin(every.family, GPUS) & columns.positive(every.kg))
    runs, counted = _compared(runs)
    answer = counted.answer if counted.of >= FEWEST_CELLS else OPEN
    where = f"The A100's total is the lowest in {counted.lowest} of {counted.of} cells"
    text = (
        f"{where} (95 % interval {100 * counted.low:.0f} to {100 * counted.high:.0f} % of them)"
        if counted.of
        else "No cell has an A100 and another"
    )
    if counted.of and counted.by_gpu not in (None, counted.lowest):
        text += f", by the GPU's energy alone in {counted.by_gpu}"
    return Finding(
        name="totals",
        claim="The A100's total emissions are mostly the lowest",
        answer=answer,
        effect=settle.counted(text, runs),
        runs=runs.ids,
        settle=_settle_totals(every, counted) if answer == OPEN else "",
    )


@dataclass(frozen=True, kw_only=True)
class Lowest:
    """In how many cells, out of `of`, the A100 is the lowest; between which shares it surely is."""

    lowest: int
    by_gpu: int | None
    of: int
    low: float
    high: float
    answer: Answer
    runs: int


def _compared(runs: Runs) -> tuple[Runs, Lowest]:
    cells, given = columns.cells(runs)
    is_a100 = np.array(runs.family) == "a100"
    both = np.isin(cells, cells[is_a100]) & np.isin(cells, cells[~is_a100])
    kept = runs.where(both)
    y, given = np.log(kept.kg), [column[both] for column in given]
    level = np.array([GPUS.index(name) for name in kept.family], dtype=np.int64)
    cells = cells[both]
    if not len(y):
        return kept, Lowest(lowest=0, by_gpu=None, of=0, low=0.0, high=1.0, answer=OPEN, runs=0)
    found = effects.groups(y, level, cells, given)
    lowest = _lowest(found)
    energy = None
    if columns.positive(kept.gpu_kwh).all():
        energy = _lowest(effects.groups(np.log(kept.gpu_kwh), level, cells, given))
    low, high, answer = _mostly(found, lowest)
    by_gpu = None if energy is None else int(energy.sum())
    return kept, Lowest(
        lowest=int(lowest.sum()),
        by_gpu=by_gpu,
        of=len(lowest),
        low=low,
        high=high,
        answer=answer,
        runs=len(y),
    )


def _lowest(found: effects.Groups) -> Bools:
    """Of each cell whether the mean on the A100 is the lowest."""
    means, rows = found.mean, _by_cell(found)
    return np.array([means[mine] < means[others].min() for mine, others in rows], dtype=bool)


def _by_cell(found: effects.Groups) -> list[tuple[int, Ints]]:
    rows = []
    edges = np.flatnonzero(np.diff(found.cell)) + 1
    for at in np.split(np.arange(len(found.cell)), edges):
        a100 = found.level[at] == GPUS.index("a100")
        rows.append((int(at[a100][0]), at[~a100]))
    return rows


def _mostly(found: effects.Groups, lowest: Bools) -> tuple[float, float, Answer]:
    """Cell by cell where runs repeat, which is sharper; else by how many cells agree.

    By chance alone the A100 would be the lowest in one cell of as many as there are GPUs: only
    less than that contradicts, where a cell's own noise is not known.
    """
    of = len(lowest)
    if found.df >= FEWEST_REPEATS:
        low, high = (number / of for number in _shown(found))
        bar = 1 / 2
    else:
        whole = counts.share(int(lowest.sum()), of)
        low, high = whole.low, whole.high
        bar = 1 / (1 + max(len(others) for _, others in _by_cell(found)))
    return low, high, SUPPORTED if low > 1 / 2 else CONTRADICTED if high < bar else OPEN


def _shown(found: effects.Groups) -> tuple[int, int]:
    """Between how many cells the A100 is truly the lowest in."""
    from scipy import special  # type: ignore[import-untyped]

    below, above = [], []
    for mine, others in _by_cell(found):
        tests = [found.test(np.array([mine]), np.array([other])) for other in others]
        chances = [
            float(special.stdtr(df, d / e if e else math.copysign(math.inf, d)))
            for d, e, df in tests
        ]
        below.append(max(chances))
        above.append(min(1.0, len(chances) * min(1 - p for p in chances)))
    return counts.at_least(below), len(below) - counts.at_least(above)


def _settle_totals(every: Runs, counted: Lowest) -> str:
    cells = max(FEWEST_CELLS - counted.of, 0)
    if not cells:
        return settle.further(every, counted.runs, "seeds of the same cells")
    count = 2 * FEWEST_RUNS * cells
    more = settle.plural(cells, "further case")
    what = f"{FEWEST_RUNS} seeds on an A100 and on another GPU in {more} (a task and a model)"
    return f"{what}: {count} runs, {settle.price(every, count)}"
