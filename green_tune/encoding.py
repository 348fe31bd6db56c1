"""How hyperparameters look to Optuna: what has an order is a number, sizes are exponents of two.

A door to optuna. It owns names, distributions and the way of a value there and back; who proposes
values is `samplers`, what may vary `space`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from green_tune.config import to_text
from green_tune.space import Dimension, Space

GRID_INTEGERS = 5  # so many whole numbers are all taken into a grid

Params = dict[str, Any]
Distribution = Any  # a BaseDistribution, whose kinds share no bounds
Distributions = dict[str, Distribution]


def suggest(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """The hyperparameters of a trial, by their names."""
    return decode({name: _ask(trial, name, d) for name, d in distributions(space).items()}, space)


def distributions(space: Space) -> Distributions:
    """The space as Optuna sees it: what has an order is a number, sizes are exponents of two."""
    return {name_of(dimension): _distribution(dimension) for dimension in space.values()}


def encode(values: Mapping[str, Any], space: Space) -> Params:
    """Hyperparameters as Optuna's params; left out is what the space does not hold."""
    return {
        name_of(dimension): _encoded(dimension, values[name])
        for name, dimension in space.items()
        if name in values and _holds(dimension, values[name])
    }


def decode(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The hyperparameters behind those of Optuna's params that belong to the space."""
    return {
        name: _decoded(dimension, params[name_of(dimension)])
        for name, dimension in space.items()
        if name_of(dimension) in params
    }


def name_of(dimension: Dimension) -> str:
    """In the study; choices are part of it, as their positions mean nothing among others."""
    if dimension.scale == "powers of two":
        return f"log2_{dimension.name}"
    if _is_ordered_choice(dimension):
        return f"{dimension.name}_of_{'_'.join(map(to_text, sorted(dimension.values)))}"
    return dimension.name


def lower_half(distribution: Distribution) -> Distribution:
    """The cheap half of what is counted; anything else as it is."""
    if not isinstance(distribution, IntDistribution):
        return distribution
    low, high = distribution.low, distribution.high
    return IntDistribution(low, low + (high - low) // 2)


def grid_values(distribution: Distribution) -> list[Any]:
    """The values of a coarse grid: all where they are few, else the ends and the middle."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    low, high = distribution.low, distribution.high
    if isinstance(distribution, IntDistribution):
        few = high - low < GRID_INTEGERS
        return list(range(low, high + 1)) if few else [low, (low + high) // 2, high]
    middle = math.sqrt(low * high) if distribution.log else (low + high) / 2
    return sorted({low, middle, high})


def at(varied: Distributions, unit: Sequence[float]) -> Params:
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
