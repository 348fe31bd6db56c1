"""Who should propose the trials of a sweep: samplers on made-up problems, at equal carbon.

    python -m benchmarks.sampling --problems 10 [--jobs 2] [--ablations]

Every problem is a formula (`surrogate`), so the true front is known and what is found is a share
of its hypervolume. Compared at equal carbon, since that is what a sweep costs, and at equal
numbers of trials; by the ends of the trials alone, and by all their validations, each of which is
a result. The seconds are measured CPU of the proposals; everything else is modelled. No trial is
ended early here; what that changes is `stopping`.
"""

import argparse
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import optuna

from benchmarks.record import facts, say, table, write
from benchmarks.surrogate import Problem, World
from green_tune import dominance, encoding, job, samplers
from green_tune.config import TrainConfig
from green_tune.results import Course, Evaluation
from green_tune.samplers import Green
from green_tune.space import SPACE

EVALS = TrainConfig().evals
CARBON = (5, 10, 20)  # average random trials
TRIALS = (10, 20, 40)
MOST_TRIALS = 100
DEFAULT = "Optuna's default"

Values = Mapping[str, Any]
Suggest = Callable[[optuna.Trial], Values]
Ends = Callable[[Course, Sequence[Course], Mapping[str, Course]], bool]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to propose: a sampler of ours, or what people write who use Optuna as it comes."""

    sampler: str
    start: int = 6
    green: Green = field(default_factory=Green)

    def open(self, seed: int) -> tuple[optuna.samplers.BaseSampler, Suggest]:
        """The sampler of a study, and how a trial's values are had from it."""
        if self.sampler == DEFAULT:
            return _defaults(seed), _as_people_write_it
        sampler = samplers.make(self.sampler, SPACE, seed=seed, start=self.start, green=self.green)
        return sampler, partial(encoding.suggest, space=SPACE)


METHODS = {
    DEFAULT: Method(sampler=DEFAULT),
    **{name: Method(sampler=name) for name in samplers.NAMES},
}
ABLATIONS = {
    "green, weight 0": Method(sampler="green", green=Green(carbon_weight=0.0)),
    "green, weight 0.5": Method(sampler="green", green=Green(carbon_weight=0.5)),
    "green, weight 2": Method(sampler="green", green=Green(carbon_weight=2.0)),
    "green, full start": Method(sampler="green", green=Green(cheap_start=False)),
    "green, full search": Method(
        sampler="green", green=Green(preliminary_samples=2048, local_searches=10)
    ),
    "green, no clip": Method(sampler="green", green=Green(clip_quantile=1.0)),
    "green, start 3": Method(sampler="green", start=3),
    "green, start 4": Method(sampler="green", start=4),
    "green, start 5": Method(sampler="green", start=5),
    "green, start 8": Method(sampler="green", start=8),
    "green, start 10": Method(sampler="green", start=10),
    "tpe, start 4": Method(sampler="tpe", start=4),
    "tpe, start 10": Method(sampler="tpe", start=10),
}


@dataclass(frozen=True, kw_only=True)
class Length:
    """At least so many trials, and at least the carbon of so many average random ones."""

    trials: int = max(TRIALS)
    carbon: float = max(CARBON)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A finished trial: what its user saw, what was true, and what had been spent before it."""

    course: Course
    true: Sequence[tuple[float, float]]
    true_end: tuple[float, float]  # of the whole schedule, whether it was stopped or not
    begun_kg: float
    stopped: bool
    proposal_cpu_s: float

    @property
    def ended_kg(self) -> float:
        """What the study has spent with it."""
        return self.begun_kg + self.course[-1].emissions_kg


def never(course: Course, finished: Sequence[Course], archive: Mapping[str, Course]) -> bool:
    """Every trial ends its schedule."""
    return False


def dominated(course: Course, finished: Sequence[Course], archive: Mapping[str, Course]) -> bool:
    """The rule of green-tune's own sweeps."""
    return dominance.judge(course, finished, archive) is not None


