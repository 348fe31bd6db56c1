"""A comparison's bars: what models, tasks and GPUs emitted, and which GPU is ahead by which count.

A door to matplotlib, on a `canvas`, in the looks of `looks`. Each function returns a figure with a
line that says in words what it shows, or None where there is too little to draw. It averages runs
and computes nothing else; bars compare within one task and data set only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from green_tune.blocks import block, gpu, group, panel
from green_tune.canvas import DARK, GREY, ON_DARK, SMALL
from green_tune.looks import (
    ENERGY,
    FEWEST,
    MOST_PANELS,
    Cast,
    Drawn,
    Look,
    basis,
    cast,
    interval,
    legend,
    model,
    not_drawn,
    panels,
    said,
    scale,
    scatter,
    spread_out,
    unit,
    value,
)
from green_tune.results import RunRecord

WHISKERS = f"Whiskers: 95 % interval of the mean, from {FEWEST} runs on; dots: runs."
ON_LOG = "Logarithmic axis: compare where bars end, not their lengths."
WIDE = 9  # bars in a panel, from which it takes the whole width
WIDEST = 0.4  # of a bar, where a name on an axis takes 1
DOT = 12.0  # area of a run's dot on a bar, in points squared
SLANTED: Mapping[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
ROOM = 40  # characters below half of a figure
ERRORS: Mapping[str, Any] = {"ecolor": DARK, "elinewidth": 1.1, "capsize": 2.5}
RANKED = {"energy_gpu_kwh": "GPU alone", "energy_kwh": "whole machine"}
BOUNDS = ("energy_low_kwh", "energy_high_kwh")
SHARE = "energy_modelled_share"


def emissions_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """Mean emissions of each model on each GPU, a panel for each task, with the runs as dots.

    A single run is a dot without a bar. None where no run has emissions.
    """
    shown = cast(records, "emissions_kg")
    if shown is None:
        return None
    name, factor = unit(_kilograms(shown.records))
    wide = len(shown.models) * len(shown.gpus) > WIDE or len(shown.panels) == 1
    figure, every = panels(title, len(shown.panels), columns=1 if wide else 2)
    bars = [_Columns(axes=axes, width=min(WIDEST, 0.84 / len(shown.gpus)), links=links or {},
                  of=len(shown.records)) for axes in every]  # fmt: skip
    by_panel, clauses = group(shown.records, panel), list[str]()
    for panel_bars, (where, task) in zip(bars, shown.panels.items(), strict=True):
        panel_bars.fill(by_panel[where], shown, factor)
        panel_bars.axes.set_title(task, fontsize=SMALL + 2)
        _names(panel_bars.axes, [look.name for look in shown.models.values()], wide=wide)
        clauses += [_by_gpu(by_panel[where], by, shown.gpus, f"{task} on {look.name}")
                    for by, look in shown.models.items()]  # fmt: skip
    figure.supylabel(f"emissions ({name} CO2e)", fontsize=SMALL + 2)
    alone = all(each.alone for each in bars)
    handles = [look.dot() if alone else look.bar() for look in shown.gpus.values()]
    notes = [WHISKERS * any(each.whiskers for each in bars),
             ON_LOG * any(each.is_log for each in bars)]  # fmt: skip
    legend(figure, handles, *notes, basis(shown.records), shown.left_out)
    return figure, said([each for each in clauses if each], shown.left_out)


def tasks_figure(
    records: Sequence[RunRecord], title: str, links: Mapping[str, str] | None = None
) -> Drawn | None:
    """Every run's emissions by task, models side by side, their means as lines.

    All GPUs together. None where no run has emissions.
    """
    shown = cast(records, "emissions_kg")
    if shown is None:
        return None
    name, factor = unit(_kilograms(shown.records))
    figure, (axes,) = panels(title, 1, height=3.4)
    runs_of = group(shown.records, lambda r: (panel(r), model(r)))
    width = min(WIDEST, 0.84 / len(shown.models))
    drawn = _Columns(axes=axes, width=width, links=links or {}, of=len(shown.records))
    words = []
    for column, (where, task) in enumerate(shown.panels.items()):
        means = []
        for at, by in _beside(column, list(shown.models), width):
            if runs := runs_of.get((where, by)):
                mean = drawn.cloud(at, runs, shown.models[by], factor)
                of = f"mean of {len(runs)}" if len(runs) > 1 else "one run"
                means.append(f"{shown.models[by].name} {mean:.3g} {name} ({of})")
        words.append(f"{task}: {', '.join(means)}")
    if not scale(axes, "y", [kg * factor for kg in _kilograms(shown.records)]):
        axes.set_ylim(bottom=0)
    _names(axes, list(shown.panels.values()), wide=True)
    axes.set_ylabel(f"emissions ({name} CO2e)")
    handles = [look.dot() for look in shown.models.values()]
    handles += [line("mean", "-", DARK)] * any(len(runs) > 1 for runs in runs_of.values())
    on = f"Runs on {', '.join(look.name for look in shown.gpus.values())}."
    legend(figure, handles, on, basis(shown.records), shown.left_out)
    return figure, said(words, f"{on} {shown.left_out}".strip())


def ranking_figure(records: Sequence[RunRecord], title: str) -> Drawn | None:
    """Each GPU's mean energy, of the GPU alone and of the whole machine, for each model and task.

    The whole machine's has its bounds, and what is modelled of it hatched. A number above each bar
    is its rank, the least first. What ran without a GPU is left out, and so are blocks with fewer
    than two GPUs; None without any.
    """
    shown = cast((r for r in records if value(r, "energy_gpu_kwh") > 0), *RANKED)
    if shown is None:
        return None
    every = {at: runs for at, runs in group(shown.records, block).items()
             if len({*map(gpu, runs)}) > 1}  # fmt: skip
    most = sorted(every, key=lambda at: -len(every[at]))[:MOST_PANELS]
    blocks = sorted(most, key=lambda at: (at.task, at.data, list(shown.models).index(at.model)))
    if not blocks:
        return None
    name, factor = unit((value(r, "energy_kwh") for at in blocks for r in every[at]), ENERGY)
    figure, pairs = panels(title, len(blocks), height=2.1)
    clauses = []
    for axes, at in zip(pairs, blocks, strict=True):
        means = _means(every[at], factor)
        called = f"{shown.models[at.model].name}, {shown.panels[panel(every[at][0])]}"
        axes.set_title(called, fontsize=SMALL + 2)
        clauses.append(f"{called}: {_clusters(axes, means, shown.gpus)}")
    figure.supylabel(f"energy ({name})", fontsize=SMALL + 2)
    gone = not_drawn({"block": [" ".join(at[:2]) for at in every if at not in blocks]})
    handles = [Patch(fc=GREY, ec=ON_DARK, lw=0, label="measured"),
               Patch(fc=GREY, ec=ON_DARK, lw=0, hatch="////", label="modelled"),
               Line2D([], [], ls="", marker="|", color=DARK, ms=9, label="bounds")]  # fmt: skip
    rank = "Numbers: rank by energy, the least first."
    legend(figure, handles, rank, gone, shown.left_out)
    return figure, said(clauses, f"{gone} {shown.left_out}".strip())


@dataclass(kw_only=True)
class _Columns:
    """One panel's groups of runs: their means, and the runs themselves.

    `width` is that of a group, `of` how many runs the figure has.
    """

    axes: Any
    width: float
    links: Mapping[str, str]
    of: int

    def __post_init__(self) -> None:
        self.values: list[float] = []
        self.alone, self.whiskers, self.is_log = True, False, False

    def fill(self, runs: Sequence[RunRecord], shown: Cast, factor: float) -> None:
        """All of a panel; `factor` makes an axis' unit of kilograms."""
        by = group(runs, lambda record: (model(record), gpu(record)))
        for column, name in enumerate(shown.models):
            for at, on in _beside(column, list(shown.gpus), self.width):
                if mine := by.get((name, on)):
                    self._draw(at, mine, shown.gpus[on], factor)
        self._fit()

    def cloud(self, at: float, runs: Sequence[RunRecord], look: Look, factor: float) -> float:
        """Runs as dots with a line at their mean, which it returns."""
        heights = [kg * factor for kg in _kilograms(runs)]
        self._runs(at, runs, heights, {"color": look.colour, "marker": look.marker})
        mean, _ = interval(heights)
        if len(runs) > 1:
            half = 0.45 * self.width
            self.axes.hlines(mean, at - half, at + half, color=DARK, lw=2, zorder=4.5)
        return mean

    def _draw(self, at: float, runs: Sequence[RunRecord], look: Look, factor: float) -> None:
        heights = [kg * factor for kg in _kilograms(runs)]
        mean, half = interval(heights)
        mark: dict[str, Any] = {"color": look.colour, "marker": look.marker}
        if len(runs) > 1:
            self.axes.bar(at, mean, 0.94 * self.width, color=look.colour, hatch=look.hatch,
                          ec=ON_DARK, lw=0, yerr=half, error_kw=ERRORS)  # fmt: skip
            mark, self.alone = {"color": DARK, "most": DOT}, False
        self._runs(at, runs, heights, mark)
        self.whiskers |= math.isfinite(half)
        self.values += [*heights, mean + half] if math.isfinite(half) else heights

    def _runs(
        self,
        at: float,
        runs: Sequence[RunRecord],
        heights: Sequence[float],
        look: Mapping[str, Any],
    ) -> None:
        xs = [at + offset for offset in spread_out(len(runs), 0.65 * self.width)]
        pairs = list(zip(xs, heights, strict=True))
        scatter(self.axes, pairs, [r.run_id for r in runs], self.links, of=self.of, **look)

    def _fit(self) -> None:
        """On a logarithmic axis bars begin somewhat below the smallest value, on others at 0."""
        self.is_log = scale(self.axes, "y", self.values)
        top = max(self.values)
        limits = (min(self.values) / 1.6, 1.3 * top) if self.is_log else (0, 1.08 * top or 1)
        self.axes.set_ylim(*limits)


