"""How often the verdicts of `compare` are right and wrong: on made-up stores whose truth is known.

    OMP_NUM_THREADS=1 python -m benchmarks.verdicts --stores 1000

Each scenario is one way in which a store may have come to be (`tests/synthetic.py`), with what is
true in it. A claim that is true there must not be contradicted, one that is false not supported,
and where there is no effect at all neither may be said, each in at most 5 % of the stores. Nothing
here is measured.
"""

import argparse
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.record import facts, say, table, write
from green_tune import columns, counts, effects, job, knobs, rivals
from green_tune.claims import claims
from green_tune.document import Interval
from green_tune.results import RunRecord
from green_tune.settle import CONTRADICTED, OPEN, SUPPORTED

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from synthetic import TASKS, Effects, drawn, grid, run, searched

Truth = Literal["true", "false", "null"]
Store = Callable[[int], Sequence[RunRecord]]
WRONG = {"true": {CONTRADICTED}, "false": {SUPPORTED}, "null": {SUPPORTED, CONTRADICTED}}
GOAL = 0.05
SAMPLES = 1000  # for the bootstrap, which takes its time
SAME = {"t4": 0.1, "l4": 0.1, "a100": 0.1}  # kg per hour, or hours
HALF = {(m, t, "a100"): 1.0 for m, t in (("gemma-2b", "qa"), ("llama-2-7b", "qa"))}
HALF |= {("gemma-2b", "sentiment", "a100"): 1.0}
TIED = 3.5  # log2 of a batch size: 8 and 16 are as far from it
GAIN = 2.0  # nats that one epoch takes away, for the scenarios in which it matters
START = 1.5 + 0.2 * TASKS["qa"] + GAIN
LIMIT = knobs.EXTRA * GAIN / (1 - knobs.EXTRA)  # nats of a third epoch, as large as the margin


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How stores are made, what is true of them, and effects whose size is known.

    `sizes` are the true values, by name, of what `intervals` finds.
    """

    name: str
    store: Store
    truth: Mapping[str, Truth]
    sizes: Mapping[str, float] = field(default_factory=dict)


def intervals(records: Sequence[RunRecord], names: Sequence[str]) -> dict[str, Interval]:
    """The named effects with their intervals."""
    every = columns.read(records)
    found: dict[str, Interval] = {}
    for name in names:
        if name.startswith("rate "):
            lower, upper = name.split()[1:]
            pair = every.where(columns.positive(every.rate))
            found[name] = rivals.ratio(pair, lower, upper)
        elif name == "third epoch":
            found[name] = knobs.beyond(every)[1]
        elif name == "odds":
            rows = columns.configs(every)
            found[name] = counts.odds(knobs.few_steps(rows), knobs.best(rows), rows.stratum)
        else:
            found[name] = knobs.correlations(columns.configs(every))[name][1]
    return found


def thinned(records: Sequence[RunRecord], seed: int) -> list[RunRecord]:
    """About half of the runs, unevenly: what a real store has of a grid."""
    dice = random.Random(seed)
    kept = {gpu: dice.uniform(0.3, 1.0) for gpu in SAME}
    return [record for record in records if dice.random() < kept[record.tags["gpu_type"]]]


def together(seed: int, effects: Effects, runs: int) -> list[RunRecord]:
    """A search in which epochs rise with the learning rate, and accumulation with batches."""
    dice = random.Random(seed)
    records = []
    for _ in range(runs):
        asked = drawn(dice)
        rise = math.log(asked["learning_rate"] / 5e-5) / math.log(40)
        asked["epochs"] = min(3, 1 + int(3 * max(0.0, rise + dice.gauss(0, 0.2)) * 0.999))
        batch = math.log2(asked["batch_size"]) / 5
        asked["accumulation_steps"] = max(1, min(8, round(8 * batch + dice.gauss(0, 2))))
        records.append(run(dice, effects, **asked))  # type: ignore[arg-type]
    return records


def evolved(seed: int, effects: Effects, runs: int) -> list[RunRecord]:
    """A sampler's search: after a third at random, what is on the front with a part changed."""
    dice = random.Random(seed)
    asked, records = list[dict[str, float]](), list[RunRecord]()
    for i in range(runs):
        new = drawn(dice)
        if i > runs // 3:
            rows = columns.read(records)
            front = [k for k, depth in enumerate(knobs.depths(rows.loss, rows.kg)) if depth == 0]
            parent = asked[dice.choice(front)]
            new = {name: new[name] if dice.random() < 1 / 3 else x for name, x in parent.items()}
        asked.append(new)
        records.append(run(dice, effects, seed=i, **new))  # type: ignore[arg-type]
    return records


