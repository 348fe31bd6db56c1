"""Made-up fine-tuning problems: a loss and kilograms as formulas of the hyperparameters.

All of it is assumed, none measured: the shapes follow what is known of LoRA training (a best
learning rate that grows with the root of the batch, a critical batch size, overfitting, a loss that
falls as a power of the examples seen, and a device that idles in small batches). A problem draws
its own constants, so an average over problems ranks samplers; it predicts no grams.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from green_tune.results import front, hypervolume
from green_tune.space import SPACE, Dimension

Array = NDArray[np.float64]
Values = Mapping[str, Array]

RANDOM = 20_000  # trials of a random search that scale and reference point are taken from
ROUNDS, NEAR = 8, 4_000  # of the search for the true front around the best so far
REFERENCE_QUANTILE = 0.75  # of random search, in both objectives
J_PER_KWH = 3.6e6


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One data set on one device; every figure is drawn, see `draw`."""

    examples: float
    best_learning_rate: float  # for a batch of 16 at rank 16
    critical_batch: float
    floor: float  # nats that no training removes
    learnable: float  # nats
    power: float  # of the examples seen
    unit: float  # examples in which learning gets under way
    overfits_at: float  # epochs
    overfitting: float  # nats
    annealing: float  # nats that a learning rate which is still high hides
    noise: float  # standard deviation of a validation, in nats
    emissions_noise: float  # relative, of a measured run
    overhead_s: float  # for each micro-batch
    example_s: float
    step_s: float
    eval_s: float
    load_s: float
    idle_w: float
    busy_w: float  # above idle, at full use
    intensity_kg_per_kwh: float

    @classmethod
    def draw(cls, seed: int) -> "Problem":
        """The problem of a seed."""
        dice = np.random.default_rng([2026, seed])
        return cls(
            examples=dice.uniform(800, 5000),
            best_learning_rate=3e-4 * np.exp(dice.normal(0, 0.4)),
            critical_batch=48 * np.exp(dice.normal(0, 0.4)),
            floor=dice.uniform(1.0, 1.4),
            learnable=dice.uniform(0.8, 1.4),
            power=dice.uniform(0.5, 0.9),
            unit=dice.uniform(600, 2500),
            overfits_at=dice.uniform(1.5, 4.0),
            overfitting=dice.uniform(0.02, 0.08),
            annealing=dice.uniform(0.03, 0.08),
            noise=dice.uniform(0.004, 0.012),
            emissions_noise=0.03,
            overhead_s=dice.uniform(0.15, 0.4),
            example_s=dice.uniform(0.06, 0.14),
            step_s=0.12,
            eval_s=20.0,
            load_s=60.0,
            idle_w=30.0,
            busy_w=40.0,
            intensity_kg_per_kwh=0.38,
        )

    def run(self, values: Values, progress: Array, evals: int) -> tuple[Array, Array]:
        """Loss in nats and kg CO2e at a part of the planned training, both without noise."""
        return self._loss(values, progress), self._emissions_kg(values, progress, evals)

    def _loss(self, values: Values, progress: Array) -> Array:
        batch = values["batch_size"] * values["accumulation_steps"]
        steps = np.maximum(1, values["epochs"] * self.examples / batch)
        rank = values["lora_rank"] / 16
        best = self.best_learning_rate * np.sqrt(batch / 16) * rank**-0.2
        off = np.log(values["learning_rate"] / best)
        warm = np.minimum(1, values["warmup_steps"] / steps)
        efficiency = np.exp(-0.5 * (off / np.where(off < 0, 1.2, 0.9)) ** 2)
        seen = values["epochs"] * progress * self.examples * efficiency
        learnt = seen * (1 - 0.5 * warm) / (1 + batch / self.critical_batch)
        passes = values["epochs"] * progress - self.overfits_at * rank**-0.15
        overfitted = self.overfitting * np.maximum(0, passes) ** 1.7 / (1 + np.exp(-2 * off - 2))
        unstable = 0.125 * np.logaddexp(0, (off - 0.9 - 3 * np.minimum(warm, 0.15)) / 0.25)
        shaky = 0.02 * np.sqrt(8 / batch) * np.exp(0.5 * np.minimum(off, 1.5))
        hidden = self.annealing * (1 - progress) * np.exp(0.5 * np.minimum(off, 1.0))
        left = self.learnable * (1 + learnt / self.unit) ** -self.power + 0.04 / np.sqrt(rank)
        trained = progress > 0  # before the first step a learning rate does nothing
        return np.asarray(
            self.floor + left + overfitted + trained * progress * (unstable + shaky)
            + trained * hidden
        )  # fmt: skip

    def _emissions_kg(self, values: Values, progress: Array, evals: int) -> Array:
        batch = values["batch_size"]
        use = batch / (batch + 2)
        each_s = self.overhead_s / batch + self.example_s * (
            1 + 0.03 * np.log2(values["lora_rank"] / 4)
        )
        each_s = each_s + self.step_s / (batch * values["accumulation_steps"])
        trained_s = progress * values["epochs"] * self.examples * each_s
        train_j = trained_s * (self.idle_w + self.busy_w * (0.4 + 0.6 * use))
        eval_j = (1 + progress * evals) * self.eval_s * (self.idle_w + 0.6 * self.busy_w)
        load_j = self.load_s * (self.idle_w + 0.25 * self.busy_w)
        kwh = (load_j + train_j + eval_j) / J_PER_KWH
        return np.asarray(self.intensity_kg_per_kwh * kwh)


