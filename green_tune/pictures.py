"""A study's figures: its front, its course, its hyperparameters and its workers.

The door to matplotlib, through `Figure` alone, so that no global state and no screen is needed.
It draws what `points` and `importance` found and computes nothing. Colours are Okabe and Ito's,
which colour-blind readers tell apart; every colour has a second mark beside it.

All figures are for 900 pixels of width. Where there is too little to draw, they are None.
"""

import math
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from green_tune.importance import LEVEL, Importance
from green_tune.points import (
    FINISHED,
    REFERENCE,
    Point,
    best,
    by_start,
    ended_front,
    front_of,
    gained,
    greenest,
    intensities,
    knee,
    label,
    points,
    reference,
)
from green_tune.results import RETRY_OF, REUSED, STOPPED_WHY, TRIAL, WORKER, RunRecord
from green_tune.space import SPACE

KG_TO_G = 1000.0
WIDTH, HEIGHT, DPI = 7.5, 4.8, 120  # inches, and what makes them 900 pixels
SMALL = 8  # points of type
SPREAD = 10  # the largest by the smallest value, from which on a logarithmic axis reads better
LABELS = 12  # on a front: more are not read
GREEN, BLUE, ORANGE, RED, SKY = "#009E73", "#0072B2", "#E69F00", "#D55E00", "#56B4E9"
DARK, GREY = "0.25", "0.6"
WHITE = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8}
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
    figure, axes = _plot(title)
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
    _fit_scale(axes.set_xscale, axes.xaxis, [p.emissions_kg * KG_TO_G for p in found])
    _fit_scale(axes.set_yscale, axes.yaxis, [p.val_loss for p in found])
    axes.set_xlabel(_grams(records))
    axes.set_ylabel(LOSS)
    axes.margins(x=0.16, y=0.1)  # for the labels
    _cut(axes, found)
    _legend(figure)
    _label(figure, axes, front)
    return figure


def hypervolume_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """How much of the final hypervolume was there after how many grams, with and without the way.

    None below two trials that are over, or where none is better than the reference.
    """
    course, limit = gained(records), reference(records)
    if len(course) < 2 or limit is None or not course[-1].hypervolume:  # noqa: PLR2004
        return None
    figure, axes = _plot(title)
    grams = [0.0, *(after.spent_kg * KG_TO_G for after in course)]
    whole = course[-1].hypervolume / 100
    every = [0.0, *(after.hypervolume / whole for after in course)]
    ended = [0.0, *(after.hypervolume_ended / whole for after in course)]
    lines = (("all points", every, BLUE, "-"), ("ends of trials alone", ended, ORANGE, "--"))
    for text, values, colour, dashes in lines:
        axes.plot(grams, values, dashes, drawstyle="steps-post", color=colour, lw=2, label=text)
    axes.set_ylim(0, 105)
    axes.set_xlim(left=0)
    axes.set_xlabel(_grams(records, of="spent in trials: "))
    axes.set_ylabel("hypervolume (% of the final one)")
    loss, kg = limit
    note = f"Reference: loss {loss:.3g} at {kg * KG_TO_G:.3g} g; {REFERENCE}."
    _legend(figure, note)
    return figure


def parallel_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """One line for each trial that ran to its end: what was chosen, and what came of it.

    Hyperparameters that vary, then loss and grams; the trials on the front of these are thicker.
    None below two such trials, or where nothing varies.
    """
    ended = [point for point in points(records) if point.ended]
    columns = _columns(ended)
    if len(columns) < 3:  # noqa: PLR2004
        return None
    figure, axes = _plot(title)
    grams = [point.emissions_kg * KG_TO_G for point in ended]
    shades = ScalarMappable(norm=_norm(grams), cmap="viridis_r")
    on_front = {point.record.run_id for point in ended_front(records)}
    for row, colour in enumerate(shades.to_rgba(np.array(grams))):
        heights = [column.height(column.values[row]) for column in columns]
        thick = ended[row].record.run_id in on_front
        look = {"lw": 3, "zorder": 3} if thick else {"lw": 1, "zorder": 2, "alpha": 0.55}
        axes.plot(heights, color=colour, solid_joinstyle="round", **look)
    _uprights(axes, columns)
    note = "thick: on the Pareto front of these trials; losses above the start's are drawn at it"
    figure.supxlabel(note, fontsize=SMALL, color=DARK)
    bar = figure.colorbar(shades, ax=axes, pad=0.02, fraction=0.05)
    _fit_scale(None, bar.ax.yaxis, grams)
    bar.set_label(_grams(records, width=60), fontsize=SMALL)
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
    figure, axes = _plot(title, height=1.6 + 0.5 * len(names))
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
    _legend(figure, remark)
    return figure


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """One way in which a trial can end, and how its bar looks."""

    text: str
    colour: str
    hatch: str = ""


