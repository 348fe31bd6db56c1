"""What a sweep costs to reach a front, against plain Optuna as most people write it.

    python -m benchmarks.sweep --data ../shared/data --model MODEL [--trials 14] [--seeds 3]

The baseline is Optuna's default sampler over categorical sizes, each trial `train` in a fresh
process, to its end, its end alone a result. green-tune is `sweep` as it is by default. Both have
the same engine, data, space, seeds and meter, so what differs is the sweep alone.

A front is measured by its hypervolume. The axes are validation loss and what a trial emitted after
its first validation, so that neither is charged for its loading; up to the 75 % quantiles of the
baseline's trials. What it cost to get there is everything: imports, loading, proposals, failures.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")

import numpy as np
import optuna

from benchmarks.record import facts, say, table, write
from green_tune import dominance, job
from green_tune.dominance import Bound
from green_tune.footprint import PHASES, Segment, from_csv
from green_tune.query import Query
from green_tune.results import SESSION_KINDS, Course, RunRecord, hypervolume
from green_tune.space import SPACE
from green_tune.tracking import Tracker

GOAL = 0.3
KG_TO_G = 1000
QUANTILE = 0.75
NOTES = (
    "Ends only: validations on the way taken for no results. Without setup: as if starts, imports "
    "and loading were free on both sides. Green's front: the hypervolume that it ends with, over "
    "the baseline's."
)
EVERYTHING = ("train", "trial", *SESSION_KINDS)
SHOWN = {"setup": "imports and loading", "between": "between trials: proposals, the store"}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One sweep of either kind: its trials in order, and all that was spent, over time."""

    trials: list[RunRecord]
    segments: list[Segment]
    kg_per_kwh: float

    def without_setup(self) -> "Side":
        """As if starts, imports and loading cost nothing, of trials and of sweeps alike."""
        return replace(self, segments=[s for s in self.segments if s.phase != "setup"])

    def spent_kg(self, until: RunRecord) -> float:
        """By the whole sweep when a trial had ended."""
        end_s = until.started.timestamp() + 3600 * until.metrics["runtime_h"]
        return self.kg_per_kwh * sum(s.energy_kwh for s in self.segments if s.started_s < end_s)

    @property
    def total_kg(self) -> float:
        """By the whole sweep."""
        return self.kg_per_kwh * sum(segment.energy_kwh for segment in self.segments)

    def course(self, reference: tuple[float, float], *, every: bool) -> list[tuple[float, float]]:
        """After each trial what was spent and the hypervolume, of every validation or of ends."""
        points: list[tuple[float, float]] = []
        found = []
        for trial in self.trials:
            points += reached(trial, every=every)
            found.append((self.spent_kg(trial), hypervolume(points, reference)))
        return found

    def phases(self) -> dict[str, float]:
        """Emissions by phase, in kg."""
        return {
            phase: self.kg_per_kwh * sum(s.energy_kwh for s in self.segments if s.phase == phase)
            for phase in PHASES
        }


def reached(trial: RunRecord, *, every: bool) -> list[tuple[float, float]]:
    """What a trial's validations reached, in nats, for what it had spent since the first one."""
    if trial.status != "FINISHED" or not trial.course:
        return []
    first, *rest = trial.course
    chosen = rest if every else [point for point in rest if point.progress == 1]
    return [(point.val_loss, point.emissions_kg - first.emissions_kg) for point in chosen]


def run(module: str, options: Mapping[str, Any], folder: Path) -> None:
    """One command in a fresh process; a trial that diverges is a failed trial."""
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{module} failed: {done.stderr[-2000:]}")


def baseline(asked: Mapping[str, Any], folder: Path, trials: int, seed: int) -> None:
    """Optuna's default sampler, one process for each trial."""
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed)
    )
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}")
    own = {"quality_examples": 0, "checkpoint_minutes": 0, "resume": "never"}
    for _ in range(trials):
        trial = study.ask()
        run("entrypoints.train", {**asked, **own, "seed": seed, **suggested(trial)}, folder)
        record = tracker.find(Query(kinds=("train",)))[-1]
        if record.status == "FINISHED":
            study.tell(trial, [record.metrics["val_loss"], record.metrics["emissions_kg"]])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)


def suggested(trial: optuna.Trial) -> dict[str, Any]:
    """The same space as `sweep`'s, as most people write it: sizes as categories."""
    values: dict[str, Any] = {}
    for name, dimension in SPACE.items():
        low, high = dimension.low, dimension.high
        if dimension.scale == "powers of two":
            sizes = [2**k for k in range(20) if low <= 2**k <= high]
            values[name] = trial.suggest_categorical(name, sizes)
        elif dimension.scale == "log":
            values[name] = trial.suggest_float(name, low, high, log=True)
        else:
            values[name] = trial.suggest_int(name, int(low), int(high))
    return values


