"""How fast a device gets on with a kind of job, and what it draws: rates, and what they come to.

Pure values. A pace is fitted to runs (`fitted`), sounded on this machine, or read off the table of
GPUs; which of these a quote rests on, `evidence` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np

from green_tune.budget import ZERO, Amount
from green_tune.effort import Work, figures, noted
from green_tune.footprint import SECONDS_PER_HOUR

PREFIX = "pace."
W_PER_KW = 1000.0
TRUST = 0.1  # of the pace that a fit starts from, in runs: one measured run outweighs it tenfold
TRAIN = ("train_s_per_gflop", "train_s_per_layer_pass", "train_s_per_layer_step")
EVAL = ("eval_s_per_gflop", "eval_s_per_layer_pass")
# What a store says is believed within these, in seconds for any unit of work and in watts. Whatever
# computes takes more than a thousandth of a rack's second (1e18 FLOP/s) for a GFLOP and its layers,
# and draws something; eleven days for one GFLOP or one start, and a megawatt, nobody has here.
LEAST_S, MOST_S = 1e-12, 1e6
LEAST_W, MOST_W = 1e-3, 1e6

Phases = Mapping[str, Amount]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a job takes for each unit of its work, and the watts it draws meanwhile.

    A pass and a step cost something whatever is in them, in proportion to the layers. Watts are
    those of the whole machine as the meter counts it: while it computes, and while it loads.
    """

    train_s_per_gflop: float
    train_s_per_layer_pass: float
    train_s_per_layer_step: float
    eval_s_per_gflop: float
    eval_s_per_layer_pass: float
    quality_s_per_example: float
    setup_s: float
    save_s: float
    busy_w: float
    loading_w: float

    def __post_init__(self) -> None:
        for spec in fields(self):
            if not 0 <= getattr(self, spec.name) < float("inf"):
                raise ValueError(f"{spec.name}={getattr(self, spec.name)} is no pace")

    def phases(self, work: Work, *, setup: bool = True) -> dict[str, Amount]:
        """What each phase of a run takes; one that shares its setup with others has none.

        Hours and kWh; kilograms are the affair of whoever knows the intensity.
        """
        seconds = {
            "setup": self.setup_s * setup,
            "train": self.train_s(work),
            "eval": self.eval_s(work),
            "quality": self.quality_s_per_example * work.quality_examples,
            "save": self.save_s,
        }
        busy = ("train", "eval", "quality")
        return {
            phase: amount(took, self.busy_w if phase in busy else self.loading_w)
            for phase, took in seconds.items()
        }

    def train_s(self, work: Work) -> float:
        """Seconds of all optimiser steps."""
        return float(np.dot(_train_units(work), [getattr(self, name) for name in TRAIN]))

    def eval_s(self, work: Work) -> float:
        """Seconds of all validations."""
        return float(np.dot(_eval_units(work), [getattr(self, name) for name in EVAL]))

    def to_metrics(self) -> dict[str, float]:
        """The rates as MLflow metrics."""
        return noted(self, PREFIX)

    @classmethod
    def read(cls, metrics: Mapping[str, float]) -> Self | None:
        """The pace that a probe has noted; None where it has not, or it is that of no machine."""
        found = figures(cls, PREFIX, metrics)
        return cls(**found) if found and _can_be(found) else None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a run has computed, and what each of its phases has taken."""

    work: Work
    phases: Phases


def _can_be(found: Mapping[str, float]) -> bool:
    """Whether a real machine may be so; one bad row of a store must not end all trainings."""
    watts = [figure for name, figure in found.items() if name.endswith("_w")]
    seconds = [figure for name, figure in found.items() if not name.endswith("_w")]
    return (
        all(LEAST_W <= figure <= MOST_W for figure in watts)
        and max(seconds) <= MOST_S
        and sum(found[name] for name in TRAIN) >= LEAST_S
    )


def amount(seconds: float, watts: float) -> Amount:
    """Hours and kWh of a stretch of time at a power."""
    hours = seconds / SECONDS_PER_HOUR
    return Amount(runtime_h=hours, energy_kwh=hours * watts / W_PER_KW)


def total(phases: Phases) -> Amount:
    """Of all phases together."""
    return sum(phases.values(), ZERO)


def fitted(start: Pace, runs: Sequence[Seen]) -> Pace:
    """The pace of these runs; what they do not tell apart stays in the proportions of `start`.

    A non-negative least squares fit of relative errors, drawn a little towards `start` times the
    runs' mean ratio to it (Tikhonov's regularisation): one run scales, several bend.

    Raises:
        ValueError: there are no runs.
    """
    if not runs:
        raise ValueError("a pace is fitted to at least one run")
    train = [(_train_units(run.work), _seconds(run, "train")) for run in runs]
    evals = [(_eval_units(run.work), _seconds(run, "eval")) for run in runs]
    rates = _fit(start, TRAIN, train) | _fit(start, EVAL, evals)
    rates |= _means(start, runs) | _watts(start, runs)
    return replace(start, **rates)


def scaled(start: Pace, runs: Sequence[Seen]) -> Pace:
    """A pace of training that is right for these runs together; with none, as it was."""
    said = sum(start.train_s(run.work) for run in runs)
    if not said:
        return start
    ratio = sum(_seconds(run, "train") for run in runs) / said
    return replace(start, **{name: getattr(start, name) * ratio for name in TRAIN})


def _train_units(work: Work) -> list[float]:
    return [work.train_gflop, work.layers * work.train_passes, work.layers * work.train_steps]


def _eval_units(work: Work) -> list[float]:
    return [work.eval_gflop, work.layers * work.eval_passes]


def _seconds(run: Seen, phase: str) -> float:
    return run.phases.get(phase, ZERO).runtime_h * SECONDS_PER_HOUR


def _fit(
    start: Pace, names: Sequence[str], rows: Sequence[tuple[list[float], float]]
) -> dict[str, float]:
    """Rates in multiples of the start's, so that all of them are of one size."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # half a second

    before = np.array([getattr(start, name) for name in names])
    told = [(np.array(units) * before / took, took) for units, took in rows if took > 0]
    told = [(parts, took) for parts, took in told if parts.sum() > 0]
    if not told:
        return {}
    parts = np.array([parts for parts, _ in told])
    ratio = float(np.exp(np.mean(-np.log(parts.sum(axis=1)))))
    drawn = np.sqrt(TRUST) * np.eye(len(names))  # as strongly, however wrong the start is
    times, _ = nnls(
        np.vstack([parts * ratio, drawn]),
        np.concatenate([np.ones(len(parts)), drawn.sum(axis=1)]),
    )
    return dict(zip(names, (before * ratio * times).tolist(), strict=True))


def _means(start: Pace, runs: Sequence[Seen]) -> dict[str, float]:
    """What does not go with the work: the median of the runs that had it."""
    found: dict[str, list[float]] = {"setup_s": [], "save_s": [], "quality_s_per_example": []}
    for run in runs:
        if setup := _seconds(run, "setup"):
            found["setup_s"].append(setup)
        if save := _seconds(run, "save"):
            found["save_s"].append(save)
        if run.work.quality_examples and (took := _seconds(run, "quality")):
            found["quality_s_per_example"].append(took / run.work.quality_examples)
    return {name: float(np.median(values)) for name, values in found.items() if values}


def _watts(start: Pace, runs: Sequence[Seen]) -> dict[str, float]:
    """Of all runs together, so that a short one weighs little."""
    kinds = {"busy_w": ("train", "eval", "quality"), "loading_w": ("setup", "save")}
    found = {}
    for name, phases in kinds.items():
        spent = sum((run.phases.get(phase, ZERO) for run in runs for phase in phases), ZERO)
        if spent.runtime_h:
            found[name] = spent.energy_kwh / spent.runtime_h * W_PER_KW
    return found