ENDED = _Ending(text="ran to its end", colour=GREEN)
DOMINATED = _Ending(text="stopped: dominated", colour=ORANGE, hatch="//")
EARLY = _Ending(text="stopped early", colour=SKY, hatch="\\\\")
REPEATED = _Ending(text="cut off, tried again", colour="#CC79A7", hatch="..")
FAILED = _Ending(text="failed", colour=RED, hatch="xx")
ENDINGS = (ENDED, DOMINATED, EARLY, REPEATED, FAILED)


def timeline_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """Which worker did which trial when, and how each ended.

    A trial that was taken over from an earlier run took no time, and is a diamond where it was
    asked for; one that is still running is left out. None where no trial is over.
    """
    over = [r for r in by_start(records) if "runtime_h" in r.metrics or REUSED in r.tags]
    if not over:
        return None
    rows = _workers(over)
    figure, axes = _plot(title, height=1.9 + 0.5 * len(rows))
    unit, factor = _unit(over)
    bars = [_bar(record, over[0], rows, factor) for record in over]
    _draw(axes, [bar for bar in bars if REUSED not in bar.record.tags], _again(records))
    taken = [(bar.start, bar.row) for bar in bars if REUSED in bar.record.tags]
    if taken:
        look = {"marker": "D", "s": 30, "color": DARK, "edgecolors": "white", "zorder": 4}
        axes.scatter(*zip(*taken, strict=True), label="taken over", **look)
    axes.set_yticks(list(rows.values()), [f"worker {row + 1}" for row in rows.values()])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(f"time since the first trial's start ({unit})")
    _legend(figure)
    _number(figure, axes, [bar for bar in bars if bar.length])
    return figure


def _plot(title: str, height: float = HEIGHT) -> tuple[Figure, Any]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(textwrap.fill(title, 70))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(figure: Figure, note: str = "") -> None:
    """Below the axes, where it covers nothing; a note belongs to it, so that neither does that."""
    look = {"fontsize": SMALL, "title_fontsize": SMALL, "frameon": False, "columnspacing": 1.2}
    figure.legend(loc="outside lower center", ncols=6, title=note or None, **look)


def _grams(records: Sequence[RunRecord], width: int = 80, of: str = "") -> str:
    return textwrap.fill(f"{of}emissions (g CO2e; {intensities(records)})", width)


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
    limit = _start_loss(found)
    above = [p.emissions_kg * KG_TO_G for p in found if p.val_loss > limit and _is_end(p)]
    kept = [point.val_loss for point in found if point.val_loss <= limit]
    if not above or not kept:
        return
    edge = limit + 0.05 * (limit - min(kept))
    axes.set_ylim(min(kept) - 0.1 * (edge - min(kept)), edge)
    axes.scatter(above, [edge] * len(above), marker="^", s=40, facecolors="white", edgecolors=RED,
                 clip_on=False, zorder=3, label="ended worse than the start")  # fmt: skip


def _start_loss(found: Sequence[Point]) -> float:
    """Of the base model; infinite where no trial knows it."""
    starts = [point.record.metrics.get("start_val_loss", math.inf) for point in found]
    return min(starts, default=math.inf)


def _is_spread(values: Iterable[float]) -> bool:
    low, high = min(values := list(values)), max(values)
    return low > 0 and high / low > SPREAD


