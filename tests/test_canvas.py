"""All figures of a study: they fit, name what they rest on, and are left out where little is."""

import io
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from figures import BARS, TRIALS, drawn, stopped, unfinished
from matplotlib.figure import Figure
from matplotlib.text import Text

from green_tune import canvas, panels, pictures
from green_tune.results import RunRecord

ROOT = Path(__file__).parents[1]


def all_figures(records: Sequence[RunRecord]) -> list[Figure | None]:
    return [
        pictures.front_figure(records, "s"),
        pictures.hypervolume_figure(records, "s"),
        panels.parallel_figure(records, "s"),
        panels.timeline_figure(records, "s"),
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
        assert -0.01 <= used.x0 < used.x1 <= canvas.WIDTH + 0.01
        assert -0.01 <= used.y0 < used.y1 <= whole.height / canvas.DPI + 0.01


@pytest.mark.parametrize("which", [0, 1, 2])
def test_figures_with_grams_say_what_intensity_they_rest_on(which: int) -> None:
    def said(records: Sequence[RunRecord]) -> str:
        texts = drawn(all_figures(records)[which]).findobj(Text)
        return " ".join(text.get_text().replace("\n", " ") for text in texts)

    assert "g CO2e; assumed: world average at 475 g/kWh" in said(TRIALS)
    known = {"intensity_zone": "France", "intensity_assumed": "false"}
    assert "assumed" not in said([replace(r, tags={**r.tags, **known}) for r in TRIALS])


def test_axes_are_logarithmic_where_the_values_are_far_apart() -> None:
    near, far = (replace(TRIALS[0], run_id=str(times), tags={}, metrics={
        "val_loss": 1 / times, "emissions_kg": 0.01 * times}) for times in (2, 21))  # fmt: skip
    close = replace(near, metrics={"val_loss": 0.4, "emissions_kg": 0.03})
    assert drawn(pictures.front_figure([near, far], "s")).axes[0].get_xscale() == "log"
    assert drawn(pictures.front_figure([near, close], "s")).axes[0].get_xscale() == "linear"


def test_figures_can_be_saved_without_a_screen_or_pyplot() -> None:
    code = "import sys, green_tune.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    file = io.BytesIO()
    drawn(pictures.front_figure(TRIALS, "s")).savefig(file)
    assert file.getvalue().startswith(b"\x89PNG")
