"""A study's figures as a whole: its front, its course and its hyperparameters.

A door to matplotlib, on a `canvas`. It draws what `points` and `importance` found and computes
nothing; its trials one by one are drawn in `panels`. Every colour has a second mark beside it.
Where there is too little to draw, figures are None.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from green_tune.canvas import (
    BLUE,
    DARK,
    GREEN,
    GREY,
    KG_TO_G,
    ORANGE,
    RED,
    SMALL,
    ceiling,
    fit_scale,
    in_grams,
    legend,
    plot,
)
from green_tune.importance import LEVEL, Importance
from green_tune.points import (
    REFERENCE,
    Point,
    best,
    front_of,
    gained,
    greenest,
    knee,
    label,
    points,
    reference,
)
from green_tune.results import RunRecord

LABELS = 12  # on a front: more are not read
LOSS = "validation loss (nats per completion token)"
OFFSETS = [(dx, -dy) for dy in (5, 14, 26, 40, 56) for dx in (-4, -16, -32)]  # points of type
RING = 8  # pixels from the middle of a mark of the front to its edge


def front_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """Loss against emissions of every trial, at its end and on the way, the front as a step line.

    Labels that would lie on one another are left out, the ends of the front and its bend first
    kept. None where no trial has finished.
    """
    found = points(records)
    if not found:
        return None
    figure, axes = plot(title)
    ends = [point for point in found if _is_end(point)]
    way = [point for point in found if not _is_end(point)]
    front = front_of(found)
    _scatter(axes, way, "on the way", marker="o", s=12, facecolors="none", edgecolors=GREY, lw=0.7)
    _scatter(axes, [p for p in ends if not p.ended], "stopped", marker="x", s=34, color=RED, lw=1.4)
    _scatter(axes, [p for p in ends if p.ended], "ended", marker="o", s=34, color=BLUE, alpha=0.85)
    # A step, not a slope: between two trials nothing was shown to be possible.
    axes.plot(*_grams_and_losses(front), drawstyle="steps-post", color=GREEN, lw=1.8, zorder=1)
    _scatter(
        axes, front, "Pareto front", marker="o", s=74, facecolors="none", edgecolors=GREEN, lw=1.6
    )
    fit_scale(axes.set_xscale, axes.xaxis, [p.emissions_kg * KG_TO_G for p in found])
    fit_scale(axes.set_yscale, axes.yaxis, [p.val_loss for p in found])
    axes.set_xlabel(in_grams(records))
    axes.set_ylabel(LOSS)
    axes.margins(x=0.16, y=0.1)  # for the labels
    _cut(axes, found)
    legend(figure)
    _label(figure, axes, front)
    return figure


def hypervolume_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """How much of the final hypervolume was there after how many grams, with and without the way.

    None below two trials that are over, or where none is better than the reference.
    """
    course, limit = gained(records), reference(records)
    if len(course) < 2 or limit is None or not course[-1].hypervolume:  # noqa: PLR2004
        return None
    figure, axes = plot(title)
    grams = [0.0, *(after.spent_kg * KG_TO_G for after in course)]
    whole = course[-1].hypervolume / 100
    every = [0.0, *(after.hypervolume / whole for after in course)]
    ended = [0.0, *(after.hypervolume_ended / whole for after in course)]
    lines = (("all points", every, BLUE, "-"), ("ends of trials alone", ended, ORANGE, "--"))
    for text, values, colour, dashes in lines:
        axes.plot(grams, values, dashes, drawstyle="steps-post", color=colour, lw=2, label=text)
    axes.set_ylim(0, 105)
    axes.set_xlim(left=0)
    axes.set_xlabel(in_grams(records, of="spent in trials: "))
    axes.set_ylabel("hypervolume (% of the final one)")
    loss, kg = limit
    note = f"Reference: loss {loss:.3g} at {kg * KG_TO_G:.3g} g; {REFERENCE}."
    legend(figure, note)
    return figure


def importance_figure(
    importances: Sequence[Importance], title: str, remark: str = ""
) -> Figure | None:
    """The share of each objective's variance that each hyperparameter explains, with intervals.

    `remark` stands below. None where there are no importances.
    """
    if not importances:
        return None
    names = list(dict.fromkeys(i.name for i in sorted(importances, key=lambda i: -i.share)))
    figure, axes = plot(title, height=1.6 + 0.5 * len(names))
    bars = (("val_loss", "validation loss", BLUE, ""), ("emissions_kg", "emissions", ORANGE, "//"))
    for row, (objective, text, colour, hatch) in enumerate(bars):
        mine = [i for i in importances if i.objective == objective]
        axes.barh(
            [names.index(i.name) + (row - 0.5) * 0.38 for i in mine],
            [100 * i.share for i in mine],
            height=0.36,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=text,
            xerr=[
                [100 * (i.share - i.low) for i in mine],
                [100 * (i.high - i.share) for i in mine],
            ],
            error_kw={"ecolor": DARK, "elinewidth": 1.2, "capsize": 3},
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"share of the variance it explains alone (%), {LEVEL:.0%} intervals")
    legend(figure, remark)
    return figure


def _is_end(point: Point) -> bool:
    """It carries what its trial cost in total; validations on the way carry less."""
    return point.emissions_kg == point.record.metrics["emissions_kg"]


def _grams_and_losses(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    return [p.emissions_kg * KG_TO_G for p in points], [p.val_loss for p in points]


def _scatter(axes: Any, points: Sequence[Point], text: str, **look: Any) -> None:
    if points:
        axes.scatter(*_grams_and_losses(points), label=text, zorder=2, **look)


def _cut(axes: Any, found: Sequence[Point]) -> None:
    """One training that diverged would press all others flat: it is shown at the upper edge."""
    limit = ceiling(found)
    above = [p.emissions_kg * KG_TO_G for p in found if p.val_loss > limit and _is_end(p)]
    kept = [point.val_loss for point in found if point.val_loss <= limit]
    if not above or not kept:
        return
    edge = limit + 0.05 * (limit - min(kept))
    axes.set_ylim(min(kept) - 0.1 * (edge - min(kept)), edge)
    axes.scatter(above, [edge] * len(above), marker="^", s=40, facecolors="white", edgecolors=RED,
                 clip_on=False, zorder=3, label="ended worse than the start")  # fmt: skip


def _label(figure: Figure, axes: Any, front: Sequence[Point]) -> None:
    """Names below and left of the front, where there is nothing by definition.

    Each takes the nearest of `OFFSETS` where it covers no other, with a line to its point where
    that is not near; one that finds no room is left out.
    """
    names: dict[tuple[float, float], list[str]] = defaultdict(list)
    for point in front:
        names[point.pair].append(label(point))
    figure.draw_without_rendering()  # only now is it known how wide a text is
    rings = axes.transData.transform([(p.emissions_kg * KG_TO_G, p.val_loss) for p in front])
    taken = [Bbox.from_extents(x - RING, y - RING, x + RING, y + RING) for x, y in rings]
    for point in _by_interest(front):
        if len(taken) < len(rings) + LABELS and point.pair in names:
            text = ", ".join(names.pop(point.pair))
            taken += _place(axes, (point.emissions_kg * KG_TO_G, point.val_loss), text, taken)


def _by_interest(front: Sequence[Point]) -> list[Point]:
    """The ends of the front and its bend, then ends of trials, then those on the way."""
    first = [p for p in (best(front), greenest(front), knee(front)) if p is not None]
    return [*first, *sorted(front, key=lambda point: not point.ended)]


def _place(axes: Any, at: tuple[float, float], text: str, taken: Sequence[Bbox]) -> list[Bbox]:
    for x, y in OFFSETS:
        far = y != OFFSETS[0][1]
        note = axes.annotate(
            text,
            at,
            textcoords="offset points",
            xytext=(x, y),
            ha="right",
            va="top",
            fontsize=SMALL,
            color=DARK,
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.6, "shrinkA": 0} if far else None,
        )
        note.get_window_extent()  # puts it where it will stand
        box = Text.get_window_extent(note)  # without the line to its point
        inside = axes.bbox.x0 < box.x0 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
        if inside and not any(box.overlaps(other) for other in taken):
            return [box]
        note.remove()
    return []
