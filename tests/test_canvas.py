"""All figures of a study: they fit, name what they rest on, and are left out where little is."""

import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
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


def cloud(marks: int, colour: str = canvas.GREY) -> Figure:
    figure, axes = canvas.plot("a <b> & c")
    axes.scatter(range(marks), range(marks), color=colour)
    axes.text(0, 0, "in a box", bbox=canvas.WHITE, color=canvas.DARK)
    axes.plot([0, 1], [0, 1], color="#440154")
    return figure


def test_a_drawing_for_a_page_takes_its_greys_from_it_and_keeps_its_colours() -> None:
    svg = canvas.to_svg(cloud(3, canvas.BLUE), "n", 'a "b" <c>', themed=True)
    assert not re.search(r"#(000000|ffffff|404040|999999|b0b0b0)", svg)
    for used in ("currentColor", "var(--paper, #fff)", canvas.BLUE.lower()):
        assert used in svg
    assert "stroke: color-mix(in srgb, #440154 var(--kept, 100%), #fff)" in svg
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    root = svg[: svg.index(">")]
    assert 'viewBox="0 0 540 ' in root
    assert not re.search("(width|height)=", root)


def test_what_stands_on_a_colour_stays_as_it_is_in_the_dark() -> None:
    figure, axes = canvas.plot("t")
    axes.text(0, 0, "a", color=canvas.ON_DARK)
    axes.axvline(0, color=canvas.ON_LIGHT)
    svg = canvas.to_svg(figure, "n", themed=True)
    assert f"fill: {canvas.ON_DARK}" in svg
    assert f"stroke: {canvas.ON_LIGHT};" in svg


def test_letters_of_a_drawing_for_a_page_are_text_and_signs_of_markup_are_none() -> None:
    svg = canvas.to_svg(cloud(3), "n", themed=True)
    assert ">a &lt;b&gt; &amp; c</text>" in svg
    assert "DejaVu" not in svg
    assert "<text" not in canvas.to_svg(cloud(3), "n")


def test_a_drawing_on_its_own_is_whole_and_on_white() -> None:
    svg = canvas.to_svg(cloud(3), "n")
    assert svg.startswith("<?xml")
    assert 'style="fill: #ffffff"' in svg
    assert "currentColor" not in svg


def test_drawings_of_one_name_are_equal_and_ids_of_two_names_differ() -> None:
    def ids(name: str) -> set[str]:
        return set(re.findall(r'id="([^"]*)"', canvas.to_svg(cloud(3), name, themed=True)))

    for themed in (False, True):
        one, other = (canvas.to_svg(cloud(3), "n", themed=themed) for _ in range(2))
        assert one == other
        assert "dc:date" not in one
    assert ids("one")
    assert not ids("one") & ids("other")


def test_a_crowd_of_marks_becomes_an_image_inside_of_its_drawing() -> None:
    few, many = cloud(canvas.CROWD // 2), cloud(20 * canvas.CROWD)
    assert "<image" not in canvas.to_svg(few, "n", themed=True)
    svg = canvas.to_svg(many, "n", themed=True)
    assert '<image href="data:image/png;base64,' in svg
    assert ">in a box</text>" in svg
    assert not many.axes[0].collections[0].get_rasterized()


def test_nothing_of_matplotlib_is_changed_for_others_by_drawing() -> None:
    before = dict(mpl.rcParams)
    canvas.to_svg(cloud(3), "n", themed=True)
    canvas.to_png(cloud(3))
    assert dict(mpl.rcParams) == before


def test_an_image_is_900_pixels_wide_and_always_the_same() -> None:
    one, other = canvas.to_png(cloud(3)), canvas.to_png(cloud(3))
    assert one == other
    assert int.from_bytes(one[16:20]) == 900


def test_links_of_marks_lead_to_pages_alone() -> None:
    figure, axes = canvas.plot("t")
    marks = axes.scatter([1, 2], [1, 2])
    marks.set_urls(["javascript:alert(1)", "https://a.b/?c=d&e"])
    for themed, href in ((False, "xlink:href"), (True, "href")):
        svg = canvas.to_svg(figure, "n", themed=themed)
        assert "javascript" not in svg
        assert svg.count(f'<a {href}="https://a.b/?c=d&amp;e" target="_blank"') == 1
    assert 'target="_blank" rel="noopener noreferrer" tabindex="-1">' in svg
