"""A study's figures: they show every trial once, name what they rest on, and stay readable."""

import io
import json
import math
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from green_tune import pictures
from green_tune.importance import Importance
from green_tune.points import REFERENCE
from green_tune.results import EVALUATIONS, RunRecord

ROOT = Path(__file__).parents[1]
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


def boxes(texts: Sequence[Text]) -> list[Any]:
    return [Text.get_window_extent(text) for text in texts]


def all_figures(records: Sequence[RunRecord]) -> list[Figure | None]:
    return [
        pictures.front_figure(records, "s"),
        pictures.hypervolume_figure(records, "s"),
        pictures.parallel_figure(records, "s"),
        pictures.timeline_figure(records, "s"),
    ]


def test_of_nothing_there_is_no_figure() -> None:
    running = replace(unfinished(0, "RUNNING"), metrics={})
    for records in ([], [running]):
        assert all_figures(records) == [None] * 4
    assert pictures.importance_figure([], "s") is None


def test_one_trial_has_a_front_and_a_time_but_nothing_to_compare_it_with() -> None:
    front, hypervolume, parallel, timeline = all_figures(TRIALS[:1])
    assert front is not None
    assert timeline is not None
    assert (hypervolume, parallel) == (None, None)


def test_every_figure_is_900_pixels_wide_and_its_texts_lie_inside() -> None:
    records = [*TRIALS, stopped(12, "dominated by #1"), unfinished(13)]
    for figure in (*all_figures(records), pictures.importance_figure(BARS, "s", "rough")):
        whole = drawn(figure).bbox
        assert whole.width == 900
        used = drawn(figure).get_tightbbox()
        assert -0.01 <= used.x0 < used.x1 <= pictures.WIDTH + 0.01
        assert -0.01 <= used.y0 < used.y1 <= whole.height / pictures.DPI + 0.01


@pytest.mark.parametrize("which", [0, 1, 2])
def test_figures_with_grams_say_what_intensity_they_rest_on(which: int) -> None:
    def said(records: Sequence[RunRecord]) -> str:
        texts = drawn(all_figures(records)[which]).findobj(Text)
        return " ".join(text.get_text().replace("\n", " ") for text in texts)

    assert "g CO2e; assumed: world average at 475 g/kWh" in said(TRIALS)
    known = {"intensity_zone": "France", "intensity_assumed": "false"}
    assert "assumed" not in said([replace(r, tags={**r.tags, **known}) for r in TRIALS])


def test_the_front_shows_every_end_and_every_validation_once() -> None:
    figure = drawn(pictures.front_figure([*TRIALS, stopped(12, "x"), unfinished(13)], "s"))
    assert count(figure, "ended") == 12
    assert count(figure, "stopped") == 1
    assert count(figure, "on the way") == 12 * 3 + 1
    assert "emissions (g CO2e" in figure.axes[0].get_xlabel()
    assert "nats" in figure.axes[0].get_ylabel()


def test_the_front_is_a_step_through_its_marks() -> None:
    figure = drawn(pictures.front_figure(TRIALS, "s"))
    (line,) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xydata().tolist() == marks(figure)["Pareto front"].get_offsets().tolist()  # type: ignore[union-attr]


def crowded(trials: int) -> list[RunRecord]:
    """All on the front and next to each other, but for one that is far away."""
    pairs = [(2 - n / 1e4, 0.02 + n / 1e5) for n in range(trials)]
    return [
        replace(
            TRIALS[0],
            tags={"green_tune.trial": str(1000 + n)},
            metrics={"val_loss": loss, "emissions_kg": kg},
        )
        for n, (loss, kg) in enumerate([*pairs, (3.0, 0.1)])
    ]


@pytest.mark.parametrize(
    "records",
    [*([trial(number) for number in range(trials)] for trials in (3, 12, 40, 60)), crowded(20)],
)
def test_no_label_of_a_front_lies_on_another_or_outside(records: Sequence[RunRecord]) -> None:
    figure = drawn(pictures.front_figure(records, "s"))
    axes = figure.axes[0]
    labels = boxes(axes.texts)
    assert 2 <= len(labels) <= pictures.LABELS
    assert not any(one.overlaps(other) for one, other in combinations(labels, 2))
    assert all(axes.bbox.x0 <= box.x0 and axes.bbox.y0 <= box.y0 for box in labels)


def test_the_best_loss_is_labelled_however_many_trials_there_are() -> None:
    records = [trial(number) for number in range(60)]
    best = min(records, key=lambda record: record.metrics["val_loss"])
    texts = [text.get_text() for text in drawn(pictures.front_figure(records, "s")).axes[0].texts]
    assert any(f"#{best.tags['green_tune.trial']}" in text.split(", ") for text in texts)


def test_trials_that_are_one_measurement_share_a_label() -> None:
    same = [
        replace(TRIALS[n], tags={"green_tune.trial": str(n)}, metrics=TRIALS[0].metrics)
        for n in (0, 1)
    ]
    (text,) = drawn(pictures.front_figure(same, "s")).axes[0].texts
    assert text.get_text() == "#0, #1"


def test_axes_are_logarithmic_where_the_values_are_far_apart() -> None:
    near, far = (replace(TRIALS[0], run_id=str(times), tags={}, metrics={
        "val_loss": 1 / times, "emissions_kg": 0.01 * times}) for times in (2, 21))  # fmt: skip
    close = replace(near, metrics={"val_loss": 0.4, "emissions_kg": 0.03})
    assert drawn(pictures.front_figure([near, far], "s")).axes[0].get_xscale() == "log"
    assert drawn(pictures.front_figure([near, close], "s")).axes[0].get_xscale() == "linear"


