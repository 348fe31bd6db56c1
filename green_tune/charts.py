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
from green_tune.canvas import DARK, GREY, SMALL
from green_tune.looks import (
    FEWEST,
    LINKED,
    MOST_PANELS,
    Drawn,
    Look,
    basis,
    by_power,
    cast,
    gpu_name,
    interval,
    legend,
    looks,
    model,
    not_drawn,
    panels,
    said,
    scale,
    scatter,
    spread_out,
    text,
    unit,
    value,
)
from green_tune.results import RunRecord

WHISKERS = f"Whiskers: 95 % interval of the mean, from {FEWEST} runs on; dots: runs."
ON_LOG = "Logarithmic axis: compare where bars end, not their lengths."
WIDE = 9  # bars in a panel, from which it takes the whole width
MOST_BARS = 24
WIDEST = 0.4  # of a bar, where a name on an axis takes 1
DOT = 12.0  # area of a run's dot on a bar, in points squared
DASHES = ("--", ":", "-.", "-")
SLANTED: Mapping[str, Any] = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"}
ROOM = 40  # characters below half of a figure
ERRORS = {"ecolor": DARK, "elinewidth": 1.1, "capsize": 2.5}
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
    name, factor = unit(value(record, "emissions_kg") for record in shown.records)
    wide = len(shown.models) * len(shown.gpus) > WIDE or len(shown.panels) == 1
    figure, every = panels(title, len(shown.panels), columns=1 if wide else 2)
    clauses, bars = list[str](), [
        _Bars(axes=axes, width=min(WIDEST, 0.84 / len(shown.gpus)), links=links or {},
              of=len(shown.records)) for axes in every
    ]  # fmt: skip
    for panel_bars, (where, task) in zip(bars, shown.panels.items(), strict=True):
        mine = [record for record in shown.records if panel(record) == where]
        for (on, by), runs in group(mine, lambda r: (gpu(r), model(r))).items():
            place = list(shown.gpus).index(on) - (len(shown.gpus) - 1) / 2
            at = list(shown.models).index(by) + place * panel_bars.width
            heights = [(r.run_id, value(r, "emissions_kg") * factor) for r in runs]
            panel_bars.draw(at, heights, shown.gpus[on])
        panel_bars.fit()
        panel_bars.axes.set_title(task, fontsize=SMALL + 2)
        _names(panel_bars.axes, [look.name for look in shown.models.values()], wide=wide)
        clauses += [_by_gpu(mine, by, shown.gpus, f"{task} on {look.name}")
                    for by, look in shown.models.items()]  # fmt: skip
    figure.supylabel(f"emissions ({name} CO2e)", fontsize=SMALL + 2)
    alone = all(each.alone for each in bars)
    handles = [look.dot() if alone else look.bar() for look in shown.gpus.values()]
    notes = [WHISKERS * any(each.whiskers for each in bars), ON_LOG * _is_log(bars)]
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
    name, factor = unit(value(record, "emissions_kg") for record in shown.records)
    figure, (axes,) = panels(title, 1, height=3.4)
    width = min(WIDEST, 0.84 / len(shown.models))
    means = dict[str, list[str]]()
    runs_of = group(shown.records, lambda r: (panel(r), model(r)))
    for where, by in sorted(runs_of, key=lambda key: (key[0], list(shown.models).index(key[1]))):
        runs, look = runs_of[where, by], shown.models[by]
        place = list(shown.models).index(by) - (len(shown.models) - 1) / 2
        at = list(shown.panels).index(where) + place * width
        grams = [value(r, "emissions_kg") * factor for r in runs]
        xs = [at + offset for offset in spread_out(len(runs), 0.7 * width)]
        scatter(axes, list(zip(xs, grams, strict=True)), [r.run_id for r in runs], links or {},
                of=len(shown.records), color=look.colour, marker=look.marker)  # fmt: skip
        mean = math.fsum(grams) / len(grams)
        if len(runs) > 1:
            axes.hlines(mean, at - 0.45 * width, at + 0.45 * width, color=DARK, lw=2, zorder=4)
        clause = f"{look.name} {mean:.3g} {name} (mean of {len(runs)})"
        means.setdefault(shown.panels[where], []).append(clause)
    if not scale(axes, "y", [value(r, "emissions_kg") * factor for r in shown.records]):
        axes.set_ylim(bottom=0)
    _names(axes, list(shown.panels.values()), wide=True)
    axes.set_ylabel(f"emissions ({name} CO2e)")
    handles = [look.dot() for look in shown.models.values()]
    handles += [_line("mean", "-", DARK)] * any(len(runs) > 1 for runs in runs_of.values())
    on = f"Runs on {', '.join(look.name for look in shown.gpus.values())}."
    legend(figure, handles, on, basis(shown.records), shown.left_out)
    words = [f"{task}: {', '.join(of)}" for task, of in means.items()]
    return figure, said(words, f"{on} {shown.left_out}".strip())


