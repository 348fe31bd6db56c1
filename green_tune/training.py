"""LoRA training step by step, its validations, and the adapter that comes of it.

`load` gives a FineTuner; `fit` trains and validates it; `save` writes the adapter. It does not
know MLflow, Optuna or what a kilowatt-hour is: it reports steps and losses to its caller. Where
the model comes from is `loading`'s affair, and what a step is `stepper`'s.
"""

import io
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from green_tune import batches, patience, stop
from green_tune.batches import Micro, Schedule
from green_tune.data import Data
from green_tune.errors import Stopped, TrainingDiverged
from green_tune.job import Job
from green_tune.loading import adapted_model, is_out_of_memory, named_out_of_memory
from green_tune.loss import LabelLoss
from green_tune.probe import check_examples_apart
from green_tune.results import TrainResult
from green_tune.stepper import Stepper
from green_tune.tokens import Encoded, Encoder

log = logging.getLogger(__name__)

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
    earlier session to go on from, and `keep` takes a new one whenever `due` says so.
    """

    on_progress: OnProgress = lambda progress: None
    phase: Phase = unmeasured
    spent_g: Callable[[], float] = lambda: 0.0
    kept: dict[str, Any] | None = None
    keep: Callable[[Callable[[], dict[str, Any]]], None] = lambda state: None
    due: Callable[[], bool] = lambda: False


UNWATCHED = Watch()


def cuda_version() -> str:
    """The CUDA that torch was built for; empty for a CPU build."""
    return str(torch.version.cuda or "")


def synchronize() -> None:
    """Waits until the GPU has done what it was given; where there is none, nothing waits."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def to_bytes(state: dict[str, Any]) -> bytes:
    """A state as bytes, for `from_bytes`."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The state of `to_bytes`, in the CPU's memory; it can hold values and tensors, no code."""
    state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    return state