def repeated(seed: int, effects: Effects, configs: int, seeds: int) -> list[RunRecord]:
    """A few configs with many seeds each."""
    dice = random.Random(seed)
    every = [drawn(dice) for _ in range(configs)]
    return [
        run(dice, effects, seed=k, **asked)  # type: ignore[arg-type]
        for asked in every
        for k in range(seeds)
    ]


def scattered(seed: int, effects: Effects) -> list[RunRecord]:
    """Searches of very different lengths over tasks and GPUs."""
    dice = random.Random(seed)
    where = [(task, gpu) for task in TASKS for gpu in ("t4", "l4")]
    return [
        record
        for task, gpu in where
        for record in searched(
            dice.randrange(10**9), effects, dice.choice((2, 3, 5, 12, 30)), task=task, gpu=gpu
        )
    ]


def on_each(seed: int, effects: Effects, runs: int) -> list[RunRecord]:
    """A search of its own on each GPU and task, that on the A100 with more epochs."""
    dice = random.Random(seed)
    records = []
    for task in TASKS:
        for gpu in SAME:
            for _ in range(runs):
                asked = drawn(dice)
                asked["epochs"] = dice.choice((2, 3, 3)) if gpu == "a100" else asked["epochs"]
                records.append(run(dice, effects, task=task, gpu=gpu, **asked))  # type: ignore[arg-type]
    return records


def grids(effects: Effects, seeds: int = 3) -> Store:
    """Two models on three tasks and three GPUs."""
    return lambda seed: grid(seed, effects, seeds=seeds)


FLAT = Effects(start=START)
SEARCH = Effects(
    start=START, emissions={"batch_size": -0.1}, loss={"epochs": -0.02},
    bend={"learning_rate": (0.03, -11.5)},
)  # fmt: skip
KNOWN = Effects(
    start=START,
    bend={"batch_size": (0.1, 3.0), "accumulation_steps": (0.05, 2.0)},
    loss={"learning_rate": -0.05, "epochs": -0.4},
)
EQUAL = Effects(rate=SAME, hours=SAME)
NULLS: dict[str, Truth] = {
    "batch_size": "null", "accumulation": "null", "uncorrelated": "true", "epochs": "true",
}  # fmt: skip
BOTH_NULL: dict[str, Truth] = {"rates": "null", "totals": "null"}
STEPS = {"rate t4 l4": math.log(1.25), "rate l4 a100": math.log(4.0)}
LEVEL = {"rate t4 l4": 0.0, "rate l4 a100": 0.0}
FOUR = {f"{f} and {o}": 0.0 for f in knobs.WORDS.values() for o in ("loss", "emissions")}
WARM = {name: 0.0 for name in FOUR if name.startswith("warm-up")}


def scenarios() -> Iterator[Scenario]:
    """GPUs first, then hyperparameters without an effect, with one, and at the very limit."""
    yield from gpus()
    yield from searches()
    yield from limits()


