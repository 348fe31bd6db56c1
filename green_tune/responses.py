"""What a hyperparameter may change, in three ways of reckoning, and how it goes along with it.

Per run, a larger number of epochs costs more and reaches lower, which says little. At equal tokens
the same work is compared; to a target loss, the same result. Pure functions over records.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from green_tune import blocks, effects, marginal
from green_tune.blocks import HYPERPARAMETERS
from green_tune.document import Interval
from green_tune.results import RunRecord

LOSS, EMISSIONS = "val_loss", "emissions_kg"
Values = Mapping[str, float]  # by run id
Correlations = dict[tuple[str, str], Interval]  # by hyperparameter and response
FEWEST = 5  # runs of a block with a value, below which its ranks say nothing


def per_run(records: Sequence[RunRecord]) -> dict[str, Values]:
    """What each run reached and cost as a whole: nats, and kg CO2e."""
    there = [record for record in whole(records) if record.metrics.keys() >= {LOSS, EMISSIONS}]
    return {
        name: {record.run_id: record.metrics[name] for record in there}
        for name in (LOSS, EMISSIONS)
    }


def at_tokens(records: Sequence[RunRecord]) -> dict[str, Values]:
    """Loss and kg CO2e of each run at the number of tokens that nearly all of its block came to."""
    found = {
        run_id: at
        for alike in blocks.group(whole(records), blocks.block).values()
        for run_id, at in marginal.at_tokens(alike).items()
    }
    return {
        LOSS: {run_id: at.loss for run_id, at in found.items()},
        EMISSIONS: {run_id: at.grams / marginal.G_PER_KG for run_id, at in found.items()},
    }


def targets(records: Sequence[RunRecord], asked: float | None = None) -> dict[blocks.Block, float]:
    """The loss in nats that runs of each block are compared at: as asked, or what most reach."""
    found = blocks.group(whole(records), blocks.block)
    wanted = {block: asked or marginal.target(alike) for block, alike in found.items()}
    return {block: loss for block, loss in wanted.items() if loss is not None}


def to_target(records: Sequence[RunRecord], losses: Mapping[blocks.Block, float]) -> Values:
    """The kg CO2e that each run had spent when it first was at its block's target loss.

    A run that never was has none.
    """
    found: dict[str, float] = {}
    for record in whole(records):
        loss = losses.get(blocks.block(record))
        grams = marginal.grams_to(record, loss) if loss is not None else None
        if grams is not None:
            found[record.run_id] = grams / marginal.G_PER_KG
    return found


def varied(records: Sequence[RunRecord]) -> list[str]:
    """The hyperparameters that differ between runs of some block."""
    groups = blocks.group(records, blocks.block).values()
    return [
        name
        for name in HYPERPARAMETERS
        if any(len({record.params.get(name) for record in alike}) > 1 for alike in groups)
    ]


def correlations(
    records: Sequence[RunRecord], values: Mapping[str, Values], names: Sequence[str]
) -> Correlations:
    """Spearman's correlation of each hyperparameter with each response, the others held.

    Within runs of one base model, task, data set and GPU; 95 % bootstrap intervals. What cannot be
    told, since runs are few or the hyperparameter goes along with others, has no entry.
    """
    found = {}
    for response, given in values.items():
        rows = _enough([record for record in records if record.run_id in given])
        place = effects.codes([(blocks.block(r), blocks.gpu(r)) for r in rows])
        y = np.array([given[record.run_id] for record in rows], dtype=float)
        x = {name: np.array([blocks.number(r, name) for r in rows], dtype=float) for name in names}
        for name in names:
            others = [_filled(x[other]) for other in names if other != name]
            interval = effects.spearman(x[name], y, place, others, bootstrap=True) if rows else None
            if interval and math.isfinite(interval.estimate):
                found[name, response] = interval
    return found


def whole(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs that ended by themselves: of those cut short, a hyperparameter says less."""
    return [record for record in records if not record.ended_early]


def _enough(records: Sequence[RunRecord]) -> list[RunRecord]:
    groups = blocks.group(records, lambda record: (blocks.block(record), blocks.gpu(record)))
    return [record for alike in groups.values() if len(alike) >= FEWEST for record in alike]


def _filled(column: effects.Floats) -> effects.Floats:
    """What a run does not say is taken as the middle of the others."""
    there = column[np.isfinite(column)]
    return np.where(np.isfinite(column), column, there.mean() if len(there) else 0.0)
