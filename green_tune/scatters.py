"""A comparison's runs as points: what was reached for what was spent, and the fronts.

A door to matplotlib, on a `canvas`, in the looks of `looks`. Each function returns a figure with a
line that says in words what it shows, or None where there is too little to draw. Losses are shown
within one task and data set, across models as bits per byte; points are links where given.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from green_tune.blocks import Block, block, gpu, group, panel
from green_tune.canvas import DARK, SMALL
from green_tune.looks import (
    MOST_PANELS,
    Cast,
    Drawn,
    Pair,
    basis,
    cast,
    edge,
    legend,
    model,
    not_drawn,
    panels,
    said,
    scale,
    scatter,
    unit,
    value,
)
from green_tune.results import RunRecord

LOSS, BITS = "val_loss", "val_bits_per_byte"
CALLED = {LOSS: "loss (nats per token)", BITS: "bits per byte"}
BEYOND = "loss beyond the axis"


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
        _dots(axes, shown, mine, {key: (x, min(y, limit)) for key, (x, y) in where.items()},
              links, len(runs))  # fmt: skip
        front = _front(mine, where)
        _steps(axes, [where[record.run_id] for record in front])
        scale(axes, "x", [x for x, _ in where.values()])
        scale(axes, "y", [y for _, y in where.values() if y <= limit])
        cut |= _beyond(axes, list(where.values()), limit)
        axes.set_title(called, fontsize=SMALL + 2)
        axes.set_ylabel(CALLED[measure], fontsize=SMALL + 1)
        ends = [_end(shown, record, where, name) for record in (front[-1], front[0])]
        clauses.append(
            f"{called}: least {CALLED[measure]} {ends[0]}, least emissions {ends[1]},"
            f" {len(front)} of {_count(len(mine))} on the front"
        )
    for axes in every[-2:]:  # the last of each column
        axes.set_xlabel(f"emissions ({name} CO2e)", fontsize=SMALL + 1)
    pareto = Line2D([], [], color=DARK, lw=1.3, marker="o", mfc="none", label="Pareto front")
    handles = [*shown.handles(runs), pareto, *([_mark("^", BEYOND)] * cut)]
    legend(figure, handles, basis(runs), gone, shown.left_out)
    return figure, said(clauses, f"{gone} {shown.left_out}".strip())


def _dots(
    axes: Any,
    shown: Cast,
    runs: Sequence[RunRecord],
    where: Mapping[str, Pair],
    links: Mapping[str, str],
    of: int,
) -> None:
    """Every run at its place; `of` is how many the figure has."""
    for (colour, marker), its in group(runs, shown.mark).items():
        scatter(axes, [where[r.run_id] for r in its], [r.run_id for r in its], links, of=of,
                color=colour, marker=marker)  # fmt: skip


def _steps(axes: Any, front: Sequence[Pair]) -> None:
    axes.plot(*zip(*front, strict=True), drawstyle="steps-post", color=DARK, lw=1.3, zorder=2)
    axes.scatter(*zip(*front, strict=True), s=58, fc="none", ec=DARK, lw=1.1, zorder=4)


def _count(runs: int) -> str:
    return f"{runs} run{'s' * (runs != 1)}"


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
