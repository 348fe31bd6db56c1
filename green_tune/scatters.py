"""A comparison's runs as points: rates, fronts, forecasts.

A door to matplotlib, on a `canvas`, in the looks of `looks`. Each function returns a figure with a
line that says in words what it shows, or None where there is too little to draw. Losses are shown
within one task and data set, across models as bits per byte; points are links where given.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from green_tune.blocks import Block, block, gpu, group, panel
from green_tune.canvas import DARK, GREY, SMALL, WHITE, is_spread
from green_tune.looks import (
    COLOURS,
    MOST_PANELS,
    Cast,
    Drawn,
    Pair,
    alike,
    basis,
    cast,
    edge,
    legend,
    looks,
    model,
    not_drawn,
    panels,
    said,
    scale,
    scatter,
    text,
    unit,
    value,
)
from green_tune.results import RunRecord

LOSS, BITS = "val_loss", "val_bits_per_byte"
CALLED = {LOSS: "loss (nats per token)", BITS: "bits per byte"}
RATE = "emissions_rate_kg_per_h"
ISO = 3  # lines of equal value: more would hide the points
BEYOND = "loss beyond the axis"
MOST_UNITS = 4
NARROWEST = 5.0  # ratio of an axis' ends
FROM_END = 8  # of a line's 300 points, where its value stands


def rates_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """Emissions rate against total emissions, and against runtime, by GPU.

    All axes are logarithmic. Dotted lines join equal runtimes on the left and equal emissions on
    the right. None where no run has all three above 0.
    """
    names = ("emissions_kg", RATE, "runtime_h")
    there = [r for r in records if all(value(r, name) > 0 for name in names)]
    shown = cast(there, *names)
    if shown is None:
        return None
    rows = {r.run_id: (value(r, "emissions_kg"), value(r, "runtime_h"), value(r, RATE))
            for r in shown.records}  # fmt: skip
    name, factor = unit(kg for kg, _, _ in rows.values())
    per, by = unit(rate for _, _, rate in rows.values())
    figure, (left, right) = panels(title, 2, height=3.3)
    for on, runs in group(shown.records, gpu).items():
        look, mine = shown.gpus[on], [rows[r.run_id] for r in runs]
        for axes, pairs in (
            (left, [(kg * factor, rate * by) for kg, _, rate in mine]),
            (right, [(hours, rate * by) for _, hours, rate in mine]),
        ):
            scatter(axes, pairs, [r.run_id for r in runs], links or {}, of=len(rows),
                    color=look.colour, marker=look.marker)  # fmt: skip
    kilograms, hours, rates = (list(each) for each in zip(*rows.values(), strict=True))
    grams = [kg * factor for kg in kilograms]
    for axes, xs in ((left, grams), (right, hours)):
        _stretch(axes.set_xscale, axes.set_xlim, axes.xaxis, xs)
        _stretch(axes.set_yscale, axes.set_ylim, axes.yaxis, [rate * by for rate in rates])
    notes = [
        *_lines(left, hours, lambda x, h: x / factor / h * by, "h", rising=True),
        *_lines(right, grams, lambda x, e: e / factor / x * by, name, rising=False),
    ]
    left.set_xlabel(f"emissions ({name} CO2e)")
    left.set_ylabel(f"emissions rate ({per} CO2e per h)")
    right.set_xlabel("runtime (h)")
    handles = [look.dot() for look in shown.gpus.values()]
    iso = Line2D([], [], ls=":", color=GREY, label="equal runtime, equal emissions")
    legend(figure, [*handles, iso], basis(shown.records), shown.left_out)
    _thin(figure, notes)
    return figure, said([_rate(shown, on, rows) for on in shown.gpus], shown.left_out)


def front_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """What every run reached for its emissions, a panel for each task, the front as a step line.

    Bits per byte where a task has several models, validation loss where it has one. None where no
    run has both figures.
    """
    shown = cast(records, "emissions_kg")
    if shown is None:
        return None
    by_panel = group(shown.records, panel)
    kept = {shown.panels[at]: _measured(by_panel[at]) for at in shown.panels}
    return _fronts(shown, kept, title, links or {}, "")


def fronts_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """The front of each model on each task, by validation loss.

    None below two blocks with such runs: `front_figure` shows one.
    """
    shown = cast(records, "emissions_kg", LOSS)
    if shown is None or len(every := group(shown.records, block)) < 2:  # noqa: PLR2004
        return None
    order = list(shown.models)
    most = sorted(every, key=lambda at: -len(every[at]))[:MOST_PANELS]
    kept = sorted(most, key=lambda at: (at.task, at.data, order.index(at.model)))
    gone = not_drawn({"block": [" ".join(at[:2]) for at in every if at not in kept]})
    return _fronts(shown, {_called(shown, at): (LOSS, every[at]) for at in kept}, title,
                   links or {}, gone)  # fmt: skip


def forecast_figure(rows: Sequence[tuple[str, float, float, str]], title: str) -> Drawn | None:
    """What was forecast against what came, each row a label, both figures and their unit.

    A panel for each unit, a colour for each label where they are few. None without rows.
    """
    there = [row for row in rows if all(math.isfinite(x) and x >= 0 for x in row[1:3])]
    units = list(dict.fromkeys(row[3] for row in there))[:MOST_UNITS]
    if not units:
        return None
    labels = list(dict.fromkeys(row[0] for row in there))
    several = 1 < len(labels) <= len(COLOURS)
    series = looks(labels if several else ["forecast"])
    figure, every = panels(title, len(units), height=3.2)
    clauses = []
    for axes, name in zip(every, units, strict=True):
        mine = [row for row in there if row[3] == name]
        for key, its in alike(mine, lambda row: row[0] if several else "forecast").items():
            look, pairs = series[key], [(row[1], row[2]) for row in its]
            scatter(axes, pairs, [], {}, of=len(mine), color=look.colour, marker=look.marker)
            clauses.append(_missed(key if several else "", pairs, name))
        both = [x for row in mine for x in row[1:3]]
        _square(axes, both)
        axes.set_xlabel(f"forecast ({text(name)})")
        axes.set_ylabel(f"actual ({text(name)})")
    handles = [look.dot() for look in series.values()] if several else []
    diagonal = Line2D([], [], color=GREY, ls="--", label="as forecast")
    legend(figure, [*handles, diagonal])
    return figure, said(clauses)


def _measured(runs: Sequence[RunRecord]) -> tuple[str, list[RunRecord]]:
    """By which figure these compare, and the runs that have it."""
    name = BITS if len({*map(model, runs)}) > 1 else LOSS
    return name, [record for record in runs if math.isfinite(value(record, name))]


def _fronts(
    shown: Cast,
    by_title: Mapping[str, tuple[str, Sequence[RunRecord]]],
    title: str,
    links: Mapping[str, str],
    gone: str,
) -> Drawn | None:
    filled = {called: found for called, found in by_title.items() if found[1]}
    if not filled:
        return None
    runs = [record for _, mine in filled.values() for record in mine]
    name, factor = unit(value(record, "emissions_kg") for record in runs)
    figure, every = panels(title, len(filled), height=2.5 if len(filled) > 1 else 3.4)
    clauses, cut = list[str](), False
    for axes, (called, (measure, mine)) in zip(every, filled.items(), strict=True):
        where = {r.run_id: (value(r, "emissions_kg") * factor, value(r, measure)) for r in mine}
        limit = edge([y for _, y in where.values()])
        for (colour, marker), its in group(mine, shown.mark).items():
            scatter(axes, [(where[r.run_id][0], min(where[r.run_id][1], limit)) for r in its],
                    [r.run_id for r in its], links, of=len(runs), color=colour,
                    marker=marker)  # fmt: skip
        front = _front(mine, where)
        steps = [where[record.run_id] for record in front]
        axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color=DARK, lw=1.3, zorder=2)
        axes.scatter(*zip(*steps, strict=True), s=58, fc="none", ec=DARK, lw=1.1, zorder=4)
        scale(axes, "x", [x for x, _ in where.values()])
        scale(axes, "y", [y for _, y in where.values() if y <= limit])
        cut |= _beyond(axes, list(where.values()), limit)
        axes.set_title(called, fontsize=SMALL + 2)
        axes.set_ylabel(CALLED[measure], fontsize=SMALL + 1)
        ends = [_end(shown, record, where, name) for record in (front[-1], front[0])]
        clauses.append(
            f"{called}: least {CALLED[measure]} {ends[0]}, least emissions {ends[1]},"
            f" {len(front)} of {len(mine)} runs on the front"
        )
    for axes in every[-2:]:  # the last of each column
        axes.set_xlabel(f"emissions ({name} CO2e)", fontsize=SMALL + 1)
    handles = [*shown.handles(), Line2D([], [], color=DARK, lw=1.3, marker="o", mfc="none",
                                        label="Pareto front")]  # fmt: skip
    handles += [_mark("^", BEYOND)] * cut
    legend(figure, handles, basis(runs), gone, shown.left_out)
    return figure, said(clauses, f"{gone} {shown.left_out}".strip())


def _front(runs: Sequence[RunRecord], where: Mapping[str, Pair]) -> list[RunRecord]:
    """The runs that no other beats in both, the one that emitted least first."""
    kept: list[RunRecord] = []
    for record in sorted(runs, key=lambda r: where[r.run_id]):
        if not kept or where[record.run_id][1] < where[kept[-1].run_id][1]:
            kept.append(record)
    return kept


def _end(shown: Cast, record: RunRecord, where: Mapping[str, Pair], name: str) -> str:
    grams, loss = where[record.run_id]
    on = f"{shown.models[model(record)].name} on {shown.gpus[gpu(record)].name}"
    return f"{loss:.3g} at {grams:.3g} {name} ({on})"


def _beyond(axes: Any, pairs: Sequence[Pair], limit: float) -> bool:
    """Runs that diverged would press all others flat: marked at the upper edge; true if any."""
    above = [x for x, y in pairs if y > limit]
    if above:
        low = min(y for _, y in pairs)
        axes.set_ylim(low - 0.06 * (limit - low) if low else low, limit)
        axes.scatter(above, [limit] * len(above), marker="^", s=40, fc="none", ec=DARK,
                     clip_on=False, zorder=5)  # fmt: skip
    return bool(above)


def _mark(marker: str, label: str) -> Line2D:
    return Line2D([], [], ls="", marker=marker, mfc="none", color=DARK, label=label)


def _called(shown: Cast, at: Block) -> str:
    return f"{shown.models[at.model].name}, {shown.panels[at[1:]]}"  # type: ignore[index]


def _rate(shown: Cast, on: str, rows: Mapping[str, tuple[float, float, float]]) -> str:
    mine = [rows[record.run_id] for record in shown.records if gpu(record) == on]
    kg, hours, rate = (statistics.median(each) for each in zip(*mine, strict=True))
    name, factor = unit([kg])
    per, by = unit([rate])
    return (f"{shown.gpus[on].name} {rate * by:.3g} {per} per h for {hours:.3g} h, together"
            f" {kg * factor:.3g} {name} (medians of {len(mine)})")  # fmt: skip


def _stretch(
    set_scale: Callable[[str], None],
    set_limits: Callable[[float, float], Any],
    axis: Any,
    values: Sequence[float],
) -> None:
    """A logarithmic axis, on which equal ratios are equally far and products are straight lines.

    At least `NARROWEST` from end to end: what differs by a per cent shall not look far apart.
    """
    low, high = min(values) / 1.6, max(values) * 1.6
    wider = max(1.0, math.sqrt(NARROWEST * low / high))
    low, high = low / wider, high * wider
    set_scale("log")
    ratio = high / low
    axis.set_major_locator(LogLocator(subs=(1,) if ratio > 100 else (1, 2, 5)))  # noqa: PLR2004
    axis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.set_minor_locator(NullLocator())
    set_limits(low, high)


def _lines(
    axes: Any, values: Sequence[float], height: Callable[[Any, float], Any], name: str, *,
    rising: bool,
) -> list[Any]:  # fmt: skip
    """Lines on which a third quantity is equal, at round values, each with its value at its end."""
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    xs = np.geomspace(left, right, 300)
    notes = []
    for each in _round(values):
        ys = height(xs, each)
        inside = np.flatnonzero((ys > bottom) & (ys < top))
        if len(inside) < FROM_END:
            continue
        axes.plot(xs[inside], ys[inside], ":", color=GREY, lw=1.1, zorder=1)
        end = inside[-FROM_END] if rising else inside[FROM_END - 1]
        notes.append(axes.text(xs[end], ys[end], f"{each:g} {name}",
                               ha="right" if rising else "left", va="center", fontsize=SMALL,
                               color=DARK, bbox=WHITE, zorder=2))  # fmt: skip
    return notes


def _thin(figure: Figure, notes: Sequence[Any]) -> None:
    """Without those texts that lie on an earlier one or leave their axes."""
    figure.draw_without_rendering()
    taken: list[Any] = []
    for note in notes:
        box, frame = Text.get_window_extent(note), note.axes.bbox
        outside = box.x0 < frame.x0 or box.x1 > frame.x1
        if outside or any(box.overlaps(other) for other in taken):
            note.remove()
        else:
            taken.append(box)


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


def _square(axes: Any, values: Sequence[float]) -> None:
    """Both axes alike, with the diagonal on which a forecast is right."""
    scale(axes, "x", values)
    if scale(axes, "y", values):
        low, high = min(values) / 1.4, max(values) * 1.4
    else:
        room = max(0.08 * (max(values) - min(values)), 0.1 * max(values)) or 1.0
        low, high = min(values) - room, max(values) + room
    axes.plot([low, high], [low, high], "--", color=GREY, lw=1.2, zorder=1)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)


def _missed(label: str, pairs: Sequence[Pair], name: str) -> str:
    """By how much the forecasts were wrong, as a ratio."""
    ratios = [actual / forecast for forecast, actual in pairs if forecast > 0]
    head = f"{label} ({name})" if label else name
    if not ratios:
        return f"{head}: forecast 0 for {len(pairs)}"
    return (f"{head}: the actual figure was {statistics.median(ratios):.2f} times the forecast in"
            f" the median of {len(ratios)} ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
