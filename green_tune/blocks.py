"""Which runs may be compared with which: blocks of one base model, task and data set.

A validation loss says something only within a block: another tokenizer counts other tokens, other
data are other texts. Kilograms compare further, on one task and data. Pure functions over records.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from green_tune.results import RunRecord

K = TypeVar("K", bound=Hashable)

# What a run's result may depend on, and the study varied; with how a table's column calls it.
HYPERPARAMETERS = {
    "batch_size": "batch",
    "accumulation_steps": "acc",
    "learning_rate": "lr",
    "warmup_steps": "warm",
    "epochs": "ep",
    "lora_rank": "rank",
}
LOGARITHMIC = ("batch_size", "accumulation_steps", "learning_rate", "lora_rank")


class Panel(NamedTuple):
    """A task on one data set: what kilograms compare within."""

    task: str
    data: str


class Block(NamedTuple):
    """A panel of one base model: what losses compare within."""

    model: str
    task: str
    data: str


def panel(record: RunRecord) -> Panel:
    """The task and the digest of the data."""
    return Panel(record.params.get("task", ""), record.tags.get("data_digest", ""))


def block(record: RunRecord) -> Block:
    """The base model, the task and the digest of the data."""
    return Block(record.tags.get("base_model", ""), *panel(record))


def gpu(record: RunRecord) -> str:
    """What it ran on: a row of the table of GPUs, cpu, or unknown."""
    return record.tags.get("gpu_type", "unknown")


def group(records: Iterable[RunRecord], key: Callable[[RunRecord], K]) -> dict[K, list[RunRecord]]:
    """The records by a key, in the order in which the keys first occur."""
    groups: dict[K, list[RunRecord]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def shared(records: Sequence[RunRecord]) -> tuple[list[RunRecord], list[Block]]:
    """What GPUs can be compared by: in each block the configs that all of its GPUs have run.

    A block in which they have run no config in common keeps all of its runs, and is named.
    """
    kept: list[RunRecord] = []
    apart: list[Block] = []
    for at, alike in group(records, block).items():
        on = [{config(r) for r in runs} for runs in group(alike, gpu).values()]
        common = set.intersection(*on)
        kept += [record for record in alike if config(record) in common or not common]
        apart += [] if common else [at]
    return kept, apart


def titles(records: Sequence[RunRecord]) -> Mapping[Panel, str]:
    """How each panel is called: by its task; by its data as well where a task has several."""
    panels = sorted({panel(record) for record in records})
    tasks = [each.task for each in panels]
    return {
        each: each.task if tasks.count(each.task) == 1 else f"{each.task} (data {each.data[:6]})"
        for each in panels
    }


def number(record: RunRecord, name: str) -> float:
    """A hyperparameter, on the scale on which it acts: the logarithm to base 2 of sizes and rates.

    NaN where the run has none.
    """
    try:
        value = float(record.params.get(name, ""))
        return math.log2(value) if name in LOGARITHMIC else value
    except ValueError:
        return math.nan


def config(record: RunRecord) -> tuple[str, ...]:
    """All that was asked of a run except its seed: equal for runs that differ by chance alone."""
    asked = {k: v for k, v in record.params.items() if k not in UNDECIDING}
    return tuple(f"{name}={asked[name]}" for name in sorted(asked) if "." not in name)


UNDECIDING = frozenset(
    {
        *("seed", "model", "revision", "data", "gpu", "country", "pue", "resume", "study"),
        *("checkpoint_minutes", "quality_examples", "min_gain_per_g"),
    }
)
