"""Trial by trial: every one is drawn once, where it was and as it ended."""

from dataclasses import replace

import numpy as np
import pytest
from figures import TRIALS, count, drawn, marks, stopped, trial, unfinished
from matplotlib.colors import to_rgb

from green_tune import panels


def test_parallel_coordinates_have_what_varies_and_both_objectives() -> None:
    figure = drawn(panels.parallel_figure([*TRIALS, stopped(12, "x"), unfinished(13)], "s"))
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
    lines = drawn(panels.parallel_figure([one, two, beaten], "s")).axes[0].lines
    widths = [line.get_linewidth() for line in lines[:3]]
    assert widths[0] == widths[1] > widths[2]


def test_sizes_and_rates_are_logarithmic_in_parallel_coordinates() -> None:
    column = panels._Column(title="batch_size", values=[2, 8, 32], is_log=True)
    assert column.height(8) == pytest.approx(0.5)
    assert column.ticks() == [2, 8, 32]
    rate = panels._Column(title="learning_rate", values=[1e-4, 1.3e-3], is_log=True)
    assert rate.ticks() == pytest.approx([1e-4, 2e-4, 5e-4, 1e-3])
    linear = panels._Column(title="warmup_steps", values=list(range(20)), is_log=False)
    assert all(tick == int(tick) for tick in linear.ticks())


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
    figure = drawn(panels.timeline_figure(records, "s"))
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
    figure = drawn(panels.timeline_figure([trial(0), trial(2)], "s"))
    first, second = marks(figure)["ran to its end"].patches
    assert (first.get_x(), first.get_width()) == (0, pytest.approx(54))  # minutes
    assert (second.get_x(), second.get_width()) == (60, pytest.approx(54))


def test_numbers_stand_only_in_bars_that_are_wide_enough() -> None:
    brief = trial(1)
    brief = replace(brief, metrics={**brief.metrics, "runtime_h": 0.001})
    texts = drawn(panels.timeline_figure([trial(0), brief], "s")).axes[0].texts
    assert [text.get_text() for text in texts] == ["0"]


def test_ways_of_ending_differ_in_more_than_colour() -> None:
    assert len({ending.hatch for ending in panels.ENDINGS}) == len(panels.ENDINGS)
    assert len({to_rgb(ending.colour) for ending in panels.ENDINGS}) == len(panels.ENDINGS)