def gpus() -> Iterator[Scenario]:
    """Grids of models, tasks and GPUs."""
    heavy = Effects(rate=SAME, hours=SAME, tails=3, uneven={"a100": 3.0})
    yield Scenario(
        name="GPUs as in the study", store=grids(Effects()),
        truth={"rates": "true", "totals": "true"}, sizes=STEPS,
    )  # fmt: skip
    yield Scenario(
        name="the same, heavy tails, uneven noise",
        store=grids(Effects(tails=3, uneven={"a100": 3.0}, noise=0.2)),
        truth={"rates": "true", "totals": "true"}, sizes=STEPS,
    )  # fmt: skip
    yield Scenario(
        name="T4 as L4", store=grids(Effects(rate={"t4": 0.1, "l4": 0.1, "a100": 0.2})),
        truth={"rates": "null"}, sizes={"rate t4 l4": 0.0},
    )  # fmt: skip
    yield Scenario(
        name="L4 below T4",
        store=grids(Effects(rate={"t4": 0.1, "l4": 0.097, "a100": 0.2}, noise=0.2)),
        truth={"rates": "false"}, sizes={"rate t4 l4": math.log(0.97)},
    )  # fmt: skip
    yield Scenario(name="GPUs alike", store=grids(EQUAL), truth=BOTH_NULL, sizes=LEVEL)
    yield Scenario(name="alike, heavy, uneven", store=grids(heavy), truth=BOTH_NULL, sizes=LEVEL)
    yield Scenario(
        name="alike, half of it missing", store=lambda seed: thinned(grids(EQUAL, 4)(seed), seed),
        truth=BOTH_NULL, sizes=LEVEL,
    )  # fmt: skip
    yield Scenario(
        name="alike, heavy, uneven, missing",
        store=lambda seed: thinned(grids(heavy, 4)(seed), seed),
        truth=BOTH_NULL, sizes=LEVEL,
    )  # fmt: skip
    yield Scenario(name="alike, one seed", store=grids(EQUAL, 1), truth=BOTH_NULL, sizes=LEVEL)
    yield Scenario(
        name="alike, a search on each", store=lambda seed: on_each(seed, EQUAL, 8),
        truth=BOTH_NULL, sizes=LEVEL,
    )  # fmt: skip
    yield Scenario(
        name="A100 lowest in half", store=grids(Effects(slower=HALF)), truth={"totals": "null"}
    )


def searches() -> Iterator[Scenario]:
    """Hyperparameters without an effect, and with known ones."""
    flat = {**FOUR, "odds": 1.0, "third epoch": 0.0}
    tails = Effects(start=START, tails=3)
    for runs in (12, 25, 60, 200):
        yield Scenario(
            name=f"no effect, {runs} runs", truth=NULLS, sizes=flat,
            store=partial(searched, effects=FLAT, runs=runs),
        )  # fmt: skip
    yield Scenario(
        name="no effect, heavy tails", store=lambda seed: searched(seed, tails, 60), truth=NULLS,
        sizes=flat,
    )  # fmt: skip
    wild = Effects(start=START, wild={"learning_rate": 0.4, "batch_size": -0.3})
    yield Scenario(
        name="no effect, uneven noise", store=lambda seed: searched(seed, wild, 60), truth=NULLS,
        sizes=FOUR | {"third epoch": 0.0},
    )  # fmt: skip
    yield Scenario(
        name="no effect, scattered", store=lambda seed: scattered(seed, FLAT), truth=NULLS,
        sizes=FOUR | {"odds": 1.0},
    )  # fmt: skip
    more = Effects(start=START, loss={"epochs": -0.05}, emissions={"epochs": 0.1})
    yield Scenario(
        name="confounded", store=lambda seed: together(seed, more, 80), truth=NULLS, sizes=FOUR
    )
    yield Scenario(
        name="few configs, many seeds", store=lambda seed: repeated(seed, SEARCH, 14, 6),
        truth={"accumulation": "null"}, sizes=WARM,
    )  # fmt: skip
    yield Scenario(
        name="a sampler's search", store=lambda seed: evolved(seed, SEARCH, 60),
        truth={"accumulation": "null"}, sizes=WARM,
    )  # fmt: skip
    yield Scenario(
        name="known effects, 60 runs", store=lambda seed: searched(seed, KNOWN, 60),
        truth={"batch_size": "true", "accumulation": "true", "uncorrelated": "false",
               "epochs": "false"}, sizes=WARM,
    )  # fmt: skip
    yield Scenario(
        name="known effects, 200 runs", store=lambda seed: searched(seed, KNOWN, 200),
        truth={"batch_size": "true", "accumulation": "true", "uncorrelated": "false",
               "epochs": "false"}, sizes=WARM,
    )  # fmt: skip
    other = Effects(start=START, bend={"batch_size": (0.1, 5.0), "accumulation_steps": (0.3, 3.0)})
    yield Scenario(
        name="others are better, 200 runs", store=lambda seed: searched(seed, other, 200),
        truth={"batch_size": "false", "accumulation": "false", "uncorrelated": "true",
               "epochs": "true"},
    )  # fmt: skip


