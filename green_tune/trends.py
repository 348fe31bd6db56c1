"""How results go along with what was chosen: hyperparameters, and how far down a loss was brought.

A door to matplotlib, on a `canvas`, in the looks of `looks`. Each function returns a figure with a
line that says in words what it shows, or None where there is too little to draw. Correlations and
prices are handed in: they are `responses` and `marginal`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from green_tune.blocks import HYPERPARAMETERS, LOGARITHMIC, block, gpu, number, panel
from green_tune.canvas import DARK, SMALL
from green_tune.document import Interval
from green_tune.looks import (
    COLOURS,
    Cast,
    Drawn,
    Look,
    Pair,
    alike,
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
    spread_out,
    two_marks,
    unit,
)
from green_tune.results import RunRecord

Rhos = Mapping[tuple[str, str], Interval]
LABELS = {"val_loss": "loss less median", "emissions_kg": "emissions / median"}
SPOKEN = {"val_loss": "loss", "emissions_kg": "emissions"}
RATIOS = ("emissions_kg",)  # differ by factors; losses by amounts
FEW = 8  # different values of a hyperparameter, up to which each has its tick and mean
BINS = 6  # of the others, with equally many runs
SMALL_DOT = 16.0  # area of a run at most, in points squared: panels are small
GRAMS = {"kg": 1e-3, "g": 1.0, "mg": 1e3, "µg": 1e6}
BESIDE = "Each run beside the median of its model, task and GPU; line: means."
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True, kw_only=True)
class _Run:
    """One run in a panel, on the scale on which its hyperparameter acts, and beside its block."""

    record: RunRecord
    x: float
    y: float


def trends_figure(
    records: Sequence[RunRecord],
    values: Mapping[str, Mapping[str, float]],
    rhos: Rhos,
    title: str,
    links: Mapping[str, str] | None = None,
) -> Drawn | None:
    """Each response against each hyperparameter that varies, with the correlation that is given.

    `values` are by response (`val_loss` in nats, `emissions_kg` in kg, or another) and run id, as a
    whole or wherever they compare. Emissions are shown as factors of the median of the runs of the
    same model, task and GPU, others as differences from it. None where nothing varies.
    """
    varied = {run.record.run_id for runs in _cells(records, values).values() for run in runs}
    shown = cast(record for record in records if record.run_id in varied)
    if shown is None:
        return None
    cells = _cells(shown.records, values)
    figure, every = panels(title, len(cells), height=1.75)
    limits = {response: _limits(cells, response) for response in values}
    of, cut = max(map(len, cells.values())), False
    for axes, ((name, response), runs) in zip(every, cells.items(), strict=True):
        low, high = limits[response]
        _dots(axes, shown, runs, high, links or {}, of)
        axes.plot(*zip(*_means(runs, high), strict=True), color=DARK, lw=1.4, zorder=4.5)
        _fit(axes, response, low, high)
        _ticks(axes, name, [run.x for run in runs])
        cut |= max(run.y for run in runs) > high
        axes.set_title(_rho(rhos.get((name, response))), fontsize=SMALL, loc="left", pad=4)
        axes.set_xlabel(name.replace("_", " "), fontsize=SMALL + 1, labelpad=1)
        axes.set_ylabel(LABELS.get(response, response), fontsize=SMALL)
    above = "What lies above an axis is drawn at its edge." * cut
    legend(figure, _handles(shown), BESIDE, above, shown.left_out)
    clauses = [_spoken(name, response, rhos[name, response])
               for name, response in cells if (name, response) in rhos]  # fmt: skip
    names = ", ".join(dict.fromkeys(name.replace("_", " ") for name, _ in cells))
    nothing = f"{names} against {' and '.join(SPOKEN.get(r, r) for r in values)}, no correlation"
    return figure, said(clauses or [nothing], shown.left_out)


def marginal_figure(
    prices: Mapping[str, Sequence[Pair]], knees: Mapping[str, Pair], title: str
) -> Drawn | None:
    """What the next 0.01 nats cost, in grams, at each loss on the way down, a line for each label.

    `prices` are pairs of a loss in nats and grams; `knees`, of a loss in nats and the grams spent
    until there, are marked on the line of their label. None without prices.
    """
    there = {label: found for label, pairs in prices.items() if (found := _downwards(pairs))}
    if not there:
        return None
    most = sorted(there, key=lambda label: -len(there[label]))[: 2 * len(COLOURS)]
    kept = {label: pairs for label, pairs in there.items() if label in most}
    # Prices span decades, so that the largest is no guide to a unit.
    middle = statistics.median(y for pairs in kept.values() for _, y in pairs)
    name, factor = unit([middle], GRAMS)
    figure, (axes,) = panels(title, 1, height=3.4)
    handles, clauses = list[Line2D](), list[str]()
    for n, (key, look) in enumerate(looks(list(kept), width=34).items()):
        line, knee = [(x, y * factor) for x, y in kept[key]], knees.get(key)
        handles.append(_priced(axes, line, look, DASHES[n // len(COLOURS)], knee))
        clauses.append(f"{look.name}: {_spoken_price(line, name, knee)}")
    scale(axes, "y", [y * factor for pairs in kept.values() for _, y in pairs])
    axes.margins(0.08)
    axes.invert_xaxis()
    axes.set_xlabel("validation loss (nats per completion token), falling")
    axes.set_ylabel(f"{name} CO2e for the next 0.01 nats")
    if any(key in knees for key in kept):
        handles.append(Line2D([], [], ls="", marker="*", ms=10, mfc="none", color=DARK,
                              label="where the front bends most"))  # fmt: skip
    gone = not_drawn({"line": [key for key in there if key not in kept]})
    gone = gone.replace("fewest runs", "fewest points")
    legend(figure, handles, gone)
    return figure, said(clauses, gone)


def _downwards(pairs: Sequence[Pair]) -> list[Pair]:
    """From the highest loss to the lowest, without what has no price above 0."""
    return sorted(((x, y) for x, y in pairs if y > 0 and math.isfinite(y)), reverse=True)


def _priced(axes: Any, line: Sequence[Pair], look: Look, dashes: str, knee: Pair | None) -> Line2D:
    """A step line, as each price holds until the next begins; with its line in the legend."""
    mark: dict[str, Any] = {"marker": look.marker, "ms": 4, "color": look.colour, "ls": dashes}
    axes.plot(*zip(*line, strict=True), drawstyle="steps-post", lw=1.6, alpha=0.9, **mark)
    if knee:
        axes.scatter([knee[0]], [_price_at(line, knee[0])], s=130, marker="*", ec=DARK, lw=0.9,
                     fc=look.colour, zorder=5)  # fmt: skip
    return Line2D([], [], label=look.name, lw=1.6, **mark)


def _spoken_price(line: Sequence[Pair], name: str, knee: Pair | None) -> str:
    """A line's ends in words, in the unit of that name, and where it bends."""
    words = [f"{price:.3g} {name} at loss {loss:.3g}" for loss, price in (line[0], line[-1])]
    if knee:
        of, factor = unit([knee[1]], GRAMS)
        words.append(f"the bend at {knee[0]:.3g} after {knee[1] * factor:.3g} {of}")
    return ", ".join(dict.fromkeys(words))