@dataclass(frozen=True)
class World:
    """A problem, and what only its maker knows: the true front and the scale of a random trial."""

    problem: Problem
    evals: int

    @cached_property
    def _random(self) -> tuple[dict[str, Array], Array, Array]:
        values = drawn(np.random.default_rng(5), RANDOM)
        return values, *self.problem.run(values, np.ones(RANDOM), self.evals)

    @cached_property
    def random_trial_kg(self) -> float:
        """What a random trial emits on average."""
        return float(self._random[2].mean())

    @cached_property
    def reference(self) -> tuple[float, float]:
        """Beyond this in either objective nobody would look."""
        _, loss, kg = self._random
        return tuple(float(np.quantile(of, REFERENCE_QUANTILE)) for of in (loss, kg))  # type: ignore[return-value]

    @cached_property
    def _best(self) -> float:
        """Hypervolume of the true front of full trainings, found by a dense local search."""
        dice = np.random.default_rng(6)
        values, loss, kg = self._random
        for _ in range(ROUNDS):
            kept = _front(loss, kg)
            best = {name: of[kept] for name, of in values.items()}
            tried = near(dice, best, NEAR)
            found = self.problem.run(tried, np.ones(NEAR), self.evals)
            values = {name: np.concatenate([best[name], tried[name]]) for name in values}
            loss, kg = (
                np.concatenate([old[kept], new]) for old, new in zip((loss, kg), found, strict=True)
            )
        return hypervolume(zip(loss.tolist(), kg.tolist(), strict=True), self.reference)

    def share(self, observed: list[tuple[float, float]], true: list[tuple[float, float]]) -> float:
        """Of the true front's hypervolume, what the observed front truly has.

        A user chooses by what was observed, and gets what is true. Points between the choices of
        a full training can take it above 1.
        """
        pairs = list(zip(observed, true, strict=True))
        chosen = front(pairs, lambda pair: pair[0])
        return hypervolume((point for _, point in chosen), self.reference) / self._best


def drawn(dice: np.random.Generator, count: int) -> dict[str, Array]:
    """Random hyperparameters of the space."""
    return {name: _drawn(dimension, dice, count) for name, dimension in SPACE.items()}


def near(dice: np.random.Generator, values: Values, count: int) -> dict[str, Array]:
    """Random neighbours of given ones."""
    picked = dice.integers(0, len(values["epochs"]), count)
    return {
        name: _moved(dimension, values[name][picked], dice) for name, dimension in SPACE.items()
    }


def _drawn(dimension: Dimension, dice: np.random.Generator, count: int) -> Array:
    if dimension.scale == "log":
        return np.exp(dice.uniform(np.log(dimension.low), np.log(dimension.high), count))
    if dimension.scale == "powers of two":
        low, high = np.log2([dimension.low, dimension.high]).astype(int)
        return np.asarray(2.0 ** dice.integers(low, high + 1, count), float)
    return dice.integers(int(dimension.low), int(dimension.high) + 1, count).astype(float)


def _moved(dimension: Dimension, of: Array, dice: np.random.Generator) -> Array:
    if dimension.scale == "log":
        moved = of * np.exp(dice.normal(0, 0.15, len(of)))
    elif dimension.scale == "powers of two":
        moved = of * 2.0 ** dice.choice([-1, 0, 0, 1], len(of))
    else:
        moved = of + dice.choice([-1, 0, 0, 1], len(of))
    return np.clip(moved, dimension.low, dimension.high)


def _front(loss: Array, kg: Array) -> Array:
    order = np.lexsort((kg, loss))
    least = np.minimum.accumulate(kg[order])
    kept = np.concatenate([[True], least[1:] < least[:-1]])
    return np.asarray(order[kept])
