"""Claims about hyperparameters: which batch size, accumulation, learning rate and epochs.

The runs of one config are one row, since seeds repeated on a few configs would pass for many
configs. Everything is compared within a stratum, on one GPU, with the other hyperparameters held.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from green_tune import columns, counts, effects, settle
from green_tune.blocks import HYPERPARAMETERS
from green_tune.columns import FEWEST_RUNS, Runs
from green_tune.document import Answer, Finding, Interval
from green_tune.effects import Bools, Floats, Ints
from green_tune.settle import CONTRADICTED, OPEN, SUPPORTED

FEWEST_LEVELS = 3  # of a hyperparameter, for one of them to be the best
BATCH, ACCUMULATION, EPOCHS = 8.0, (2.0, 6.0), 2.0
BEST = 0.25  # of the configs of a stratum are "the best" (chosen)
SMALL = 0.3  # a correlation up to which it is weak (chosen, after Cohen's convention)
EXTRA = 0.05  # of the gain: what further epochs may add, and two still be enough (chosen)
WRONG = 0.05  # the chance of a wrong verdict, where several chances share it
PAIRS = [(f, o) for f in ("learning_rate", "warmup_steps") for o in ("loss", "emissions")]
WORDS = {"learning_rate": "learning rate", "warmup_steps": "warm-up"}

Pairs = Mapping[str, tuple[Interval, Interval]]
Sizes = Mapping[int, tuple[Interval, Interval]]


def batch_size(every: Runs) -> Finding:
    """Supported where 8 is shown at 95 % to be better than each other size.

    Contradicted where one of them is shown to be better, with all of them looked at together
    (Bonferroni).
    """
    runs, found = sizes(every.where(columns.complete(every, "batch_size")))
    answer: Answer = OPEN
    if found and all(single.low > 0 for single, _ in found.values()):
        answer = SUPPORTED
    elif any(joint.high < 0 for _, joint in found.values()):
        answer = CONTRADICTED
    return Finding(
        name="batch_size",
        claim="A batch size of 8 is the best balance of loss and emissions",
        answer=answer,
        effect=settle.counted(_balances(found, answer), runs),
        runs=runs.ids,
        settle=_settle_batch(every, found) if answer == OPEN else "",
    )


def sizes(runs: Runs) -> tuple[Runs, Sizes]:
    """How much worse than that of 8 the balance of each batch size is, and the runs of these.

    Each with its interval, and with that for all sizes together. Sizes of fewer than three runs are
    left out; empty where 8 is one of them, or fewer than three sizes are left.
    """
    runs, y = _balance(runs)
    level = np.round(runs.numbers["batch_size"])
    levels, many = np.unique(level, return_counts=True)
    levels = levels[many >= FEWEST_RUNS]
    others = [each for each in levels.tolist() if 2**each != BATCH]
    if len(others) == len(levels) or len(levels) < FEWEST_LEVELS:
        return runs, {}
    kept = np.isin(level, levels)
    runs = runs.where(kept)
    fit = columns.levels_fit(runs, y[kept], "batch_size", others)
    joint = 1 - WRONG / len(others)
    ends = [(fit.interval(i), fit.interval(i, joint)) for i in range(len(others))]
    return runs, dict(zip((int(2**each) for each in others), ends, strict=True))


def _balance(runs: Runs) -> tuple[Runs, Floats]:
    """Loss and log emissions, both in standard deviations of their stratum, together."""
    parts = [effects.centred(v, runs.stratum) for v in (runs.loss, np.log(runs.kg))]
    count = np.bincount(runs.stratum)
    wide = [np.sqrt(np.bincount(runs.stratum, p**2) / np.maximum(count - 1, 1)) for p in parts]
    kept = ((count >= FEWEST_RUNS) & (wide[0] > effects.TINY) & (wide[1] > effects.TINY))[
        runs.stratum
    ]
    spread = [np.where(w > 0, w, 1.0)[runs.stratum] for w in wide]
    y = parts[0] / spread[0] + parts[1] / spread[1]
    return runs.where(kept), y[kept]


def _balances(found: Sizes, answer: Answer) -> str:
    if not found:
        return f"Needs {FEWEST_LEVELS} batch sizes, 8 among them, with {FEWEST_RUNS} runs each"
    joint = answer == CONTRADICTED
    shown = [f"{size}: {settle.signed(pair[joint])}" for size, pair in found.items()]
    kind = "95 % intervals for all together" if joint else "95 % intervals"
    unit = "loss and log emissions, in standard deviations; above 0 is worse than 8"
    return f"Balance of batch sizes less that of 8 ({unit}; {kind}): {', '.join(shown)}"


def _settle_batch(runs: Runs, found: Sizes) -> str:
    pairs = [pair for pair in found.values() if math.isfinite(pair[0].estimate)]
    if not pairs:
        count = FEWEST_LEVELS * 2 * FEWEST_RUNS
        each = f"{2 * FEWEST_RUNS} each with batch sizes 4, 8 and 16"
        return f"about {count} runs, {each}, {settle.price(runs, count)}"
    if all(i.estimate > 0 for i, _ in pairs):
        most = max(settle.more(i, i.estimate) for i, _ in pairs)
        return settle.likely(runs, most, "with these batch sizes")
    needs = [settle.more(i, -i.estimate) for _, i in pairs if i.estimate <= 0]
    return settle.likely(runs, min(needs), "with these batch sizes")


def accumulation(every: Runs) -> Finding:
    """Whether these steps are more frequent among the best than among all: the exact test.

    The best are a stratum's front of loss and emissions, then the front of what is left, until
    they are a quarter: fronts alone are a handful of configs, and decide nothing.
    """
    runs = every.where(columns.complete(every, "accumulation_steps"))
    rows = columns.configs(runs)
    inside, among = few_steps(rows), best(rows)
    found = counts.odds(inside, among, rows.stratum)
    answer: Answer = OPEN
    if found.low > 1 or found.high < 1:
        answer = SUPPORTED if found.low > 1 else CONTRADICTED
    text = "No two comparable configs differ in whether they have 2 to 6 steps"
    if not math.isnan(found.estimate):
        text = (
            f"2 to 6 steps are {settle.percent(inside[among])} of the best quarter (by fronts) and "
            f"{settle.percent(inside)} of all, an odds ratio of {settle.three(found.estimate)} "
            f"(95 % interval {settle.three(found.low)} to {settle.three(found.high)})"
        )
    return Finding(
        name="accumulation",
        claim="Accumulation steps of 2 to 6 are frequent among the best",
        answer=answer,
        effect=settle.counted(text, runs, len(rows.ids)),
        runs=runs.ids,
        settle=_settle_odds(every, found) if answer == OPEN else "",
    )


def few_steps(runs: Runs) -> Bools:
    """The rows whose accumulation steps are in the claim's range."""
    steps = np.round(2 ** runs.numbers["accumulation_steps"])
    return np.asarray((steps >= ACCUMULATION[0]) & (steps <= ACCUMULATION[1]))


