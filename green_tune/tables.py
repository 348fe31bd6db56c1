"""The tables of a report: what the runs of each model, task and GPU cost, reached, and rest on.

Rows are in base units under the names that the store has; a page shows them as the columns say.
Pure functions over records; how they are arranged is `dossier`'s affair.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from green_tune import blocks, points, report
from green_tune.blocks import HYPERPARAMETERS, Block
from green_tune.document import Column, Table
from green_tune.looks import by_power
from green_tune.results import STUDY, UNFIT, RunRecord

Records = Sequence[RunRecord]
Row = Mapping[str, Any]

KG_TO_G = 1000.0
LABELS = (Column(name="task", heading="task"), Column(name="model", heading="model"))
GPU = Column(name="gpu_type", heading="GPU")
RUNS = Column(name="runs", heading="runs")
RUN = Column(name="run_id", heading="run")


def grams(name: str, heading: str) -> Column:
    """A column of kilograms, shown in grams."""
    return Column(name=name, heading=heading, factor=KG_TO_G)


def costs(records: Records) -> Table:
    """Means and spreads by task, model and GPU: what the study's first figures show."""
    found = [_cost(block, gpu, alike) for (block, gpu), alike in _cells(records).items()]
    columns = (
        *LABELS,
        GPU,
        RUNS,
        Column(name="val_loss", heading="val loss", digits=4),
        Column(name="val_loss_sd", heading="± sd", digits=2),
        Column(name="val_bits_per_byte", heading="bits/byte"),
        grams("emissions_kg", "g CO2e"),
        Column(name="emissions_kg_sd", heading="± sd", factor=KG_TO_G, digits=2),
        grams("emissions_rate_kg_per_h", "g/h"),
        Column(name="runtime_h", heading="hours"),
    )
    return Table(
        name="emissions",
        title="Means of the runs",
        columns=columns,
        rows=named(found, records),
        note="sd: standard deviation over the runs, which may differ in seed and hyperparameters.",
    )


def machines(records: Records) -> Table:
    """GPU-only and whole-machine energy with their ranks: which of the two decides a ranking."""
    rows: list[Row] = []
    of_blocks: dict[Block, list[dict[str, Any]]] = {}
    for (block, gpu), alike in _cells(records).items():
        of_blocks.setdefault(block, []).append(_machine(block, gpu, alike))
    for found in of_blocks.values():
        rows += _ranked(_ranked(found, "energy_kwh"), "energy_gpu_kwh")
    columns = (
        *LABELS,
        GPU,
        RUNS,
        Column(name="energy_gpu_kwh", heading="GPU, Wh", factor=1000),
        Column(name="energy_gpu_kwh_rank", heading="rank"),
        Column(name="energy_kwh", heading="machine, Wh", factor=1000),
        Column(name="energy_kwh_rank", heading="rank"),
        Column(name="energy_low_kwh", heading="from", factor=1000),
        Column(name="energy_high_kwh", heading="to", factor=1000),
        Column(name="energy_modelled_share", heading="modelled, %", factor=100, digits=2),
    )
    note = (
        "Means. From and to bound what the machine drew at the wall; modelled is the share that "
        "no sensor has seen. Where the two ranks differ, the machine around the GPU decides."
    )
    return Table(
        name="machines",
        title="GPU alone, and the whole machine",
        columns=columns,
        rows=named(rows, records),
        note=note,
    )


def fronts(records: Records, links: Mapping[str, str]) -> Table:
    """The runs that none of their model, task and data set beats in both loss and emissions."""
    found = [
        {
            "panel": blocks.panel(point.record),
            "model": block.model,
            "gpu_type": blocks.gpu(point.record),
            "run_id": point.record.run_id,
            "step": point.step,
            "progress": point.progress,
            "val_loss": point.val_loss,
            "emissions_kg": point.emissions_kg,
            **{name: _number(point.record.params.get(name, "")) for name in HYPERPARAMETERS},
        }
        for block, alike in blocks.group(records, blocks.block).items()
        for point in points.front_of(points.every(alike))
    ]
    columns = (
        *LABELS,
        GPU,
        RUN,
        Column(name="progress", heading="at, %", factor=100),
        Column(name="val_loss", heading="val loss", digits=4),
        grams("emissions_kg", "g CO2e"),
        *(Column(name=name, heading=short) for name, short in HYPERPARAMETERS.items()),
        Column(name="step", heading=""),
    )
    return Table(
        name="front",
        title="The fronts",
        columns=columns,
        rows=named(found, records),
        links=links,
        note="At: where in its schedule a run had that loss for these emissions.",
    )


