"""Finished runs as columns of numbers, and what of them may be put side by side.

It knows which runs are alike and what has to be held for a comparison; what is compared, and what
follows, is for others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from green_tune import effects
from green_tune.blocks import HYPERPARAMETERS, UNDECIDING, block, config, gpu, number
from green_tune.effects import Bools, Fit, Floats, Ints
from green_tune.results import SESSION_KINDS, RunRecord

KG, HOURLY = "emissions_kg", "emissions_rate_kg_per_h"
FEWEST_RUNS = 3  # with one value, for it to be a setting or a level


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Finished runs as columns; NaN where a run has no such figure.

    A stratum is a block on one GPU at one intensity with the same settings; a place is a stratum
    without its GPU. `config` and `cell` are numbers of what was asked, seeds apart, in these.
    """

    ids: Sequence[str]
    family: Sequence[str]
    numbers: Mapping[str, Floats]
    loss: Floats
    start: Floats
    kg: Floats
    rate: Floats
    gpu_kwh: Floats
    stratum: Ints
    place: Ints
    config: Ints
    cell: Ints

    def where(self, kept: Bools) -> "Runs":
        """Only some of the runs."""
        at = np.flatnonzero(kept).tolist()
        columns = {name: value[at] for name, value in vars(self).items() if name in _ARRAYS}
        columns |= {name: effects.codes(columns[name].tolist()) for name in _CODES}
        return Runs(
            ids=[self.ids[i] for i in at],
            family=[self.family[i] for i in at],
            numbers={name: value[at] for name, value in self.numbers.items()},
            **columns,
        )


_CODES = ("stratum", "place", "config", "cell")
_ARRAYS = ("loss", "start", "kg", "rate", "gpu_kwh", *_CODES)


def read(records: Sequence[RunRecord]) -> Runs:
    """What finished as asked, as columns; the rate is emissions per hour where a run has none.

    Left out are runs that something outside of their config stopped early, and sessions of sweeps.
    """
    records = [r for r in records if _counts(r)]
    settings = _settings(records)
    places = [(block(r), _intensity(r), s) for r, s in zip(records, settings, strict=True)]
    asked = [config(record) for record in records]
    strata = [(place, gpu(r)) for place, r in zip(places, records, strict=True)]
    kg, hours = _column(records, KG), _column(records, "runtime_h")
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = np.where(np.isfinite(r := _column(records, HOURLY)), r, kg / hours)
    return Runs(
        ids=[record.run_id for record in records],
        family=[gpu(record).split("-")[0] for record in records],
        numbers={name: np.array([number(r, name) for r in records]) for name in HYPERPARAMETERS},
        loss=_column(records, "val_loss"),
        start=_column(records, "start_val_loss"),
        kg=kg,
        rate=rate,
        gpu_kwh=_column(records, "energy_gpu_kwh"),
        stratum=effects.codes(strata),
        place=effects.codes(places),
        config=effects.codes(list(zip(strata, asked, strict=True))),
        cell=effects.codes(list(zip(places, asked, strict=True))),
    )


def _counts(record: RunRecord) -> bool:
    whole = record.status == "FINISHED" and not record.ended_early
    return whole and record.kind not in SESSION_KINDS


def _column(records: Sequence[RunRecord], name: str) -> Floats:
    return np.array([record.metrics.get(name, math.nan) for record in records], dtype=float)


def _intensity(record: RunRecord) -> tuple[str, str]:
    return record.tags.get("intensity_g_per_kwh", ""), record.tags.get("pue", "")


def _settings(records: Sequence[RunRecord]) -> list[tuple[str, ...]]:
    """What else was asked of each run; what is different in nearly every run is no setting."""
    names = {name for record in records for name in record.params if "." not in name}
    columns = []
    for name in sorted(names - HYPERPARAMETERS.keys() - UNDECIDING):
        column = [record.params.get(name, "") for record in records]
        if FEWEST_RUNS * len(set(column)) <= len(column):
            columns.append(column)
    return list(zip(*columns, strict=True)) if columns else [()] * len(records)


def cells(runs: Runs) -> tuple[Ints, list[Floats]]:
    """Where GPUs meet: on the same config or, where they never do, on the same task and model.

    In the second case with what has to be adjusted for.
    """
    family = effects.codes(runs.family)
    many = {c for c, n in _levels(runs.cell, family).items() if n > 1}
    return (runs.cell, []) if many else (runs.place, others(runs))


def _levels(cells: Ints, level: Ints) -> dict[int, int]:
    pairs = np.unique(np.stack([cells, level]), axis=1)
    return dict(
        zip(*(each.tolist() for each in np.unique(pairs[0], return_counts=True)), strict=True)
    )


def complete(runs: Runs, name: str) -> Bools:
    """Where a run has this hyperparameter, a loss and emissions."""
    kept: Bools = np.isfinite(runs.numbers[name]) & np.isfinite(runs.loss) & positive(runs.kg)
    return kept


def positive(values: Floats) -> Bools:
    """Where there is a figure of which there is a logarithm."""
    return np.isfinite(values) & (values > 0)


def configs(runs: Runs) -> Runs:
    """One row for each config: the mean of its seeds, emissions as logarithms."""
    first = np.unique(runs.config, return_index=True)[1]
    rows = runs.where(np.isin(np.arange(len(runs.ids)), first))
    if len(first) == len(runs.ids):
        return runs
    order = runs.config[np.sort(first)]
    loss, kg = (effects.means(v, runs.config)[order] for v in (runs.loss, np.log(runs.kg)))
    return Runs(**{**vars(rows), "loss": loss, "kg": np.exp(kg)})


def others(runs: Runs, *without: str) -> list[Floats]:
    """What has to be held: the other hyperparameters, and their squares where runs are many."""
    names = [name for name in HYPERPARAMETERS if name not in without]
    columns = [x for name in names if np.ptp(x := filled(runs, name)) > 0] if runs.ids else []
    enough = len(runs.ids) >= len(set(runs.stratum.tolist())) + 6 * len(columns)
    return columns + [x**2 for x in columns] if enough else columns


def filled(runs: Runs, name: str) -> Floats:
    """A hyperparameter around its mean; the mean where a run has none."""
    x = middle(runs.numbers[name])
    return np.where(np.isfinite(x), x, 0.0)


def middle(x: Floats) -> Floats:
    """A column around its mean."""
    known = x[np.isfinite(x)]
    return np.asarray(x - (known.mean() if len(known) else 0.0))


def levels_fit(runs: Runs, y: Floats, name: str, levels: Sequence[float]) -> Fit:
    """What each level adds to the one that is not among `levels`, the rest adjusted for.

    Over the means of configs; over runs where these say nothing of their noise, since then only
    the level differs between them.
    """
    first = np.sort(np.unique(runs.config, return_index=True)[1])
    rows = runs.where(np.isin(np.arange(len(runs.ids)), first))
    fit = _fit(rows, effects.means(y, runs.config)[runs.config[first]], name, levels)
    return fit if fit.free > 0 or len(first) == len(y) else _fit(runs, y, name, levels)


def _fit(runs: Runs, y: Floats, name: str, levels: Sequence[float]) -> Fit:
    level = np.round(runs.numbers[name])
    dummies = [(level == each).astype(float) for each in levels]
    return effects.regress(y, [*dummies, *others(runs, name)], runs.stratum)


def parts(codes: Ints) -> list[Ints]:
    """The rows of each code."""
    order = np.argsort(codes, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(codes[order])) + 1) if len(order) else []
