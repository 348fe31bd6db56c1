"""Optimiser steps over micro-batches: the same update for every way in which a step is cut.

A step's loss is the sum over its labels divided by their number, over all micro-batches and all
processes. accelerate does precision, loss scaling and the sum of gradients over processes; where
these have divided the base model, that sum is done here, and all make as many passes. Which
examples a step has is its caller's affair, and so is when to validate.
"""

import ctypes
import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft.optimizers import create_loraplus_optimizer
from transformers import get_scheduler

from green_tune import batches, peers
from green_tune.batches import Micro
from green_tune.errors import TrainingDiverged
from green_tune.job import Job
from green_tune.loss import LabelLoss
from green_tune.predictor import is_out_of_memory
from green_tune.tokens import Encoded

log = logging.getLogger(__name__)

MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT_BYTES = 2**30
SCHEDULES = {"constant": "constant_with_warmup"}
SKIPPED_FROM, SKIPPED_MOST = 20, 0.05  # fp16: the first steps find the scale of the loss


class Stepper:
    """Optimiser, schedule and gradients of one training."""

    def __init__(self, job: Job, loss: LabelLoss, steps: int) -> None:
        if job.device.kind == "cpu":
            _keep_memory()
        config = job.config
        self._plan, self._rank = job.plan, job.rank
        self._tokens = job.plan.micro_batch_tokens
        self._rows = job.plan.micro_batch_size
        self._max_norm = config.max_grad_norm
        self._trained = {n: p for n, p in loss.model.named_parameters() if p.requires_grad}
        AcceleratorState._reset_state()  # as transformers does: else a process has one precision
        self._accelerator = Accelerator(
            mixed_precision=MIXED[job.plan.precision],
            cpu=job.device.kind == "cpu",
            step_scheduler_with_optimizer=False,  # else it takes a step for each process
        )
        optimizer = _optimizer(job, loss.model, self._trained.values())
        schedule = get_scheduler(
            SCHEDULES.get(config.lr_scheduler, config.lr_scheduler),
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=steps,
        )
        divided = job.plan.shards > 1  # then it gets accelerate's precision, and no wrapper
        self._loss = self._accelerator.prepare_model(loss, evaluation_mode=divided)
        self._optimizer = self._accelerator.prepare_optimizer(optimizer)
        self._schedule = schedule
        self._skipped = self._taken = 0
        self.halvings = 0
        self.useful = self.processed = 0  # tokens of this process: asked, and computed
        self._losses: list[torch.Tensor] = []
        self._labels = 0

    def step(self, examples: Sequence[Encoded]) -> None:
        """One update by these examples of all processes.

        An out-of-memory halves the micro-batches, and the step is done again from its start.

        Raises:
            TrainingDiverged: fp16 overflows in too many steps.
        """
        while not self._attempt(examples):
            self._optimizer.zero_grad()
            torch.cuda.empty_cache()
        self._grad_norm = self._accelerator.clip_grad_norm_(self._trained.values(), self._max_norm)
        self._optimizer.step()
        self._count_skipped()
        if not self._optimizer.step_was_skipped:
            self._schedule.step()
        self._optimizer.zero_grad()

    def train_loss(self) -> tuple[float, int]:
        """Summed loss and labels of this process since the last call; waits for the device."""
        total = float(torch.stack(self._losses).sum()) if self._losses else 0.0
        labels, self._labels, self._losses = self._labels, 0, []
        return total, labels

    @property
    def learning_rate(self) -> float:
        """Of the step before; of A's, where B has another."""
        return float(self._schedule.get_last_lr()[0])

    @property
    def grad_norm(self) -> float:
        """Of the step before, before clipping; waits for the device."""
        return float(self._grad_norm)

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter in the CPU's memory."""
        return {n: p.detach().to("cpu", copy=True) for n, p in self._trained.items()}

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Puts a copy back."""
        with torch.no_grad():
            for name, parameter in self._trained.items():
                parameter.copy_(weights[name])

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, and the counts; plain values and tensors."""
        scaler = self._accelerator.scaler
        return {
            "weights": self.weights(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],  # type: ignore[no-untyped-call]
            "counts": [self._tokens, self._rows, self.halvings, self.useful, self.processed],
            "skipped": [self._skipped, self._taken],
            "unread": ([loss.to("cpu", copy=True) for loss in self._losses], self._labels),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `state`."""
        self.load_weights(state["weights"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        if self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"]:
            torch.cuda.set_rng_state_all(state["random_cuda"])
        self._tokens, self._rows, self.halvings, self.useful, self.processed = state["counts"]
        self._skipped, self._taken = state["skipped"]
        losses, self._labels = state["unread"]
        device = next(iter(self._trained.values())).device
        self._losses = [loss.to(device) for loss in losses]

    def _attempt(self, examples: Sequence[Encoded]) -> bool:
        """Gradients of a step; False where it has to be done again with smaller micro-batches."""
        labels = sum(example["labelled"] for example in examples)
        world = self._rank.world
        mine = batches.shares(examples, world)[self._rank.number] if world > 1 else list(examples)
        how: Any = self._plan.batching
        micros = batches.cut(mine, how, tokens=self._tokens, rows=self._rows)
        idle = batches.cut(examples[:1], how, tokens=self._tokens) * self._idle_passes(micros)
        passes = [(micro, world / labels) for micro in micros] + [(micro, 0.0) for micro in idle]
        try:
            with peers.noticing():
                losses = [
                    self._backward(*one, last=number == len(passes))
                    for number, one in enumerate(passes, 1)
                ]
                self._sum_gradients()
        except RuntimeError as error:
            if not is_out_of_memory(error) or world > 1 or not self._halve(micros):
                raise
            return False
        self._losses += losses[: len(micros)]
        self._labels += sum(len(micro.targets) for micro in micros)
        self.useful += sum(micro.useful for micro in micros)
        self.processed += sum(len(micro.ids) for micro in micros)
        return True

    def _idle_passes(self, micros: Sequence[Micro]) -> int:
        """Passes that count for nothing: all take part in the sum of gradients over processes.

        Where the base model is divided, all take part in each pass of any of them.
        """
        least = max(peers.from_everywhere(len(micros))) if self._plan.shards > 1 else 1
        return max(0, least - len(micros))

    def _sum_gradients(self) -> None:
        """Over all processes, where accelerate does not: means, as it makes them."""
        if self._plan.shards > 1:
            peers.average([p.grad for p in self._trained.values() if p.grad is not None])

    def _backward(self, micro: Micro, share: float, *, last: bool) -> torch.Tensor:
        whole = nullcontext() if last else self._accelerator.no_sync(self._loss)
        with whole:
            loss: torch.Tensor = self._loss(micro)
            self._accelerator.backward(loss * share)
        return loss.detach()

    def _halve(self, micros: Sequence[Micro]) -> bool:
        """Makes micro-batches smaller; False where they cannot be."""
        if all(len(micro.nodes) == 1 for micro in micros):
            return False
        largest = max(len(micro.ids) for micro in micros)
        self._tokens = min(self._tokens, largest) // 2
        self._rows = max(1, self._rows // 2)
        self.halvings += 1
        log.warning(
            "out of memory with a micro-batch of %d tokens: goes on with %d, the step stays the "
            "same", largest, self._tokens,
        )  # fmt: skip
        return True

    def _count_skipped(self) -> None:
        self._taken += 1
        self._skipped += self._optimizer.step_was_skipped
        if self._taken > SKIPPED_FROM and self._skipped > SKIPPED_MOST * self._taken + 10:
            raise TrainingDiverged(
                f"{self._skipped} of {self._taken} steps overflowed in fp16: take a GPU with bf16, "
                "or precision=fp32"
            )


def _keep_memory() -> None:
    """Lets this process keep up to 1 GiB that it has freed: 6 % of a CPU training's seconds.

    Each step asks for the same large tensors again. glibc gives such memory back to the kernel at
    once, which then clears its pages for the next one (mallopt(3)). Other C libraries lack it.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def _optimizer(job: Job, model: Any, trained: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW, fused: one kernel for all weights."""
    config = job.config
    asked: dict[str, Any] = {
        "lr": config.learning_rate,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.loraplus_ratio > 1:
        return create_loraplus_optimizer(
            model,
            torch.optim.AdamW,
            loraplus_lr_ratio=config.loraplus_ratio,
            loraplus_weight_decay=config.weight_decay,  # else peft's own, whatever is asked
            loraplus_lr_embedding=config.learning_rate,
            **asked,
        )
    return torch.optim.AdamW(trained, **asked)
