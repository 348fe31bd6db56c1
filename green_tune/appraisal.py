"""An appraisal: how good an adapter is, beside its base model without it and a trivial answer.

Predictions are made by `predictor`, as whoever pulls the adapter will make them, and what they take
is measured. What predictions are worth is `scores`' affair, and how energy is measured `meter`'s.
"""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from green_tune import bars, scores, stop
from green_tune.data import Split
from green_tune.meter import Meter
from green_tune.predictor import Predictor
from green_tune.tasks import Example, Quality

PHASE = "quality"
WARM_UP = 16  # predictions of each that are not counted: what is done once is done by then
SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predictions of one model, their task metrics from 0 to 1, and what they took."""

    texts: Sequence[str]
    scores: Mapping[str, float]
    energy_kwh: float
    runtime_h: float


@dataclass(frozen=True, kw_only=True)
class Appraisal:
    """An adapter, its base model, and a trivial answer, on the same examples."""

    adapter: Predicted
    base: Predicted
    trivial: Mapping[str, float]
    trivial_name: str
    count: int

    def to_metrics(self) -> dict[str, float]:
        """As MLflow metrics, called as those of a training run."""
        found = {f"quality.{name}": value for name, value in self.adapter.scores.items()}
        found |= {f"start_quality.{name}": value for name, value in self.base.scores.items()}
        found |= {f"baseline_quality.{name}": value for name, value in self.trivial.items()}
        found |= {
            "quality.examples": float(self.count),
            "start_quality.examples": float(self.count),
        }
        return found | {
            "predictions": float(self.count),
            "predictions/energy_kwh": self.adapter.energy_kwh,
            "predictions/runtime_h": self.adapter.runtime_h,
            "base_predictions/energy_kwh": self.base.energy_kwh,
            "base_predictions/runtime_h": self.base.runtime_h,
        }


def appraise(
    predictor: Predictor,
    split: Split,
    train: Sequence[Example],
    meter: Meter,
    sync: Callable[[], None],
) -> Appraisal:
    """Predicts every example of a split with the adapter and without it.

    Raises:
        InputError: an input that cannot be predicted.
        Stopped: the process was asked to stop.
    """
    quality = predictor.recipe["quality"]
    predictor.predict(split.rows[:WARM_UP])
    with predictor.without_adapter():
        predictor.predict(split.rows[:WARM_UP])
    name, answers = trivial(quality, split.examples, train)

    def predicted(label: str, block: AbstractContextManager[Any]) -> Predicted:
        with block:
            return _predicted(predictor, split, meter, sync, label)

    return Appraisal(
        adapter=predicted("adapter", nullcontext()),
        base=predicted("base", predictor.without_adapter()),
        trivial=score(quality, answers, split.examples),
        trivial_name=name,
        count=len(split.rows),
    )


def score(quality: Quality, texts: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """The task's metrics of predictions."""
    if quality == "answers":
        return scores.question_answering(texts, [example.references for example in examples])
    rate = scores.labels if quality == "labels" else scores.summaries
    return rate(texts, [example.completion for example in examples])


def trivial(
    quality: Quality, examples: Sequence[Example], train: Sequence[Example]
) -> tuple[str, list[str]]:
    """What it is called, and what it answers: what needs no model must be beaten.

    The most frequent label of the training data; the first sentences of a document, as many as its
    summaries have; the first sentence of a passage.
    """
    if quality == "labels":
        most = Counter(example.completion for example in train or examples).most_common(1)[0][0]
        return f"majority ({most})", [most] * len(examples)
    if quality == "answers":
        return "lead (first sentence)", [_lead(example.body, 1) for example in examples]
    typical = statistics.median(len(SENTENCE.split(e.completion)) for e in train or examples)
    count = max(1, round(typical))
    return f"lead-{count}", [_lead(example.body, count) for example in examples]


def _lead(text: str, sentences: int) -> str:
    return " ".join(SENTENCE.split(text)[:sentences])


def _predicted(
    predictor: Predictor, split: Split, meter: Meter, sync: Callable[[], None], label: str
) -> Predicted:
    before = meter.spent_in(PHASE)
    with (
        bars.bar(label, total=len(split.rows)) as bar,
        meter.phase(PHASE, sync),
    ):

        def done(count: int) -> None:
            stop.check()
            bar.update(count)

        texts = predictor.predict(split.rows, on_done=done)
    after = meter.spent_in(PHASE)
    return Predicted(
        texts=texts,
        scores=score(predictor.recipe["quality"], texts, split.examples),
        energy_kwh=after[0] - before[0],
        runtime_h=after[1] - before[1],
    )
