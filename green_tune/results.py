"""What came out: the records of a run, with units in their names, and the front over them.

Frozen values and pure functions over them. Nothing here measures, stores or prints.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from datetime import datetime
from functools import cached_property
from typing import TypeVar

T = TypeVar("T")

# Tags that several modules read; the others are named where they are written.
KIND, STUDY, TRIAL = "green_tune.kind", "green_tune.study", "green_tune.trial"
SESSION_KINDS = ("sweep", "grid", "worker")  # the first session of a study is its parent run
WORKER, FRONT = "green_tune.worker", "green_tune.front"
EVALUATIONS = "green_tune.evaluations"  # a run's course
UNFIT = "green_tune.does_not_fit"  # why: on a cell of a grid that has no room on this GPU
STOPPED_EARLY, STOPPED_WHY = "stopped_early", "green_tune.stopped"
OUT_OF_GAIN = "a gram gains less"  # why a training ends itself, by min_gain_per_g
SAVED_KG = "green_tune.saved_kg"  # forecast of what an early end has saved
PROCESSES = "processes"  # that trained together, where they were several
REUSED, RETRY_OF = "green_tune.reused", "green_tune.retry_of"  # another run's id
FINGERPRINT = "green_tune.fingerprint"
FLAGS = "energy_flags"
SHARED = "shared with other measured runs"  # what a flag begins with
LONGEST_COURSE = 100  # validations


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a training had reached, and its run spent, at one validation.

    Each is a result: a training that ends there would have this loss for these emissions.
    `progress` is the part of the planned optimiser steps that was done, from 0 to 1.
    """

    step: int
    progress: float
    val_loss: float
    emissions_kg: float


Course = Sequence[Evaluation]


def to_tag(course: Course) -> str:
    """A course as the text of a tag, which holds 8000 characters: the first, last and best of it.

    What did not lower the loss is left out where all would be too long, then every second one.
    """
    rows = [list(astuple(point)) for point in course]
    if len(rows) > LONGEST_COURSE:
        least = [min(row[2] for row in rows[: i + 1]) for i in range(len(rows))]
        kept = (0, len(rows) - 1)
        rows = [r for i, r in enumerate(rows) if i in kept or r[2] < least[i - 1]]
    while len(rows) > LONGEST_COURSE:
        rows = [*rows[:-1:2], rows[-1]]
    return json.dumps(
        [[s, round(p, 6), float(f"{v:.9g}"), float(f"{k:.6g}")] for s, p, v, k in rows]
    )


def from_tag(text: str) -> list[Evaluation]:
    """The course that `to_tag` wrote; empty where there is none."""
    return [
        Evaluation(step=step, progress=progress, val_loss=loss, emissions_kg=kg)
        for step, progress, loss, kg in (json.loads(text) if text else [])
    ]


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
    ended_because: str  # empty where it was not
    course: tuple[Evaluation, ...]
    train_tokens: int  # of all examples, without padding, shared ones counted for each
    processed_tokens: int  # what the model has computed: with padding, shared ones once
    micro_batch_halvings: int  # after an out-of-memory
    base_parameters: int  # without the adapter's
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
            "base_parameters": float(self.base_parameters),
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

    @cached_property
    def course(self) -> list[Evaluation]:
        """Its validations, with what had been spent at each; empty for runs that noted none."""
        return from_tag(self.tags.get(EVALUATIONS, ""))

    @property
    def ended_early(self) -> bool:
        """True where something outside of its config stopped it before its last planned step."""
        own = self.tags.get(STOPPED_WHY, "").startswith(OUT_OF_GAIN)
        return STOPPED_EARLY in self.tags and not own

    @property
    def shared(self) -> bool:
        """True where its energy is a share of what several measured runs drew at one time."""
        return SHARED in self.tags.get(FLAGS, "")


def front(items: Sequence[T], objectives: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The items that no other item dominates, all objectives minimised, in the given order.

    One dominates another when it is nowhere worse and somewhere better; equals both stay.
    """
    points = [objectives(item) for item in items]
    if all(len(point) == 2 and not any(map(math.isnan, point)) for point in points):  # noqa: PLR2004
        kept = _lower_left(points)
        return [item for item, point in zip(items, points, strict=True) if point in kept]
    return [
        item
        for item, point in zip(items, points, strict=True)
        if not any(_dominates(other, point) for other in points)
    ]


def _lower_left(points: Iterable[tuple[float, ...]]) -> set[tuple[float, ...]]:
    """The front of pairs: by the first number, those whose second is the lowest so far."""
    kept, lowest = set(), None
    for point in sorted(set(points)):
        if lowest is None or point[1] < lowest:
            kept.add(point)
            lowest = point[1]
    return kept


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def hypervolume(points: Iterable[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that points dominate up to a reference, both objectives minimised.

    Points that are not better than the reference in both count for nothing. The usual measure of
    a front's quality (Zitzler and Thiele 1999, doi:10.1109/4235.797969).
    """
    area, reached = 0.0, reference[1]
    for x, y in sorted(points):
        if x < reference[0] and y < reached:
            area += (reference[0] - x) * (reached - y)
            reached = y
    return area