def best(runs: Runs) -> Bools:
    """The rows on the first fronts of their stratum: as many whole fronts as make up a quarter."""
    best = np.zeros(len(runs.ids), dtype=bool)
    for at in columns.parts(runs.stratum):
        depth = depths(runs.loss[at], runs.kg[at])
        best[at] = depth <= np.sort(depth)[math.ceil(BEST * len(at)) - 1]
    return best


def depths(loss: Floats, kg: Floats) -> Ints:
    """On which front each row is: 0 for what nothing beats, 1 for what only those beat, and on.

    In the order of emissions, the first front whose loss so far is higher takes a row (Jensen, IEEE
    Transactions on Evolutionary Computation 7, 2003). Equals stay together.
    """
    depth = np.zeros(len(loss), dtype=np.int64)
    least, last = list[float](), list[float]()  # of each front: its loss so far, and for how much
    for i in np.lexsort((loss, kg)).tolist():
        row = float(loss[i]), float(kg[i])
        front = bisect_right(least, row[0])
        if front and (least[front - 1], last[front - 1]) == row:
            front -= 1
        least[front : front + 1], last[front : front + 1] = [row[0]], [row[1]]
        depth[i] = front
    return depth


def _settle_odds(runs: Runs, found: Interval) -> str:
    if not (found.low > 0 and math.isfinite(found.high) and found.estimate > 0):
        more = max(found.n, 20)
        return settle.further(runs, more, "of searches with 1 to 8 accumulation steps")
    logs = Interval(
        estimate=math.log(found.estimate),
        low=math.log(found.low),
        high=math.log(found.high),
        n=found.n,
    )
    return settle.likely(runs, settle.more(logs, abs(logs.estimate)), "of such searches")


def uncorrelated(every: Runs) -> Finding:
    """Supported where all four correlations are shown to be small.

    That takes a 90 % interval, as two one-sided tests of 5 % do (Schuirmann, Journal of
    Pharmacokinetics and Biopharmaceutics 15, 1987). Contradicted where one is shown not to be 0,
    with all four looked at together, and not shown to be small.
    """
    both = [columns.complete(every, name) for name in ("learning_rate", "warmup_steps")]
    runs = every.where(both[0] & both[1])
    rows = columns.configs(runs)
    found = correlations(rows)
    answer: Answer = OPEN
    if all(_is_small(inner) for inner, _ in found.values()):
        answer = SUPPORTED
    elif any((w.low > 0 or w.high < 0) and not _is_small(i) for i, w in found.values()):
        answer = CONTRADICTED
    shown = [f"{name} {settle.signed(wide)}" for name, (_, wide) in found.items()]
    text = f"Spearman's correlation (95 % intervals for all together): {', '.join(shown)}"
    if bent := _bends(rows):
        text += f"; not a correlation, but a bend: {bent}"
    return Finding(
        name="uncorrelated",
        claim="Learning rate and warm-up steps are uncorrelated with loss and emissions",
        answer=answer,
        effect=settle.counted(text, runs, len(rows.ids)),
        runs=runs.ids,
        settle=_settle_correlations(every, found) if answer == OPEN else "",
    )


def _is_small(found: Interval) -> bool:
    return found.low >= -SMALL and found.high <= SMALL