@dataclass(frozen=True, kw_only=True)
class _Mean:
    """One GPU's mean energy by one count, in a figure's unit; `modelled` from 0 to 1."""

    height: float
    below: float = 0.0
    above: float = 0.0
    modelled: float = 0.0


def _means(runs: Sequence[RunRecord], factor: float) -> dict[str, dict[str, _Mean]]:
    """By count and GPU; bounds and shares over those runs that have them."""
    found: dict[str, dict[str, _Mean]] = {name: {} for name in RANKED}
    for on, mine in group(runs, gpu).items():
        alone, whole = (_mean(mine, name) for name in RANKED)
        low, high, share = (_mean(mine, name) for name in (*BOUNDS, SHARE))
        found["energy_gpu_kwh"][on] = _Mean(height=alone * factor)
        found["energy_kwh"][on] = _Mean(
            height=whole * factor,
            below=max(whole - low, 0.0) * factor if math.isfinite(low) else 0.0,
            above=max(high - whole, 0.0) * factor if math.isfinite(high) else 0.0,
            modelled=share if math.isfinite(share) else 0.0,
        )
    return found


def _mean(runs: Sequence[RunRecord], name: str) -> float:
    there = [x for x in (value(record, name) for record in runs) if math.isfinite(x)]
    return math.fsum(there) / len(there) if there else math.nan


