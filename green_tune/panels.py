"""A study's figures trial by trial: what was chosen and came of it, and who did which when.

A door to matplotlib, on a `canvas`; it draws what `points` found and computes nothing. Every colour
has a second mark beside it. Where there is too little to draw, figures are None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from green_tune.canvas import (
    DARK,
    GREEN,
    KG_TO_G,
    ORANGE,
    RED,
    SKY,
    SMALL,
    WHITE,
    ceiling,
    fit_scale,
    in_grams,
    is_spread,
    legend,
    plot,
)
from green_tune.points import FINISHED, Point, by_start, ended_front, points
from green_tune.results import RETRY_OF, REUSED, STOPPED_WHY, TRIAL, WORKER, RunRecord
from green_tune.space import SPACE


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


def parallel_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """One line for each trial that ran to its end: what was chosen, and what came of it.

    Hyperparameters that vary, then loss and grams; the trials on the front of these are thicker.
    None below two such trials, or where nothing varies.
    """
    ended = [point for point in points(records) if point.ended]
    columns = _columns(ended)
    if len(columns) < 3:  # noqa: PLR2004
        return None
    figure, axes = plot(title)
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
    fit_scale(None, bar.ax.yaxis, grams)
    bar.set_label(in_grams(records, width=60), fontsize=SMALL)
    return figure


def timeline_figure(records: Sequence[RunRecord], title: str) -> Figure | None:
    """Which worker did which trial when, and how each ended.

    A trial that was taken over from an earlier run took no time, and is a diamond where it was
    asked for; one that is still running is left out. None where no trial is over.
    """
    over = [r for r in by_start(records) if "runtime_h" in r.metrics or REUSED in r.tags]
    if not over:
        return None
    rows = _workers(over)
    figure, axes = plot(title, height=1.9 + 0.5 * len(rows))
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
    legend(figure)
    _number(figure, axes, [bar for bar in bars if bar.length])
    return figure


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
    for title, values in (("val_loss", [min(p.val_loss, ceiling(ended)) for p in ended]),
                          ("grams", [p.emissions_kg * KG_TO_G for p in ended])):  # fmt: skip
        raw.append((title, values, bool(values) and is_spread(values)))
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
    return (LogNorm if is_spread(grams) else Normalize)(min(grams), max(grams))


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
