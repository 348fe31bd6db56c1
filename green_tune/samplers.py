"""Who proposes the next trial: samplers that depend on the seed, the number and the trials alone.

Every proposal is made by a fresh sampler of Optuna with a seed of its own, so that a resumed sweep
goes on as if it had not stopped, and no worker repeats another. It knows hyperparameters and the
two objectives, (val_loss, emissions_kg); how values look to Optuna knows `encoding`, what a trial
is and when one is needed `study`.

    green   expected gain of hypervolume for each kilogram, after a cheap start; see `_GreenGP`
    gp      Optuna's Gaussian process
    tpe     Optuna's multivariate tree of Parzen estimators
    nsga2   Optuna's genetic algorithm, with a population that fits a short sweep
    random  uniform over the space
    grid    every point of a coarse grid once, in random order
"""

import copy
import hashlib
import itertools
import logging
import math
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from green_tune.encoding import (
    Distribution,
    Distributions,
    Params,
    at,
    distributions,
    grid_values,
    lower_half,
    name_of,
)
from green_tune.space import Space

log = logging.getLogger(__name__)

NAMES = ("green", "gp", "tpe", "nsga2", "random", "grid")
IMPUTED = "imputed"  # a trial's user attribute: [val_loss, emissions_kg] at its planned end
TOO_DEAR = "too_dear"  # of a trial that was proposed and never began
EPOCHS = "epochs"
START = 6  # trials; none from 3 to 10 was clearly better in benchmarks/sampling.py
POPULATION = 6  # of NSGA-II; Optuna's default of 50 makes a sweep of 40 a random search
PROPOSALS, ATTEMPTS = 2, 50  # where a point was tried before; after the proposals, chance decides

Model = Callable[[optuna.Study, FrozenTrial, Distributions, int], Params]


@dataclass(frozen=True, kw_only=True)
class Green:
    """The choices in `green`, as they won in benchmarks/sampling.py."""

    carbon_weight: float = 1.0  # of log emissions against log expected gain of hypervolume
    cheap_start: bool = True  # the start trials take the lower half of the epochs
    clip_quantile: float = 0.75  # of the losses: a diverged trial must not set the scale
    preliminary_samples: int = 512
    local_searches: int = 4


def make(
    name: str, space: Space, *, seed: int, start: int, green: Green | None = None
) -> optuna.samplers.BaseSampler:
    """The sampler of a study, one of NAMES.

    `start` is how many trials, by their numbers, are spread evenly before a model has its say;
    random and grid need none.
    """
    green = green or Green()
    gp, tpe = optuna.samplers.GPSampler, optuna.samplers.TPESampler
    nsga2 = partial(optuna.samplers.NSGAIISampler, population_size=POPULATION)
    makers: dict[str, Callable[[], Model]] = {
        "green": lambda: _after(start, partial(_GreenGP, green)),
        "gp": lambda: _after(start, partial(gp, n_startup_trials=start)),
        "tpe": lambda: _after(start, partial(tpe, multivariate=True, n_startup_trials=start)),
        "nsga2": lambda: _after(0, nsga2),  # its first generation is spread evenly
        "random": lambda: lambda study, trial, varied, seed: at(varied, _unit(varied, seed)),
        "grid": lambda: _Grid(space, seed),
    }
    cheap = name == "green" and green.cheap_start
    return _Sampler(space, seed, makers[name](), cheap=cheap)


def grid_size(space: Space) -> int:
    """How many points `grid` has."""
    return math.prod(len(grid_values(d)) for d in distributions(space).values())


class _Sampler(optuna.samplers.BaseSampler):
    """Gives each trial's proposal a seed of its own, and one more chance where it is not new."""

    def __init__(self, space: Space, seed: int, model: Model, *, cheap: bool) -> None:
        self._varied = {n: d for n, d in distributions(space).items() if not d.single()}
        self._start = dict(self._varied)
        if cheap and EPOCHS in space and (name := name_of(space[EPOCHS])) in self._varied:
            self._start[name] = lower_half(self._varied[name])
        self._seed = seed
        self._model = model

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> Distributions:
        return self._varied

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: Distributions
    ) -> Params:
        """A point that no trial has had, as far as one is found."""
        if not search_space:
            return {}
        tried = _tried(study, trial)
        for attempt in range(ATTEMPTS):
            seed = _derived(self._seed, trial.number, attempt)
            if attempt < PROPOSALS:
                params = self._propose(study, trial, seed)
            else:
                params = at(search_space, _unit(search_space, seed))
            if not _is_among(tried, params):
                break
        return params

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Distribution
    ) -> Any:
        """For a parameter outside of the space, which `suggest` never asks for."""
        chance = optuna.samplers.RandomSampler(seed=_derived(self._seed, trial.number, name))
        return chance.sample_independent(study, trial, name, distribution)

    def _propose(self, study: optuna.Study, trial: FrozenTrial, seed: int) -> Params:
        """The model's point, with chance for what it left out; or one of an even spread."""
        proposed = self._model(study, trial, self._varied, seed)
        if proposed:
            return at(self._varied, _unit(self._varied, seed)) | proposed
        return at(self._start, _spread(len(self._start), self._seed, trial.number))


class _Grid:
    """The model that walks over a grid in an order which the seed decides."""

    def __init__(self, space: Space, seed: int) -> None:
        varied = {n: d for n, d in distributions(space).items() if not d.single()}
        values = [grid_values(distribution) for distribution in varied.values()]
        self._points = [dict(zip(varied, p, strict=True)) for p in itertools.product(*values)]
        random.Random(_derived(seed, "grid")).shuffle(self._points)

    def __call__(
        self, study: optuna.Study, trial: FrozenTrial, varied: Distributions, seed: int
    ) -> Params:
        """The next point that no trial has, whatever became of it; too dear ones come again."""
        tried = _tried(study, trial, but=TOO_DEAR)
        first = trial.number % len(self._points)
        order = self._points[first:] + self._points[:first]
        new = (point for point in order if not _is_among(tried, point))
        return next(new, order[0])


