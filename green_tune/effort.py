"""What it takes to compute a workload: floating-point operations, by the shape of the model.

Two for each weight and token forwards; as many again for the gradient that goes further back, and
none for frozen weights themselves; adapters pay for theirs. What a device makes of an operation,
`pace` knows. The equations: Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, with what LoRA
leaves out (GreenTrainer, arXiv:2309.13192, section 3).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from green_tune import workload
from green_tune.config import TrainConfig
from green_tune.data import Data
from green_tune.memory import trainable
from green_tune.plan import Plan
from green_tune.shapes import Shape
from green_tune.tokens import Encoded, Encoder
from green_tune.workload import Counts

FORWARD = 2  # a multiplication and an addition for each weight and token
ATTENTION = 4  # scores and values: both as wide as all queries, for each pair of tokens
GIGA = 1e9
PREFIX = "work."


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What of an adapter decides the work."""

    rank: int = 16
    targets: str = "all-linear"
    layers: int = 0
    dora: bool = False
    checkpointing: bool = False

    @classmethod
    def of(cls, config: TrainConfig, plan: Plan) -> Self:
        """The adapter of a run."""
        return cls(
            rank=config.lora_rank,
            targets=config.lora_targets,
            layers=config.lora_layers,
            dora=config.use_dora,
            checkpointing=plan.checkpointing,
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a run computes, known before it starts. GFLOP are 1e9 floating-point operations.

    `eval_*` are of all validations together; `quality_examples` are predictions, those before the
    training with them. Tokens are those of the training, useful ones and processed ones, as in
    `workload.Counts`.
    """

    layers: float
    train_gflop: float
    train_passes: float
    train_steps: float
    eval_gflop: float
    eval_passes: float
    quality_examples: float
    useful_tokens: float
    processed_tokens: float

    def to_metrics(self) -> dict[str, float]:
        """The figures as MLflow metrics."""
        return noted(self, PREFIX)

    @classmethod
    def read(cls, metrics: Mapping[str, float]) -> Self | None:
        """The work that a run has noted; None where it has not."""
        found = figures(cls, PREFIX, metrics)
        return cls(**found) if found else None


def noted(value: Any, prefix: str) -> dict[str, float]:
    """The fields of a dataclass of numbers, as MLflow metrics that begin with a prefix."""
    return {prefix + spec.name: float(getattr(value, spec.name)) for spec in fields(value)}


def figures(kind: type[Any], prefix: str, metrics: Mapping[str, float]) -> dict[str, float] | None:
    """What `noted` wrote of a dataclass of that kind; None unless all are there, and at least 0."""
    found = {spec.name: metrics.get(prefix + spec.name, math.nan) for spec in fields(kind)}
    return found if all(0 <= figure < math.inf for figure in found.values()) else None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The examples of a job in tokens, and which of the training ones share a passage."""

    train: list[Encoded]
    validation: list[Encoded]
    groups: list[int]
    _validated: dict[object, Counts] = field(default_factory=dict, repr=False, compare=False)

    def validated(self, plan: Plan, tokens: int) -> Counts:
        """One validation in micro-batches of so many tokens, counted once for each way."""
        key = (plan.batching, plan.micro_batch_size, plan.micro_batch_tokens, tokens)
        if key not in self._validated:
            self._validated[key] = workload.of_validation(self.validation, plan, tokens)
        return self._validated[key]

    @classmethod
    def of(cls, encoder: Encoder, data: Data) -> Self:
        """The examples that fit.

        Raises:
            DataError: not one does.
        """
        train = encoder.encode(data.train)
        return cls(
            train=train,
            validation=encoder.encode(data.validation),
            groups=workload.groups_of(data, train),
        )


def work(  # noqa: PLR0913 - each decides a part of it
    config: TrainConfig,
    plan: Plan,
    shape: Shape,
    texts: Texts,
    *,
    kind: str,
    warmed: bool = False,
    counted: int = workload.COUNTED,
) -> Work:
    """What a run of a config and its plan computes, on a device of a `kind` (cpu or cuda).

    `warmed` is a run whose first validation another one has done: a trial, or a cell.
    """
    adapter = Adapter.of(config, plan)
    train = workload.of_training(texts.train, texts.groups, config, plan, counted)
    at_once = workload.validated_at_once(config, plan, kind)
    once = texts.validated(plan, at_once)
    evals = once * (workload.validations(config, round(train.steps)) + (not warmed))
    asked = min(config.quality_examples, len(texts.validation))
    return Work(
        layers=shape.layers,
        train_gflop=training(shape, train, adapter) / GIGA,
        train_passes=train.passes,
        train_steps=train.steps,
        eval_gflop=forward(shape, evals, adapter) / GIGA,
        eval_passes=evals.passes,
        quality_examples=2 * asked,
        useful_tokens=train.useful,
        processed_tokens=train.processed,
    )


def forward(shape: Shape, counts: Counts, adapter: Adapter | None = None) -> float:
    """Operations of the forward passes; without an adapter those of the base model."""
    weights = shape.linear_parameters + (_weights(shape, adapter) if adapter else 0)
    linear = FORWARD * weights * counts.processed
    return linear + _attention(shape, counts) + _head(shape, counts)


def training(shape: Shape, counts: Counts, adapter: Adapter) -> float:
    """Operations of the updates, forward and back.

    Back through frozen layers goes one product for each weight, through an adapter's two, and
    through attention two for each of forward's. Nothing goes back below the lowest adapted layer.
    Recomputed activations cost the layers' forward pass once more.
    """
    once, head = forward(shape, counts, adapter), _head(shape, counts)
    own = FORWARD * _weights(shape, adapter) * counts.processed
    frozen = once - head - own
    reached = min(1.0, (adapter.layers or shape.layers) / shape.layers)
    back = (frozen + _attention(shape, counts)) * reached + 2 * own
    again = frozen * reached + own if adapter.checkpointing else 0.0
    return once + head + back + again


def _attention(shape: Shape, counts: Counts) -> float:
    return ATTENTION * shape.layers * shape.q_width * counts.pairs


def _head(shape: Shape, counts: Counts) -> float:
    """The output layer, which is computed where there is a label alone."""
    return FORWARD * shape.hidden * shape.vocab * counts.labels


def _weights(shape: Shape, adapter: Adapter) -> int:
    return trainable(
        shape,
        rank=adapter.rank,
        targets=adapter.targets,
        layers=adapter.layers,
        dora=adapter.dora,
    )
