"""What a grid says: each cell as it finishes, its table, its cost, and how to go on.

It reads the records of one grid, with a record for each cell, and returns text. Where a cell is a
sweep, its record is made of the sweep's own run and its trials.
"""

import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean, stdev
from typing import Any

from green_tune import cells, report
from green_tune.cells import KG_TO_G
from green_tune.grid import Cell, Pair, name_of, short
from green_tune.results import (
    RETRY_OF,
    REUSED,
    STOPPED_EARLY,
    STOPPED_WHY,
    STUDY,
    UNFIT,
    RunRecord,
)
from green_tune.run import ERROR

MODEL_WIDTH = 10  # characters
REASONS = 8  # failed cells whose reasons are told
REASON_WIDTH = 400  # characters of each
DONE, UNFITTING, EARLY, RUNNING = "done", "does not fit", "ended early", "running"
FAILED, STOPPED, WAITING = "failed", "stopped", "not started"


@dataclass(frozen=True, kw_only=True)
class Tally:
    """The cells of a grid that were asked for, in order, each with its run where it has one.

    `ended` says why the grid ended before its last cell; empty where nothing kept it from it.
    """

    study: str
    asked: Sequence[Cell]
    records: Mapping[Cell, RunRecord]
    ended: str = ""

    @cached_property
    def unfit(self) -> dict[Pair, RunRecord]:
        """What has no room, whatever the seed."""
        return {cell.pair: r for cell, r in self.records.items() if UNFIT in r.tags}

    def record(self, cell: Cell) -> RunRecord | None:
        """The run of a cell, or the one that says that it has no room."""
        return self.records.get(cell) or self.unfit.get(cell.pair)

    def state(self, cell: Cell) -> str:
        """What became of a cell, in a few words."""
        record = self.record(cell)
        if record is None:
            return f"{WAITING}: budget" if self.ended else WAITING
        if UNFIT in record.tags:
            return UNFITTING
        if record.status == "FINISHED" and "val_loss" in record.metrics:
            return EARLY if record.ended_early else DONE
        return {"RUNNING": RUNNING, "KILLED": STOPPED}.get(record.status, FAILED)

    @property
    def open(self) -> list[Cell]:
        """Those that another session of the grid would run."""
        return [each for each in self.asked if self.state(each).startswith((WAITING, STOPPED))]

    @property
    def fruitless(self) -> bool:
        """No cell has a result, and none is on its way to one."""
        states = {self.state(cell) for cell in self.asked}
        return states <= {UNFITTING, FAILED, f"{WAITING}: budget"}

    def done(self, pair: Pair) -> list[RunRecord]:
        """The runs of one row of the table that are whole."""
        return [self.records[c] for c in self.asked if c.pair == pair and self.state(c) == DONE]


def newest(records: Iterable[RunRecord]) -> dict[Cell, RunRecord]:
    """The last attempt at each cell."""
    found = {}
    for record in sorted(records, key=lambda record: record.started):
        found[cell_of(record)] = record
    return found


def cell_of(record: RunRecord) -> Cell:
    """Which cell a run is of, by its params."""
    params = record.params
    return Cell(params.get("model", ""), params.get("task", ""), int(params.get("seed", 0)))


def of_sweep(
    study: str, runs: Sequence[RunRecord], sessions: Sequence[RunRecord], asked: int
) -> RunRecord | None:
    """A cell that is a sweep: the best trial's loss, and what all of it has cost.

    None where it has not begun.
    """
    runs = [record for record in runs if record.tags.get(STUDY) == study]
    sessions = [record for record in sessions if record.tags.get(STUDY) == study]
    session = next((record for record in sessions if record.kind == "sweep"), None)
    if session is None:
        return None
    trials, totals = [r for r in runs if r.kind == "trial"], report.totals(runs, sessions)
    whole = [record for record in trials if record.status == "FINISHED"]
    best = min(whole, key=lambda r: r.metrics.get("val_loss", float("inf")), default=session)
    spent = {name: totals[name] for name in ("emissions_kg", "energy_kwh", "runtime_h")}
    losses = {n: best.metrics[n] for n in ("val_loss", "val_bits_per_byte") if n in best.metrics}
    retried = {record.tags.get(RETRY_OF) for record in trials}
    over = [r for r in trials if r.status not in ("RUNNING", "KILLED") and r.run_id not in retried]
    ended = len(over)
    early = {STOPPED_EARLY: f"after {ended} of {asked} trials"} if ended < asked else {}
    kept = {k: v for k, v in best.tags.items() if k.startswith(("intensity_", "energy_", "data_"))}
    return replace(
        session,
        kind="cell",
        params=best.params,
        metrics=spent | losses,
        tags={**session.tags, **kept, **early},
    )


