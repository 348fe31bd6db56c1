"""A grid: which cells it has, in which order they are run, what each is expected to take.

A cell is a base model on a task with a seed: one run, or a sweep. Nothing is trained or stored
here, and nothing heavy is imported; what a grid says of itself is `tally`'s affair.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from green_tune import job as jobs
from green_tune import models, space, tasks
from green_tune.config import GridConfig, SweepConfig, TrainConfig, check, read
from green_tune.data import Data
from green_tune.errors import ConfigError, DataError, DoesNotFit
from green_tune.job import Job
from green_tune.results import UNFIT
from green_tune.space import SPACE, SPECS, Dimension, Space
from green_tune.tokens import CHARS_PER_TOKEN

AUTO = "auto"
BY_TRIALS = (*SPACE, "quality_examples")  # whose defaults are train's or a sweep's
LISTS = ("model", "task", "seed")
UNKNOWN_PARAMETERS = 1e12  # where a model's shape is not known: it comes last
NOT_FIXED = ("gpu", "resume", "revision", "checkpoint_minutes", "data", *LISTS)


class Pair(NamedTuple):
    """A base model and a task, as they were asked for."""

    model: str
    task: str


class Cell(NamedTuple):
    """One point of a grid."""

    model: str
    task: str
    seed: int

    @property
    def pair(self) -> Pair:
        """Without the seed."""
        return Pair(self.model, self.task)


def defaults() -> dict[str, str]:
    """The text of every option: what `train` and a sweep have different defaults for is `auto`."""
    return GridConfig().to_params() | dict.fromkeys(BY_TRIALS, AUTO)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What was asked for. `texts` are the options of each cell's run, or of its sweep."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    config: SweepConfig
    texts: Mapping[str, str]

    @classmethod
    def parse(cls, asked: Mapping[str, str]) -> "Grid":
        """From the text of each option.

        Raises:
            UsageError: a list is malformed, a name unknown, or a value wrong.
        """
        asked = {**defaults(), **asked}
        config = SweepConfig.parse({k: asked[k] for k in SweepConfig().to_params()})
        if config.repeats > 1 and config.trials == 1:
            raise ConfigError(
                f"repeats={config.repeats} are of a sweep's best trials; give trials=10 to make "
                "each cell a sweep, or more seeds"
            )
        run = {k: text for k, text in asked.items() if k in SPECS and k not in LISTS}
        grid = cls(
            models=_known_models(read_list("model", asked["model"])),
            tasks=tuple(tasks.resolve(name).name for name in read_list("task", asked["task"])),
            seeds=seeds(asked["seed"]),
            config=config,
            texts=_filled(run, config.trials),
        )
        grid.split(next(grid.pairs()))  # every value is looked at before anything is looked for
        return grid

    def cells(self) -> list[Cell]:
        """Every one, as it was asked for."""
        return [Cell(*pair, seed) for pair in self.pairs() for seed in self.seeds]

    def pairs(self) -> Iterator[Pair]:
        """Each base model on each task."""
        return (Pair(model, task) for task in self.tasks for model in self.models)

    def asked(self, pair: Pair, seed: int | None = None) -> dict[str, str]:
        """The options of one cell, as text."""
        own = {"model": pair.model, "task": pair.task, "data": _data(self.texts["data"], pair.task)}
        return {**self.texts, **own, "seed": str(self.seeds[0] if seed is None else seed)}

    def split(self, pair: Pair) -> tuple[TrainConfig, Space]:
        """What is fixed in a cell, and what its sweep varies: nothing where it is one run."""
        if self.config.trials > 1:
            return space.split(self.asked(pair))
        return TrainConfig.parse(self.asked(pair)), {}

    @property
    def dimensions(self) -> Space:
        """A cell as the values of a trial."""
        names = {"model": sorted(self.models), "task": sorted(self.tasks)}
        chosen = {
            name: Dimension(name=name, scale="choice", values=tuple(values))
            for name, values in names.items()
        }
        bounds = (SPECS["seed"].metadata["low"], SPECS["seed"].metadata["high"])
        return {**chosen, "seed": Dimension(name="seed", scale="linear", values=bounds)}


Found = Job | DoesNotFit


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A grid with what was found for each of its pairs: a job, or why it has no room here."""

    grid: Grid
    found: Mapping[Pair, Found]
    ground: Job  # for what all cells share: the device, the meter and the intensity

    @classmethod
    def of(cls, grid: Grid) -> "Prepared":
        """Finds everything that the cells name; a task's examples are kept once for all models.

        Raises:
            UsageError: something is unknown, missing, malformed, not here or out of reach.
        """
        found: dict[Pair, Found] = {}
        data: dict[str, Any] = {}
        for pair in grid.pairs():
            try:
                job = _prepared(grid, pair)
            except DoesNotFit as error:
                found[pair] = error
            else:
                found[pair] = replace(job, data=data.setdefault(pair.task, job.data))
        ready = (job for job in found.values() if isinstance(job, Job))
        ground = next(ready, None) or jobs.prepare(_smallest(grid))
        return cls(grid=grid, found=found, ground=ground)

    @cached_property
    def jobs(self) -> dict[Pair, Job]:
        """Those that have room."""
        return {pair: job for pair, job in self.found.items() if isinstance(job, Job)}

    @cached_property
    def data(self) -> dict[str, Data]:
        """The examples of each task that some model has room for."""
        return {pair.task: job.data for pair, job in self.jobs.items()}

    @cached_property
    def works(self) -> dict[tuple[str, str], float]:
        """The modelled work of a cell of each pair, in no unit: it is only compared; 0 if unfit."""
        return {
            pair: 0.0 if isinstance(job, DoesNotFit) else self._work(job, pair)
            for pair, job in self.found.items()
        }

    def _work(self, job: Job, pair: Pair) -> float:
        """Base parameters x tokens of the training data x epochs, of all trials."""
        parameters = job.shape.parameters if job.shape else UNKNOWN_PARAMETERS
        _, varied = self.grid.split(pair)
        epochs = varied.get("epochs")
        middle = (epochs.low + epochs.high) / 2 if epochs else job.config.epochs
        most = CHARS_PER_TOKEN * job.config.max_seq_len
        chars = sum(min(len(e.prompt) + len(e.completion), most) for e in job.data.train)
        return parameters * chars / CHARS_PER_TOKEN * middle * self.grid.config.trials

    def cells(self) -> list[Cell]:
        """In the order in which they are run: the cheapest first; what does not fit, once."""
        order = sorted(self.found, key=lambda pair: (self.works[pair], pair))
        return [
            Cell(*pair, seed)
            for pair in order
            for seed in (self.grid.seeds if self.works[pair] else self.grid.seeds[:1])
        ]

    def identity(self) -> dict[str, str]:
        """What must be equal for two cells to stand in one grid; its seeds may become more."""
        grid = self.grid
        config, varied = grid.split(next(grid.pairs()))
        params = config.to_params() | {name: str(varied[name]) for name in varied}
        fixed = {name: text for name, text in params.items() if name not in NOT_FIXED}
        lists = {"model": ",".join(sorted(grid.models)), "task": ",".join(sorted(grid.tasks))}
        commits = {f"commit of {pair.model}": job.commit for pair, job in self.jobs.items()}
        data = {f"data of {task}": each.digest for task, each in self.data.items()}
        device = {"device": self.ground.device.gpu_type, "trials": str(grid.config.trials)}
        return fixed | lists | commits | data | device


