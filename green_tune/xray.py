"""The padding X-ray as a picture: what is padding by batch size, and what it would cost.

A door to matplotlib, in the looks of `looks`. The figure comes with a line that says in words what
it shows; the rows are given, and nothing is counted here: that is `padding`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from green_tune.canvas import BLUE, DARK, GREEN, GREY, ON_DARK, ORANGE, RED, SKY, SMALL
from green_tune.looks import Drawn, legend, panels, said
from green_tune.padding import MASS, METHODS, Row, at_own_size, figure, sentence, unit_of

COLOURS = dict(zip(METHODS, (RED, ORANGE, SKY, "#CC79A7", BLUE, GREEN), strict=True))
MARKERS = dict(zip(METHODS, "s^DPov", strict=True))
# Per cent; where there is no room for all, the first of them.
SHARES = (0, 50, -100, 80, 20, 90, -200, -50, 10, 5, 2, 1, 30, 40, 60, 70, 95, -20, -10, -5, -2,
          -400, 98, 99, -800)  # fmt: skip
APART = 0.075  # of an axis' height, between two of its labels
FAR = 3.0  # times the next longest bar, from which one is cut
ROUNDS = 100  # in which names are pushed apart
TINY = 1e-9  # of tokens that are useful: matplotlib asks for the height of places far off
THICK = 0.66  # of a bar, where the next one is 1 away
EQUAL = "Left: equal heights are equal factors of tokens."
CUT = "The bar with a gap is cut; its number is whole."


def xray_figure(rows: Sequence[Row], title: str) -> Drawn | None:
    """Padding by batch size and method, and what a training by each comes to at the job's size.

    Grams of CO2e, or operations where the rows have no grams. None without rows.
    """
    if not rows:
        return None
    drawn, (left, right) = panels(title, 2, height=3.1)
    _shares(left, rows)
    gap, saves = _bars(right, rows)
    handles = [Patch(fc=GREY, label="examples"),
               Patch(fc=ON_DARK, ec=GREY, hatch="/////", lw=0, label="padding")]  # fmt: skip
    saved = Patch(fc="none", ec=DARK, ls=":", lw=1, label="saved: shared prompts once")
    mine = Line2D([], [], ls="", marker="o", ms=10, mfc="none", color=DARK, label="this job")
    legend(drawn, [mine, *handles, *[saved] * saves], EQUAL, CUT * gap)
    own = at_own_size(rows)
    at = next(row.batch_size for row in rows if row.mine)
    clauses = [f"{name} {round(100 * row.padding)}%" for name, row in own.items()]
    clauses[0] = f"Padding at batch size {at}: {clauses[0]}"
    return drawn, said(clauses, sentence(rows))


def _shares(axes: Any, rows: Sequence[Row]) -> None:
    """A line for each method, named where it ends."""
    _fit(axes, [row.padding for row in rows])
    sizes = sorted({row.batch_size for row in rows})
    ends: dict[str, float] = {}
    for name in dict.fromkeys(row.method for row in rows):
        line = [row for row in rows if row.method == name]
        axes.plot([row.batch_size for row in line], [row.padding for row in line],
                  color=COLOURS[name], marker=MARKERS[name], ms=4.5, lw=1.6, zorder=3)  # fmt: skip
        ends[name] = line[-1].padding
    mine = next(row for row in rows if row.mine)
    axes.plot(mine.batch_size, mine.padding, "o", ms=11, mfc="none", color=DARK, zorder=4)
    _name_ends(axes, ends, mine.method)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.set_xlabel("batch size")
    axes.set_ylabel("padding (% of processed tokens)")


def _fit(axes: Any, shares: Sequence[float]) -> None:
    """An axis on which shares are as far apart as the numbers of tokens that they stand for.

    So a third of the tokens lies as far below as three times as many lie above.
    """
    axes.set_yscale("function", functions=(_height, _share))
    low, high = float(_height(min(shares))), float(_height(max(shares)))
    spare = 0.06 * max(high - low, 0.02)
    low, high = low - spare, high + spare
    axes.set_ylim(_share(low), _share(high))
    kept: list[float] = []
    for share in (percent / 100 for percent in SHARES):
        free = all(abs(_height(share) - _height(k)) > APART * (high - low) for k in kept)
        if low <= _height(share) <= high and free:
            kept.append(share)
    axes.yaxis.set_major_locator(FixedLocator(sorted(kept)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f}"))


def _height(share: Any) -> Any:
    """Logarithm of the tokens processed for each useful one."""
    return -np.log(np.maximum(1 - np.asarray(share), TINY))


def _share(height: Any) -> Any:
    return 1 - np.exp(-np.asarray(height))


def _name_ends(axes: Any, ends: Mapping[str, float], mine: str) -> None:
    """Each name beside the end of its line, moved where it would lie on another."""
    low, high = (float(_height(each)) for each in axes.get_ylim())
    wanted = {name: (float(_height(share)) - low) / (high - low) for name, share in ends.items()}
    for name, place in _apart(wanted).items():
        axes.annotate(name, (1.03, place), xycoords="axes fraction", va="center", fontsize=SMALL,
                      color=DARK, weight="bold" if name == mine else "normal",
                      annotation_clip=False)  # fmt: skip


def _apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Places on an axis from 0 to 1, in the order in which they are wanted, none on another."""
    order = list(METHODS)
    names = sorted(wanted, key=lambda name: (wanted[name], -order.index(name)))
    places = [wanted[name] for name in names]
    for _ in range(ROUNDS):
        for n, (below, above) in enumerate(pairwise(places)):
            push = max(0.0, APART - (above - below)) / 2
            places[n : n + 2] = below - push, above + push
    return dict(zip(names, places, strict=True))


