"""What was said before runs began, and what came of it: a comparison's forecasts as figures.

A door to matplotlib, on a `canvas`, in the looks of `looks`. Each function returns a figure with a
line that says in words what it shows, or None where there is too little to draw. Outcomes and
rolling errors are handed in: they are `outcomes` and `scoreboard`.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from green_tune.canvas import DARK, GREY
from green_tune.looks import (
    COLOURS,
    ENERGY,
    LINKED,
    TIME,
    Drawn,
    Look,
    Pair,
    alike,
    legend,
    looks,
    panels,
    said,
    scale,
    scatter,
    text,
    unit,
)
from green_tune.outcomes import EVIDENCE, UNKNOWN, Figure, Outcome
from green_tune.scoreboard import SPOKEN, WINDOW, Rolled, percent

MOST_UNITS = 4
UNITS: Mapping[Figure, Mapping[str, float]] = {"energy": ENERGY, "runtime": TIME}
AIMS = {0.1: "10 %: aim for the median", 0.2: "20 %: aim for nine in ten"}
DASHES = ("--", ":")
BARS = "Bars: the intervals that were quoted; one that crosses the line held what came."
CROWD = f"Intervals are not drawn: there are more than {LINKED}."
ROLLING = f"Dots: quotes; lines: the median of the last {WINDOW} of a kind, or of fewer at first."
LEAST = 0.001  # below which an error is drawn as if it were so large


def quotes_figure(
    found: Mapping[Figure, Sequence[Outcome]], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """What was quoted against what came, by what the quotes rest on, with their intervals.

    A panel for each figure that has outcomes. Points are links where given; None without outcomes.
    """
    there = {figure: some for figure, some in found.items() if some}
    if not there:
        return None
    drawn, every = panels(title, len(there), height=3.2)
    series = _series(each.evidence for some in there.values() for each in some)
    clauses, crowd = list[str](), False
    for axes, (figure, some) in zip(every, there.items(), strict=True):
        name, factor = unit([each.came for each in some], UNITS[figure])
        bars = len(some) <= LINKED
        crowd |= not bars
        for key, mine in alike(some, lambda each: each.evidence).items():
            _points(axes, mine, series[key], factor, links or {}, len(some))
            _bars(axes, mine if bars else (), series[key], factor)
            pairs = [(each.said, each.came) for each in mine]
            clauses.append(_missed(series[key].name, pairs, SPOKEN[figure]))
        ends = [x * factor for each in some for x in _ends(each, bars=bars)]
        _square(axes, ends)
        axes.set_xlabel(f"{SPOKEN[figure]} quoted ({name})")
        axes.set_ylabel(f"{SPOKEN[figure]} actual ({name})")
    diagonal = Line2D([], [], color=GREY, ls="--", label="as quoted")
    handles = [look.dot() for look in series.values()]
    legend(drawn, [*handles, diagonal], CROWD if crowd else BARS)
    return drawn, said(clauses)


def rolling_figure(
    found: Mapping[Figure, Mapping[str, Sequence[Rolled]]], title: str
) -> Drawn | None:
    """How far off quotes were, one after the other, and in the rolling median by their evidence.

    A panel for each figure that has at least two; None where none has.
    """
    there = {figure: some for figure, some in found.items() if sum(map(len, some.values())) > 1}
    if not there:
        return None
    drawn, every = panels(title, len(there), height=3.0)
    series = _series(key for some in there.values() for key in some)
    clauses = list[str]()
    for axes, (figure, some) in zip(every, there.items(), strict=True):
        offs = [100 * _drawn(each.off) for mine in some.values() for each in mine]
        for key, mine in some.items():
            _rolled(axes, mine, series[key], len(offs))
            clauses.append(_spoken(figure, series[key].name, mine))
        for aim, dashes in zip(AIMS, DASHES, strict=True):
            axes.axhline(100 * aim, color=DARK, lw=0.8, ls=dashes, zorder=1)
        if not scale(axes, "y", [*offs, *(100 * aim for aim in AIMS)]):
            axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("quotes, by their runs' start")
        axes.set_ylabel(f"{SPOKEN[figure]} off by (%)")
    aims = [Line2D([], [], color=DARK, lw=0.8, ls=dashes, label=label)
            for label, dashes in zip(AIMS.values(), DASHES, strict=True)]  # fmt: skip
    legend(drawn, [*(look.dot() for look in series.values()), *aims], ROLLING)
    return drawn, said(clauses)


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
    series = looks(labels if several else ["forecast"], width=34)
    figure, every = panels(title, len(units), height=3.2)
    clauses = []
    for axes, name in zip(every, units, strict=True):
        mine = [row for row in there if row[3] == name]
        for key, its in alike(mine, lambda row: row[0] if several else "forecast").items():
            look, pairs = series[key], [(row[1], row[2]) for row in its]
            scatter(axes, pairs, [], {}, of=len(mine), color=look.colour, marker=look.marker)
            clauses.append(_missed(look.name if several else "", pairs, name))
        both = [x for row in mine for x in row[1:3]]
        _square(axes, both)
        axes.set_xlabel(f"forecast ({text(name)})")
        axes.set_ylabel(f"actual ({text(name)})")
    handles = [look.dot() for look in series.values()] if several else []
    diagonal = Line2D([], [], color=GREY, ls="--", label="as forecast")
    legend(figure, [*handles, diagonal])
    return figure, said(clauses)


def _series(keys: Iterable[str]) -> dict[str, Look]:
    """The looks of the evidence that is there: the same in every figure, whatever else is."""
    there = set(keys)
    names = {**EVIDENCE, UNKNOWN: UNKNOWN}
    every = looks(list(names), names.__getitem__)
    return {key: look for key, look in every.items() if key in there}


def _points(
    axes: Any,
    some: Sequence[Outcome],
    look: Look,
    factor: float,
    links: Mapping[str, str],
    of: int,
) -> None:
    where = [(each.said * factor, each.came * factor) for each in some]
    ids = [each.record.run_id for each in some]
    scatter(axes, where, ids, links, of=of, color=look.colour, marker=look.marker)


def _bars(axes: Any, some: Sequence[Outcome], look: Look, factor: float) -> None:
    there = [each for each in some if each.held is not None]
    axes.hlines(
        [each.came * factor for each in there],
        [each.low * factor for each in there],
        [each.high * factor for each in there],
        color=look.colour,
        lw=1,
        alpha=0.5,
        zorder=2,
    )


def _ends(each: Outcome, *, bars: bool) -> list[float]:
    drawn = bars and each.held is not None
    return [each.said, each.came, *([each.low, each.high] if drawn else [])]


def _rolled(axes: Any, some: Sequence[Rolled], look: Look, of: int) -> None:
    where = [(float(each.number), 100 * _drawn(each.off)) for each in some]
    scatter(axes, where, [], {}, of=of, alpha=0.4, color=look.colour, marker=look.marker)
    line = [(each.number, 100 * _drawn(each.median)) for each in some]
    axes.plot(*zip(*line, strict=True), color=look.colour, lw=1.6, zorder=4.5)


def _drawn(off: float) -> float:
    """An error as a logarithmic axis can show it."""
    return max(off, LEAST)


def _spoken(figure: Figure, name: str, some: Sequence[Rolled]) -> str:
    last = some[-1]
    if len(some) == 1:
        return f"{SPOKEN[figure]} by {name}: {percent(last.off)} % off, one quote"
    first = ""
    if len(some) > WINDOW:
        first = f", {percent(some[WINDOW - 1].median)} % of the first {WINDOW}"
    return (f"{SPOKEN[figure]} by {name}: {percent(last.median)} % off in the median of the last"
            f" {last.of} of {len(some)}{first}")  # fmt: skip


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
    if len(ratios) == 1:
        return f"{head}: the actual figure was {ratios[0]:.2f} times the forecast"
    return (f"{head}: the actual figure was {statistics.median(ratios):.2f} times the forecast in"
            f" the median of {len(ratios)} ({min(ratios):.2f} to {max(ratios):.2f})")  # fmt: skip