def described(prepared: Prepared) -> dict[str, str]:
    """Tags of what all cells share."""
    device = prepared.ground.device
    return prepared.ground.intensity.to_tags() | {
        "gpu_type": device.gpu_type,
        "device": str(device),
    }


def unfit(prepared: Prepared, pair: Pair, reason: str) -> dict[str, str]:
    """Tags of a cell that has no room: nothing of it was loaded, or looked for."""
    device = prepared.ground.device
    return {
        UNFIT: reason,
        "base_model": short(pair.model),
        "gpu_type": device.gpu_type,
        "device": str(device),
    }


def short(model: str) -> str:
    """How runs and tables call a base model."""
    return models.resolve(model).name


def name_of(cell: Cell) -> str:
    """How a cell's run is called."""
    return f"{short(cell.model)} {cell.task} seed {cell.seed}"


def read_list(name: str, text: str) -> tuple[str, ...]:
    """The values of a comma list.

    Raises:
        ConfigError: one is empty, or there twice.
    """
    values = tuple(part.strip() for part in text.split(","))
    if not all(values):
        raise ConfigError(f"{name}={text} lacks a value; write values with one comma between them")
    _check_once(name, text, values)
    return values


def seeds(text: str) -> tuple[int, ...]:
    """The seeds of a comma list.

    Raises:
        ConfigError: one is empty, there twice, or no seed.
    """
    spec = SPECS["seed"]
    values = tuple(int(read(spec, each)) for each in read_list("seed", text))
    for seed in values:
        check(spec, seed)
    _check_once("seed", text, values)
    return values


def _check_once(name: str, text: str, values: Sequence[object]) -> None:
    for number, value in enumerate(values):
        if value in values[:number]:
            raise ConfigError(f"{name}={text} names {value} twice")


def _known_models(names: Sequence[str]) -> tuple[str, ...]:
    places: dict[str, str] = {}
    for name in names:
        place = models.resolve(name).place
        if place in places:
            raise ConfigError(f"model={places[place]} and {name} are the same base model")
        places[place] = name
    return tuple(names)


def _filled(asked: Mapping[str, str], trials: int) -> dict[str, str]:
    """Each option of a cell with what `auto` stands for."""
    usual = space.defaults() if trials > 1 else TrainConfig().to_params()
    texts = {
        name: usual[name] if name in BY_TRIALS and text.strip() == AUTO else text
        for name, text in asked.items()
    }
    for name in SPACE:
        if trials == 1 and (".." in texts[name] or "," in texts[name]):
            raise ConfigError(
                f"{name}={texts[name]} is searched, and each cell is one run; give one value, or "
                "trials=10 to make each cell a sweep"
            )
    return texts


def _data(where: str, task: str) -> str:
    """The folder of a task's own data, where there is one below the folder that was given."""
    if where in ("sample", "hub"):
        return where
    own = Path(where) / task
    try:
        return str(own) if own.expanduser().is_dir() else where
    except (OSError, RuntimeError):  # too long a name, or the home of a user who does not exist
        return where


def _prepared(grid: Grid, pair: Pair) -> Job:
    fixed, varied = grid.split(pair)
    try:
        job = jobs.prepare(fixed)
    except DataError as error:  # of which task, its text need not say
        raise DataError(f"task={pair.task}: {error}") from None
    if not varied:
        return job
    largest: dict[str, Any] = {name: dimension.high for name, dimension in varied.items()}
    return job.pinned(replace(fixed, **largest))


def _smallest(grid: Grid) -> TrainConfig:
    """A run that has room wherever a grid has none, for its device and its meter."""
    asked = TrainConfig.parse({k: grid.texts[k] for k in ("gpu", "country", "pue")})
    return replace(asked, max_train_examples=1, max_eval_examples=1)
