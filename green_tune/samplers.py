"""Who proposes the next trial: samplers that depend on the seed, the number and the trials alone.

Every proposal is made by a fresh sampler of Optuna with a seed of its own, so that a resumed sweep
goes on as if it had not stopped, and no worker repeats another. It knows hyperparameters and the
two objectives, (val_loss, emissions_kg); what a trial is and when one is needed knows `sweep`.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from green_tune.config import to_text
from green_tune.space import Dimension
from green_tune.space import Space as Space

log = logging.getLogger(__name__)

NAMES = ("green", "gp", "tpe", "nsga2", "random", "grid")
IMPUTED = "imputed"  # a trial's user attribute: [val_loss, emissions_kg] at its planned end
EPOCHS = "epochs"
START = 6  # trials; none from 3 to 10 was clearly better in benchmarks/sampling.py
POPULATION = 6  # of NSGA-II; Optuna's default of 50 makes a sweep of 40 a random search
GRID_INTEGERS = 5  # so many whole numbers are all taken into a grid
PROPOSALS, ATTEMPTS = 2, 50  # where a point was tried before; after the proposals, chance decides

Params = dict[str, Any]
Distribution = Any  # a BaseDistribution, whose kinds share no bounds
Distributions = dict[str, Distribution]
Model = Callable[[optuna.Study, FrozenTrial, Distributions, int], Params]


@dataclass(frozen=True, kw_only=True)
class Green:
    """The choices in `green`, as they won in benchmarks/sampling.py."""

    carbon_weight: float = 1.0  # of log emissions against log expected gain of hypervolume
    cheap_start: bool = True  # the start trials take the lower half of the epochs
    clip_quantile: float = 0.75  # of the losses: a diverged trial must not set the scale
    preliminary_samples: int = 512
    local_searches: int = 4


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The hyperparameters of a trial, by their names."""
    return decode({name: _ask(trial, name, d) for name, d in distributions(space).items()}, space)


def distributions(space: Space) -> Distributions:
    """The space as Optuna sees it: what has an order is a number, sizes are exponents of two."""
    return {_name(dimension): _distribution(dimension) for dimension in space.values()}


def encode(values: Mapping[str, Any], space: Space) -> Params:
    """Hyperparameters as Optuna's params; left out is what the space does not hold."""
    return {
        _name(dimension): _encoded(dimension, values[name])
        for name, dimension in space.items()
        if name in values and _holds(dimension, values[name])
    }


def decode(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The hyperparameters behind those of Optuna's params that belong to the space."""
    return {
        name: _decoded(dimension, params[_name(dimension)])
        for name, dimension in space.items()
        if _name(dimension) in params
    }


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
        "random": lambda: lambda study, trial, varied, seed: _at(varied, _unit(varied, seed)),
        "grid": lambda: _Grid(space, seed),
    }
    cheap = name == "green" and green.cheap_start
    return _Sampler(space, seed, makers[name](), cheap=cheap)


def grid_size(space: Space) -> int:
    """How many points `grid` has."""
    return math.prod(len(_grid_values(d)) for d in distributions(space).values())


class _Sampler(optuna.samplers.BaseSampler):
    """Gives each trial's proposal a seed of its own, and one more chance where it is not new."""

    def __init__(self, space: Space, seed: int, model: Model, *, cheap: bool) -> None:
        self._varied = {n: d for n, d in distributions(space).items() if not d.single()}
        self._start = dict(self._varied)
        if cheap and EPOCHS in space and (name := _name(space[EPOCHS])) in self._varied:
            self._start[name] = _lower_half(self._varied[name])
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
                params = _at(search_space, _unit(search_space, seed))
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
            return _at(self._varied, _unit(self._varied, seed)) | proposed
        return _at(self._start, _spread(len(self._start), self._seed, trial.number))


class _Grid:
    """The model that walks over a grid in an order which the seed decides."""

    def __init__(self, space: Space, seed: int) -> None:
        varied = {n: d for n, d in distributions(space).items() if not d.single()}
        values = [_grid_values(distribution) for distribution in varied.values()]
        self._points = [dict(zip(varied, p, strict=True)) for p in itertools.product(*values)]
        random.Random(_derived(seed, "grid")).shuffle(self._points)

    def __call__(
        self, study: optuna.Study, trial: FrozenTrial, varied: Distributions, seed: int
    ) -> Params:
        """The next point that no trial has, whatever became of it."""
        tried = _tried(study, trial)
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


def _tried(study: optuna.Study, trial: FrozenTrial) -> list[Params]:
    """What the other trials have, or are to have, whatever became of them."""
    others = (t for t in study.get_trials(deepcopy=False) if t.number != trial.number)
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


def _at(varied: Distributions, unit: Sequence[float]) -> Params:
    """The params at a point of the unit cube."""
    return {n: _scaled(d, u) for (n, d), u in zip(varied.items(), unit, strict=True)}


def _scaled(distribution: Distribution, unit: float) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(unit * len(distribution.choices))]
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return low + int(unit * (high - low + 1))
    if distribution.log:
        return min(high, low * float(high / low) ** float(unit))
    return low + float(unit) * (high - low)


def _grid_values(distribution: Distribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        few = high - low < GRID_INTEGERS
        return list(range(low, high + 1)) if few else [low, (low + high) // 2, high]
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    return sorted({low, middle, high})


def _lower_half(distribution: Distribution) -> Distribution:
    if not isinstance(distribution, IntDistribution):
        return distribution
    low, high = distribution.low, distribution.high
    return IntDistribution(low, low + (high - low) // 2)


def _name(dimension: Dimension) -> str:
    """In the study; choices are part of it, as their positions mean nothing among others."""
    if dimension.scale == "powers of two":
        return f"log2_{dimension.name}"
    if _is_ordered_choice(dimension):
        return f"{dimension.name}_of_{'_'.join(map(to_text, sorted(dimension.values)))}"
    return dimension.name


def _distribution(dimension: Dimension) -> Distribution:
    low, high = dimension.low, dimension.high
    if dimension.scale == "powers of two":
        return IntDistribution(_exponent(low), _exponent(high))
    if _is_ordered_choice(dimension):
        return IntDistribution(0, len(dimension.values) - 1)
    if dimension.scale == "choice":
        return CategoricalDistribution(dimension.values)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=dimension.scale == "log")


def _ask(trial: optuna.Trial, name: str, distribution: Distribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, low, high)
    return trial.suggest_float(name, low, high, log=distribution.log)


def _holds(dimension: Dimension, value: Any) -> bool:
    if value not in dimension:
        return False
    if dimension.scale == "powers of two":
        return bool(value == 2 ** _exponent(value))
    return not isinstance(_distribution(dimension), IntDistribution) or (
        _is_ordered_choice(dimension) or value == int(value)
    )


def _encoded(dimension: Dimension, value: Any) -> Any:
    if dimension.scale == "powers of two":
        return _exponent(value)
    return sorted(dimension.values).index(value) if _is_ordered_choice(dimension) else value


def _decoded(dimension: Dimension, param: Any) -> Any:
    if dimension.scale == "powers of two":
        return 2**param
    return sorted(dimension.values)[param] if _is_ordered_choice(dimension) else param


def _is_ordered_choice(dimension: Dimension) -> bool:
    numbers = all(isinstance(value, int | float) for value in dimension.values)
    return dimension.scale == "choice" and numbers


def _exponent(size: float) -> int:
    return int(size).bit_length() - 1


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
