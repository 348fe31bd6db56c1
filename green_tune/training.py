"""LoRA training with transformers' Trainer, our own validation, and the adapter that comes of it.

`load` gives a FineTuner; `fit` trains and validates it; `save` writes the adapter. It does not
know MLflow, Optuna or what a kilowatt-hour is: it reports steps and losses to its caller. Where
the model comes from is `loading`'s affair.
"""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from green_tune import stop
from green_tune.errors import TrainingDiverged
from green_tune.job import Job
from green_tune.loading import adapted_model, named_out_of_memory
from green_tune.results import TrainResult
from green_tune.tokens import Encoded, Encoder

log = logging.getLogger(__name__)

IGNORED = -100  # torch's mark for positions without a label
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


def cuda_version() -> str:
    """The CUDA that torch was built for; empty for a CPU build."""
    return str(torch.version.cuda or "")


def synchronize() -> None:
    """Waits until the GPU has done what it was given; where there is none, nothing waits."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


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
        self._job = job
        self._model = model
        self._pad_id = tokenizer.pad_token_id or 0
        self.max_seq_len = _context(model, job.config.max_seq_len)
        encoder = Encoder(tokenizer, self.max_seq_len)
        self.train = encoder.encode(job.data.train)
        self.validation = encoder.encode(job.data.validation)
        self.fits = {
            "train": Fit.of(self.train, len(job.data.train)),
            "validation": Fit.of(self.validation, len(job.data.validation)),
        }

    def fit(self, on_progress: OnProgress, phase: Phase = unmeasured) -> TrainResult:
        """Trains for the configured epochs; validates before, during and at the end.

        Each validation happens inside of a block `phase("eval")`.

        Raises:
            TrainingDiverged: the loss is no longer a finite number.
            OutOfMemory: a micro-batch does not fit on the device.
        """
        collator = _Collator(self._pad_id)
        watcher = _Watcher(self, collator, on_progress, phase)
        with tempfile.TemporaryDirectory() as folder, named_out_of_memory(self._job):
            trainer = Trainer(
                model=self._model,
                args=_arguments(self._job, folder, self.steps),
                train_dataset=self.train,
                data_collator=collator,
                callbacks=[watcher],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
        return self._result(watcher, collator)

    @property
    def evals(self) -> int:
        """Validations of the whole training, besides the one before it."""
        return self._job.config.evals

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole training."""
        plan = self._job.plan
        at_once = plan.micro_batch_size * self._job.rank.world
        micro_batches = math.ceil(len(self.train) / at_once)
        return math.ceil(micro_batches / plan.accumulation) * self._job.config.epochs

    def validate(self) -> "Validation":
        """The loss over the whole validation set, exact for every batch size.

        Sum of the completion tokens' negative log-likelihoods over their number, in nats: the
        mean of batch means, which Trainer reports, would move with the batch size.
        """
        self._model.eval()
        total = 0.0
        by_length = sorted(self.validation, key=lambda e: len(e["input_ids"]))
        collator = _Collator(self._pad_id)
        size, rank = self._job.plan.micro_batch_size, self._job.rank
        with torch.inference_mode(), named_out_of_memory(self._job):
            for start in range(size * rank.number, len(by_length), size * rank.world):
                batch = collator(by_length[start : start + size])
                total += self._summed_loss({k: v.to(self._model.device) for k, v in batch.items()})
        self._model.train()
        total = sum(from_everywhere(total))
        labels = sum(example["labelled"] for example in self.validation)
        text_bytes = sum(example["completion_bytes"] for example in self.validation)
        return Validation(loss=total / labels, bits_per_byte=total / math.log(2) / text_bytes)

    def save(self, folder: Path) -> None:
        """Writes the adapter alone, as safetensors, and names its base as it was asked for."""
        config = self._model.peft_config["default"]
        source = self._job.source
        config.base_model_name_or_path = source.place if source.kind == "hub" else source.name
        config.revision = self._job.commit or None
        self._model.save_pretrained(str(folder), save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty form: says nothing

    def _summed_loss(self, batch: dict[str, torch.Tensor]) -> float:
        labels = batch.pop("labels")[:, 1:]
        logits = self._model(**batch, use_cache=False).logits[:, :-1]
        labelled = labels != IGNORED
        loss = torch.nn.functional.cross_entropy(
            logits[labelled].float(), labels[labelled], reduction="sum"
        )
        return float(loss)

    def _result(self, watcher: "_Watcher", collator: "_Collator") -> TrainResult:
        first, last = watcher.validations[0], watcher.validations[-1]
        peak = torch.cuda.max_memory_allocated() if self._job.device.kind == "cuda" else 0
        return TrainResult(
            val_loss=last.loss,
            val_bits_per_byte=last.bits_per_byte,
            start_val_loss=first.loss,
            train_loss=watcher.train_loss,
            steps=self.steps,
            train_tokens=sum(from_everywhere(collator.tokens)),
            trainable_parameters=self._model.num_parameters(only_trainable=True),
            memory_peak_gib=peak / GIB,
        )


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


class _Collator:
    """Pads a micro-batch to its longest example, and counts the tokens that are not padding."""

    def __init__(self, pad_id: int) -> None:
        self._pad_id = pad_id
        self.tokens = 0

    def __call__(self, examples: Sequence[Encoded]) -> dict[str, torch.Tensor]:
        width = max(len(example["input_ids"]) for example in examples)
        self.tokens += sum(len(example["input_ids"]) for example in examples)
        return {
            "input_ids": _padded([e["input_ids"] for e in examples], width, self._pad_id),
            "attention_mask": _padded([[1] * len(e["input_ids"]) for e in examples], width, 0),
            "labels": _padded([_labels(e) for e in examples], width, IGNORED),
        }


def _labels(example: Encoded) -> list[int]:
    """The completion's tokens; the prompt carries no loss."""
    unlabelled = len(example["input_ids"]) - example["labelled"]
    return [IGNORED] * unlabelled + example["input_ids"][unlabelled:]


def _padded(rows: Sequence[Sequence[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])


class _Watcher(TrainerCallback):
    """Validates at evenly spaced steps, reports progress, and stops a diverged training."""

    def __init__(
        self, tuner: FineTuner, collator: _Collator, on_progress: OnProgress, phase: Phase
    ) -> None:
        self._tuner = tuner
        self._collator = collator
        self._on_progress = on_progress
        self._phase = phase
        self.validations: list[Validation] = []
        self.train_loss = math.nan
        self._training_s = 0.0
        self._resumed_s = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._validate(state)
        self._resumed_s = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        stop.check()
        if self._is_due(state):
            control.should_log = True  # the loss curve has a point wherever there is a validation
        else:
            self._report(state, {})

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs["logs"]
        if "loss" not in logs:  # the summary at the end
            return
        self.train_loss = float(logs["loss"])
        _check_finite("loss", self.train_loss, state.global_step)
        self._report(state, self._speed() | _floats(logs, ("loss", "learning_rate", "grad_norm")))
        if self._is_due(state):
            self._training_s += time.perf_counter() - self._resumed_s
            self._validate(state)
            self._resumed_s = time.perf_counter()

    def _is_due(self, state: Any) -> bool:
        done, before = state.global_step, state.global_step - 1
        evals = self._tuner.evals
        return bool(done * evals // state.max_steps > before * evals // state.max_steps)

    def _speed(self) -> dict[str, float]:
        """Tokens per second of training, validations left out."""
        seconds = self._training_s + time.perf_counter() - self._resumed_s
        return {"tokens_per_s": self._collator.tokens / seconds}

    def _validate(self, state: Any) -> None:
        with self._phase("eval"):
            validation = self._tuner.validate()
        _check_finite("validation loss", validation.loss, state.global_step)
        self.validations.append(validation)
        metrics = {"val_loss": validation.loss, "val_bits_per_byte": validation.bits_per_byte}
        self._report(state, metrics)

    def _report(self, state: Any, metrics: dict[str, float]) -> None:
        progress = Progress(
            step=state.global_step,
            steps=state.max_steps,
            tokens=self._collator.tokens,
            metrics=metrics,
        )
        self._on_progress(progress)


def _floats(logs: Any, names: Sequence[str]) -> dict[str, float]:
    known_as = {"loss": "train_loss"}
    return {known_as.get(name, name): float(logs[name]) for name in names if name in logs}


def _check_finite(what: str, loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(f"the {what} is {loss} at step {step}: a lower learning_rate helps")


def _arguments(job: Job, folder: str, steps: int) -> TrainingArguments:
    config, plan = job.config, job.plan
    on_gpu = job.device.kind == "cuda"
    schedule = {"constant": "constant_with_warmup"}.get(config.lr_scheduler, config.lr_scheduler)
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=plan.micro_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=schedule,
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        activation_checkpointing=config.gradient_checkpointing,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        use_cpu=not on_gpu,
        ddp_find_unused_parameters=False,  # every adapter takes part in every step
        dataloader_pin_memory=on_gpu,
        train_sampling_strategy="group_by_length",  # a third less padding than batches by chance
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=max(1, steps // LOGGED_POINTS),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # a loss that is not a number must be seen, not smoothed
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],  # "all" would start a second, online emissions tracker
        disable_tqdm=True,
    )
