"""What came out: the records of a run, with units in their names, and the front over them.

Frozen values and two pure functions. Nothing here measures, stores or prints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a finished training achieved.

    `val_loss` is the mean negative log-likelihood, in nats, of a completion token over the
    whole validation set; `val_bits_per_byte` the same per byte of text, which alone compares
    models with different tokenizers.
    """

    val_loss: float
    val_bits_per_byte: float
    start_val_loss: float
    train_loss: float
    steps: int
    adapter_step: int  # whose adapter it is: with early stopping that of the best validation
    steps_planned: int  # more than `steps` where it was stopped early
    train_tokens: int  # of all examples, without padding, shared ones counted for each
    processed_tokens: int  # what the model has computed: with padding, shared ones once
    micro_batch_halvings: int  # after an out-of-memory
    trainable_parameters: int
    memory_peak_gib: float
    memory_estimate_gib: float  # modelled beforehand; 0 where it was not

    def to_metrics(self) -> dict[str, float]:
        """The figures as MLflow metrics; the losses are there already, as curves."""
        return {
            "start_val_loss": self.start_val_loss,
            "steps": float(self.steps),
            "train_tokens": float(self.train_tokens),
            "processed_tokens": float(self.processed_tokens),
            "micro_batch_halvings": float(self.micro_batch_halvings),
            "trainable_parameters": float(self.trainable_parameters),
            "memory_peak_gib": self.memory_peak_gib,
            "memory_estimate_gib": self.memory_estimate_gib,
        }


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run as it stands in the store."""

    run_id: str
    name: str
    kind: str
    status: str
    started: datetime
    parent_id: str = ""
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


def front(items: Sequence[T], objectives: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other item dominates, all objectives minimised, in the given order.

    One dominates another when it is nowhere worse and somewhere better; equals both stay.
    """
    points = [objectives(item) for item in items]
    return [
        item
        for item, point in zip(items, points, strict=True)
        if not any(_dominates(other, point) for other in points)
    ]


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