def from_everywhere(mine: Any) -> list[Any]:
    """What each of the processes that train together hands in, in their order."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return [mine]
    found = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, mine)
    return found


def load(job: Job) -> "FineTuner":
    """The job's base model with a fresh adapter, and its data in tokens.

    Raises:
        UsageError: the base model, the device or the data cannot be used; see `adapted_model`.
        OutOfMemory: it does not fit.
    """
    return FineTuner(job, *adapted_model(job))


class FineTuner:
    """A base model with a LoRA adapter, ready to be trained once."""

    def __init__(self, job: Job, model: PeftModel, tokenizer: Any) -> None:
        self.job = job
        self.model = model
        self.tokenizer = tokenizer
        self.loss = LabelLoss(model)
        self.max_seq_len = _context(model, job.config.max_seq_len)
        self.encoder = Encoder(tokenizer, self.max_seq_len)
        self.train = self.encoder.encode(job.data.train)
        self.validation = self.encoder.encode(job.data.validation)
        self.fits = {
            "train": Fit.of(self.train, len(job.data.train)),
            "validation": Fit.of(self.validation, len(job.data.validation)),
        }
        self._schedule = Schedule(
            _groups(job.data, self.train),
            size=job.plan.examples,
            epochs=job.config.epochs,
            seed=job.config.seed,
            batching=job.plan.batching,  # type: ignore[arg-type]
        )
        self._checked = False
        self._to_validate: list[Micro] = []
        self._at_once = job.plan.micro_batch_tokens
        self.state: Callable[[], dict[str, Any]] = dict  # of the training, once it has begun

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self._schedule.steps

    def fit(self, watch: Watch = UNWATCHED) -> TrainResult:
        """Trains for the configured epochs; validates before, during and at the end.

        Each validation happens inside of a block `phase("eval")`. A request to stop waits for the
        end of a step, and `keep` is called before it is passed on.

        Raises:
            TrainingDiverged: the loss is no longer a finite number.
            OutOfMemory: not even the smallest micro-batch fits on the device.
            ModelError: examples that lie side by side would see one another.
        """
        with named_out_of_memory(self.job):
            self.check()
            stepper = Stepper(self.job, self.loss, self.steps)
            course = _Course(self, stepper, watch)
            with stop.held():  # half of what was kept must not take its place
                course.restore()
            self.state = course.state
            try:
                course.begin()
                while course.goes_on():
                    stop.check()
                    with stop.held():
                        stepper.step(self._examples(course.done))
                        course.count()
                    course.look()
            except Stopped:
                with stop.held():
                    course.keep()
                raise
        return course.result()

    def check(self) -> None:
        """Once, before anything is computed: can this model be trained in these batches?

        Raises:
            ModelError: see `check_examples_apart`.
        """
        if not self._checked:
            check_examples_apart(self.loss, self.train, self.job)
        self._checked = True

    def validate(self) -> "Validation":
        """The loss over the whole validation set, exact for every way to cut it.

        Sum of the completion tokens' negative log-likelihoods over their number, in nats.
        """
        self.model.eval()
        with torch.inference_mode(), named_out_of_memory(self.job):
            total = self._validated()
        self.model.train()
        summed = sum(from_everywhere(total))
        labels = sum(example["labelled"] for example in self.validation)
        text_bytes = sum(example["completion_bytes"] for example in self.validation)
        return Validation(loss=summed / labels, bits_per_byte=summed / math.log(2) / text_bytes)

    def save(self, folder: Path) -> None:
        """Writes the adapter alone, as safetensors, and names its base as it was asked for."""
        config = self.model.peft_config["default"]
        source = self.job.source
        config.base_model_name_or_path = source.place if source.kind == "hub" else source.name
        config.revision = self.job.commit or None
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form: says nothing

    def _examples(self, step: int) -> list[Encoded]:
        return [self.train[number] for number in self._schedule.step(step)]

    def _validated(self) -> float:
        """The summed loss of this process's part; smaller micro-batches where they do not fit."""
        while True:
            try:
                return float(sum(float(self.loss(micro)) for micro in self._validation_micros()))
            except RuntimeError as error:
                if not is_out_of_memory(error) or self._at_once < self.max_seq_len:
                    raise
            self._at_once //= 2
            self._to_validate = []
            torch.cuda.empty_cache()

    def _validation_micros(self) -> list[Micro]:
        """This process's part of the validation set, cut once."""
        if not self._to_validate:
            rank, plan = self.job.rank, self.job.plan
            mine = batches.shares(self.validation, rank.world)[rank.number]
            how: Any = plan.batching
            rows = max(1, plan.micro_batch_size * self._at_once // plan.micro_batch_tokens)
            self._to_validate = batches.cut(mine, how, tokens=self._at_once, rows=rows)
        return self._to_validate


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a split's examples fit into the model: all, those that lost text, those left out."""

    total: int
    cut: int
    dropped: int

    @classmethod
    def of(cls, encoded: Sequence[Encoded], total: int) -> "Fit":
        """Counts what became of `total` examples."""
        cut = sum(example["cut"] for example in encoded)
        return cls(total=total, cut=cut, dropped=total - len(encoded))


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One pass over the validation set."""

    loss: float
    bits_per_byte: float


def _context(model: Any, asked: int) -> int:
    """At most what the base model was built for."""
    limit = int(getattr(model.config, "max_position_embeddings", None) or asked)
    if asked > limit:
        log.warning("max_seq_len=%d is lowered to the model's context of %d tokens", asked, limit)
    return min(asked, limit)


def _groups(data: Data, encoded: Sequence[Encoded]) -> list[int]:
    """The same number for examples on the same passage."""
    numbers: dict[str, int] = {}
    passages = [data.train[e["number"]].head + data.train[e["number"]].body for e in encoded]
    return [numbers.setdefault(passage, len(numbers)) for passage in passages]


@dataclass
class _Seen:
    """What a training has seen so far; it is kept with a checkpoint."""

    done: int = 0
    validations: list[list[float]] = field(default_factory=list)  # step, loss, bits, grams
    train_loss: float = math.nan
    training_s: float = 0.0
    best: dict[str, torch.Tensor] | None = None
    ended: bool = False  # early: nothing more is gained


class _Course:
    """The course of one training: when it logs, validates, is kept, and ends."""

    def __init__(self, tuner: FineTuner, stepper: Stepper, watch: Watch) -> None:
        self._tuner = tuner
        self._stepper = stepper
        self._watch = watch
        self._min_gain = tuner.job.config.min_gain_per_g
        self._seen = _Seen()
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
        if self._watch.due():
            self.keep()

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
        counted = from_everywhere((stepper.useful, stepper.processed))
        return TrainResult(
            val_loss=loss,
            val_bits_per_byte=bits,
            start_val_loss=seen.validations[0][1],
            train_loss=seen.train_loss,
            steps=seen.done,
            adapter_step=int(step),
            steps_planned=tuner.steps,
            train_tokens=sum(useful for useful, _ in counted),
            processed_tokens=sum(processed for _, processed in counted),
            micro_batch_halvings=stepper.halvings,
            trainable_parameters=tuner.model.num_parameters(only_trainable=True),
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
            validation = self._tuner.validate()
        _check_finite("validation loss", validation.loss, self.done)
        grams = from_everywhere(self._watch.spent_g())[0]
        with stop.held():  # what is kept has all of a validation, or nothing of it
            self._take(validation, grams)

    def _take(self, validation: Validation, grams: float) -> None:
        seen = self._seen
        seen.validations.append([self.done, validation.loss, validation.bits_per_byte, grams])
        self._report({"val_loss": validation.loss, "val_bits_per_byte": validation.bits_per_byte})
        if self._min_gain:
            losses = [row[1] for row in seen.validations]
            if losses[-1] == min(losses):
                seen.best = self._stepper.weights()
            curve = [(loss, spent) for _, loss, _, spent in seen.validations]
            seen.ended = patience.exhausted(curve, self._min_gain)

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