def limits() -> Iterator[Scenario]:
    """What is exactly as large as a claim allows."""
    tied = Effects(start=START, bend={"batch_size": (0.1, TIED)})
    yield Scenario(
        name="8 ties with 16", store=lambda seed: searched(seed, tied, 200),
        truth={"batch_size": "null"},
    )  # fmt: skip
    margin = Effects(start=START, loss={"epochs": -LIMIT})
    for runs in (25, 100):
        yield Scenario(
            name=f"a third epoch adds the margin, {runs}", truth={"epochs": "null"},
            store=partial(searched, effects=margin, runs=runs),
            sizes={"third epoch": knobs.EXTRA},
        )  # fmt: skip
    # Of uniform x over a range of w and noise s the correlation is 1 / sqrt(1 + 12 s^2 / (b w)^2);
    # Spearman's, by its own large store, is close to it and measured rather than assumed.
    weak = Effects(start=START, loss={"learning_rate": 0.0102})
    size = intervals(searched(0, weak, 100_000), ["learning rate and loss"])
    yield Scenario(
        name="a correlation of 0.3", store=lambda seed: searched(seed, weak, 100),
        truth={"uncorrelated": "false"},
        sizes={name: each.estimate for name, each in size.items()},
    )  # fmt: skip


def spearmans(stores: int) -> list[list[str]]:
    """How often intervals of Spearman's correlation hold its true value, by kind of interval.

    Rows are pairs of normal numbers, whose mean correlation of so many ranks is known (Moran 1948).
    """
    dice = np.random.default_rng(0)
    rows = []
    for sizes in ([8], [12], [5, 5, 5], [3] * 8, [30], [100]):
        blocks = np.repeat(np.arange(len(sizes)), sizes)
        for rho in (0.0, 0.5, 0.8):
            true, held = _ranked(rho, sizes[0]), Counter[bool]()
            for _ in range(stores):
                x, y = dice.standard_normal((2, len(blocks)))
                y = rho * x + math.sqrt(1 - rho**2) * y
                for way in (False, True):
                    found = effects.spearman(x, y, blocks, bootstrap=way)
                    held[way] += found.low <= true <= found.high
            shares = [f"{held[way] / stores:.1%}" for way in (False, True)]
            rows.append([" + ".join(map(str, sizes)), f"{true:.2f}", *shares])
    return rows


def _ranked(rho: float, n: int) -> float:
    return 6 / math.pi / (n + 1) * (math.asin(rho) + (n - 2) * math.asin(rho / 2))


@dataclass(kw_only=True)
class Tally:
    """What came out of a scenario's stores."""

    answers: dict[str, Counter[str]]
    covered: dict[str, Counter[bool]]


def tallied(scenario: Scenario, stores: int) -> Tally:
    """All stores of a scenario, one after the other."""
    answers = {name: Counter[str]() for name in scenario.truth}
    covered = {name: Counter[bool]() for name in scenario.sizes}
    for seed in range(stores):
        records = scenario.store(seed)
        for finding in claims(records):
            if finding.name in answers:
                answers[finding.name][finding.answer] += 1
        for name, found in intervals(records, list(scenario.sizes)).items():
            if math.isfinite(found.estimate):
                covered[name][found.low <= scenario.sizes[name] <= found.high] += 1
    return Tally(answers=answers, covered=covered)


