"""LoRA training step by step, its validations, and the adapter that comes of it.

`load` gives a FineTuner; `fit` trains and validates it; `save` writes the adapter. It does not
know MLflow, Optuna or what a kilowatt-hour is: it reports steps and losses to its caller. Where
the model comes from is `loading`'s affair, and what a step is `stepper`'s.
"""

import io
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from green_tune import batches, recipe, stop, workload
from green_tune.batches import Micro, Schedule
from green_tune.course import UNWATCHED, Course, Validation, Watch
from green_tune.effort import Texts
from green_tune.errors import Stopped
from green_tune.job import Found, Job
from green_tune.loading import Base, named_out_of_memory, open_tokenizer, without_gradients
from green_tune.loss import LabelLoss
from green_tune.peers import from_everywhere
from green_tune.predictor import is_out_of_memory
from green_tune.probe import check_examples_apart
from green_tune.results import TrainResult
from green_tune.stepper import Stepper
from green_tune.tokens import Chunks, Encoded, Encoder

log = logging.getLogger(__name__)


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


def load(job: Job) -> "FineTuner":
    """The job's base model with a fresh adapter, and its data in tokens.

    Raises:
        UsageError: the base model, the device or the data cannot be used; see `loading.Base`.
        OutOfMemory: it does not fit.
    """
    return Bench().load(job)


def sketch(job: Job, layers: int, texts: Texts) -> "FineTuner":
    """A base model of so many layers with random weights, and an adapter; for timing its steps.

    `texts` are the job's examples as `texts_of` has made them.

    Raises:
        UsageError: its config, its tokenizer, the device or the data cannot be used.
        OutOfMemory: it does not fit.
    """
    base = Base(job, layers)
    return FineTuner(job, base.with_adapter(job), Tokens(job, base, texts), {})


class Bench:
    """Where one training after the other is done on the same base model and data.

    The base model is loaded once and the data tokenised once; what is true of the base alone is
    found out once: that examples do not see one another, and its loss before the first step.
    """

    def __init__(self) -> None:
        self._base: Base | None = None
        self._tokens: Tokens | None = None
        self._known: dict[object, Any] = {}

    def warm(self, job: Job) -> None:
        """Does beforehand, once, what would else be the first training's to pay for all."""
        if self._known:
            return
        tuner = self.load(job)
        with named_out_of_memory(job):
            tuner.check()
        tuner.validate_start()

    def load(self, job: Job) -> "FineTuner":
        """As `load`; what was loaded for the job before is used again where it fits this one."""
        if self._base is None or not self._base.serves(job):
            self._base = None  # before the next one: both may not fit
            self._base, self._known = Base(job), {}
        try:
            model = self._base.with_adapter(job)
        except BaseException:  # half of an adapter may be on it
            self._base = None
            raise
        if self._tokens is None or not self._tokens.serve(job):
            self._tokens, self._known = Tokens(job, self._base), {}
        return FineTuner(job, model, self._tokens, self._known)


def texts_of(found: Found) -> tuple[Texts, bool]:
    """The examples of a run that is only foretold, in tokens; and whether those are assumed.

    Of a base model whose tokenizer is not on this machine, and whose hub cannot be asked, tokens
    are taken to be of four characters.

    Raises:
        ModelError: the tokenizer cannot be loaded.
        DataError: not one example fits.
    """
    guessed = found.source.kind == "hub" and not found.commit
    tokenizer = Chunks() if guessed else open_tokenizer(found.source, found.commit)
    return Texts.of(Encoder(tokenizer, found.max_seq_len), found.data), guessed


class Tokens:
    """The data of a job in the tokens of a base model."""

    def __init__(self, job: Job, base: Base, texts: Texts | None = None) -> None:
        self._made_for = self._wanted(job)
        self.tokenizer = base.tokenizer
        self.max_seq_len = _context(base.model, job.config.max_seq_len)
        self.encoder = Encoder(self.tokenizer, self.max_seq_len)
        self.texts = texts or Texts.of(self.encoder, job.data)

    def serve(self, job: Job) -> bool:
        """Whether the job asks for the same data, in the tokens of the same base model."""
        return self._made_for == self._wanted(job)

    @staticmethod
    def _wanted(job: Job) -> tuple[object, ...]:
        return (job.source, job.commit, job.data.digest, job.config.max_seq_len)