def side(folder: Path) -> Side:
    """What a sweep has left in its store."""
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}")
    everything = tracker.find(Query(kinds=EVERYTHING))
    texts = [tracker.read_text(record.run_id, "energy.csv") or "" for record in everything]
    trials = [record for record in everything if record.kind in ("train", "trial")]
    example = next(record for record in trials if record.metrics.get("energy_kwh"))
    return Side(
        trials=[record for record in trials if "runtime_h" in record.metrics],
        segments=[segment for text in texts if text for segment in from_csv(text)],
        kg_per_kwh=example.metrics["emissions_kg"] / example.metrics["energy_kwh"],
    )


def reference(sides: Sequence[Side]) -> tuple[float, float]:
    """75 % quantiles of the ends of the baseline's trials, over all seeds."""
    ends = [p for each in sides for t in each.trials for p in reached(t, every=False)]
    loss, kg = np.quantile(np.array(ends), QUANTILE, axis=0)
    return float(loss), float(kg)


def first_at(course: Sequence[tuple[float, float]], target: float) -> float:
    """What had been spent when the hypervolume was there; infinite where it never was."""
    return next((spent for spent, volume in course if volume >= target), float("inf"))


def compared(plain: Side, green: Side, limit: tuple[float, float]) -> dict[str, float]:
    """Grams to the hypervolume that the baseline ended with, and the ratios."""
    theirs = plain.course(limit, every=False)
    target = theirs[-1][1]
    ends, every = (first_at(green.course(limit, every=e), target) for e in (False, True))
    there = first_at(theirs, target)
    return {
        "target": target,
        "plain_g": there * KG_TO_G,
        "green_g": every * KG_TO_G,
        "green_ends_g": ends * KG_TO_G,
        "ratio": every / there,
        "ratio_without_setup": _ratio(plain.without_setup(), green.without_setup(), limit),
        "ratio_ends": ends / there,
        "green_total_g": green.total_kg * KG_TO_G,
        "green_final": green.course(limit, every=True)[-1][1] / target,
    }


def _ratio(plain: Side, green: Side, limit: tuple[float, float]) -> float:
    theirs = plain.course(limit, every=False)
    return first_at(green.course(limit, every=True), theirs[-1][1]) / first_at(
        theirs, theirs[-1][1]
    )


def replayed(sides: Sequence[Side]) -> dict[str, float]:
    """Dominated trials among the baseline's, all of which ran to their end: were they hopeless?

    Each trial is judged validation by validation, against those before it, as a sweep does; then
    its true course says whether anything after the stop would have been on the final front.
    """
    stopped = wrong = 0
    saved = total = 0.0
    for each in sides:
        courses = {t.run_id: since_start(t.course) for t in each.trials if t.course}
        done: dict[str, Course] = {}
        for name, course in courses.items():
            total += course[-1].emissions_kg
            end = next((i for i in range(2, len(course)) if _judged(course[:i], done)), 0)
            if end:
                stopped += 1
                saved += course[-1].emissions_kg - course[end - 1].emissions_kg
                wrong += any(_on_front(point, courses, name) for point in course[end:])
            done[name] = course[:end] if end else course
    return {"stopped": stopped, "wrong": wrong, "saved": saved / total if total else 0.0}


def since_start(course: Course) -> list[Any]:
    """A course without what was spent before the first validation."""
    began = course[0].emissions_kg
    return [type(p)(**{**vars(p), "emissions_kg": p.emissions_kg - began}) for p in course]


def _judged(course: Course, done: Mapping[str, Course]) -> bool:
    finished = [other for other in done.values() if other[-1].progress == 1]
    return dominance.judge(course, finished, done, bound=Bound()) is not None


def _on_front(point: Any, courses: Mapping[str, Course], own: str) -> bool:
    others = (p for name, course in courses.items() if name != own for p in course if p.progress)
    return not any(
        p.val_loss <= point.val_loss and p.emissions_kg <= point.emissions_kg for p in others
    )


