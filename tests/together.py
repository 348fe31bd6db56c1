"""Small trainings whose losses are to be the same, however many processes share them.

Started by torchrun, this file does the same trainings in each process. What they came to is
written by each of them to a folder.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from green_tune import job as jobs
from green_tune import peers, quality, training
from green_tune.config import TrainConfig
from green_tune.course import Progress, Watch

SMALL: dict[str, Any] = {"gpu": "cpu", "max_eval_examples": 13, "evals": 2, "learning_rate": 2e-3,
         "quality_examples": 0}  # fmt: skip


def trained(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The curves of a training, what a measure of quality says, and what this process holds."""
    job = jobs.prepare(TrainConfig(**(SMALL | options)))
    tuner = training.load(job)
    curves: dict[str, list[float]] = {}

    def look(progress: Progress) -> None:
        for name in ("train_loss", "grad_norm", "val_loss"):
            if name in progress.metrics:
                curves.setdefault(name, []).append(progress.metrics[name])

    result = tuner.fit(Watch(on_progress=look))
    scores = peers.from_everywhere(quality.measure(tuner))[0]
    if job.rank.writes:
        tuner.save(folder / "adapter")
    kept = [parameter for parameter in tuner.model.parameters() if not parameter.requires_grad]
    here = sum(getattr(weight, "to_local", lambda one=weight: one)().numel() for weight in kept)
    divided = sum(weight.numel() for weight in kept if hasattr(weight, "to_local"))
    return {
        "curves": curves,
        "tokens": result.train_tokens,
        "parameters": [result.base_parameters, result.trainable_parameters],
        "scores": scores,
        "shards": job.plan.shards,
        "here": here,
        "divided": divided,
    }


def main(cases: Path) -> None:
    """Trains each case, and leaves what it came to beside its adapter."""
    rank = os.environ["RANK"]
    for name, (options, shards) in json.loads(cases.read_text()).items():
        os.environ["ACCELERATE_USE_FSDP"] = str(shards).lower()
        folder = cases.parent / name
        folder.mkdir(exist_ok=True)
        found = trained(options, folder)
        (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    peers.from_everywhere_at_last(None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
