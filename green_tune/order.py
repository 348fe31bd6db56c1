"""An order: the runs that a command would start, without starting any.

A `train` is one run, a `sweep` so many trials of which nobody knows the values yet, a `grid` its
cells. It reads options as those commands do, so that an order can be given in their words. What
the runs cost, `offer` knows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from green_tune import grid as grids
from green_tune import space
from green_tune.config import GridConfig, SweepConfig, TrainConfig
from green_tune.errors import ConfigError
from green_tune.grid import AUTO, Grid
from green_tune.space import SPECS, Space

COMMANDS = ("train", "sweep", "grid")
POINTS = 16  # of a space that stand for its trials
FINALISTS = 3  # trials of a sweep that are run again: the best, the knee and the greenest


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Runs of one config: so many `times`, which need not be a whole number for a sweep's."""

    config: TrainConfig
    times: float
    kind: str  # of a run: train, trial, repeat or cell


@dataclass(frozen=True, kw_only=True)
class Order:
    """All runs of a command. `largest` are the configs that take the most memory, one a model."""

    command: str
    units: tuple[Unit, ...]
    largest: tuple[TrainConfig, ...]
    sweeps: int  # 0 where there is no search

    @property
    def runs(self) -> int:
        """How many there are."""
        return round(sum(unit.times for unit in self.units))

    @property
    def shared(self) -> bool:
        """Whether runs share a setup, and a session that lies between them."""
        return self.command != "train"


def defaults() -> dict[str, str]:
    """The text of every option; `auto` is what the command has as its default."""
    own = dict.fromkeys(("task", "seed", "trials", "warm_start"), AUTO)
    return grids.defaults() | own


def filled(command: str, asked: Mapping[str, str]) -> dict[str, str]:
    """What was asked for, with the command's own defaults in the place of `auto`.

    Raises:
        ConfigError: there is no such command.
    """
    if command not in COMMANDS:
        raise ConfigError(f"command={command} is unknown; known: {', '.join(COMMANDS)}")
    usual = _usual(command, asked)
    named = (*grids.BY_TRIALS, "task", "seed", "trials", "warm_start")
    return {
        name: usual[name] if name in named and text.strip() == AUTO and name in usual else text
        for name, text in asked.items()
    }


def read(command: str, asked: Mapping[str, str]) -> Order:
    """The runs of a command with these options.

    Raises:
        UsageError: an option is wrong, as the command itself would say.
    """
    texts = filled(command, asked)
    run = {name: text for name, text in texts.items() if name in SPECS}
    if command == "train":
        config = TrainConfig.parse(run)
        return Order(
            command=command,
            units=(Unit(config=config, times=1, kind="train"),),
            largest=(config,),
            sweeps=0,
        )
    if command == "sweep":
        ours = SweepConfig.parse({k: texts[k] for k in SweepConfig().to_params()})
        base, varied = space.split(run)
        units = tuple(_searched(base, varied, ours))
        return Order(command=command, units=units, largest=(_largest(base, varied),), sweeps=1)
    known = GridConfig().to_params()
    return _of_grid(Grid.parse({name: text for name, text in texts.items() if name in known}))


def _usual(command: str, asked: Mapping[str, str]) -> dict[str, str]:
    if command == "train":
        return TrainConfig().to_params()
    if command == "sweep":
        return space.defaults() | SweepConfig().to_params()
    usual = GridConfig().to_params()
    searched = asked.get("trials", AUTO).strip() not in (AUTO, "1")
    return usual | {
        name: text
        for name, text in (space.defaults() if searched else TrainConfig().to_params()).items()
        if name in grids.BY_TRIALS
    }


def _of_grid(grid: Grid) -> Order:
    units: list[Unit] = []
    largest = []
    trials = grid.config.trials
    for pair in grid.pairs():
        base, varied = grid.split(pair)
        largest.append(_largest(base, varied))
        if trials > 1:
            units += _searched(base, varied, grid.config, len(grid.seeds))
        else:
            units.append(Unit(config=base, times=len(grid.seeds), kind="cell"))
    sweeps = len(list(grid.pairs())) * len(grid.seeds) if trials > 1 else 0
    return Order(command="grid", units=tuple(units), largest=tuple(largest), sweeps=sweeps)


def _searched(
    base: TrainConfig, varied: Space, config: SweepConfig, sweeps: int = 1
) -> Iterator[Unit]:
    """The trials of so many sweeps; and at most three of each on the further seeds of `repeats`.

    Points that are spread evenly over the space stand for both; which of them will be tried, and
    which are the best, nobody knows.
    """
    for kind, runs in (("trial", config.trials), ("repeat", FINALISTS * (config.repeats - 1))):
        for values in _spread(varied) if runs else ():
            times = runs * sweeps / POINTS
            yield Unit(config=replace(base, **values), times=times, kind=kind)


def _spread(varied: Space) -> Iterator[dict[str, Any]]:
    """A low-discrepancy sequence, each dimension with its own step (Roberts' R_d sequence)."""
    root = _root(len(varied))
    for number in range(POINTS):
        shares = [(0.5 + (number + 1) / root ** (d + 1)) % 1 for d in range(len(varied))]
        yield {
            name: dimension.at(share)
            for (name, dimension), share in zip(varied.items(), shares, strict=True)
        }


def _root(dimensions: int) -> float:
    """The positive root of x^(d+1) = x + 1; the golden ratio for one dimension."""
    found = 2.0
    for _ in range(64):
        found = (1 + found) ** (1 / (dimensions + 1))
    return found


def _largest(base: TrainConfig, varied: Space) -> TrainConfig:
    return replace(base, **{name: dimension.high for name, dimension in varied.items()})  # type: ignore[arg-type]
