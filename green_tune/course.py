"""The course of one training: when it logs, validates, is kept, and ends.

It goes from step to step and reports to whoever looks on. It does not know what a step is
(`stepper`), nor what is validated and how (`training`).
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from green_tune import patience, stop
from green_tune.errors import TrainingDiverged
from green_tune.footprint import GRAMS_PER_KG
from green_tune.job import Job
from green_tune.peers import from_everywhere
from green_tune.results import OUT_OF_GAIN, Evaluation, TrainResult
from green_tune.stepper import Stepper

LOGGED_POINTS = 200  # of the loss curve; each costs a device synchronisation
GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a training is; `metrics` holds what was measured at this step."""

    step: int
    steps: int
    tokens: int
    metrics: dict[str, float]


OnProgress = Callable[[Progress], None]
Phase = Callable[[str], AbstractContextManager[None]]  # what is inside of the block is that phase


def unmeasured(_: str) -> AbstractContextManager[None]:
    """For a training that nobody measures."""
    return nullcontext()


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on: all of it may be left out.

    `spent_g` says what the run has emitted so far, in g CO2e. `kept` holds the state of an
    earlier session to go on from, and `keep` takes a new one whenever `due` says so. `ends` is
    asked after each step with the validations so far, and gives a reason to end there, or "".
    `shelve` is given each validation with a function that saves its adapter to a folder.
    """

    on_progress: OnProgress = lambda progress: None
    phase: Phase = unmeasured
    spent_g: Callable[[], float] = lambda: 0.0
    kept: dict[str, Any] | None = None
    keep: Callable[[Callable[[], dict[str, Any]]], None] = lambda state: None
    due: Callable[[], bool] = lambda: False
    ends: Callable[[Sequence[Evaluation]], str] = lambda course: ""
    shelve: Callable[[Evaluation, Callable[[Path], None]], None] = lambda evaluation, save: None


UNWATCHED = Watch()


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One pass over the validation set."""

    loss: float
    bits_per_byte: float


class Tuner(Protocol):
    """What is trained: see `training.FineTuner`."""

    job: Job
    model: Any

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""

    def validate(self) -> Validation:
        """The loss over the whole validation set."""

    def validate_start(self) -> Validation:
        """The loss before the first step."""

    def save(self, folder: Path) -> None:
        """Writes the adapter."""


@dataclass
class _Seen:
    """What a training has seen so far; it is kept with a checkpoint."""

    done: int = 0
    validations: list[list[float]] = field(default_factory=list)  # step, loss, bits, grams
    train_loss: float = math.nan
    training_s: float = 0.0
    best: dict[str, torch.Tensor] | None = None
    ended: str = ""  # early, and why


