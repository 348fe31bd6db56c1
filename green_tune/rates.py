"""The emissions rate of each run against what it emitted in all, and how long it took.

A door to matplotlib, in the looks of `looks`. Dotted lines join what is equal in the third figure;
each says its value where no run is near.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from green_tune.blocks import gpu, group
from green_tune.canvas import DARK, GREY, SMALL, WHITE, is_spread
from green_tune.looks import (
    DECADES_30,
    TIME,
    Cast,
    Drawn,
    basis,
    cast,
    legend,
    panels,
    said,
    scatter,
    unit,
    value,
)
from green_tune.results import RunRecord

RATE = "emissions_rate_kg_per_h"
DECADES_1000 = 1000  # from which a wide axis has room for one tick in ten
ISO = 3  # lines of equal value: more would hide the points
NARROWEST = 5.0  # ratio of an axis' ends
POINTS = 120  # of a line, at one of which its value stands
LABEL = (0.11, 0.045)  # half of what a value takes of the width and height of its axes
EDGE = np.array([0.1, 0.05])  # of axes, in which none stands


def rates_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """Emissions rate against total emissions, and against runtime, by GPU.

    All axes are logarithmic. Dotted lines join equal runtimes on the left and equal emissions on
    the right. None where no run has all three above 0.
    """
    names = ("emissions_kg", "runtime_h", RATE)
    shown = cast((r for r in records if all(value(r, name) > 0 for name in names)), *names)
    if shown is None:
        return None
    rows = {r.run_id: [value(r, name) for name in names] for r in shown.records}
    kilograms, hours, rates = (list(each) for each in zip(*rows.values(), strict=True))
    (mass, grams), (time, per_h), (rate, by) = unit(kilograms), unit(hours, TIME), unit(rates)
    figure, (left, right) = panels(title, 2, height=3.3)
    for axes, column, factor in ((left, 0, grams), (right, 1, per_h)):
        for on, runs in group(shown.records, gpu).items():
            look, mine = shown.gpus[on], [rows[r.run_id] for r in runs]
            scatter(axes, [(row[column] * factor, row[2] * by) for row in mine],
                    [r.run_id for r in runs], links or {}, of=len(rows), color=look.colour,
                    marker=look.marker)  # fmt: skip
        _stretch(axes, [row[column] * factor for row in rows.values()], [r * by for r in rates])
    product = by * per_h / grams  # of a rate and a runtime as they are shown, for one shown mass
    lines = [
        *_lines(left, [h * per_h for h in hours], lambda x, h: product * x / h, time),
        *_lines(right, [kg * grams for kg in kilograms], lambda x, m: product * m / x, mass),
    ]
    left.set_xlabel(f"emissions ({mass} CO2e)")
    left.set_ylabel(f"emissions rate ({rate} CO2e per h)")
    right.set_xlabel(f"runtime ({time})")
    handles = [look.dot() for look in shown.gpus.values()]
    iso = Line2D([], [], ls=":", color=GREY, label="equal runtime, equal emissions")
    legend(figure, handles + [iso] * bool(lines), basis(shown.records), shown.left_out)
    return figure, said([_rate(shown, on, rows) for on in shown.gpus], shown.left_out)


def _rate(shown: Cast, on: str, rows: Mapping[str, Sequence[float]]) -> str:
    mine = [rows[record.run_id] for record in shown.records if gpu(record) == on]
    kg, hours, rate = (statistics.median(each) for each in zip(*mine, strict=True))
    (name, factor), (per, by), (time, per_h) = unit([kg]), unit([rate]), unit([hours], TIME)
    of = f"medians of {len(mine)}" if len(mine) > 1 else "one run"
    return (f"{shown.gpus[on].name} {rate * by:.3g} {per} per h, {hours * per_h:.3g} {time},"
            f" {kg * factor:.3g} {name} ({of})")  # fmt: skip


def _stretch(axes: Any, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Logarithmic axes, on which equal ratios are equally far and products are straight lines.

    At least `NARROWEST` from end to end: what differs by a per cent shall not look far apart.
    """
    for which, values in (("x", xs), ("y", ys)):
        low, high = min(values) / 1.6, max(values) * 1.6
        wider = max(1.0, math.sqrt(NARROWEST * low / high))
        low, high = low / wider, high * wider
        axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
        axis = axes.xaxis if which == "x" else axes.yaxis
        ratio = high / low
        subs = (1, 2, 5) if ratio < DECADES_30 else (1, 3) if ratio < DECADES_1000 else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axis.set_minor_locator(NullLocator())


def _lines(
    axes: Any, values: Sequence[float], height: Callable[[Any, float], Any], name: str
) -> list[float]:
    """Lines on which a third quantity is equal, at round values of it, which are returned.

    Each has its value where it is farthest from all points; one without such a place is left out.
    """
    left, right = axes.get_xlim()
    xs = np.geomspace(left, right, POINTS)
    taken = [_parts(axes, mark.get_offsets()) for mark in axes.collections]
    drawn = []
    for each in _round(values):
        line = np.column_stack([xs, height(xs, each)])
        parts = _parts(axes, line)
        place = _free(parts, np.concatenate(taken))
        if place is None:
            continue
        inside = (parts[:, 1] > 0) & (parts[:, 1] < 1)
        axes.plot(*line[inside].T, ":", color=GREY, lw=1.1, zorder=1)
        axes.text(*line[place], f"{each:g} {name}", ha="center", va="center", fontsize=SMALL,
                  color=DARK, bbox=WHITE, zorder=2)  # fmt: skip
        taken.append(parts[[place]])
        drawn.append(each)
    return drawn


def _parts(axes: Any, places: Any) -> Any:
    """Places as parts of the width and height of logarithmic axes."""
    limits = np.log(np.array([axes.get_xlim(), axes.get_ylim()]))
    return (np.log(np.asarray(places)) - limits[:, 0]) / (limits[:, 1] - limits[:, 0])


def _free(line: Any, taken: Any) -> int | None:
    """Which of a line's places is farthest from all that is taken; None where none is free."""
    inner = np.flatnonzero(((line > EDGE) & (line < 1 - EDGE)).all(axis=1))
    if not len(inner):
        return None
    room = [float((np.abs(taken - line[n]) / LABEL).max(axis=1).min()) for n in inner]
    best = int(np.argmax(room))
    return int(inner[best]) if room[best] > 1 else None


def _round(values: Sequence[float]) -> list[float]:
    """A few round values between the least and the largest."""
    low, high = min(values), max(values)
    if low <= 0 or low == high:
        return []
    wide = is_spread(values)
    ticks = LogLocator(subs=(1, 3) if wide else (1, 2, 5)).tick_values(low, high)
    if sum(low <= tick <= high for tick in ticks) < 2:  # noqa: PLR2004
        ticks = MaxNLocator(ISO).tick_values(low, high)
    there = [float(tick) for tick in ticks if low <= tick <= high]
    return there[:: -(-len(there) // ISO)] if there else []