def wrong(tally: Tally, scenario: Scenario, name: str) -> float:
    """The share of stores in which a claim had an answer that is wrong there."""
    answers = tally.answers[name]
    return sum(answers[each] for each in WRONG[scenario.truth[name]]) / max(answers.total(), 1)


def page(
    found: Sequence[tuple[Scenario, Tally]],
    correlated: Sequence[Sequence[str]],
    stores: int,
    known: Mapping[str, str],
) -> str:
    """Everything as Markdown."""
    worst = max(wrong(tally, case, name) for case, tally in found for name in case.truth)
    lines = [
        "# Verdicts on the study's claims", "",
        f"{stores} made-up stores for each scenario (`benchmarks/verdicts.py`); nothing is "
        "measured. Truth: a claim is true, false, or null, where neither verdict is right. Wrong "
        f"is what must be at most {GOAL:.0%}; the most is {worst:.1%}. A share of 5 % has a "
        f"standard error of {math.sqrt(0.05 * 0.95 / stores):.1%}.", "",
        *table(["scenario", "claim", "truth", *(SUPPORTED, CONTRADICTED, OPEN), "wrong"],
               [_row(case, tally, name) for case, tally in found for name in case.truth]),
        "## Intervals", "",
        "Share of the stores whose interval holds the true value, of those that have an interval. "
        "Ratios of rates, odds and the third epoch's gain are at 95 %, correlations at 98.75 %, "
        "as four are looked at together.", "",
        *table(["scenario", "effect", "true value", "stores", "covered"],
               [row for case, tally in found for row in _coverage(case, tally)]),
        "## Two intervals of Spearman's correlation", "",
        "Share of samples whose 95 % interval holds the true correlation, by the sizes of blocks: "
        "the formula, which decides verdicts, and the bootstrap.", "",
        *table(["runs", "true value", "formula", "bootstrap"], correlated),
        "; ".join(f"{k}: {v}" for k, v in known.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _row(case: Scenario, tally: Tally, name: str) -> list[str]:
    answers = tally.answers[name]
    shares = [answers[each] / max(answers.total(), 1) for each in (SUPPORTED, CONTRADICTED, OPEN)]
    cells = [f"{share:.1%}" for share in (*shares, wrong(tally, case, name))]
    return [case.name, name, case.truth[name], *cells]


def _coverage(case: Scenario, tally: Tally) -> Iterator[list[str]]:
    for name, size in case.sizes.items():
        seen = tally.covered[name]
        share = f"{seen[True] / seen.total():.1%}" if seen.total() else "none"
        yield [case.name, name, f"{size:.3g}", str(seen.total()), share]


def as_data(found: Sequence[tuple[Scenario, Tally]]) -> list[dict[str, object]]:
    """What the page was made of, for JSON."""
    return [
        {
            "scenario": case.name,
            "truth": dict(case.truth),
            "answers": {name: dict(answers) for name, answers in tally.answers.items()},
            "true_values": dict(case.sizes),
            "covered": {n: [c[True], c.total()] for n, c in tally.covered.items()},
        }
        for case, tally in found
    ]


def main() -> None:
    """Counts, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stores", type=int, default=1000)
    parser.add_argument("--only", default="", help="scenarios whose name has this; not recorded")
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    asked = parser.parse_args()
    cases = [case for case in scenarios() if asked.only in case.name]
    if not cases:
        parser.error(f"no scenario has {asked.only!r} in its name")
    device = job.this_cpu()
    known = facts(device)
    found = []
    for case in cases:
        found.append((case, tally := tallied(case, asked.stores)))
        say(f"{case.name}: " + str({n: f"{wrong(tally, case, n):.1%}" for n in case.truth}))
    correlated = [] if asked.only else spearmans(min(asked.stores, SAMPLES))
    text = page(found, correlated, asked.stores, known)
    if not (asked.discard or asked.only):
        write(
            "verdicts",
            device.name,
            text,
            {"facts": known, "found": as_data(found), "spearman": correlated},
        )
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