def ranking_figure(records: Sequence[RunRecord], title: str) -> Drawn | None:
    """Each GPU's mean energy, of the GPU alone and of the whole machine, for each model and task.

    The whole machine's has its bounds, and what is modelled of it hatched. A number above each bar
    is its rank, the least first. Blocks with fewer than two GPUs are left out; None without any.
    """
    shown = cast(records, *RANKED)
    if shown is None:
        return None
    every = {at: runs for at, runs in group(shown.records, block).items()
             if len({*map(gpu, runs)}) > 1}  # fmt: skip
    most = sorted(every, key=lambda at: -len(every[at]))[:MOST_PANELS]
    blocks = sorted(most, key=lambda at: (at.task, list(shown.models).index(at.model)))
    if not blocks:
        return None
    name, factor = _energy([value(r, "energy_kwh") for at in blocks for r in every[at]])
    figure, pairs = panels(title, len(blocks), height=2.1)
    clauses = []
    for axes, at in zip(pairs, blocks, strict=True):
        means = _means(every[at], factor)
        called = f"{shown.models[at.model].name}, {shown.panels[panel(every[at][0])]}"
        axes.set_title(called, fontsize=SMALL + 2)
        clauses.append(f"{called}: {_clusters(axes, means, shown.gpus)}")
    figure.supylabel(f"energy ({name})", fontsize=SMALL + 2)
    gone = not_drawn({"block": [" ".join(at[:2]) for at in every if at not in blocks]})
    handles = [Patch(fc=GREY, ec="white", lw=0, label="measured"),
               Patch(fc=GREY, ec="white", lw=0, hatch="////", label="modelled"),
               Line2D([], [], ls="", marker="|", color=DARK, ms=9, label="bounds")]  # fmt: skip
    rank = "Numbers: rank by energy, the least first."
    legend(figure, handles, rank, gone, shown.left_out)
    return figure, said(clauses, f"{gone} {shown.left_out}".strip())


