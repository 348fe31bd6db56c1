"""What a budget still allows, and what the next trial will probably cost.

It owns amounts, limits on them, and a price learnt from a study's own trials. It deliberately
knows nothing of who spends, or of what happens when a budget is used up. What was spent is
measured; what a trial will cost is modelled, and the assumed constants say that they are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from math import exp2, inf, isfinite, log2, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# The prior: how many times energy doubles with each doubling of a size, and the standard
# deviation of that belief (assumed). Energy goes with the epochs but for what a start costs; how
# a device takes to the other sizes must be seen, and four doublings seldom mean a factor of four.
SLOPES = {
    "epochs": (1.0, 0.15),
    "batch_size": (0.0, 0.3),
    "accumulation_steps": (0.0, 0.3),
    "lora_rank": (0.0, 0.3),
}
NOISE = log2(1.1)  # least standard deviation of a trial's energy around the model: 10 %, assumed
ONE_SIDED_90 = 1.2816  # standard deviations of a normal distribution


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What is spent, or will be.

    Raises:
        ValueError: a figure is negative or not finite; no budget would ever notice it.
    """

    emissions_kg: float = 0.0
    energy_kwh: float = 0.0
    runtime_h: float = 0.0

    def __post_init__(self) -> None:
        if not all(isfinite(figure) and figure >= 0 for figure in astuple(self)):
            raise ValueError(f"what is spent is finite and at least 0, not {self}")

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            emissions_kg=self.emissions_kg + other.emissions_kg,
            energy_kwh=self.energy_kwh + other.energy_kwh,
            runtime_h=self.runtime_h + other.runtime_h,
        )

    def times(self, factor: float) -> "Amount":
        """Each figure times a factor of at least 0."""
        return Amount(**{spec.name: getattr(self, spec.name) * factor for spec in fields(self)})


ZERO = Amount()

