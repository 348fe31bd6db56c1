"""How right a quote is that rests on a probe: quoted, then run, on configurations drawn at random.

    python -m benchmarks.quote --data FOLDER                    # 100 configurations, half an hour
    python -m benchmarks.quote --data FOLDER --configs 8 --commands 0 --discard

FOLDER holds `qa/`, `summarization/` and `sentiment/`, each with `train.jsonl` and
`validation.jsonl`; a base model below it (`models/*`) is taken as well. Each configuration is
probed for four seconds, quoted, and run as the trial of a sweep is: real training, real validation,
a real store. A part of them, drawn at random, calibrates the interval; the others are held out, and
everything that is said of errors and coverage is said of those. Whole commands are quoted and run
in processes of their own, imports and all.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.record import facts, say, table, write
from green_tune import conformal, evidence, sounding, training
from green_tune import job as jobs
from green_tune.bill import measured
from green_tune.config import TrainConfig
from green_tune.evidence import Known
from green_tune.experiment import run_experiment
from green_tune.meter import Meter
from green_tune.models import BUILT
from green_tune.tracking import Tracker
from green_tune.training import Bench

TASKS = ("qa", "summarization", "sentiment")
GOALS = {"median": 0.10, "ninth": 0.20, "least": 0.85, "most": 0.95}
CALIBRATING = 0.4  # of the configurations
SPLITS = 1000
PROBE_S = 4.0
FIGURES = ("energy", "runtime")
FACTORS = ("model", "task", "batch_size", "epochs", "max_seq_len")


@dataclass(frozen=True, kw_only=True)
class Ran:
    """One configuration: what was quoted and what came, in kWh and hours."""

    config: Mapping[str, Any]
    quoted: Mapping[str, float]
    actual: Mapping[str, float]
    probe_steps: str

    def ratio(self, figure: str) -> float:
        """What came by what was quoted."""
        return self.actual[figure] / self.quoted[figure]

    def off(self, figure: str) -> float:
        """The error, as a share of what came."""
        return abs(self.quoted[figure] / self.actual[figure] - 1)


def drawn(number: int, data: Path, models: Sequence[str]) -> TrainConfig:
    """A configuration; the same number always draws the same one."""
    dice = random.Random(f"quote/{number}")
    task = dice.choice(TASKS)
    examples = {"qa": (100, 900), "summarization": (60, 500), "sentiment": (300, 1800)}[task]
    return TrainConfig(
        model=dice.choice(models),
        task=task,
        data=str(data / task),
        batch_size=dice.choice((1, 2, 4, 8, 16, 32)),
        accumulation_steps=dice.choice((1, 1, 2, 4)),
        epochs=dice.choice((1, 1, 2, 3)),
        max_seq_len=dice.choice((128, 256, 384, 512)),
        lora_rank=dice.choice((4, 16, 64)),
        max_train_examples=dice.randint(*examples),
        max_eval_examples=dice.choice((64, 128, 256)),
        evals=dice.choice((2, 4)),
        quality_examples=0,
        seed=number,
    )


def run_one(config: TrainConfig, meter: Meter, tracker: Tracker) -> Ran:
    """Probes, quotes and runs a configuration."""
    job, bench = jobs.prepare(config), Bench()
    phase = partial(meter.phase, sync=training.synchronize)
    with meter.account():
        with phase("setup"):
            sketch = sounding.sketch(job, training.texts_of(jobs.find(config))[0])
        found = sounding.sound(sketch, phase, PROBE_S)
        pace = sounding.paced(found, evidence.table(job), (0.0, 0.0), meter.spent_in("train"))
        meter.close()
    known = Known(sounded={evidence.sounded(job): (pace, found.note)})
    with phase("setup"):
        bench.warm(job)
    with (
        tracker.run("trial", "benchmark") as run,
        meter.account(),
        measured(job, run, meter) as bill,
    ):
        run_experiment(job, run, bill, bench=bench, known=known)
    assert bill.quote is not None
    assert bill.measurement is not None
    said, came = bill.quote.amount, bill.measurement.total
    asked = {name: getattr(config, name) for name in (*FACTORS, "max_train_examples", "lora_rank",
             "accumulation_steps", "max_eval_examples", "evals")}  # fmt: skip
    return Ran(
        config=asked | {"model": job.source.name},
        quoted={"energy": said.energy_kwh, "runtime": said.runtime_h},
        actual={"energy": came.energy_kwh, "runtime": came.runtime_h},
        probe_steps=found.note,
    )


def run_commands(number: int, data: Path) -> list[Ran]:
    """`quote`, then `train`, each in a process and a store of its own."""
    found = []
    for index in range(number):
        config = replace(drawn(10_000 + index, data, ["tiny", "tiny-wide"]), quality_examples=32)
        with tempfile.TemporaryDirectory(prefix="green-tune-benchmark-") as folder:
            options = [f"--{name}={text}" for name, text in config.to_params().items()]
            out = Path(folder) / "quote"
            _command("quote", [*options, "--gpu=cpu", f"--output={out}"], folder)
            (row,) = json.loads((out / "quote.json").read_text())
            _command("train", options, folder)
            record = _only_train(folder)
        asked = {name: getattr(config, name) for name in FACTORS}
        found.append(
            Ran(
                config=asked,
                quoted={"energy": row["energy_kwh"], "runtime": row["runtime_h"]},
                actual={name: record[name] for name in FIGURES},
                probe_steps=row["rests_on"],
            )
        )
        say(f"command {index + 1}/{number}: energy off by {found[-1].off('energy'):.1%}")
    return found


def _command(name: str, options: Sequence[str], folder: str) -> None:
    places = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/runs.db", "HOME": folder}
    places |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    subprocess.run(
        [sys.executable, "-m", f"entrypoints.{name}", *options],
        env={**os.environ, **places, "XDG_CACHE_HOME": cache},
        cwd=folder,
        check=True,
        capture_output=True,
    )


def _only_train(folder: str) -> dict[str, float]:
    from green_tune.query import Query

    (record,) = Tracker(f"sqlite:///{folder}/runs.db").find(Query(kinds=("train",)))
    return {"energy": record.metrics["energy_kwh"], "runtime": record.metrics["runtime_h"]}


def ninth(errors: Sequence[float]) -> float:
    """The smallest error that nine in ten are at most."""
    return sorted(errors)[math.ceil(0.9 * len(errors)) - 1]


def coverage(calibrating: Sequence[Ran], held_out: Sequence[Ran], figure: str) -> float:
    """The share of the held-out ones within the interval that the others give."""
    width = conformal.width([one.ratio(figure) for one in calibrating], assumed=1.0)
    return statistics.fmean(
        1 / width.factor <= one.ratio(figure) <= width.factor for one in held_out
    )


def split(ran: Sequence[Ran], seed: int) -> tuple[list[Ran], list[Ran]]:
    """Those that calibrate, and those that are held out."""
    order = random.Random(f"split/{seed}").sample(range(len(ran)), len(ran))
    at = max(conformal.FEWEST, round(CALIBRATING * len(ran)))
    return [ran[i] for i in order[:at]], [ran[i] for i in order[at:]]


def page(ran: Sequence[Ran], commands: Sequence[Ran], machine: Mapping[str, str]) -> list[str]:
    """All that was found, in Markdown."""
    calibrating, held_out = split(ran, 0)
    lines = [
        "# How right a quote is that rests on a probe",
        "",
        ", ".join(f"{name} {text}" for name, text in machine.items()),
        "",
        f"{len(ran)} configurations, each probed for {PROBE_S:g} s, quoted, and run as a trial. "
        f"{len(calibrating)} calibrate the interval, {len(held_out)} are held out.",
        "",
        *_held_out(calibrating, held_out),
        "## By what was held out",
        "",
        "Each value left out in turn: all others calibrate.",
        "",
        *_by_factor(ran),
    ]
    if commands:
        lines += [
            "## Whole commands",
            "",
            "`quote`, then `train`, in processes and stores of their own: imports, loading, task "
            "metrics and saving with it.",
            "",
            *_errors({"whole commands": commands}),
        ]
    return lines


def _held_out(calibrating: Sequence[Ran], held_out: Sequence[Ran]) -> list[str]:
    both = [*calibrating, *held_out]
    rows = []
    for figure in FIGURES:
        errors = [one.off(figure) for one in held_out]
        covered = coverage(calibrating, held_out, figure)
        splits = [coverage(*split(both, seed), figure) for seed in range(1, SPLITS + 1)]
        width = conformal.width([one.ratio(figure) for one in calibrating], assumed=1.0)
        rows.append(
            [
                figure,
                f"{statistics.median(errors):.1%}",
                f"{ninth(errors):.1%}",
                f"{max(errors):.1%}",
                f"{width.factor:.3f}",
                f"{covered:.1%}",
                f"{statistics.fmean(splits):.1%}",
            ]
        )
    head = ["held out", "median error", "90th percentile", "largest", "interval x/", "coverage",
            f"mean of {SPLITS} splits"]  # fmt: skip
    return [*table(head, rows), *_verdict(rows[0]), ""]


def _verdict(row: Sequence[str]) -> list[str]:
    median, most, covered = (float(row[at].rstrip("%")) / 100 for at in (1, 2, 5))
    checks = {
        f"median error at most {GOALS['median']:.0%}": median <= GOALS["median"],
        f"90th percentile at most {GOALS['ninth']:.0%}": most <= GOALS["ninth"],
        "coverage of the 90 % interval 85 to 95 %": GOALS["least"] <= covered <= GOALS["most"],
    }
    return [f"- {name}: {'yes' if held else 'NO'} (energy)" for name, held in checks.items()]


def _by_factor(ran: Sequence[Ran]) -> list[str]:
    rows = []
    for factor in FACTORS:
        for value in sorted({one.config[factor] for one in ran}, key=str):
            out = [one for one in ran if one.config[factor] == value]
            rest = [one for one in ran if one.config[factor] != value]
            if len(rest) < conformal.FEWEST:
                continue
            errors = [one.off("energy") for one in out]
            rows.append(
                [
                    f"{factor}={value}",
                    str(len(out)),
                    f"{statistics.median(errors):.1%}",
                    f"{ninth(errors):.1%}",
                    f"{coverage(rest, out, 'energy'):.0%}",
                ]
            )
    head = ["left out", "runs", "median error of energy", "90th percentile", "coverage"]
    return table(head, rows)


def _errors(groups: Mapping[str, Sequence[Ran]]) -> list[str]:
    rows = [
        [
            f"{name}, {figure}",
            str(len(some)),
            f"{statistics.median(one.off(figure) for one in some):.1%}",
            f"{ninth([one.off(figure) for one in some]):.1%}",
        ]
        for name, some in groups.items()
        for figure in FIGURES
    ]
    return table(["", "runs", "median error", "90th percentile"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it, prints the page and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--configs", type=int, default=100)
    parser.add_argument("--commands", type=int, default=6)
    parser.add_argument("--discard", action="store_true", help="keep no page")
    asked = parser.parse_args(arguments)
    data = asked.data.resolve()
    models = [*BUILT, *map(str, sorted(path for path in data.glob("models/*") if path.is_dir()))]
    device = jobs.device("auto")
    machine = facts(device)
    ran = _in_one_process(asked.configs, partial(drawn, data=data, models=models))
    commands = run_commands(asked.commands, data)
    text = "\n".join(page(ran, commands, machine))
    sys.stdout.write(text + "\n")
    if not asked.discard:
        samples = {"ran": [asdict(one) for one in ran], "commands": [asdict(c) for c in commands]}
        write("quote", device.name, text + "\n", {"machine": machine, **samples})


def _in_one_process(number: int, draw: Callable[[int], TrainConfig]) -> list[Ran]:
    found = []
    with tempfile.TemporaryDirectory(prefix="green-tune-benchmark-") as folder:
        tracker = Tracker(f"sqlite:///{folder}/runs.db")
        with Meter.of(jobs.prepare(draw(0))) as meter:
            meter.open(checked=False)
            for index in range(number):
                found.append(run_one(draw(index), meter, tracker))
                say(f"{index + 1}/{number}: energy off by {found[-1].off('energy'):.1%}")
    return found


if __name__ == "__main__":
    main()
