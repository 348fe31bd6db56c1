"""An order has the runs that its command would start, by the command's own defaults."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from green_tune import grid as grids
from green_tune import order, space
from green_tune.config import SweepConfig, TrainConfig
from green_tune.errors import ConfigError
from green_tune.grid import Grid
from green_tune.order import Order

OWN = {  # what each command's options are if nobody types any
    "train": TrainConfig().to_params(),
    "sweep": space.defaults() | SweepConfig().to_params(),
    "grid": grids.defaults(),
}


def ordered(command: str, **asked: str) -> Order:
    """With the quote's own defaults."""
    return order.read(command, order.defaults() | asked)


def runs(made: Order) -> Counter[tuple[str, str]]:
    """How many there are of each model on each task, whatever their other values."""
    found: Counter[tuple[str, str]] = Counter()
    for unit in made.units:
        found[unit.config.model, unit.config.task] += unit.times  # type: ignore[assignment]
    return found


@pytest.mark.parametrize("command", order.COMMANDS)
def test_auto_is_what_the_command_has_as_its_default(command: str) -> None:
    assert ordered(command) == order.read(command, OWN[command])


def test_a_train_is_its_one_run() -> None:
    (unit,) = ordered("train", epochs="3").units
    assert (unit.config, unit.times, unit.kind) == (TrainConfig(epochs=3), 1, "train")
    assert not ordered("train").shared


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"model": "tiny,llama-2-7b", "task": "qa,sentiment", "seed": "3,1", "epochs": "2"},
        {"trials": "4", "task": "qa", "epochs": "1..5", "seed": "0,7"},
    ],
)
def test_a_grid_has_the_runs_of_its_cells(asked: Mapping[str, str]) -> None:
    made, grid = ordered("grid", **asked), Grid.parse(asked)
    each = grid.config.trials
    cells = Counter((cell.model, cell.task) for cell in grid.cells() for _ in range(each))
    assert runs(made) == pytest.approx(cells)
    assert made.runs == len(grid.cells()) * each
    assert made.sweeps == (len(grid.cells()) if each > 1 else 0)
    assert len(made.largest) == len(list(grid.pairs()))


def test_a_cell_of_one_run_has_the_config_that_the_grid_gives_it() -> None:
    grid = Grid.parse({"epochs": "2"})
    assert [unit.config for unit in ordered("grid", epochs="2").units] == [
        grid.split(pair)[0] for pair in grid.pairs()
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"trials": "37", "epochs": "2..4", "batch_size": "8"},
        {"batch_size": "3,7,31", "lora_rank": "8..8", "learning_rate": "1e-4..1e-4"},
    ],
)
def test_a_sweep_is_as_many_trials_as_asked_for_in_its_space(asked: Mapping[str, str]) -> None:
    made = ordered("sweep", **asked)
    fixed, varied = space.split({k: v for k, v in asked.items() if k != "trials"})
    assert sum(unit.times for unit in made.units) == pytest.approx(int(asked.get("trials", 10)))
    for unit in made.units:
        values = {name: getattr(unit.config, name) for name in varied}
        assert all(values[name] in varied[name] for name in varied), values
        assert replace(fixed, **values) == unit.config
    (largest,) = made.largest
    assert {name: getattr(largest, name) for name in varied} == {
        name: max(dimension.values) for name, dimension in varied.items()
    }


def test_the_trials_of_a_sweep_are_spread_evenly_over_its_space() -> None:
    """Of 16 points each third, half or choice has its share, but for one or two."""
    units = ordered("sweep", epochs="1..3", batch_size="2..16", lora_rank="8,64").units
    for name, values in (("epochs", 3), ("batch_size", 4), ("lora_rank", 2)):
        counts = Counter(getattr(unit.config, name) for unit in units)
        assert len(counts) == values
        assert all(abs(count - 16 / values) <= 2 for count in counts.values()), (name, counts)
    low = sum(unit.config.learning_rate < (5e-5 * 2e-3) ** 0.5 for unit in units)
    assert 6 <= low <= 10  # on its logarithmic scale


@pytest.mark.parametrize(
    ("command", "asked", "line"),
    [
        ("fly", {}, "command=fly is unknown; known: train, sweep, grid"),
        ("train", {"epochs": "1..3"}, "epochs=1..3 is not a whole number"),
        ("sweep", dict.fromkeys(space.SPACE, "8") | {"learning_rate": "1e-4"}, "nothing is left"),
        ("sweep", {"trials": "0"}, "trials=0 is too small"),
        ("grid", {"epochs": "1..3"}, "epochs=1..3 is searched"),
        ("grid", {"seed": "0,,1"}, "seed=0,,1 lacks a value"),
    ],
)
def test_what_the_command_would_refuse_is_refused(
    command: str, asked: Mapping[str, str], line: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        ordered(command, **asked)


def test_repeats_are_runs_of_at_most_three_trials_on_further_seeds() -> None:
    made = ordered("sweep", trials="8", repeats="4")
    kinds = ("trial", "repeat")
    times = [sum(unit.times for unit in made.units if unit.kind == kind) for kind in kinds]
    assert times == pytest.approx([8, 9])
    assert made.runs == 17