# What sets each limit, and its unit, in the order of the fields.
OPTIONS = (("emissions_budget_kg", "kg"), ("energy_budget_kwh", "kWh"), ("timeout_h", "h"))


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a sweep may spend; infinite where there is no limit.

    Raises:
        ValueError: a limit is negative or not a number.
    """

    emissions_kg: float = inf
    energy_kwh: float = inf
    runtime_h: float = inf

    def __post_init__(self) -> None:
        if not all(limit >= 0 for limit in astuple(self)):
            raise ValueError(f"a budget is at least 0, not as in {self}")

    def over(self, spent: Amount, expected: Amount = ZERO, what: str = "the next trial") -> str:
        """Why nothing that takes `expected` may start: one line, empty where it may.

        A budget that is used up to the last forbids everything, that which takes nothing too.
        `spent` must hold what running trials are still expected to take, where several run.
        """
        lines = [
            _broken(f"{option}={limit:g}", unit, limit, (gone, more), what)
            for (option, unit), limit, gone, more in zip(
                OPTIONS, astuple(self), astuple(spent), astuple(expected), strict=True
            )
        ]
        return "; ".join(filter(None, lines))


def _broken(option: str, unit: str, limit: float, amounts: tuple[float, float], what: str) -> str:
    spent, expected = amounts
    left = limit - spent
    if left <= 0:
        return f"{option}: {spent:.3g} {unit} are spent, nothing is left"
    if expected <= left:
        return ""
    return (
        f"{option}: {spent:.3g} {unit} are spent, {left:.3g} {unit} are left "
        f"and {what} is expected to take {expected:.3g} {unit}"
    )


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a trial has spent, and how much of its schedule was done for that, from 0 to 1."""

    values: Mapping[str, float]
    amount: Amount
    progress: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Price:
    """What a trial of the study costs, learnt from those before it.

    The logarithm of the energy is linear in those of the sizes: a Bayesian ridge regression with
    the prior `SLOPES` (Bishop 2006, Pattern Recognition and Machine Learning, 3.3). So one trial
    is enough for a forecast, in proportion to epochs, and each further one bends it to what the
    device does. Emissions and runtime follow the energy at the mean ratio of the samples, which
    is rougher where sizes change the power that is drawn.
    """

    names: tuple[str, ...] = ()
    centre: Array = field(default_factory=lambda: np.zeros(0))  # log2 of the sizes
    slopes: Array = field(default_factory=lambda: np.zeros(0))
    doubt: Array = field(default_factory=lambda: np.zeros((0, 0)))  # covariance of the slopes
    level: float = 0.0  # log2 of the kWh at the centre
    level_doubt: float = 0.0  # its variance
    spread: float = NOISE  # standard deviation of a trial around the model, in log2 of kWh
    per_kwh: Amount | None = None  # None without any sample

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> "Price":
        """The price by what trials have spent; those with no progress or no energy say nothing.

        A partly done trial counts as its amount / progress, with a weight of its progress. What
        its start cost is multiplied too, so the forecast errs towards more.

        Raises:
            ValueError: a size is not positive.
        """
        told = [s for s in samples if s.progress > 0 and s.amount.energy_kwh > 0]
        if not told:
            return cls()
        names = tuple(name for name in SLOPES if all(name in s.values for s in told))
        sizes = np.array([_sizes(names, s.values) for s in told]).reshape(len(told), len(names))
        weight = np.minimum([s.progress for s in told], 1.0)
        energy = np.log2([s.amount.energy_kwh for s in told]) - np.log2(weight)
        return cls(names=names, per_kwh=_per_kwh(told), **_fit(names, sizes, energy, weight))

    def expected(self, values: Mapping[str, float]) -> Amount | None:
        """The modelled cost of a trial: half of such trials take less; None without any sample.

        This one decides whether a trial starts. By `upper` a part of each budget would stay
        unspent; what a trial takes beyond its forecast is a part of one trial, once, and a check
        at its validations bounds that.

        Args:
            values: its hyperparameters; a size that is not among them counts as the samples' mean.

        Raises:
            ValueError: a size is not positive.
        """
        return self._at(values, 0.0)

    def upper(self, values: Mapping[str, float]) -> Amount | None:
        """What nine of ten such trials stay below, by the model; see `expected`.

        It grows with the samples' spread, of at least 10 %, and with the distance from them.
        """
        return self._at(values, ONE_SIDED_90)

    def _at(self, values: Mapping[str, float], deviations: float) -> Amount | None:
        if self.per_kwh is None:
            return None
        known = {name: 2.0**mean for name, mean in zip(self.names, self.centre, strict=True)}
        away = _sizes(self.names, {**known, **values}) - self.centre
        variance = self.spread**2 + self.level_doubt + float(away @ self.doubt @ away)
        energy = self.level + float(away @ self.slopes) + deviations * sqrt(variance)
        return self.per_kwh.times(exp2(energy))


def _sizes(names: Sequence[str], values: Mapping[str, float]) -> Array:
    for name in names:
        if not values[name] > 0:
            raise ValueError(f"{name}={values[name]} has no price; it must be more than 0")
    return np.array([log2(values[name]) for name in names], dtype=float)


def _per_kwh(samples: Sequence[Sample]) -> Amount:
    total = sum((sample.amount for sample in samples), ZERO)
    return total.times(1 / total.energy_kwh)


def _fit(names: Sequence[str], sizes: Array, energy: Array, weight: Array) -> dict[str, Any]:
    """The regression, twice: its residuals say how noisy the trials are, and so what they teach."""
    centre, level = np.average(sizes, axis=0, weights=weight), np.average(energy, weights=weight)
    away = sizes - centre
    prior = np.array([SLOPES[name] for name in names]).reshape(len(names), 2)
    spread = NOISE
    for _ in range(2):
        doubt = np.linalg.inv(np.diag(prior[:, 1] ** -2.0) + (away.T * weight) @ away / spread**2)
        surprise = energy - level - away @ prior[:, 0]
        slopes = prior[:, 0] + doubt @ (away.T * weight) @ surprise / spread**2
        rest = energy - level - away @ slopes
        spread = max(NOISE, sqrt(float(weight @ rest**2) / max(len(energy) - 1, 1)))
    return {
        "centre": centre,
        "slopes": slopes,
        "doubt": doubt,
        "level": float(level),
        "level_doubt": spread**2 / float(weight.sum()),
        "spread": spread,
    }
