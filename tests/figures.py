"""Made-up studies for the tests of figures, and what was drawn of them."""

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from matplotlib.figure import Figure

from green_tune.importance import Importance
from green_tune.results import EVALUATIONS, RunRecord

START = datetime(2026, 11, 22, tzinfo=UTC)
WORLD = {"intensity_zone": "world average", "intensity_g_per_kwh": "475",
         "intensity_assumed": "true"}  # fmt: skip
WAY = [(step, step / 4) for step in range(5)]


def trial(number: int, **tags: str) -> RunRecord:
    """A made-up training: more epochs and smaller batches cost more and reach lower."""
    dice = random.Random(number)
    batch, epochs, rate = 2 ** dice.randint(1, 5), dice.randint(1, 3), dice.uniform(1e-4, 1e-3)
    kg, floor = 0.01 * epochs * (1 + 4 / batch), 1.2 + abs(math.log10(rate) + 3.3)
    losses = [floor + (3 - floor) * math.exp(-4 * part * epochs) for _, part in WAY]
    course = [(step, part, loss, 0.9 * kg * part + 1e-4)
              for (step, part), loss in zip(WAY, losses, strict=True)]  # fmt: skip
    drawn = {"batch_size": batch, "epochs": epochs, "learning_rate": rate, "lora_rank": 8}
    return RunRecord(
        run_id=f"{number:032x}",
        name="",
        kind="trial",
        status="FINISHED",
        started=START + timedelta(hours=number // 2),
        params={name: str(value) for name, value in drawn.items()},
        metrics={"val_loss": losses[-1], "emissions_kg": kg, "runtime_h": 0.9,
                 "start_val_loss": 3.0, "steps": 4.0},
        tags={"green_tune.trial": str(number), "green_tune.worker": f"host/1:{number % 2}:9",
              EVALUATIONS: json.dumps(course), **WORLD, **tags},
    )  # fmt: skip


def stopped(number: int, why: str) -> RunRecord:
    """It ended half-way, for half of the emissions."""
    whole = trial(number, stopped_early="after step 2 of 4", **{"green_tune.stopped": why})
    half = whole.course[2]
    spent = {"val_loss": half.val_loss, "emissions_kg": half.emissions_kg + 1e-5}
    course = json.dumps(
        [[e.step, e.progress, e.val_loss, e.emissions_kg] for e in whole.course[:3]]
    )
    tags = {**whole.tags, EVALUATIONS: course}
    return replace(whole, metrics={**whole.metrics, **spent}, tags=tags)


def unfinished(number: int, status: str = "FAILED") -> RunRecord:
    whole = trial(number)
    figures = {name: x for name, x in whole.metrics.items() if name != "val_loss"}
    return replace(whole, status=status, metrics=figures)


TRIALS = [trial(number) for number in range(12)]
BARS = [
    Importance(name=name, objective=objective, share=share, low=share / 2, high=share + 0.1)
    for name, objective, share in (
        ("epochs", "val_loss", 0.2),
        ("epochs", "emissions_kg", 0.8),
        ("batch_size", "val_loss", 0.3),
    )
]


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def marks(figure: Figure) -> dict[str, Any]:
    """What was drawn, by its line in the legend."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    return dict(zip(labels, handles, strict=True))


def count(figure: Figure, label: str) -> int:
    return len(marks(figure)[label].get_offsets())