class FineTuner:
    """A base model with a LoRA adapter, ready to be trained once.

    `known` holds what earlier trainings on the same base and data have found out.
    """

    def __init__(
        self, job: Job, model: PeftModel, tokens: Tokens, known: dict[object, Any]
    ) -> None:
        self.job = job
        self.model = model
        self.loss = LabelLoss(model)
        self.tokenizer, self.encoder = tokens.tokenizer, tokens.encoder
        self.max_seq_len = tokens.max_seq_len
        self.texts = tokens.texts
        self.train, self.validation = tokens.texts.train, tokens.texts.validation
        self.fits = {
            "train": Fit.of(self.train, len(job.data.train)),
            "validation": Fit.of(self.validation, len(job.data.validation)),
        }
        self._known = known
        self._schedule = Schedule(
            self.texts.groups,
            size=job.plan.examples,
            epochs=job.config.epochs,
            seed=job.config.seed,
            batching=job.plan.batching,  # type: ignore[arg-type]
        )
        self._to_validate: list[Micro] = []
        self._at_once = workload.validated_at_once(job.config, job.plan, job.device.kind)
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
            course = Course(self, stepper, watch)
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
        key = ("plain", self.job.plan.batching)
        if key not in self._known:
            check_examples_apart(self.loss, self.train, self.job)
            self._known[key] = self.loss.plain
        self.loss.plain = self._known[key]

    def validate_start(self) -> Validation:
        """The loss before the first step: the base model's own, since a fresh adapter adds zero."""
        plan = self.job.plan
        key = ("start", plan.batching, self._at_once, plan.micro_batch_size)
        if key not in self._known:
            self._known[key] = self.validate()
        return self._known[key]  # type: ignore[no-any-return]

    def validate(self) -> Validation:
        """The loss over the whole validation set, exact for every way to cut it.

        Sum of the completion tokens' negative log-likelihoods over their number, in nats.
        """
        self.model.eval()
        with without_gradients(self.job), named_out_of_memory(self.job):
            total = self._validated()
        self.model.train()
        summed = sum(from_everywhere(total))
        labels = sum(example["labelled"] for example in self.validation)
        text_bytes = sum(example["completion_bytes"] for example in self.validation)
        return Validation(loss=summed / labels, bits_per_byte=summed / math.log(2) / text_bytes)

    def save(self, folder: Path) -> None:
        """Writes the adapter alone, as safetensors, with where its base is and how it is used."""
        config: Any = self.model.peft_config["default"]
        base = recipe.folder_of(self.job.source)
        config.base_model_name_or_path = str(base or self.job.source.place)
        config.revision = self.job.commit or None
        if isinstance(config.target_modules, set):  # whose order differs from process to process
            config.target_modules = sorted(config.target_modules)
        self.model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form: says nothing
        recipe.write(recipe.of(self.job), folder)

    def _examples(self, step: int) -> list[Encoded]:
        return [self.train[number] for number in self._schedule.step(step)]

    def _validated(self) -> float:
        """The summed loss of this process's part; smaller micro-batches where they do not fit."""
        divided = self.job.plan.shards > 1
        while True:
            micros = self._validation_micros()
            idle = self._idle_micros(len(micros)) if divided else []
            try:
                counted = sum(float(self.loss(micro)) for micro in micros)
                for micro in idle:
                    self.loss(micro)
                return float(counted)
            except RuntimeError as error:
                if not is_out_of_memory(error) or divided or self._at_once < self.max_seq_len:
                    raise
            self._at_once //= 2
            self._to_validate = []
            torch.cuda.empty_cache()

    def _idle_micros(self, own: int) -> list[Micro]:
        """What counts for nothing: of a divided base all take part in each pass of any of them."""
        one = workload.validation_micros(self.validation[:1], self.job.plan, self._at_once)
        most: int = max(from_everywhere(own))
        return one * (most - own)

    def _validation_micros(self) -> list[Micro]:
        """This process's part of the validation set, cut once."""
        if not self._to_validate:
            rank = self.job.rank
            mine = batches.shares(self.validation, rank.world)[rank.number]
            self._to_validate = workload.validation_micros(mine, self.job.plan, self._at_once)
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


def _context(model: Any, asked: int) -> int:
    """At most what the base model was built for."""
    limit = int(getattr(model.config, "max_position_embeddings", None) or asked)
    if asked > limit:
        log.warning("max_seq_len=%d is lowered to the model's context of %d tokens", asked, limit)
    return min(asked, limit)