class _GreenGP(optuna.samplers.GPSampler):
    """Optuna's Gaussian process, looking for gain per kilogram.

    It sees losses clipped from above and the logarithm of emissions, and maximises
    log EHVI - weight * log(expected emissions): expected hypervolume improvement (Daulton et al.
    2020, arXiv:2006.05078) per cost, as in Lee et al. 2020, arXiv:2003.10870. A trial that was
    ended early counts with what it would have reached (IMPUTED), since its true values say
    nothing of a full training. The two methods are private in Optuna; its pin is exact.
    """

    def __init__(self, green: Green, *, seed: int) -> None:
        super().__init__(seed=seed, n_startup_trials=2)
        self._green = green
        self._spread = 0.0  # of log emissions; the model's unit
        self._n_preliminary_samples = green.preliminary_samples
        self._n_local_search = green.local_searches

    def _sample_relative_impl(
        self,
        study: optuna.Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: Distributions,
    ) -> Params:
        known = [t for t in completed_trials if _is_known(t, search_space)]
        if len(known) < self._n_startup_trials:
            return {}
        seen = _seen([_values(trial) for trial in known], self._green.clip_quantile)
        self._spread = float(seen[:, 1].std())
        shown = [_with_values(t, row.tolist()) for t, row in zip(known, seen, strict=True)]
        params = super()._sample_relative_impl(study, shown, running_trials, search_space)
        return dict(params)

    def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
        if self._green.carbon_weight and self._gprs_cache_list:
            gain, emissions = acqf.eval_acqf, self._gprs_cache_list[1]
            weight = self._green.carbon_weight * self._spread
            # The model has the sign of what is maximised: its mean falls as emissions grow.
            acqf.eval_acqf = lambda x: gain(x) + weight * emissions.posterior(x)[0]
        return super()._optimize_acqf(acqf, best_params)


def _after(start: int, build: Callable[..., optuna.samplers.BaseSampler]) -> Model:
    """One of Optuna's samplers from trial number `start` on; nothing where it has no answer."""

    def propose(
        study: optuna.Study, trial: FrozenTrial, varied: Distributions, seed: int
    ) -> Params:
        if trial.number < start:
            return {}
        try:
            with _quiet():
                return dict(build(seed=seed).sample_relative(study, trial, varied))
        except (ArithmeticError, RuntimeError, ValueError) as error:  # of a degenerate matrix
            log.warning("trial %d takes a point of the even spread: %s", trial.number, error)
            return {}

    return propose


def _tried(study: optuna.Study, trial: FrozenTrial, but: str = "") -> list[Params]:
    """What the other trials have, or are to have, whatever became of them.

    Left out are those with the attribute `but`.
    """
    trials = study.get_trials(deepcopy=False)
    others = (t for t in trials if t.number != trial.number and but not in t.user_attrs)
    return [{**other.system_attrs.get("fixed_params", {}), **other.params} for other in others]


def _is_among(tried: Sequence[Params], params: Params) -> bool:
    return any(params.items() <= other.items() for other in tried)


def _is_known(trial: FrozenTrial, varied: Distributions) -> bool:
    """It has all parameters, and values that a logarithm and a quantile can take."""
    loss, emissions_kg = _values(trial)
    usable = not math.isnan(loss) and loss > -math.inf and 0 < emissions_kg < math.inf
    return usable and varied.keys() <= trial.params.keys()


def _values(trial: FrozenTrial) -> tuple[float, float]:
    loss, emissions_kg = trial.user_attrs.get(IMPUTED) or trial.values
    return float(loss), float(emissions_kg)


def _seen(values: Sequence[tuple[float, float]], quantile: float) -> np.ndarray:
    """What the model sees of (loss, emissions): clipped, and in logarithms."""
    losses, emissions = np.array(values, float).T
    finite = losses[np.isfinite(losses)]
    # A loss that was seen, not one between: of few, the largest would pull that after itself.
    most = np.quantile(finite, quantile, method="nearest") if len(finite) else 0.0
    return np.stack([np.minimum(losses, most), np.log(emissions)], axis=1)


def _with_values(trial: FrozenTrial, values: list[float]) -> FrozenTrial:
    shown = copy.copy(trial)
    shown.values = values
    return shown


def _derived(seed: int, *parts: object) -> int:
    """A seed of its own for each part of a study, in the range that numpy takes."""
    text = "/".join(str(part) for part in (seed, *parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _spread(dimensions: int, seed: int, number: int) -> Sequence[float]:
    """A point of a scrambled Sobol sequence in the unit cube."""
    from scipy.stats import qmc  # type: ignore[import-untyped]  # most of a second

    engine = qmc.Sobol(dimensions, seed=_derived(seed, "start"))
    if number:  # scipy 1.17 fails where there is nothing to skip
        engine.fast_forward(number)
    return list(engine.random(1)[0])


def _unit(varied: Distributions, seed: int) -> Sequence[float]:
    """A random point of the unit cube."""
    return list(np.random.default_rng(seed).random(len(varied)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's remarks on experiments (our pin is exact) and greenlet (12 % faster)."""
    chatter = logging.getLogger("optuna._gp.batched_lbfgsb")
    before = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        chatter.setLevel(before)