def run(
    world: World,
    method: Method,
    *,
    seed: int,
    length: Length = Length(),
    ends: Ends = never,
    told: str = "imputed",
) -> list[Done]:
    """A study that goes on for as long as asked.

    `ends` is asked after each validation. Of a trial that it ended the sampler is told what it
    would have reached ("imputed") or what it had ("as it ended").
    """
    sampler, suggest = method.open(seed)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    dice = np.random.default_rng([77, seed])
    budget_kg = length.carbon * world.random_trial_kg
    done: list[Done] = []
    while len(done) < MOST_TRIALS and (len(done) < length.trials or done[-1].ended_kg < budget_kg):
        begin = time.process_time()
        trial = study.ask()
        values = suggest(trial)
        cpu_s = time.process_time() - begin
        one = _train(world, values, dice, done, ends, cpu_s)
        ended = (one.course[-1].val_loss, one.course[-1].emissions_kg)
        if one.stopped and told == "imputed":
            finished = [other.course for other in done if not other.stopped]
            ended = dominance.imputed(one.course, finished)
        study.tell(trial, ended)
        done.append(one)
    return done


def _train(
    world: World,
    values: Values,
    dice: np.random.Generator,
    done: Sequence[Done],
    ends: Ends,
    cpu_s: float,
) -> Done:
    """One trial, validation by validation."""
    progress = np.arange(EVALS + 1) / EVALS
    arrays = {name: np.full(len(progress), float(value)) for name, value in values.items()}
    loss, kg = world.problem.run(arrays, progress, EVALS)
    seen_loss = loss + dice.normal(0, world.problem.noise, len(loss))
    seen_kg = kg * (1 + dice.normal(0, world.problem.emissions_noise))
    course = [
        Evaluation(step=i, progress=p, val_loss=v, emissions_kg=e)
        for i, (p, v, e) in enumerate(
            zip(progress.tolist(), seen_loss.tolist(), seen_kg.tolist(), strict=True)
        )
    ]
    finished = [other.course for other in done if not other.stopped]
    archive = {str(number): other.course for number, other in enumerate(done)}
    last = next((i for i in range(1, EVALS) if ends(course[: i + 1], finished, archive)), EVALS)
    true = list(zip(loss.tolist(), kg.tolist(), strict=True))
    return Done(
        course=course[: last + 1],
        true=true[: last + 1],
        true_end=true[-1],
        begun_kg=done[-1].ended_kg if done else 0.0,
        stopped=last < EVALS,
        proposal_cpu_s=cpu_s,
    )


def scores(world: World, done: Sequence[Done]) -> dict[str, float]:
    """The shares of the true front at each mark, and what it took."""
    found = {}
    for mark in CARBON:
        limit_kg = mark * world.random_trial_kg
        found[f"carbon {mark}"] = _share(world, [d for d in done if d.ended_kg <= limit_kg], False)
        found[f"carbon {mark} all"] = _share(world, done, True, limit_kg)
    for mark in TRIALS:
        found[f"trials {mark}"] = _share(world, done[:mark], False)
        found[f"trials {mark} all"] = _share(world, done[:mark], True)
        spent_kg = done[:mark][-1].ended_kg
        found[f"trials {mark} cost"] = spent_kg / world.random_trial_kg
    limit_kg = CARBON[1] * world.random_trial_kg
    found[f"count {CARBON[1]}"] = float(sum(d.ended_kg <= limit_kg for d in done))
    found["stopped"] = float(sum(d.stopped for d in done[: max(TRIALS)]))
    found["cpu"] = statistics.mean(d.proposal_cpu_s for d in done[: max(TRIALS)])
    return found


def _share(
    world: World, done: Sequence[Done], every: bool, limit_kg: float = float("inf")
) -> float:
    """By the ends of trials, or by every validation until so much was spent."""
    rows = [
        (point, true)
        for one in done
        for point, true in list(zip(one.course, one.true, strict=True))[0 if every else -1 :]
        if one.begun_kg + point.emissions_kg <= limit_kg
    ]
    return world.share(
        [(point.val_loss, point.emissions_kg) for point, _ in rows], [true for _, true in rows]
    )


def _defaults(seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed)


