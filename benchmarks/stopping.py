"""What ending dominated trials early saves, and what it loses: on the problems of `sampling`.

    OMP_NUM_THREADS=1 python -m benchmarks.stopping --problems 10

The rule is green-tune's own (`dominance`). Of a trial that it ended, a sampler is told what it
would have reached ("imputed", in sweeps so for `green`) or what it had ("as it ended", in sweeps so
for all others, as Optuna's samplers read nothing but objectives). Since every course is a formula,
it is known where a stopped trial would have ended: a stop is false where that end would have been
on the front. Nothing here is measured.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

import optuna

from benchmarks.record import facts, say, table, write
from benchmarks.sampling import (
    CARBON,
    EVALS,
    METHODS,
    TRIALS,
    Done,
    cell,
    dominated,
    never,
    run,
    scores,
)
from benchmarks.surrogate import Problem, World
from green_tune import job
from green_tune.results import front

GOAL = 0.05  # of the stops may be false
FIRST = max(TRIALS)  # the trials that stops are counted among

Found = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A sampler, with the rule or without, and what it is told of a stopped trial."""

    sampler: str
    told: str = ""  # nothing where no trial is stopped

    @property
    def name(self) -> str:
        """Its row."""
        return f"{self.sampler}, {self.told or 'no stop'}"


CASES = [
    Case(sampler=sampler, told=told)
    for sampler in ("green", "gp", "tpe", "nsga2", "random")
    for told in ("", "imputed", "as it ended")
    if told != "as it ended" or sampler != "random"
]


def tried(world: World, case: Case, seed: int) -> dict[str, float]:
    """What a study found, and how right its stops were."""
    ends = dominated if case.told else never
    told = case.told or "imputed"
    done = run(world, METHODS[case.sampler], seed=seed, ends=ends, told=told)
    return scores(world, done) | false_stops(done[:FIRST])


def false_stops(done: Sequence[Done]) -> dict[str, float]:
    """How many stopped trials would truly have ended on the front of what the study has.

    `false` is by all validations, which the rule is about; `false ends` by the last ones of each
    trial alone, wherever it ended.
    """
    every = [point for one in done for point in one.true]
    last = [one.true[-1] for one in done]
    ends = [one.true_end for one in done if one.stopped]
    return {
        "false": float(sum(_is_on_front(end, every) for end in ends)),
        "false ends": float(sum(_is_on_front(end, last) for end in ends)),
    }


def _is_on_front(end: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return end in front([*others, end], lambda point: point)


def page(found: Found, known: Mapping[str, str]) -> str:
    """Everything as Markdown; means with standard errors over the problems."""
    count = len(next(iter(found.values())))
    carbon = [f"carbon {mark}" for mark in CARBON]
    trials = [f"trials {mark}" for mark in TRIALS]
    cost = f"trials {FIRST} cost"
    lines = [
        "# Ending dominated trials early", "",
        f"Share of the true front's hypervolume, mean ± standard error over {count} made-up "
        "problems (`benchmarks/surrogate.py`: assumed, not measured); carbon in average random "
        "trials; `all` counts every validation as a result, without it the trials' ends alone. Of "
        "stopped trials a sampler was told what they had (`as it ended`, in sweeps so for all but "
        "`green`) or would have reached (`imputed`, so for `green`).",
        "", "## Equal carbon", "", *_rows(found, [*carbon, *(f"{key} all" for key in carbon)]),
        "The same less what the same sampler found on the same problem without a stop.", "",
        *_rows(_apart(found), [*carbon, *(f"{key} all" for key in carbon)]),
        "## Equal trials", "", f"`cost` is the carbon of {FIRST} trials.", "",
        *_rows(found, [*trials, cost]),
        "## Stops", "",
        f"Stopped of the first {FIRST} trials; carbon saved by them, as a part of what as many "
        "trials cost the same sampler without a stop; stops whose true end would have been on the "
        f"final front of all validations (goal: below {GOAL:.0%} of them), and on that of the "
        "trials' ends alone.", "",
        *_stops(found), "; ".join(f"{k}: {v}" for k, v in known.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _rows(found: Found, keys: Sequence[str]) -> list[str]:
    rows = [[name, *(cell([one[key] for one in of]) for key in keys)] for name, of in found.items()]
    return table(["", *keys], rows)


def _unstopped(found: Found, name: str) -> Sequence[Mapping[str, float]]:
    return found[Case(sampler=name.split(", ")[0]).name]


def _apart(found: Found) -> dict[str, list[dict[str, float]]]:
    """Paired by problem, which removes how hard each of them is."""
    return {
        name: [
            {key: one[key] - other[key] for key in one}
            for one, other in zip(of, _unstopped(found, name), strict=True)
        ]
        for name, of in found.items()
        if of is not _unstopped(found, name)
    }


def _stops(found: Found) -> list[str]:
    cost = f"trials {FIRST} cost"
    rows = []
    for name, of in found.items():
        if of is _unstopped(found, name):
            continue
        pairs = zip(of, _unstopped(found, name), strict=True)
        saved = statistics.mean(1 - one[cost] / other[cost] for one, other in pairs)
        stopped = sum(one["stopped"] for one in of)
        wrong = [_part(sum(one[key] for one in of), stopped) for key in ("false", "false ends")]
        rows.append([name, cell([one["stopped"] for one in of]), f"{saved:.0%}", *wrong])
    return table(["", "stopped", "saved", "false, all validations", "false, ends alone"], rows)


def _part(count: float, of: float) -> str:
    return f"{count:.0f} of {of:.0f} ({count / of:.1%})" if of else "none was stopped"


def main() -> None:
    """Compares, prints and records; what is there after each problem, as this takes long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    asked = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    device = job.this_cpu()
    known = facts(device) | {"optuna": metadata.version("optuna")}
    found: dict[str, list[dict[str, float]]] = {case.name: [] for case in CASES}
    for seed in range(asked.problems):
        world = World(Problem.draw(seed), EVALS)
        for case in CASES:
            found[case.name].append(one := tried(world, case, seed))
            say(
                f"problem {seed}, {case.name}: {one['carbon 10']:.3f}, {one['stopped']:.0f} stopped"
            )
        text = page(found, known)
        if not asked.discard:
            write("stopping", device.name, text, {"facts": known, "found": found})
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
