"""What a sweep may vary: one table of dimensions, and how a user narrows or pins each.

    batch_size=8              pinned: no longer a dimension
    learning_rate=1e-5..1e-3  narrowed, bounds included
    lora_rank=8,16,64         these values only

It knows nothing of Optuna: `sweep` turns a dimension into a suggestion.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from green_tune.config import TrainConfig, check, read, to_text
from green_tune.errors import ConfigError

Space = Mapping[str, "Dimension"]
Scale = Literal["linear", "log", "powers of two", "choice"]
Number = int | float


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One hyperparameter and the values it may take.

    `values` holds the allowed values of a scale of choices, and (low, high) for all others.
    """

    name: str
    scale: Scale
    values: tuple[Any, ...]

    def __contains__(self, value: Number) -> bool:
        if self.scale == "choice":
            return value in self.values
        if self.scale == "powers of two" and int(value).bit_count() != 1:
            return False
        return self.low <= value <= self.high

    @property
    def low(self) -> Number:
        """The smallest value."""
        return min(self.values)  # type: ignore[no-any-return]

    @property
    def high(self) -> Number:
        """The largest value."""
        return max(self.values)  # type: ignore[no-any-return]

    def at(self, share: float) -> Any:
        """The value at a share, 0 to 1 (not included), of the way through the dimension."""
        if self.scale == "choice":
            return self.values[int(share * len(self.values))]
        if self.scale == "powers of two":
            low, high = int(self.low).bit_length() - 1, int(self.high).bit_length() - 1
            return 2 ** (low + int(share * (high - low + 1)))
        if self.scale == "log":
            return float(self.low * (self.high / self.low) ** share)
        if isinstance(self.low, int):
            return self.low + int(share * (self.high - self.low + 1))
        return self.low + share * (self.high - self.low)

    def __str__(self) -> str:
        if self.scale == "choice":
            return ",".join(to_text(value) for value in self.values)
        return f"{to_text(self.low)}..{to_text(self.high)}"


def _dimension(name: str, scale: Scale, *values: Any) -> Dimension:
    return Dimension(name=name, scale=scale, values=values)


# The five that the originating study varied, and the rank: the strongest knob after batching.
SPACE = {
    dimension.name: dimension
    for dimension in (
        _dimension("batch_size", "powers of two", 2, 32),
        _dimension("accumulation_steps", "linear", 1, 8),
        _dimension("learning_rate", "log", 5e-5, 2e-3),
        _dimension("warmup_steps", "linear", 0, 20),
        _dimension("epochs", "linear", 1, 3),
        _dimension("lora_rank", "powers of two", 4, 64),
    )
}

WITHOUT = {"quality_examples": "0"}  # it would cost energy in each trial; the front uses the loss

SPECS = {spec.name: spec for spec in fields(TrainConfig)}


def defaults() -> dict[str, str]:
    """The text of every TrainConfig option in a sweep: its own default, or its dimension."""
    asked = {name: str(dim) for name, dim in SPACE.items()}
    return TrainConfig().to_params() | WITHOUT | asked


def split(asked: Mapping[str, str]) -> tuple[TrainConfig, dict[str, Dimension]]:
    """What stays fixed in a sweep, and what varies, from the text of each option.

    Raises:
        ConfigError: a value or a bound is wrong, a range is upside down, or nothing varies.
    """
    asked = {**defaults(), **asked}
    for name, text in asked.items():
        if name in SPECS and name not in SPACE and ".." in text and SPECS[name].type is not str:
            raise ConfigError(f"{name} does not vary in a sweep; what varies: {', '.join(SPACE)}")
    space = {name: dim for name in SPACE if (dim := _read_dimension(name, asked[name]))}
    fixed = TrainConfig.parse({k: text for k, text in asked.items() if k not in space})
    if not space:
        raise ConfigError(f"nothing is left to vary; give a range to one of {', '.join(SPACE)}")
    return fixed, space


def _read_dimension(name: str, text: str) -> Dimension | None:
    """None where `text` pins the dimension to one value."""
    ends = text.split("..") if ".." in text else text.split(",")
    if len(ends) > 1 and not all(end.strip() for end in ends):
        raise ConfigError(f"{name}={text} lacks a value; write LOW..HIGH, or values such as 8,16")
    if ".." in text:
        return _read_range(name, text)
    if "," in text:
        values = tuple(_read_value(name, part) for part in text.split(","))
        return _dimension(name, "choice", *dict.fromkeys(values))
    return None


def _read_range(name: str, text: str) -> Dimension:
    low, high = (_read_value(name, part) for part in text.split("..", maxsplit=1))
    if low > high:
        raise ConfigError(f"{name}={text} is upside down; write {to_text(high)}..{to_text(low)}")
    if SPACE[name].scale == "powers of two":
        return _powers_of_two(name, int(low), int(high))
    return _dimension(name, SPACE[name].scale, low, high)


def _powers_of_two(name: str, low: int, high: int) -> Dimension:
    powers = [2**k for k in range(high.bit_length()) if low <= 2**k <= high]
    if not powers:
        raise ConfigError(
            f"{name}={low}..{high} holds no power of two; list the values, such as {low},{high}"
        )
    return _dimension(name, "powers of two", powers[0], powers[-1])


def _read_value(name: str, text: str) -> Any:
    value = read(SPECS[name], text)
    check(SPECS[name], value)
    return value