def line(record: RunRecord) -> str:
    """One cell that has ended, in one line, for the time while the grid goes on."""
    assumed = " assumed" * bool(cells.star([record]))
    text = (
        f"{name_of(cell_of(record))}: loss {cells.loss(record)}, {cells.grams(record)} g{assumed}"
    )
    text += f" in {cells.time(record)}"
    if record.ended_early:
        text += f"\n  ended {record.tags[STOPPED_EARLY]}: {record.tags.get(STOPPED_WHY, '')}"
    elif REUSED in record.tags:
        text += f"\n  taken over from run {record.tags[REUSED]}"
    return text


def table(tally: Tally, width: int = 80) -> str:
    """Each model on each task over its seeds: means, standard deviations, or why there are none."""
    star = cells.star(list(tally.records.values()))
    text = ""
    for gap, most in ((1, 2 * width), (0, width)):  # dense where there is no room for more
        headings = ("model", "task", "seeds", "val loss", f"g CO2e{star}", f"g/h{star}", "time")
        made = cells.new_table(*headings, gap=gap)
        for pair in dict.fromkeys(cell.pair for cell in tally.asked):
            made.add_row(*_cells(tally, pair))
        text = cells.to_text(made, most)
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def summary(
    tally: Tally, spent: Sequence[RunRecord], overheads: Sequence[RunRecord], width: int = 80
) -> str:
    """What a grid found and what it cost, on one screen.

    `spent` are the runs that have cost something, attempts and trials among them; `overheads` the
    sessions of the grid and of its sweeps.
    """
    whole = [record for record in tally.records.values() if "val_loss" in record.metrics]
    within = "trials" if any(record.kind == "trial" for record in spent) else "cells"
    lines = [
        f"\nGrid {tally.study}: {_counted(tally)}",
        *to_go_on(tally, width),
        table(tally, width),
        "seeds: done of those asked for; mean ± standard deviation over them",
        *_taken(tally),
        *report.starred(whole),
        *(text for text in [report.modelled(spent)] if text),
        *_flagged(whole),
        *_reasons(tally, width),
        f"\nThe grid's cost, failed cells and what lies between them included:\n"
        f"{report.cost(spent, overheads)}\n"
        f"{report.overhead_share(spent, overheads):.0%} of its energy was spent outside {within}",
        f"\nNext: mlflow run . -e compare -P study={shlex.quote(tally.study)}",
    ]
    return "\n".join(lines)


def to_go_on(tally: Tally, width: int) -> list[str]:
    """Why it ended before its last cell, and what goes on with it."""
    again = f"go on with -P study={shlex.quote(tally.study)}"
    if tally.ended:
        return [textwrap.fill(f"Ended: {tally.ended}; {again} and a larger budget", width)]
    return [f"{_plural(len(tally.open), 'cell')} to go; {again}"] if tally.open else []


def note(tally: Tally, spent: Sequence[RunRecord], overheads: Sequence[RunRecord]) -> str:
    """The same in Markdown, for the page of the grid's own run in MLflow."""
    whole = [record for record in tally.records.values() if "val_loss" in record.metrics]
    return (
        f"{_counted(tally)}: {report.cost(spent, overheads)}. {report.modelled(spent)}.\n\n"
        f"```\n{table(tally)}\n```\n\n" + "; ".join(report.starred(whole))
    )


def rows(tally: Tally) -> list[dict[str, Any]]:
    """Every cell that was asked for as a flat row with full names and base units."""
    return [_row(tally, cell) for cell in tally.asked]


FIGURES = (
    *("val_loss", "emissions_kg", "emissions_rate_kg_per_h", "runtime_h", "energy_kwh"),
    *("val_bits_per_byte", "energy_gpu_kwh", "energy_cpu_kwh", "energy_ram_kwh"),
    *("energy_modelled_share",),
)