class Course:
    """One training under way."""

    def __init__(self, tuner: Tuner, stepper: Stepper, watch: Watch) -> None:
        self._tuner = tuner
        self._stepper = stepper
        self._watch = watch
        self._min_gain = tuner.job.config.min_gain_per_g
        self._seen = _Seen()
        self._evaluations: list[Evaluation] = []
        self._resumed_s = time.perf_counter()

    @property
    def done(self) -> int:
        """Steps that are done."""
        return self._seen.done

    def restore(self) -> None:
        """Puts back where an earlier session was, if there was one."""
        if kept := self._watch.kept:
            self._stepper.restore(kept["stepper"])
            self._seen = _Seen(**kept["seen"])
            self._evaluations = [self._evaluation(row) for row in self._seen.validations]

    def begin(self) -> None:
        """Validates before the first step, or where an earlier session was about to."""
        self._tuner.model.train()
        self._resumed_s = time.perf_counter()
        if self._is_due():
            self._pause(self._validate)

    def goes_on(self) -> bool:
        """True while there are steps to take, and something to gain by them."""
        return self.done < self._tuner.steps and not self._seen.ended

    def count(self) -> None:
        """A step is done."""
        self._seen.done += 1
        self._report(self._measured() if self._is_logged() else {})

    def look(self) -> None:
        """Validates where it is due, and has the state kept."""
        if self._is_due():
            self._pause(self._validate)
        if not self._seen.ended and (why := self._watch.ends(self._evaluations)):
            self._end(why)
        if self._watch.due():
            self.keep()

    def _end(self, why: str) -> None:
        """Ends here, with a validation of what there is by now."""
        if self._seen.validations[-1][0] != self.done:
            self._pause(self._validate)
        self._seen.ended = why

    def _evaluation(self, row: Sequence[float]) -> Evaluation:
        step, loss, _, grams = row
        return Evaluation(
            step=int(step),
            progress=step / self._tuner.steps,
            val_loss=loss,
            emissions_kg=grams / GRAMS_PER_KG,
        )

    def keep(self) -> None:
        """Hands on how to make the state."""
        with stop.held():
            self._pause(lambda: self._watch.keep(self.state))

    def state(self) -> dict[str, Any]:
        """Where it is: all that an uninterrupted training would go on with."""
        return {
            "step": self.done,
            "stepper": self._stepper.state(),
            "seen": dict(self._seen.__dict__),
        }

    def result(self) -> TrainResult:
        """What came of it; with early stopping the best adapter is put back, and counts."""
        seen, tuner, stepper = self._seen, self._tuner, self._stepper
        step, loss, bits, _ = seen.validations[-1]
        if seen.best is not None:
            step, loss, bits, _ = min(seen.validations, key=lambda row: row[1])
            stepper.load_weights(seen.best)
        peak = torch.cuda.max_memory_allocated() if tuner.job.device.kind == "cuda" else 0
        trainable = tuner.model.num_parameters(only_trainable=True)
        counted = from_everywhere((stepper.useful, stepper.processed))
        return TrainResult(
            val_loss=loss,
            val_bits_per_byte=bits,
            start_val_loss=seen.validations[0][1],
            train_loss=seen.train_loss,
            steps=seen.done,
            adapter_step=int(step),
            steps_planned=tuner.steps,
            ended_because=seen.ended,
            course=tuple(self._evaluations),
            train_tokens=sum(useful for useful, _ in counted),
            processed_tokens=sum(processed for _, processed in counted),
            micro_batch_halvings=stepper.halvings,
            base_parameters=tuner.model.num_parameters() - trainable,
            trainable_parameters=trainable,
            memory_peak_gib=peak / GIB,
            memory_estimate_gib=tuner.job.plan.memory_gib,
        )

    def _is_logged(self) -> bool:
        """Often enough for a curve; and wherever there is a validation."""
        every = max(1, self._tuner.steps // LOGGED_POINTS)
        return self.done == 1 or self.done % every == 0 or self._is_due()

    def _is_due(self) -> bool:
        """Validations are spread evenly; the one before the first step comes first."""
        evals, steps = self._tuner.job.config.evals, self._tuner.steps
        if self._seen.validations and self._seen.validations[-1][0] == self.done:
            return False
        return self.done == 0 or self.done * evals // steps > (self.done - 1) * evals // steps

    def _pause(self, other: Callable[[], None]) -> None:
        """Something else than training; its time is not the training's."""
        self._seen.training_s += time.perf_counter() - self._resumed_s
        try:
            other()
        finally:
            self._resumed_s = time.perf_counter()

    def _measured(self) -> dict[str, float]:
        everywhere = from_everywhere((*self._stepper.train_loss(), self._stepper.useful))
        summed, labels, tokens = (sum(part) for part in zip(*everywhere, strict=True))
        self._seen.train_loss = summed / labels
        _check_finite("loss", self._seen.train_loss, self.done)
        seconds = self._seen.training_s + time.perf_counter() - self._resumed_s
        return {
            "train_loss": self._seen.train_loss,
            "learning_rate": self._stepper.learning_rate,
            "grad_norm": self._stepper.grad_norm,
            "tokens_per_s": tokens / seconds,
        }

    def _validate(self) -> None:
        with self._watch.phase("eval"):
            validation = self._tuner.validate() if self.done else self._tuner.validate_start()
        _check_finite("validation loss", validation.loss, self.done)
        grams = from_everywhere(self._watch.spent_g())[0]
        with stop.held():  # what is kept has all of a validation, or nothing of it
            self._take(validation, grams)
        if self.done:
            self._watch.shelve(self._evaluations[-1], self._tuner.save)

    def _take(self, validation: Validation, grams: float) -> None:
        seen = self._seen
        seen.validations.append([self.done, validation.loss, validation.bits_per_byte, grams])
        self._evaluations.append(self._evaluation(seen.validations[-1]))
        self._report({"val_loss": validation.loss, "val_bits_per_byte": validation.bits_per_byte})
        if self._min_gain:
            losses = [row[1] for row in seen.validations]
            if losses[-1] == min(losses):
                seen.best = self._stepper.weights()
            curve = [(loss, spent) for _, loss, _, spent in seen.validations]
            if patience.exhausted(curve, self._min_gain):
                seen.ended = f"{OUT_OF_GAIN} than min_gain_per_g={self._min_gain:g}"

    def _report(self, metrics: dict[str, float]) -> None:
        self._watch.on_progress(
            Progress(
                step=self.done,
                steps=self._tuner.steps,
                tokens=self._stepper.useful,
                metrics=metrics,
            )
        )


def _check_finite(what: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the {what} is {loss} at step {step}: a lower learning_rate helps")