def efficiency_figure(
    values: Mapping[tuple[str, str], Sequence[float]], floors: Mapping[str, float], title: str
) -> Drawn | None:
    """MJ per token and billion parameters of each model on each GPU, as given run by run.

    `values` are by model and GPU; `floors` are published figures by what they are called, drawn as
    lines. None where there are no values.
    """
    rows = {key: [x for x in found if math.isfinite(x) and x > 0] for key, found in values.items()}
    means = {key: interval(found) for key, found in rows.items() if found}
    if not means:
        return None
    kept = sorted(means, key=lambda key: means[key][0])[:MOST_BARS]
    figure, (axes,) = panels(title, 1, height=0.7 + 0.3 * len(kept))
    gpus = looks(sorted({on for _, on in kept}, key=by_power), gpu_name)
    for row, key in enumerate(kept):
        mean, half = means[key]
        look = gpus[key[1]]
        axes.barh(row, mean, 0.72, color=look.colour, hatch=look.hatch, ec="white", lw=0,
                  xerr=half, error_kw=ERRORS)  # fmt: skip
        ys = [row + offset for offset in spread_out(len(rows[key]), 0.5)]
        scatter(axes, list(zip(rows[key], ys, strict=True)), [], {}, color=DARK, s=DOT)
    lines = [
        _line(f"{text(name, 44)}: {x:.2g}", dashes, DARK)
        for (name, x), dashes in zip(floors.items(), DASHES, strict=False)
    ]
    for line, x in zip(lines, floors.values(), strict=False):
        axes.axvline(x, color=DARK, lw=1.4, ls=line.get_linestyle(), zorder=4)
    everything = [x for key in kept for x in rows[key]] + list(floors.values())
    logarithmic = scale(axes, "x", everything)
    if logarithmic:
        axes.set_xlim(min(everything) / 1.5, max(everything) * 1.3)
    axes.set_yticks(range(len(kept)), [f"{text(by)} on {gpu_name(on)}" for by, on in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mJ per token and billion parameters")
    gone = f"Not drawn: {len(means) - len(kept)} that need more." * (len(means) > len(kept))
    has_interval = any(math.isfinite(means[key][1]) for key in kept)
    legend(figure, lines, WHISKERS * has_interval, ON_LOG * logarithmic, gone)
    words = [f"{text(by)} on {gpu_name(on)} {means[by, on][0]:.3g} mJ" for by, on in kept]
    beside = ", ".join(f"{name}: {x:.2g}" for name, x in floors.items())
    return figure, said(words, f"Published: {beside}." if floors else "")


@dataclass(kw_only=True)
class _Bars:
    """The bars of one panel: a mean with its interval, and the runs behind it."""

    axes: Any
    width: float
    links: Mapping[str, str]
    of: int

    def __post_init__(self) -> None:
        self.values: list[float] = []
        self.alone, self.whiskers, self.is_log = True, False, False

    def draw(self, at: float, runs: Sequence[tuple[str, float]], look: Look) -> None:
        heights = [height for _, height in runs]
        mean, half = interval(heights)
        mark = {"color": look.colour, "marker": look.marker, "s": 44}
        if len(runs) > 1:
            self.axes.bar(at, mean, 0.94 * self.width, color=look.colour, hatch=look.hatch,
                          ec="white", lw=0, yerr=half, error_kw=ERRORS)  # fmt: skip
            mark, self.alone = {"color": DARK}, False
            mark |= {"s": DOT} if self.of <= LINKED else {}
        xs = [at + offset for offset in spread_out(len(runs), 0.6 * self.width)]
        scatter(self.axes, list(zip(xs, heights, strict=True)), [run_id for run_id, _ in runs],
                self.links, of=self.of, **mark)  # fmt: skip
        self.whiskers |= math.isfinite(half)
        self.values += [*heights, mean + half] if math.isfinite(half) else heights

    def fit(self) -> None:
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
        ranked = sorted(order, key=lambda on, name=name: means[name][on].height)  # type: ignore[misc]
        for place, on in enumerate(order):
            x, mean = cluster * (len(order) + 0.8) + place, means[name][on]
            _rank(axes, x, mean, gpus[on].colour, ranked.index(on) + 1)
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
    axes.bar(x, hatched, 0.8, bottom=mean.height - hatched, color=colour, ec="white", lw=0,
             hatch="////")  # fmt: skip
    if mean.below or mean.above:
        axes.errorbar(x, mean.height, [[mean.below], [mean.above]], fmt="none", ecolor=DARK,
                      elinewidth=1.1, capsize=2.5)  # fmt: skip
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


def _is_log(bars: Sequence[_Bars]) -> bool:
    return any(each.is_log for each in bars)


def _names(axes: Any, names: Sequence[str], *, wide: bool) -> None:
    """Names along an axis, slanted where they would not fit beside one another."""
    slanted = sum(len(name) + 2 for name in names) > (80 if wide else 38)
    axes.set_xticks(range(len(names)), names, fontsize=SMALL + 1, **(SLANTED if slanted else {}))
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


def _slant(ticks: Sequence[tuple[float, str]]) -> Mapping[str, Any]:
    return SLANTED if sum(len(name) + 2 for _, name in ticks) > ROOM else {}


def _line(name: str, dashes: str, colour: str) -> Line2D:
    return Line2D([], [], ls=dashes, color=colour, lw=1.6, label=name)


def _energy(kwh: Sequence[float]) -> tuple[str, float]:
    return ("kWh", 1.0) if max(kwh) >= 1 else ("Wh", 1000.0)