def _cells(
    records: Sequence[RunRecord], values: Mapping[str, Mapping[str, float]]
) -> dict[tuple[str, str], list[_Run]]:
    """The runs of each panel, by hyperparameter and response; none that would be empty."""
    beside = {response: _beside(records, response, given) for response, given in values.items()}
    return {(name, response): runs for name in HYPERPARAMETERS for response in values
            if (runs := _varied(records, name, beside[response]))}  # fmt: skip


def _dots(
    axes: Any, shown: Cast, runs: Sequence[_Run], high: float, links: Mapping[str, str], of: int
) -> None:
    """Every run, those above a limit at it."""
    marks, room = _marks(shown), _room(runs)
    for (colour, marker), its in alike(runs, lambda run: marks[_who(run.record)]).items():
        xs = [run.x + shift for run, shift in zip(its, spread_out(len(its), room), strict=True)]
        pairs = [(x, min(run.y, high)) for x, run in zip(xs, its, strict=True)]
        scatter(axes, pairs, [run.record.run_id for run in its], links, of=of, most=SMALL_DOT,
                color=colour, marker=marker)  # fmt: skip


def _who(record: RunRecord) -> tuple[str, str]:
    return model(record), panel(record).task


def _marks(shown: Cast) -> dict[tuple[str, str], tuple[str, str]]:
    """Colour by model and marker by task; where there is one of a kind, both by the other."""
    models, tasks = shown.models, _tasks(shown)
    return {
        (by, task): (
            tasks[task].colour if len(models) == 1 else models[by].colour,
            models[by].marker if len(tasks) == 1 else tasks[task].marker,
        )
        for by in models
        for task in tasks
    }


def _tasks(shown: Cast) -> dict[str, Look]:
    return looks(list(dict.fromkeys(at.task for at in shown.panels)))


def _handles(shown: Cast) -> list[Line2D]:
    """The legend to `_marks`."""
    models, tasks = shown.models, _tasks(shown)
    if len(models) > 1 and len(tasks) > 1:
        return two_marks(models, tasks)
    if len(models) == len(tasks) == 1:
        (model_look,), (task_look,) = models.values(), tasks.values()
        return [replace(task_look, name=f"{model_look.name}, {task_look.name}").dot()]
    return [look.dot() for look in (tasks if len(models) == 1 else models).values()]