def _clusters(axes: Any, means: Mapping[str, Mapping[str, _Mean]], gpus: Mapping[str, Look]) -> str:
    """Two clusters of bars, and in words how each ranks the GPUs."""
    order = [on for on in gpus if on in means["energy_kwh"]]
    ticks, orders = list[tuple[float, str]](), list[list[str]]()
    for cluster, name in enumerate(RANKED):
        height = {on: means[name][on].height for on in order}
        ranked = sorted(order, key=height.__getitem__)
        for place, on in enumerate(order):
            x, mean = cluster * (len(order) + 0.8) + place, means[name][on]
            rank = 1 + sum(other < height[on] for other in height.values())
            _rank(axes, x, mean, gpus[on].colour, rank)
            ticks.append((x, gpus[on].name))
        orders.append([gpus[on].name for on in ranked])
        middle = cluster * (len(order) + 0.8) + (len(order) - 1) / 2
        axes.text(middle, 0.99, RANKED[name], transform=axes.get_xaxis_transform(), ha="center",
                  va="top", fontsize=SMALL + 1)  # fmt: skip
    axes.set_xticks(*zip(*ticks, strict=True), fontsize=SMALL, **_slant(ticks))
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.32)
    axes.set_ylim(bottom=0)
    first, second = (" < ".join(each) for each in orders)
    return f"GPU alone {first}" + (
        ", whole machine the same" if first == second else f", whole machine {second}"
    )


def _rank(axes: Any, x: float, mean: _Mean, colour: str, rank: int) -> None:
    hatched = mean.modelled * mean.height
    axes.bar(x, mean.height - hatched, 0.8, color=colour, lw=0)
    axes.bar(x, hatched, 0.8, bottom=mean.height - hatched, color=colour, ec=ON_DARK, lw=0,
             hatch="////")  # fmt: skip
    if mean.below or mean.above:
        axes.errorbar(x, mean.height, [[mean.below], [mean.above]], fmt="none", **ERRORS)
    axes.annotate(str(rank), (x, mean.height + mean.above), textcoords="offset points",
                  xytext=(0, 3), ha="center", fontsize=SMALL + 1)  # fmt: skip


def _by_gpu(runs: Sequence[RunRecord], by: str, gpus: Mapping[str, Look], where: str) -> str:
    """One model's mean on each GPU in words; empty where it has no run."""
    mine = group([record for record in runs if model(record) == by], gpu)
    means = {on: _mean(mine[on], "emissions_kg") for on in gpus if on in mine}
    if not means:
        return ""
    name, factor = unit(means.values())
    each = [f"{gpus[on].name} {kg * factor:.3g} {name}" for on, kg in means.items()]
    return f"{', '.join(each)} for {where}"


def _kilograms(records: Sequence[RunRecord]) -> list[float]:
    return [value(record, "emissions_kg") for record in records]


def _beside(column: int, names: Sequence[str], width: float) -> list[tuple[float, str]]:
    """Where each of a column's groups is centred."""
    return [(column + (n - (len(names) - 1) / 2) * width, name) for n, name in enumerate(names)]


def _names(axes: Any, names: Sequence[str], *, wide: bool) -> None:
    """Names along an axis, slanted where they would not fit beside one another."""
    slanted = sum(len(name) + 2 for name in names) > (80 if wide else 38)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL + 1, **(SLANTED if slanted else {}))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _slant(ticks: Sequence[tuple[float, str]]) -> Mapping[str, Any]:
    return SLANTED if sum(len(name) + 2 for _, name in ticks) > ROOM else {}


def line(name: str, dashes: str, colour: str) -> Line2D:
    """A line for a legend."""
    return Line2D([], [], ls=dashes, color=colour, lw=1.6, label=name)