def page(found: Mapping[str, Any], asked: argparse.Namespace, known: Mapping[str, str]) -> str:
    """The results as Markdown."""
    lines = [
        "# A sweep against plain Optuna",
        "",
        f"Model {Path(asked.model).name}, {asked.examples} training examples, {asked.trials} "
        f"trials, {asked.seeds} seeds; grams of CO2e to the hypervolume that the baseline ends "
        f"with, everything counted. Goal: at most {GOAL}.",
        "",
    ]
    head = ["task", "seed", "plain g", "green g", "ratio", "ends only", "without setup",
            "green's front"]  # fmt: skip
    rows = [
        [task, str(seed), f"{r['plain_g']:.3g}", f"{r['green_g']:.3g}", _said(r["ratio"]),
         _said(r["ratio_ends"]), _said(r["ratio_without_setup"]),
         f"{r['green_final']:.2f} x"]
        for task, data in found.items() for seed, r in enumerate(data["compared"])
    ]  # fmt: skip
    lines += table(head, rows)
    for task, data in found.items():
        ratios = [r["ratio"] for r in data["compared"]]
        together = sum(r["green_g"] for r in data["compared"]) / sum(
            r["plain_g"] for r in data["compared"]
        )
        lines += ["", f"{task}: median ratio {statistics.median(ratios):.2f}, of the sums "
                      f"{together:.2f}."]  # fmt: skip
    lines += ["", NOTES, "", "## Where it goes", "", *_shares(found)]
    lines += ["", "## Dominated trials", "", *_stops(found)]
    return "\n".join([*lines, "", "; ".join(f"{k}: {v}" for k, v in known.items()), ""])


def _said(ratio: float) -> str:
    return "never" if math.isinf(ratio) else f"{ratio:.2f}"


def _shares(found: Mapping[str, Any]) -> list[str]:
    head = ["task", "sweep", "g in all", *(SHOWN.get(phase, phase) for phase in PHASES)]
    rows = []
    for task, data in found.items():
        for name in ("plain", "green"):
            spent = data["phases"][name]
            total = sum(spent.values())
            shares = [f"{spent[phase] / total:.0%}" for phase in PHASES]
            rows.append([task, name, f"{total * KG_TO_G:.3g}", *shares])
    return table(head, rows)


def _stops(found: Mapping[str, Any]) -> list[str]:
    head = ["task", "stopped", "would have been on the front", "emissions saved"]
    rows = [
        [task, f"{r['stopped']:.0f}", f"{r['wrong']:.0f}", f"{r['saved']:.0%}"]
        for task, data in found.items() for r in [data["replayed"]]
    ]  # fmt: skip
    said = "The rule replayed on the baseline's trials, which all ran to their end:"
    return [said, "", *table(head, rows)]


def measured(asked: argparse.Namespace, task: str, folder: Path) -> dict[str, Any]:
    """Both sweeps of one task for each seed, one after the other."""
    base = {
        "model": asked.model, "task": task, "data": Path(asked.data, task).resolve(), "gpu": "cpu",
        "max_train_examples": asked.examples, "max_eval_examples": asked.validation,
        "max_seq_len": asked.max_seq_len,
    }  # fmt: skip
    sides: dict[str, list[Side]] = {"plain": [], "green": []}
    for seed in range(asked.seeds):
        for name, found in sides.items():
            place = folder / f"{task}-{seed}-{name}"
            place.mkdir(parents=True)
            if name == "plain":
                baseline(base, place, asked.trials, seed)
            else:
                more = {"study": "s", "trials": asked.trials, "seed": seed, **asked.option}
                run("entrypoints.sweep", {**base, **more}, place)
            found.append(side(place))
            say(f"{task}, seed {seed}, {name}: {found[-1].total_kg * KG_TO_G:.3g} g")
    limit = reference(sides["plain"])
    pairs = zip(sides["plain"], sides["green"], strict=True)
    return {
        "reference": limit,
        "compared": [compared(plain, green, limit) for plain, green in pairs],
        "phases": {name: _summed(found) for name, found in sides.items()},
        "replayed": replayed(sides["plain"]),
        "courses": {
            name: [[each.course(limit, every=e) for e in (False, True)] for each in found]
            for name, found in sides.items()
        },
    }


def _summed(sides: Sequence[Side]) -> dict[str, float]:
    return {phase: sum(each.phases()[phase] for each in sides) for phase in PHASES}


def _option(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def main() -> None:
    """Runs both, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder with one folder for each task")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--tasks", nargs="+", default=["sentiment", "qa"])
    parser.add_argument("--trials", type=int, default=14)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=240)
    parser.add_argument("--validation", type=int, default=64)
    parser.add_argument("--max-seq-len", type=int, default=256)
    parser.add_argument("--option", type=_option, action="append", default=[], help="of sweep")
    parser.add_argument("--keep", help="a folder for the stores, to look at afterwards")
    asked = parser.parse_args()
    asked.option = dict(asked.option)
    asked.model = asked.model if asked.model == "tiny" else str(Path(asked.model).resolve())
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        os.environ |= {"XDG_STATE_HOME": temporary, "GREEN_TUNE_METERS": f"{temporary}/meters"}
        folder = Path(asked.keep or temporary)
        found = {task: measured(asked, task, folder) for task in asked.tasks}
    device = job.this_cpu()
    known = facts(device)
    text = page(found, asked, known)
    said = {"facts": known, "at": datetime.now(UTC).isoformat(timespec="seconds"), "found": found}
    write("sweep", device.name, text, json.loads(json.dumps(said), parse_constant=lambda _: None))
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
