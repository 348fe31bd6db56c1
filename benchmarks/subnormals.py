"""What flushing subnormal numbers saves of a training's steps on a CPU: real weights, both ways.

    python -m benchmarks.subnormals --model FOLDER --data FOLDER     # six minutes

FOLDER of the data holds `qa/`, `summarization/` and `sentiment/`. Baseline: the same training
without `torch.set_flush_denormal`, as torch comes. It has to be set before torch starts its
threads, so each measurement is a process of its own; they take turns, every other round backwards.
Timed are whole optimiser steps, the first five left out. What is saved depends on the weights: a
base at random weights has hardly any such numbers.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import facts, interval, say, table, write
from green_tune import job as jobs
from green_tune.config import TrainConfig

TASKS = ("qa", "summarization", "sentiment")
ROUNDS, STEPS, WARM_UP = 5, 40, 5
WAYS = ("as torch comes", "flushed")


def timed(way: str, model: Path, data: Path) -> list[float]:
    """Seconds of each step, in this process."""
    import torch

    from green_tune import training
    from green_tune.stepper import Stepper

    if way == WAYS[0]:
        torch.set_flush_denormal = lambda arg: False  # what `loading` would do
    config = TrainConfig(model=str(model), data=str(data), task=data.name, gpu="cpu", epochs=10)
    tuner = training.load(jobs.prepare(config))
    tuner.check()
    tuner.model.train()
    stepper, took = Stepper(tuner.job, tuner.loss, STEPS), []
    for number in range(STEPS):
        examples = tuner._examples(number)
        began = time.perf_counter()
        stepper.step(examples)
        took.append(time.perf_counter() - began)
    return took[WARM_UP:]


def measured(way: str, model: Path, data: Path) -> float:
    """The mean seconds of a step, in a process of its own."""
    arguments = ["--model", str(model), "--data", str(data), "--way", way]
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.subnormals", *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return statistics.fmean(json.loads(out.splitlines()[-1]))


def ratios(model: Path, data: Path) -> list[float]:
    """Seconds flushed over seconds as torch comes, of each round."""
    found = []
    for number in range(ROUNDS):
        ways = WAYS if number % 2 else WAYS[::-1]
        took = {way: measured(way, model, data) for way in ways}
        found.append(took[WAYS[1]] / took[WAYS[0]])
        say(f"{data.name}: {found[-1]:.3f}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs it, prints the page and keeps it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--discard", action="store_true", help="keep no page")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    model, data = asked.model.resolve(), asked.data.resolve()
    if asked.way:
        sys.stdout.write(json.dumps(timed(asked.way, model, data)) + "\n")
        return
    device = jobs.device("cpu")
    machine = facts(device)
    found = {task: ratios(model, data / task) for task in TASKS}
    rows = [
        [task, f"{statistics.median(some):.3f}", "{:.3f} to {:.3f}".format(*interval(some))]
        for task, some in found.items()
    ]
    lines = [
        "# Flushing subnormal numbers",
        "",
        ", ".join(f"{name} {text}" for name, text in machine.items()),
        "",
        f"Seconds of a step with it over those without, {model.name}: medians of {ROUNDS} pairs of "
        f"processes, {STEPS - WARM_UP} steps each.",
        "",
        *table(["task", "flushed / as torch comes", "95 %"], rows),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    if not asked.discard:
        write("subnormals", device.name, "\n".join(lines), {"machine": machine, "ratios": found})


if __name__ == "__main__":
    main()
