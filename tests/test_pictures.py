"""A study's figures: they show every trial once and stay readable."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
from figures import BARS, TRIALS, count, drawn, marks, stopped, trial, unfinished
from matplotlib.text import Text

from green_tune import pictures
from green_tune.points import REFERENCE
from green_tune.results import RunRecord


def boxes(texts: Sequence[Text]) -> list[Any]:
    return [Text.get_window_extent(text) for text in texts]


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


def test_importance_has_a_bar_with_its_interval_for_each_objective() -> None:
    figure = drawn(pictures.importance_figure(BARS, "s", "rough below 30 trials"))
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["epochs", "batch_size"]
    assert [bar.get_width() for bar in marks(figure)["validation loss"]] == [20, 30]
    assert [bar.get_width() for bar in marks(figure)["emissions"]] == [80]
    assert "80% intervals" in axes.get_xlabel()
    assert figure.legends[0].get_title().get_text() == "rough below 30 trials"