def correlations(runs: Runs) -> dict[str, tuple[Interval, Interval]]:
    """Each of the four at 90 %, as a test of equivalence needs it, and for all four together."""
    found = {}
    for factor, objective in PAIRS:
        y = runs.loss if objective == "loss" else runs.kg
        given = [columns.filled(runs, name) for name in HYPERPARAMETERS if name != factor]
        made = [
            effects.spearman(runs.numbers[factor], y, runs.stratum, given, level=level)
            for level in (1 - 2 * WRONG, 1 - WRONG / len(PAIRS))
        ]
        found[f"{WORDS[factor]} and {objective}"] = (made[0], made[1])
    return found


def _bends(runs: Runs) -> str:
    """Where a square of the hyperparameter has an effect, which no correlation sees."""
    bent = []
    for factor, objective in PAIRS:
        y = runs.loss if objective == "loss" else np.log(runs.kg)
        x = columns.middle(runs.numbers[factor])
        fit = effects.regress(y, [x**2, x, *columns.others(runs, factor)], runs.stratum)
        curve = fit.interval(0, 1 - WRONG / len(PAIRS))
        if fit.free >= FEWEST_RUNS and (curve.low > 0 or curve.high < 0):
            end = "lowest" if curve.low > 0 else "highest"
            bent.append(f"{objective} is {end} inside the range of the {WORDS[factor]}")
    return ", ".join(bent)


def _settle_correlations(runs: Runs, found: Pairs) -> str:
    pairs = list(found.values())
    if not all(math.isfinite(i.estimate) for i, _ in pairs):
        return settle.further(runs, 40, "of a search that varies both")
    small = max(settle.more(i, SMALL - abs(i.estimate)) for i, _ in pairs)
    large = min(settle.more(w, abs(w.estimate)) for _, w in pairs)
    return settle.likely(runs, min(small, large), "of such searches")


def epochs(every: Runs) -> Finding:
    """What more than two epochs add to the gain that runs of two have, against a margin.

    The gain is the start's loss less the end's. Where no run has two epochs, those of one stand in:
    if more than two add little to one, one is enough; if they add much, two may still be.
    """
    runs = every.where(columns.complete(every, "epochs") & np.isfinite(every.start))
    base, found, times = beyond(runs)
    text = "Needs runs of more than two epochs and runs of at most two"
    answer: Answer = SUPPORTED if found.high <= EXTRA else OPEN
    if found.low > EXTRA and base == EPOCHS:
        answer = CONTRADICTED
    if math.isfinite(found.estimate):
        text = (
            f"More than two epochs add {settle.points(found)} to what {base:.0f} gained "
            f"(margin {100 * EXTRA:.0f} %), for {settle.times(times)} the emissions"
        )
    return Finding(
        name="epochs",
        claim="One to two epochs are enough",
        answer=answer,
        effect=settle.counted(text, runs),
        runs=runs.ids,
        settle=_settle_epochs(every, found) if answer == OPEN else "",
    )


def beyond(runs: Runs) -> tuple[float, Interval, Interval]:
    """What more than two epochs add to the gain of fewer, and by which log ratio to emissions.

    The first number is how many epochs those fewer are: two, or one where no run has two. Runs
    need a hyperparameter `epochs`, a start's loss, a loss and emissions.
    """
    done = runs.numbers["epochs"]
    levels = np.select([done <= EPOCHS / 2, done <= EPOCHS], [1.0, EPOCHS], EPOCHS + 1)
    base = EPOCHS if (levels == EPOCHS).any() else 1.0
    runs = replace(runs, numbers={**runs.numbers, "epochs": levels})
    runs, y = _gains(runs, base)
    others = [v for v in (EPOCHS + 1, 1.0) if v != base and (runs.numbers["epochs"] == v).any()]
    if others[:1] != [EPOCHS + 1]:
        unknown = effects.student(math.nan, math.nan, 0, len(y))
        return base, unknown, unknown
    fits = [columns.levels_fit(runs, each, "epochs", others) for each in (y, np.log(runs.kg))]
    return base, fits[0].interval(0), fits[1].interval(0)


def _gains(runs: Runs, base: float) -> tuple[Runs, Floats]:
    """How much of the start's loss each run took away, the median gain at that level being 1."""
    gain, typical = np.zeros(len(runs.ids)), np.zeros(len(runs.ids))
    for at in columns.parts(runs.stratum):
        gain[at] = np.median(runs.start[at]) - runs.loss[at]
        those = at[runs.numbers["epochs"][at] == base]
        typical[at] = np.median(gain[those]) if len(those) else 0.0
    kept = typical > 0
    return runs.where(kept), gain[kept] / typical[kept]


def _settle_epochs(runs: Runs, found: Interval) -> str:
    if not math.isfinite(found.estimate):
        count = 2 * FEWEST_RUNS
        each = "half of them of 2 epochs and half of 3"
        return f"about {count} runs, {each}, {settle.price(runs, count)}"
    more = settle.more(found, abs(found.estimate - EXTRA))
    return settle.likely(runs, more, "of 2 and of 3 epochs")