def runs(records: Records, links: Mapping[str, str]) -> Table:
    """Every run that was compared, the lowest emissions first."""
    rows = report.rows(sorted(records, key=lambda r: r.metrics["emissions_kg"]))
    shown = (
        RUN,
        *LABELS,
        Column(name="gpu_type", heading="GPU"),
        Column(name="val_loss", heading="val loss", digits=4),
        grams("emissions_kg", "g CO2e"),
        Column(name="runtime_h", heading="hours"),
        *(Column(name=name, heading=short) for name, short in HYPERPARAMETERS.items()),
    )
    first = {column.name for column in shown}
    others = [
        Column(name=name, heading="")
        for name in report.COLUMNS
        if name not in first and any(row[name] not in ("", None) for row in rows)
    ]
    return Table(
        name="runs",
        title="All runs",
        columns=(*shown, *others),
        rows=[_numbers(row) for row in rows],
        links=links,
    )


def left_out(reasons: Mapping[str, Records], links: Mapping[str, str]) -> Table:
    """Runs that were found and not compared, and why."""
    rows = [
        {
            "why": why,
            "run_id": record.run_id,
            "run_name": record.name,
            "status": record.status,
            "kind": record.kind,
            "error": record.tags.get("green_tune.error", ""),
        }
        for why, some in reasons.items()
        for record in some
    ]
    columns = [Column(name=name, heading=name.replace("_", " ")) for name in
               ("why", "run_id", "run_name", "status", "kind", "error")]  # fmt: skip
    return Table(
        name="left_out", title="Runs left out", columns=columns, rows=rows, links=links, shown=20
    )


def unfit(records: Records) -> Table:
    """Cells of a grid that have no room on their GPU."""
    rows = [
        {
            "model": record.tags.get("base_model", ""),
            "task": record.params.get("task", ""),
            "gpu_type": blocks.gpu(record),
            "study": record.tags.get(STUDY, ""),
            "why": record.tags[UNFIT],
        }
        for record in records
    ]
    columns = [*LABELS, GPU, Column(name="why", heading="does not fit")]
    return Table(name="does_not_fit", title="Does not fit", columns=columns, rows=rows)


def _cells(records: Records) -> dict[tuple[Block, str], list[RunRecord]]:
    found = blocks.group(records, lambda record: (blocks.block(record), blocks.gpu(record)))
    return dict(sorted(found.items(), key=lambda cell: _order(*cell[0])))


def _order(block: Block, gpu: str) -> tuple[object, ...]:
    """By task, then model, then the power that a GPU may draw."""
    return (*block[1:], block.model, by_power(gpu))


def _cost(block: Block, gpu: str, alike: Records) -> Row:
    names = ("val_loss", "val_bits_per_byte", "emissions_kg", "emissions_rate_kg_per_h",
             "runtime_h", "energy_kwh", "energy_gpu_kwh")  # fmt: skip
    return (
        _cell(block, gpu, alike)
        | {name: _mean(alike, name) for name in names}
        | {f"{name}_sd": _spread(alike, name) for name in ("val_loss", "emissions_kg")}
    )


def _machine(block: Block, gpu: str, alike: Records) -> dict[str, Any]:
    names = ("energy_gpu_kwh", "energy_kwh", "energy_low_kwh", "energy_high_kwh",
             "energy_modelled_share")  # fmt: skip
    return _cell(block, gpu, alike) | {name: _mean(alike, name) for name in names}


def _cell(block: Block, gpu: str, alike: Records) -> dict[str, Any]:
    return {
        "panel": blocks.panel(alike[0]),
        "model": block.model,
        "gpu_type": gpu,
        "runs": len(alike),
    }


def _ranked(rows: Iterable[Row], name: str) -> list[Row]:
    """The rows with their rank by a figure, the lowest first; without it they have none."""
    values = sorted(row[name] for row in rows if row[name])
    ranks = {value: rank for rank, value in reversed(list(enumerate(values, start=1)))}
    return [{**row, f"{name}_rank": ranks.get(row[name])} for row in rows]


def named(rows: Iterable[Row], records: Records) -> list[Row]:
    """Rows with their task's name, and with its data where a task has several."""
    titles = blocks.titles(records)
    return [
        {"task": titles[row["panel"]], **{k: v for k, v in row.items() if k != "panel"}}
        for row in rows
    ]


def _figures(alike: Records, name: str) -> list[float]:
    return [record.metrics[name] for record in alike if name in record.metrics]


def _mean(alike: Records, name: str) -> float | None:
    return mean(found) if (found := _figures(alike, name)) else None


def _spread(alike: Records, name: str) -> float | None:
    return stdev(found) if len(found := _figures(alike, name)) > 1 else None


def _numbers(row: Row) -> Row:
    """A row with its hyperparameters as numbers."""
    return {key: _number(value) if key in HYPERPARAMETERS else value for key, value in row.items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