def _bars(axes: Any, rows: Sequence[Row]) -> tuple[bool, bool]:
    """A lying bar for each method at the job's batch size; whether one is cut, and one saves."""
    own, (unit, factor) = at_own_size(rows), unit_of(rows)
    ends = sorted(max(row.spent, row.spent_flat) * factor for row in own.values())
    is_cut = ends[-1] > FAR * ends[-2]
    limit = 1.35 * ends[-2] if is_cut else ends[-1]
    for at, row in enumerate(own.values()):
        _bar(axes, at, row, factor, limit)
    names = [f"{name}\n(this job)" if row.mine else name for name, row in own.items()]
    axes.set_yticks(range(len(own)), names)
    for label, row in zip(axes.get_yticklabels(), own.values(), strict=True):
        label.set_weight("bold" if row.mine else "normal")
    axes.set_xlim(0, 1.27 * limit)
    axes.set_ylim(len(own) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: f"{x:g}" if x <= limit or not is_cut else "")
    )
    size = next(iter(own.values())).batch_size
    axes.set_xlabel(f"{unit}{' CO2e' * (unit in MASS)} at batch size {size}, modelled")
    return is_cut, any(round(row.spent / row.spent_flat, 2) < 1 for row in own.values())


def _bar(axes: Any, at: int, row: Row, factor: float, limit: float) -> None:
    colour, flat, spent = COLOURS[row.method], row.spent_flat * factor, row.spent * factor
    useful, drawn = min(flat, spent), min(spent, limit)
    axes.barh(at, useful, THICK, color=colour, lw=0, zorder=2)
    axes.barh(at, drawn - useful, THICK, left=useful, fc=ON_DARK, ec=colour, hatch="/////", lw=0,
              zorder=2)  # fmt: skip
    if spent < flat:
        axes.barh(at, flat - spent, THICK, left=spent, fc="none", ec=DARK, ls=":", lw=1, zorder=2)
    if drawn < spent:
        axes.barh(at, 0.02 * limit, 1.3 * THICK, left=0.88 * limit, color="white", lw=0, zorder=3)
    axes.text(max(drawn, flat) + 0.02 * limit, at, figure(spent), va="center", fontsize=SMALL,
              color=DARK, weight="bold" if row.mine else "normal")  # fmt: skip
