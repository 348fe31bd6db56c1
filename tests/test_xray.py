"""The picture of the padding X-ray: all methods are there, named apart, and words say the same."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from figures import drawn
from matplotlib.colors import to_hex

from green_tune import canvas, padding, xray
from green_tune.padding import Row
from green_tune.xray import xray_figure

SIZES = (1, 2, 4, 8, 16, 32, 64)
PADDED = {"max_length": 0.8, "longest": 0.3, "grouped": 0.02, "flat": 0.0, "tree": -1.5}


def rows(
    shares: dict[str, float], mine: str = "tree", size: int = 8, price: float | None = 1e-6
) -> list[Row]:
    """Made up, with padding that grows from nothing up to these shares."""
    return [
        Row(
            method=method,
            batch_size=each,
            useful=1e6,
            processed=1e6 / (1 - part),
            gflop=1e4 / (1 - part),
            flat_gflop=1e4,
            emissions_g=None if price is None else price * 1e4 / (1 - part),
            mine=(method, each) == (mine, size),
        )
        for method, share in shares.items()
        for each in SIZES
        for part in [share if method == "max_length" else share * each / SIZES[-1]]
    ]


def shown(found: Sequence[Row]) -> tuple[Any, str]:
    figure = xray_figure(found, "a title")
    assert figure is not None
    return drawn(figure[0]), figure[1]


def bars(axes: Any) -> dict[str, float]:
    """Where the coloured part and the padding of each method's bar ends."""
    names = [label.get_text().split("\n")[0] for label in axes.get_yticklabels()]
    ends = dict.fromkeys(names, 0.0)
    for patch in axes.patches:
        colour = patch.get_facecolor()
        if colour[3] and to_hex(colour) != "#ffffff":  # not what is saved, nor a gap
            name = names[round(patch.get_y() + patch.get_height() / 2)]
            ends[name] = max(ends[name], patch.get_x() + patch.get_width())
    return ends


def test_each_method_has_a_line_of_its_shares() -> None:
    figure, _ = shown(rows(PADDED))
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == len(SIZES)]
    assert [list(line.get_xdata()) for line in lines] == [list(SIZES)] * len(PADDED)
    assert [line.get_ydata()[-1] for line in lines] == pytest.approx(list(PADDED.values()))
    assert len({line.get_marker() for line in lines}) == len({line.get_color() for line in lines})
    assert len({line.get_marker() for line in lines}) == len(PADDED)


@pytest.mark.parametrize(
    "shares",
    [
        PADDED,
        dict.fromkeys(PADDED, 0.0),
        {**PADDED, "tree": -0.001},
        {**PADDED, "padded": 0.02},
        {"max_length": 0.97, "longest": 0.96, "grouped": 0.95, "flat": 0.0, "tree": -9.0},
    ],
)
def test_names_stand_beside_their_lines_and_not_on_each_other(shares: dict[str, float]) -> None:
    found = rows(shares)
    figure, _ = shown(found)
    texts = figure.axes[0].texts
    assert {text.get_text() for text in texts} == set(shares)
    boxes = [text.get_window_extent() for text in texts]
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    placed = {text.get_text(): text.get_position()[1] for text in texts}
    by_share = sorted(shares, key=lambda name: shares[name])
    heights = [placed[name] for name in by_share if list(shares.values()).count(shares[name]) == 1]
    assert heights == sorted(heights)


@pytest.mark.parametrize("shares", [PADDED, {**PADDED, "max_length": 0.1, "longest": 0.05}])
def test_nothing_reaches_over_the_edge_of_the_picture_or_on_the_other_axes(
    shares: dict[str, float],
) -> None:
    figure, _ = shown(rows(shares, size=64))
    left, right = (axes.get_tightbbox() for axes in figure.axes)
    assert left.x1 <= right.x0
    assert left.x0 >= 0
    assert right.x1 <= figure.bbox.x1


def test_marks_on_the_axis_of_shares_do_not_run_into_each_other() -> None:
    for shares in (PADDED, dict.fromkeys(PADDED, 0.0), {**PADDED, "max_length": 0.99}):
        figure, _ = shown(rows(shares))
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        labels = [text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
        boxes = [text.get_window_extent() for text in labels]
        assert "0" in [text.get_text() for text in labels]
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_bars_end_where_the_trainings_of_the_jobs_batch_size_do() -> None:
    found = rows({**PADDED, "max_length": 0.5}, price=1e-3)
    figure, _ = shown(found)
    expected = {row.method: row.spent for row in padding.at_own_size(found).values()}
    assert bars(figure.axes[1]) == pytest.approx(expected)
    written = [float(text.get_text()) for text in figure.axes[1].texts]
    assert written == pytest.approx(list(expected.values()), rel=1e-2)
    assert figure.axes[1].get_xlabel() == "g CO2e at batch size 8, modelled"


def test_a_bar_that_would_press_the_others_flat_is_cut_and_it_is_said() -> None:
    for share, cut in ((0.95, True), (0.5, False)):
        figure, _ = shown(rows({**PADDED, "max_length": share}, price=1e-3))
        note = figure.legends[0].get_title().get_text()
        assert (xray.CUT in note) == cut
        ends = bars(figure.axes[1])
        assert ends["longest"] > 0.5 * ends["flat"]
        assert figure.axes[1].get_xlim()[1] < 3 * ends["flat"]
    assert figure.axes[1].texts[0].get_text() == "20"


def test_what_is_saved_by_sharing_is_in_the_legend_only_where_something_is() -> None:
    for share in (-1.5, 0.0):
        figure, _ = shown(rows({**PADDED, "tree": share}, mine="flat"))
        names = [text.get_text() for text in figure.legends[0].get_texts()]
        assert ("saved: shared prompts once" in names) == (share < 0)


def test_the_job_is_marked_in_both_panels() -> None:
    figure, _ = shown(rows(PADDED, mine="flat", size=16))
    ring = figure.axes[0].lines[-1]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (16, 0)
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert names == ["max_length", "longest", "grouped", "flat\n(this job)", "tree"]
    bold = [text.get_text() for text in figure.axes[0].texts if text.get_weight() == "bold"]
    assert bold == ["flat"]


def test_words_say_the_shares_and_what_they_come_to() -> None:
    found = rows(PADDED, mine="tree", size=64)
    _, words = shown(found)
    shares = "max_length 80%; longest 30%; grouped 2%; flat 0%; tree -150%"
    assert words == f"Padding at batch size 64: {shares}. {padding.sentence(found)}"


def test_without_a_price_the_bars_are_operations() -> None:
    figure, words = shown(rows(PADDED, price=None))
    assert figure.axes[1].get_xlabel() == "TFLOP at batch size 8, modelled"
    assert "CO2e" not in words


def test_one_batch_size_alone_can_be_drawn() -> None:
    figure, _ = shown([row for row in rows(PADDED) if row.batch_size == 8])
    assert len(figure.axes) == 2


def test_without_rows_there_is_no_picture() -> None:
    assert xray_figure([], "a title") is None


def test_a_picture_is_the_same_each_time() -> None:
    found = rows(PADDED)
    svgs = [canvas.to_svg(shown(found)[0], "x", "w", themed=True) for _ in range(2)]
    assert svgs[0] == svgs[1]
    assert "max_length" in svgs[0]
