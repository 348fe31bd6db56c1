"""What shuffling by passage does to the loss curve: a tree against single examples.

    python -m benchmarks.shuffling --data ../shared/data/qa --model MODEL [--seeds 5]

A tree trains the questions on one passage in the same or neighbouring steps, so its steps are less
varied than those of single examples. Both see the same examples, in equally many steps; the
validation losses are compared step by step, over several seeds. It measures no time.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.record import facts, say, table, write
from green_tune import job, training
from green_tune.config import TrainConfig
from green_tune.course import Progress, Watch

EVALS = 4
VALIDATION = 128  # examples; their loss is most of the time else
BATCHINGS = ("flat", "tree")


def sample(source: Path, target: Path, passages: int) -> None:
    """The first passages of a data set with all their questions, as both kinds of order need."""
    for split in ("train", "validation"):
        lines = (source / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        known = set(list(dict.fromkeys(row["context"] for row in rows))[: passages or None])
        kept = [json.dumps(row) for row in rows if row["context"] in known]
        (target / f"{split}.jsonl").write_text("\n".join(kept), encoding="utf-8")


def curve(
    asked: argparse.Namespace, folder: str, batching: str, size: int, seed: int
) -> list[float]:
    """The validation losses of one training, from before the first step to the end."""
    config = TrainConfig(
        model=asked.model, task="qa", data=folder, gpu="cpu", batching=batching, seed=seed,
        batch_size=size, learning_rate=asked.learning_rate, epochs=asked.epochs, evals=EVALS,
        max_eval_examples=VALIDATION,
    )  # fmt: skip
    losses: list[float] = []

    def look(progress: Progress) -> None:
        if "val_loss" in progress.metrics:
            losses.append(progress.metrics["val_loss"])

    training.load(job.prepare(config)).fit(Watch(on_progress=look))
    return losses


def row(flat: Sequence[Sequence[float]], tree: Sequence[Sequence[float]], at: int) -> list[str]:
    """Mean and spread over seeds at one validation, and the mean of the paired differences."""
    apart = [t[at] - f[at] for f, t in zip(flat, tree, strict=True)]
    cells = [f"{at / EVALS:.0%}"]
    for losses in (flat, tree):
        values = [losses_of[at] for losses_of in losses]
        cells.append(f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    error = statistics.stdev(apart) / len(apart) ** 0.5
    return [*cells, f"{statistics.mean(apart):+.4f} ± {error:.4f}"]


def compared(curves: Mapping[str, list[list[float]]], size: int) -> list[str]:
    """A table for one batch size, as lines of Markdown."""
    head = ["of the training", "flat", "tree", "tree - flat, ± standard error"]
    rows = [row(curves["flat"], curves["tree"], at) for at in range(EVALS + 1)]
    return [f"## {size} examples a step", "", *table(head, rows)]


def main() -> None:
    """Compares, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a folder of train|validation.jsonl, qa")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--passages", type=int, default=0, help="only the first n; 0 for all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    asked = parser.parse_args()
    found = {size: measured(asked, size) for size in asked.batch_sizes}
    device = job.this_cpu()
    title = (
        f"Validation loss in nats, mean ± standard deviation over {asked.seeds} seeds; model "
        f"{Path(asked.model).name}, {asked.epochs} epoch(s), learning rate "
        f"{asked.learning_rate:g}, {asked.passages or 'all'} passages of the training data."
    )
    known = [f"{name}: {text}" for name, text in facts(device).items()]
    tables = [line for size in found for line in compared(found[size], size)]
    page = "\n".join(["# Shuffling by passage", "", title, "", *tables, "; ".join(known), ""])
    write("shuffling", device.name, page, {"facts": facts(device), "curves": found})
    sys.stdout.write(page)


def measured(asked: argparse.Namespace, size: int) -> dict[str, list[list[float]]]:
    """The curves of each seed, both ways."""
    curves: dict[str, list[list[float]]] = {batching: [] for batching in BATCHINGS}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        sample(Path(asked.data), Path(folder), asked.passages)
        for seed in range(asked.seeds):
            for batching, found in curves.items():
                found.append(curve(asked, folder, batching, size, seed))
                say(f"{size} examples a step, seed {seed}, {batching}: {found[-1][-1]:.4f}")
    return curves


if __name__ == "__main__":
    main()
