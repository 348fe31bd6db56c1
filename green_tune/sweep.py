"""The door to Optuna: a study of two objectives whose trials are measured runs.

It decides which hyperparameters come next and what a failed trial means for the study. How a
trial is trained, measured and tracked is the `experiment` function that it is given.
"""

import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.trial import TrialState

from green_tune import stop, store, worker
from green_tune.config import SweepConfig, TrainConfig
from green_tune.errors import ConfigError, RunFailed, StoreError
from green_tune.job import Job
from green_tune.space import Dimension

log = logging.getLogger(__name__)

OBJECTIVES = ("val_loss", "emissions_kg")
START_TRIALS = 5  # Optuna's own default of 10 would make a sweep of 10 a random search
WORKER = "worker"
UNNAMED = timedelta(minutes=1)  # far longer than a trial is without its worker
TAKEN = (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING)  # the last by other workers

Space = Mapping[str, Dimension]


@dataclass(frozen=True, kw_only=True)
class Objectives:
    """The two numbers of a finished trial, both minimised."""

    val_loss: float
    emissions_kg: float


Experiment = Callable[[Job, int], Objectives]


def open_study(job: Job, space: Space, sweep: SweepConfig, url: str) -> optuna.Study:
    """The study of a sweep, made or resumed; what dead processes left running in it is failed.

    Raises:
        ConfigError: a study of this name searched something else.
        StoreError: the study's storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with store.made_by_one(url):
            study = optuna.create_study(
                storage=url,
                study_name=sweep.study,
                directions=["minimize"] * len(OBJECTIVES),
                load_if_exists=True,
            )
    except Exception as error:  # SQLAlchemy's and the drivers' errors share no base
        reason = str(error).strip().split("\n")[0]
        raise StoreError(f"the study's storage cannot be used: {reason}") from error
    with _experimental():
        study.set_metric_names(list(OBJECTIVES))
    _check_same(study, _identity(job, space))
    _fail_dead_trials(study)
    if not study.trials:
        study.enqueue_trial(_baseline(space))
    study.sampler = _sampler(sweep.sampler, _seed(study, job.config.seed))
    return study


def run_sweep(
    study: optuna.Study, job: Job, space: Space, trials: int, experiment: Experiment
) -> None:
    """Runs trials until the study has as many as were asked for, failed ones included.

    A trial that fails as a run (it diverged, did not fit, was not measured) is a FAIL of the
    study and the sweep goes on; anything else ends the sweep.
    """
    while missing(study, trials):
        stop.check()
        trial = study.ask()
        trial.set_user_attr(WORKER, worker.this())
        config = _suggest(trial, space, job.config)
        try:
            objectives = experiment(job.with_config(config), trial.number)
        except RunFailed as error:
            log.warning("trial %d failed: %s", trial.number, error)
            study.tell(trial, state=TrialState.FAIL)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            study.tell(trial, [objectives.val_loss, objectives.emissions_kg])


def missing(study: optuna.Study, trials: int) -> int:
    """How many trials the study lacks, those of other workers and failed ones taken as there."""
    return max(0, trials - len(study.get_trials(deepcopy=False, states=TAKEN)))


def _identity(job: Job, space: Space) -> dict[str, str]:
    """What must be equal for two trials to be compared in one study."""
    fixed = {k: v for k, v in job.config.to_params().items() if k not in space}
    for name in ("gpu", "seed", "resume", "checkpoint_minutes", "quality_examples"):
        del fixed[name]
    varied = {name: str(dimension) for name, dimension in space.items()}
    return fixed | varied | {"device": job.device.gpu_type, "data": job.data.digest}


def _check_same(study: optuna.Study, identity: Mapping[str, str]) -> None:
    before = study.user_attrs.get("identity")
    if before is None:
        study.set_user_attr("identity", dict(identity))
        return
    for name in {**before, **identity}:
        if (was := before.get(name)) != (now := identity.get(name)):
            raise ConfigError(
                f"study {study.study_name} was made with {name}={was}, now it is {now}; "
                "give the same, or another study name"
            )


def _fail_dead_trials(study: optuna.Study) -> None:
    """A trial whose process is gone will never be told: it failed."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _is_dead(trial):
            study.tell(trial.number, state=TrialState.FAIL)


def _is_dead(trial: optuna.trial.FrozenTrial) -> bool:
    """Its process is gone; or it was so before it could say which it is, milliseconds after."""
    if identity := trial.user_attrs.get(WORKER):
        return worker.is_dead(identity)
    started = trial.datetime_start
    return started is not None and datetime.now() - started > UNNAMED


def _baseline(space: Space) -> dict[str, Any]:
    """The first trial: what `train` would do by default, as far as the space allows it."""
    usual = TrainConfig().__dict__
    return {
        _name(dim): _exponent(usual[name]) if dim.scale == "powers of two" else usual[name]
        for name, dim in space.items()
        if usual[name] in dim
    }


def _seed(study: optuna.Study, seed: int) -> int:
    """The user's seed, mixed so that nobody proposes what was proposed before.

    A resumed sweep starts after other trials; a worker beside others is another process.
    """
    others = worker.this() if study.get_trials(states=(TrialState.RUNNING,)) else ""
    digest = hashlib.sha256(f"{seed}/{len(study.trials)}/{others}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    with _experimental():
        if name == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        if name == "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=START_TRIALS)
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=START_TRIALS
        )


@contextmanager
def _experimental() -> Iterator[None]:
    """For what Optuna may still change: our pin is exact, and our tests would notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _suggest(trial: optuna.Trial, space: Space, base: TrainConfig) -> TrainConfig:
    """The next configuration; dimensions that are pinned keep the base's value."""
    return replace(base, **{name: _value(trial, dim) for name, dim in space.items()})


def _value(trial: optuna.Trial, dimension: Dimension) -> Any:
    name, low, high = _name(dimension), dimension.low, dimension.high
    if dimension.scale == "choice":
        return trial.suggest_categorical(name, dimension.values)
    if dimension.scale == "powers of two":
        return 2 ** trial.suggest_int(name, _exponent(low), _exponent(high))
    if isinstance(low, int):
        return trial.suggest_int(name, low, int(high))
    return trial.suggest_float(name, low, high, log=dimension.scale == "log")


def _name(dimension: Dimension) -> str:
    """In the study; sizes are searched as exponents, so that a sampler knows their order."""
    return f"log2_{dimension.name}" if dimension.scale == "powers of two" else dimension.name


def _exponent(size: float) -> int:
    return int(size).bit_length() - 1