def _row(tally: Tally, cell: Cell) -> dict[str, Any]:
    record, state = tally.record(cell), tally.state(cell)
    tags: Mapping[str, str] = record.tags if record else {}
    figures: Mapping[str, float] = _with_rate(record) if record else {}
    if state != DONE:  # a loss of where it broke off is no result
        figures = {name: figures[name] for name in figures if not name.startswith("val_")}
    return {
        "model": tags.get("base_model", cell.model),
        "task": cell.task,
        "seed": cell.seed,
        "state": state,
        **{name: figures.get(name) for name in FIGURES},
        "gpu_type": tags.get("gpu_type", ""),
        "why": _reason(record) if record else "",
        "energy_flags": tags.get("energy_flags", ""),
        "reused": tags.get(REUSED, ""),
        "retry_of": tags.get(RETRY_OF, ""),
        "data_digest": tags.get("data_digest", ""),
        "intensity_g_per_kwh": tags.get("intensity_g_per_kwh", ""),
        "intensity_assumed": tags.get("intensity_assumed", ""),
        "run_id": record.run_id if record else "",
    }


def _with_rate(record: RunRecord) -> Mapping[str, float]:
    """A run that was taken over has no rate of its own, and a sweep none at all."""
    figures, name = record.metrics, "emissions_rate_kg_per_h"
    if name in figures or not figures.get("runtime_h"):
        return figures
    return {**figures, name: figures["emissions_kg"] / figures["runtime_h"]}


def _cells(tally: Tally, pair: Pair) -> tuple[str, ...]:
    """One row of the table."""
    asked, done = [cell for cell in tally.asked if cell.pair == pair], tally.done(pair)
    states = [tally.state(cell) for cell in asked]
    figures = _figures(done) if done else (max(states, key=_weight), "", "", "")
    seeds = "" if UNFITTING in states else f"{len(done)}/{len(asked)}"
    return (cells.cropped(short(pair.model), MODEL_WIDTH), pair.task, seeds, *figures)


def _weight(state: str) -> int:
    """What to say of a pair without a cell that is done: the further one came, the more."""
    return (f"{WAITING}: budget", WAITING, STOPPED, RUNNING, EARLY, FAILED, UNFITTING).index(state)


def _figures(done: Sequence[RunRecord]) -> tuple[str, ...]:
    found = [_with_rate(record) for record in done]
    rate = mean(figures["emissions_rate_kg_per_h"] for figures in found)
    return (
        _spread([figures["val_loss"] for figures in found], digits=4),
        _spread([figures["emissions_kg"] * KG_TO_G for figures in found], digits=3),
        f"{rate * KG_TO_G:.3g}",
        cells.duration(mean(figures["runtime_h"] for figures in found)),
    )


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation; of one alone the value."""
    text = f"{mean(values):.{digits}g}"
    return f"{text} ± {stdev(values):.1g}" if len(values) > 1 else text


def _counted(tally: Tally) -> str:
    states = [tally.state(cell) for cell in tally.asked]
    counts = {state: states.count(state) for state in dict.fromkeys([DONE, *states])}
    parts = [
        f"{count} {'do not fit' if state == UNFITTING and count > 1 else state}"
        for state, count in counts.items()
    ]
    return f"{_plural(len(states), 'cell')}, {', '.join(parts)}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _taken(tally: Tally) -> list[str]:
    count = sum(REUSED in record.tags for record in tally.records.values())
    return [f"{count} taken over from earlier runs of the very same config"] if count else []


def _flagged(whole: Sequence[RunRecord]) -> list[str]:
    count = sum(bool(record.tags.get("energy_flags")) for record in whole)
    what = f"{count} of {len(whole)} flagged, such as paused or shared: energy_flags in cells.json"
    return [what] if count else []


def _reasons(tally: Tally, width: int) -> list[str]:
    """Why cells have no result; what is said of several, such as of one model, once."""
    told = {}
    for cell in tally.asked:
        record, state = tally.record(cell), tally.state(cell)
        if record and state == UNFITTING:
            told[_reason(record)] = ""
        elif record and state in (FAILED, EARLY):
            told[f"{name_of(cell)} {state}, {_reason(record)}"] = ""
    lines = [
        textwrap.fill(
            cells.cropped(text, REASON_WIDTH), width, initial_indent="- ", subsequent_indent="  "
        )
        for text in told
    ]
    more = len(lines) - REASONS
    return [*lines[:REASONS], *([f"- and {more} more; cells.json has all"] if more > 0 else [])]


def _reason(record: RunRecord) -> str:
    tags = record.tags
    if UNFIT in tags:
        return tags[UNFIT]
    if STOPPED_EARLY in tags:
        return f"{tags[STOPPED_EARLY]}: {tags.get(STOPPED_WHY, '')}".removesuffix(": ")
    return tags.get(ERROR, "").partition(": ")[2] or tags.get(ERROR, "")