def _as_people_write_it(trial: optuna.Trial) -> Values:
    """As in the originating study: sizes are choices, and their order is lost."""
    return {
        "batch_size": trial.suggest_categorical("batch_size", [2, 4, 8, 16, 32]),
        "accumulation_steps": trial.suggest_categorical("accumulation_steps", list(range(1, 9))),
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "warmup_steps": trial.suggest_int("warmup_steps", 0, 20),
        "epochs": trial.suggest_int("epochs", 1, 3),
        "lora_rank": trial.suggest_categorical("lora_rank", [4, 8, 16, 32, 64]),
    }


def page(found: Mapping[str, Sequence[Mapping[str, float]]], known: Mapping[str, str]) -> str:
    """Everything as Markdown; means with standard errors over the problems."""
    count = len(next(iter(found.values())))
    carbon = [f"carbon {mark}{every}" for every in ("", " all") for mark in CARBON]
    trials = [f"trials {mark}{what}" for what in ("", " cost") for mark in TRIALS]
    costs = [f"count {CARBON[1]}", "cpu"]
    lines = [
        "# Samplers at equal carbon", "",
        f"Share of the true front's hypervolume, mean ± standard error over {count} made-up "
        "problems (`benchmarks/surrogate.py`: assumed, not measured); carbon in average random "
        "trials; `all` counts every validation as a result, without it the trials' ends alone.",
        "", "## Equal carbon", "", *_rows(found, carbon),
        *_above_default(found),
        "## Equal trials", "", "`cost` is the carbon of so many trials.", "",
        *_rows(found, trials),
        "## Proposals", "",
        "Trials that the carbon of ten random ones paid for; measured CPU seconds of a proposal.",
        "",
        *_rows(found, costs), "; ".join(f"{k}: {v}" for k, v in known.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _rows(found: Mapping[str, Sequence[Mapping[str, float]]], keys: Sequence[str]) -> list[str]:
    rows = [[name, *(cell([one[key] for one in of]) for key in keys)] for name, of in found.items()]
    return table(["", *keys], rows)


def _above_default(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Paired by problem, which removes how hard each of them is."""
    if DEFAULT not in found:
        return []
    keys = [f"carbon {mark}" for mark in CARBON]
    apart = {
        name: {k: [one[k] - d[k] for one, d in zip(of, found[DEFAULT], strict=True)] for k in keys}
        for name, of in found.items()
        if name != DEFAULT
    }
    rows = [
        [name, *(f"{cell(of[k])}, {sum(d > 0 for d in of[k])} of {len(of[k])}" for k in keys)]
        for name, of in apart.items()
    ]
    words = (
        "The same less what Optuna's default found on the same problem, and how often it is more."
    )
    return [words, "", *table(["", *keys], rows)]


def cell(values: Sequence[float]) -> str:
    """The mean and its standard error."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.3f}"
    return f"{mean:.3f} ± {statistics.stdev(values) / len(values) ** 0.5:.3f}"


def _one(asked: tuple[str, int]) -> dict[str, float]:
    name, seed = asked
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    world = World(Problem.draw(seed), EVALS)
    return scores(world, run(world, (METHODS | ABLATIONS)[name], seed=seed))


def _all(jobs: int, work: Sequence[tuple[str, int]]) -> Iterator[dict[str, float]]:
    if jobs == 1:
        yield from map(_one, work)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_one, work)


def main() -> None:
    """Compares, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=1, help="processes; one thread each is best")
    parser.add_argument("--ablations", action="store_true", help="green with other choices, too")
    parser.add_argument("--only", nargs="+", help="these methods, by name")
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    asked = parser.parse_args()
    names = asked.only or [*METHODS, *(ABLATIONS if asked.ablations else {})]
    work = [(name, seed) for seed, name in itertools.product(range(asked.problems), names)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for (name, seed), one in zip(work, _all(asked.jobs, work), strict=True):
        found[name].append(one)
        say(f"problem {seed}, {name}: {one['carbon 10']:.3f}, {one['cpu']:.2f} s a proposal")
    device = job.this_cpu()
    known = facts(device) | {"optuna": metadata.version("optuna")}
    text = page(found, known)
    if not asked.discard:
        methods = {name: asdict((METHODS | ABLATIONS)[name]) for name in names}
        write("sampling", device.name, text, {"facts": known, "methods": methods, "found": found})
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
