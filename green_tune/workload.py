"""How much there is to compute: tokens, forward passes and steps, counted on the real data.

The examples go through the schedule and the cutting of the training itself, so the counts are what
the training will count, not an estimate; of a very long training the first steps are counted, and
the rest is taken to be like them. What it takes to compute them, `effort` knows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from green_tune import batches
from green_tune.batches import Batching, Micro, Schedule
from green_tune.config import TrainConfig
from green_tune.data import Data
from green_tune.fit import CPU_TOKENS
from green_tune.plan import Plan
from green_tune.tokens import Encoded

COUNTED = 20_000  # examples that are cut; further steps are taken to be like those before


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What forward passes have in them; counts add up.

    `useful` are tokens of examples, shared ones counted for each; `processed` those that the model
    computes, padding with them and shared ones once; `pairs` of a token and one that it attends to;
    `labels` the places where a loss is taken; `passes` the forward passes, `steps` the updates.
    """

    useful: float = 0.0
    processed: float = 0.0
    pairs: float = 0.0
    labels: float = 0.0
    passes: float = 0.0
    steps: float = 0.0

    def __add__(self, other: Self) -> Self:
        names = [spec.name for spec in fields(self)]
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __mul__(self, times: float) -> Self:
        return type(self)(**{spec.name: times * getattr(self, spec.name) for spec in fields(self)})

    @property
    def padding(self) -> float:
        """The share, 0 to 1, of processed tokens that nobody asked for.

        Below 0 where examples share more tokens than are padding.
        """
        return 1 - self.useful / self.processed if self.processed else 0.0


def of_micros(micros: Iterable[Micro]) -> Counts:
    """What micro-batches have in them."""
    return sum((_of_micro(micro) for micro in micros), start=Counts())


def of_training(
    examples: Sequence[Encoded], groups: Sequence[int], config: TrainConfig, plan: Plan,
    counted: int = COUNTED,
) -> Counts:  # fmt: skip
    """All updates of a training as its config and plan want them, on one device.

    `groups` are those of `groups_of`. At least one step is cut, and as many as have `counted`
    examples.
    """
    how: Any = plan.batching
    schedule = Schedule(
        groups, size=plan.examples, epochs=config.epochs, seed=config.seed, batching=how
    )
    steps = min(schedule.steps, max(1, counted // plan.examples))
    total = Counts()
    for number in range(steps):
        step = [examples[one] for one in schedule.step(number)]
        total += of_step(step, how, tokens=plan.micro_batch_tokens, rows=plan.micro_batch_size)
    return total * (schedule.steps / steps)


def of_step(examples: Sequence[Encoded], how: Batching, *, tokens: int, rows: int = 1) -> Counts:
    """One update by these examples."""
    micros = batches.cut(examples, how, tokens=tokens, rows=rows)
    return of_micros(micros) + Counts(steps=1)


def of_validation(examples: Sequence[Encoded], plan: Plan, tokens: int) -> Counts:
    """One validation in micro-batches of so many tokens; see `validated_at_once`."""
    return of_micros(validation_micros(examples, plan, tokens))


def validation_micros(examples: Sequence[Encoded], plan: Plan, tokens: int) -> list[Micro]:
    """How a validation cuts its examples."""
    how: Any = plan.batching
    rows = max(1, plan.micro_batch_size * tokens // plan.micro_batch_tokens)
    return batches.cut(examples, how, tokens=tokens, rows=rows)


def validated_at_once(config: TrainConfig, plan: Plan, kind: str) -> int:
    """Tokens of a validation's micro-batch, on a device of a `kind`.

    On a CPU the same for all steps' sizes, so that trials share one validation of the start.
    """
    if config.micro_batch_tokens or plan.batching == "padded" or kind != "cpu":
        return plan.micro_batch_tokens
    return max(plan.micro_batch_tokens, CPU_TOKENS)


def validations(config: TrainConfig, steps: int) -> int:
    """How many a training of so many steps has, without the one before its first step."""
    return min(config.evals, steps)


def groups_of(data: Data, encoded: Sequence[Encoded]) -> list[int]:
    """The same number for training examples on the same passage."""
    numbers: dict[str, int] = {}
    passages = [data.train[e["number"]].head + data.train[e["number"]].body for e in encoded]
    return [numbers.setdefault(passage, len(numbers)) for passage in passages]


def _of_micro(micro: Micro) -> Counts:
    return Counts(
        useful=micro.useful,
        processed=len(micro.ids),
        pairs=_pairs(micro),
        labels=len(micro.targets),
        passes=1,
    )


def _pairs(micro: Micro) -> float:
    """Each token sees itself and what is before it in its own example; padded rows see all."""
    if micro.width:
        return len(micro.ids) * (micro.width + 1) / 2
    total, depth = 0.0, [0] * len(micro.nodes)
    for number, node in enumerate(micro.nodes):
        length = node.end - node.start
        before = depth[node.parent] if node.parent >= 0 else 0
        depth[number] = before + length
        total += length * before + length * (length + 1) / 2
    return total