def _fit_scale(set_scale: Callable[[str], None] | None, axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the values are far apart, its ticks written as plain numbers."""
    if not _is_spread(values):
        return
    if set_scale is not None:
        set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


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


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One upright axis of the parallel coordinates."""

    title: str
    values: Sequence[float]
    is_log: bool

    def height(self, value: float) -> float:
        """From 0 at its lowest value to 1 at its highest."""
        low, high, here = (self._scaled(v) for v in (min(self.values), max(self.values), value))
        return (here - low) / (high - low)

    def ticks(self) -> list[float]:
        """The values themselves where they are few, round numbers between them otherwise."""
        low, high, own = min(self.values), max(self.values), sorted(set(self.values))
        whole = all(value == int(value) for value in own)
        if whole and len(own) <= 6:  # noqa: PLR2004
            return own
        locator = LogLocator(subs=(1, 2, 5)) if self.is_log else MaxNLocator(5, integer=whole)
        return [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def _columns(ended: Sequence[Point]) -> list[_Column]:
    """What varies and is a number in each of the trials."""
    raw = [(n, [_read(p.record.params.get(n, "")) for p in ended], _is_log(n)) for n in SPACE]
    for title, values in (("val_loss", [min(p.val_loss, _start_loss(ended)) for p in ended]),
                          ("grams", [p.emissions_kg * KG_TO_G for p in ended])):  # fmt: skip
        raw.append((title, values, bool(values) and _is_spread(values)))
    return [
        _Column(title=name.replace("_", "\n"), values=values, is_log=log and min(values) > 0)
        for name, values, log in raw
        if all(math.isfinite(value) for value in values) and len(set(values)) > 1
    ]


def _is_log(name: str) -> bool:
    return SPACE[name].scale in ("log", "powers of two")


def _read(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _uprights(axes: Any, columns: Sequence[_Column]) -> None:
    """The axes of the parallel coordinates, in place of the figure's own."""
    for x, column in enumerate(columns):
        axes.axvline(x, color=DARK, lw=1, zorder=4)
        for tick in column.ticks():
            _tick(axes, x, column.height(tick), f"{tick:g}")
    axes.set_xlim(-0.45, len(columns) - 0.8)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xticks(range(len(columns)), [c.title for c in columns], fontsize=SMALL + 1)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _tick(axes: Any, x: float, y: float, text: str) -> None:
    axes.annotate(
        text,
        (x, y),
        textcoords="offset points",
        xytext=(-3, 0),
        ha="right",
        va="center",
        fontsize=SMALL,
        zorder=5,
        bbox=WHITE,
    )


def _norm(grams: Sequence[float]) -> Normalize:
    return (LogNorm if _is_spread(grams) else Normalize)(min(grams), max(grams))


def _worker(record: RunRecord) -> str:
    return record.tags.get(WORKER, "")


def _workers(over: Sequence[RunRecord]) -> dict[str, int]:
    """The row of each worker, the first that began at the top."""
    return {worker: row for row, worker in enumerate(dict.fromkeys(_worker(r) for r in over))}


def _unit(over: Sequence[RunRecord]) -> tuple[str, float]:
    """The unit that a reader would choose, and how many of it make an hour."""
    ends = [bar.start + bar.length for bar in (_bar(r, over[0], {}, 1.0) for r in over)]
    units = (("h", 1.0, 2.0), ("min", 60.0, 2.0 / 60), ("s", 3600.0, 0.0))
    return next((unit, factor) for unit, factor, least in units if max(ends) >= least)


@dataclass(frozen=True, kw_only=True)
class _Bar:
    """A trial's place in the timeline; start and length in the figure's unit."""

    record: RunRecord
    row: int
    start: float
    length: float


def _bar(record: RunRecord, first: RunRecord, rows: Mapping[str, int], factor: float) -> _Bar:
    """What was taken over has no length, whatever the earlier run took."""
    hours = (record.started - first.started).total_seconds() / 3600
    length = 0.0 if REUSED in record.tags else record.metrics["runtime_h"]
    row = rows.get(_worker(record), 0)
    return _Bar(record=record, row=row, start=hours * factor, length=length * factor)


def _draw(axes: Any, bars: Sequence[_Bar], again: set[str]) -> None:
    """One call for each way of ending, so that each has its line in the legend."""
    for ending in ENDINGS:
        mine = [bar for bar in bars if _ending(bar.record, again) == ending]
        if mine:
            axes.barh(
                [bar.row for bar in mine],
                [bar.length for bar in mine],
                left=[bar.start for bar in mine],
                height=0.7,
                color=ending.colour,
                hatch=ending.hatch,
                edgecolor="white",
                lw=0.6,
                label=ending.text,
            )


def _again(records: Sequence[RunRecord]) -> set[str]:
    """The runs that another has tried again."""
    return {record.tags.get(RETRY_OF, "") for record in records}


def _ending(record: RunRecord, again: set[str]) -> _Ending:
    if record.status != FINISHED:
        return REPEATED if record.run_id in again else FAILED
    if record.tags.get(STOPPED_WHY, "").startswith("dominated"):
        return DOMINATED
    return EARLY if record.ended_early else ENDED


def _number(figure: Figure, axes: Any, bars: Sequence[_Bar]) -> None:
    """The trial's number in its bar, where it is wide enough."""
    figure.draw_without_rendering()
    for bar in bars:
        middle, number = bar.start + bar.length / 2, bar.record.tags.get(TRIAL, "")
        text = axes.text(
            middle, bar.row, number, ha="center", va="center", fontsize=SMALL, bbox=WHITE
        )
        ends = axes.transData.transform([(bar.start, 0), (bar.start + bar.length, 0)])
        if text.get_window_extent().width + SMALL > ends[1][0] - ends[0][0]:
            text.remove()