def _beside(
    records: Sequence[RunRecord], response: str, given: Mapping[str, float]
) -> dict[str, float]:
    """Each value beside the median of its block on its GPU; a block with one value says nothing.

    The median, so that one training that diverged does not move all the others.
    """
    there = [r for r in records if math.isfinite(given.get(r.run_id, math.nan))]
    found: dict[str, float] = {}
    for runs in alike(there, lambda r: (block(r), gpu(r))).values():
        middle = statistics.median(given[r.run_id] for r in runs)
        if len(runs) < 2 or (response in RATIOS and middle <= 0):  # noqa: PLR2004
            continue
        for r in runs:
            y = given[r.run_id]
            found[r.run_id] = y / middle if response in RATIOS else y - middle
    return found


def _varied(records: Sequence[RunRecord], name: str, beside: Mapping[str, float]) -> list[_Run]:
    """The runs of those blocks in which the hyperparameter varies."""
    there = [_Run(record=r, x=number(r, name), y=beside[r.run_id])
             for r in records if r.run_id in beside]  # fmt: skip
    there = [run for run in there if math.isfinite(run.x)]
    same = alike(there, lambda run: (block(run.record), gpu(run.record))).values()
    return [run for runs in same if len({run.x for run in runs}) > 1 for run in runs]


def _limits(cells: Mapping[tuple[str, str], Sequence[_Run]], response: str) -> Pair:
    """From the least to the largest of a response that does not press all others flat."""
    ys = [run.y for (_, of), runs in cells.items() if of == response for run in runs]
    return (min(ys), min(max(ys), edge(ys))) if ys else (0.0, 1.0)


def _fit(axes: Any, response: str, low: float, high: float) -> None:
    """The same limits in all panels of a response."""
    if response in RATIOS and low > 0 and scale(axes, "y", [low, high]):
        axes.set_ylim(low / 1.3, high * 1.3)
        return
    room = 0.08 * (high - low) or 0.1
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.set_ylim(low - room, high + room)


def _room(runs: Sequence[_Run]) -> float:
    """How far apart the runs of one place may stand: none where places are many."""
    xs = sorted({run.x for run in runs})
    return 0.4 * min((b - a for a, b in pairwise(xs)), default=0.0) if len(xs) <= FEW else 0.0


def _means(runs: Sequence[_Run], high: float) -> list[Pair]:
    """The mean at each value, or in bins of equally many runs where values are many."""
    by_x = defaultdict[float, list[_Run]](list)
    ordered = sorted(runs, key=lambda run: run.x)
    few = len({run.x for run in runs}) <= FEW
    for n, run in enumerate(ordered):
        by_x[run.x if few else n * BINS // len(ordered)].append(run)
    return [
        (statistics.fmean(run.x for run in its), statistics.fmean(min(r.y, high) for r in its))
        for its in by_x.values()
    ]


def _ticks(axes: Any, name: str, xs: Sequence[float]) -> None:
    """In the hyperparameter's own values, of which those that are few have one each."""
    own, low, high = sorted(set(xs)), min(xs), max(xs)
    places = own if len(own) <= FEW else list(MaxNLocator(5).tick_values(low, high))
    if name in LOGARITHMIC and len(own) > FEW:
        subs = (1, 2, 5) if high - low < 6 else (1,)  # noqa: PLR2004 - powers of two
        places = [math.log2(x) for x in LogLocator(subs=subs).tick_values(2**low, 2**high)]
    places = _apart([x for x in places if low <= x <= high], (high - low) / FEW)
    texts = [f"{2**x if name in LOGARITHMIC else x:.3g}" for x in places]
    axes.set_xticks(places, texts, fontsize=SMALL)


def _apart(places: Sequence[float], least: float) -> list[float]:
    """Those from left to right that leave room for the ones before."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] >= least:
            kept.append(place)
    return kept


def _price_at(pairs: Sequence[Pair], loss: float) -> float:
    """The price on the step line at a loss, or at its nearer end."""
    before = [price for at, price in pairs if at >= loss]
    return before[-1] if before else pairs[0][1]


def _rho(found: Interval | None) -> str:
    if found is None or not math.isfinite(found.estimate):
        return "too few runs for a correlation"
    return f"ρ {found.estimate:+.2f} ({found.low:+.2f} to {found.high:+.2f}), {found.n} runs"


def _spoken(name: str, response: str, found: Interval) -> str:
    return f"{name.replace('_', ' ')} and {SPOKEN.get(response, response)}: {_rho(found)}"