def test_a_training_that_diverged_is_shown_at_the_edge_and_presses_nothing_flat() -> None:
    wild = replace(TRIALS[0], metrics={**TRIALS[0].metrics, "val_loss": 500.0})
    figure = drawn(pictures.front_figure([*TRIALS[1:], wild], "s"))
    assert figure.axes[0].get_ylim()[1] < 3.5
    assert count(figure, "ended worse than the start") == 1


def test_the_hypervolume_ends_at_all_of_it_and_ends_alone_have_less() -> None:
    records = [*TRIALS, unfinished(12)]
    figure = drawn(pictures.hypervolume_figure(records, "s"))
    lines = marks(figure)
    every, ended = (lines[name].get_ydata() for name in ("all points", "ends of trials alone"))
    assert every[-1] == pytest.approx(100)
    assert all(a >= b for a, b in zip(every, ended, strict=True))
    grams = lines["all points"].get_xdata()
    spent = sum(record.metrics["emissions_kg"] for record in records)
    assert (grams[0], grams[-1]) == (0, pytest.approx(1000 * spent))
    assert REFERENCE in figure.legends[0].get_title().get_text()


def test_parallel_coordinates_have_what_varies_and_both_objectives() -> None:
    figure = drawn(pictures.parallel_figure([*TRIALS, stopped(12, "x"), unfinished(13)], "s"))
    axes = figure.axes[0]
    assert [text.get_text().replace("\n", "_") for text in axes.get_xticklabels()] == [
        *("batch_size", "learning_rate", "epochs", "val_loss", "grams")
    ]
    trials = [line for line in axes.lines if len(line.get_ydata()) == 5]  # type: ignore[arg-type]
    assert len(trials) == 12
    heights = np.array([line.get_ydata() for line in trials])
    assert (heights.min(axis=0) == 0).all()
    assert (heights.max(axis=0) == 1).all()


def test_in_parallel_coordinates_the_front_is_thicker() -> None:
    one, two, beaten = (
        replace(TRIALS[n], tags={}, metrics={"val_loss": loss, "emissions_kg": kg})
        for n, loss, kg in ((0, 1.0, 2.0), (1, 2.0, 1.0), (2, 2.5, 2.5))
    )
    lines = drawn(pictures.parallel_figure([one, two, beaten], "s")).axes[0].lines
    widths = [line.get_linewidth() for line in lines[:3]]
    assert widths[0] == widths[1] > widths[2]


def test_sizes_and_rates_are_logarithmic_in_parallel_coordinates() -> None:
    column = pictures._Column(title="batch_size", values=[2, 8, 32], is_log=True)
    assert column.height(8) == pytest.approx(0.5)
    assert column.ticks() == [2, 8, 32]
    rate = pictures._Column(title="learning_rate", values=[1e-4, 1.3e-3], is_log=True)
    assert rate.ticks() == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3])
    linear = pictures._Column(title="warmup_steps", values=list(range(20)), is_log=False)
    assert all(tick == int(tick) for tick in linear.ticks())


def test_importance_has_a_bar_with_its_interval_for_each_objective() -> None:
    figure = drawn(pictures.importance_figure(BARS, "s", "rough below 30 trials"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["epochs", "batch_size"]
    assert [bar.get_width() for bar in marks(figure)["validation loss"]] == [20, 30]
    assert [bar.get_width() for bar in marks(figure)["emissions"]] == [80]
    assert "80% intervals" in axes.get_xlabel()
    assert figure.legends[0].get_title().get_text() == "rough below 30 trials"


def test_the_timeline_shows_how_each_trial_ended_and_on_which_worker() -> None:
    cut = unfinished(4, "KILLED")
    records = [
        trial(0),
        stopped(1, "dominated by #0: ..."),
        stopped(2, "budget"),
        unfinished(3),
        cut,
        trial(5, **{"green_tune.retry_of": cut.run_id}),
        trial(6, **{"green_tune.reused": "f" * 32}),
        replace(unfinished(7, "RUNNING"), metrics={}),
    ]
    figure = drawn(pictures.timeline_figure(records, "s"))
    bars = {text: handle for text, handle in marks(figure).items() if text != "taken over"}
    assert {text: len(handle.patches) for text, handle in bars.items()} == {
        "ran to its end": 2,
        "stopped: dominated": 1,
        "stopped early": 1,
        "failed": 1,
        "cut off, tried again": 1,
    }
    assert count(figure, "taken over") == 1
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["worker 1", "worker 2"]
    assert figure.axes[0].get_xlabel().endswith("(h)")


def test_a_bar_stands_where_its_trial_was() -> None:
    figure = drawn(pictures.timeline_figure([trial(0), trial(2)], "s"))
    first, second = marks(figure)["ran to its end"].patches
    assert (first.get_x(), first.get_width()) == (0, pytest.approx(54))  # minutes
    assert (second.get_x(), second.get_width()) == (60, pytest.approx(54))


def test_numbers_stand_only_in_bars_that_are_wide_enough() -> None:
    brief = trial(1)
    brief = replace(brief, metrics={**brief.metrics, "runtime_h": 0.001})
    texts = drawn(pictures.timeline_figure([trial(0), brief], "s")).axes[0].texts
    assert [text.get_text() for text in texts] == ["0"]


def test_ways_of_ending_differ_in_more_than_colour() -> None:
    assert len({ending.hatch for ending in pictures.ENDINGS}) == len(pictures.ENDINGS)
    assert len({to_rgb(ending.colour) for ending in pictures.ENDINGS}) == len(pictures.ENDINGS)


def test_figures_can_be_saved_without_a_screen_or_pyplot() -> None:
    code = "import sys, green_tune.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    file = io.BytesIO()
    drawn(pictures.front_figure(TRIALS, "s")).savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
