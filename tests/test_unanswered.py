"""Every call of a store goes unanswered once, at every place of the code that makes it.

The outages of tests/e2e hit whatever a command is doing at that moment; here none is left out. The
commands and the stores are real. What fails is the first call of MLflow's client, and of Optuna's
storage, on every path through our code, as it does where nobody answers.
"""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError
from click import Command
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna import load_study
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from entrypoints.grid import grid
from entrypoints.sweep import sweep
from entrypoints.train import train
from green_tune import repeats, run, spool, store
from green_tune.query import Query
from green_tune.results import SESSION_KINDS
from green_tune.tracking import Tracker

OURS = ("green_tune", "entrypoints")
AT_ONCE = {"__init__", "open_storage", "check"}  # before anything was spent it is said at once
SMALL = {"gpu": "cpu", "max_train_examples": "16", "max_eval_examples": "8", "evals": "2",
         "quality_examples": "0", "country": "FRA"}  # fmt: skip
PINNED = {"batch_size": "8", "learning_rate": "1e-3", "warmup_steps": "0", "lora_rank": "4"}

Calls = tuple[tuple[str, int], ...]


class Unanswered:
    """Which paths to a store have been let down."""

    def __init__(self) -> None:
        self.paths: set[Calls] = set()
        self.armed = False
        self._lock = threading.Lock()

    def lets_down(self) -> bool:
        """True for a path that was not yet."""
        path = _path()
        with self._lock:
            new = self.armed and path not in self.paths
            self.paths |= {path} if new else set()
        return new and not AT_ONCE & {name for name, _ in path}

    def wrap(self, method: Callable[..., Any], error: Exception) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.lets_down():
                raise error
            return method(*args, **kwargs)

        return call


def _path() -> Calls:
    """The functions and lines of ours that are under way, the innermost first."""
    frame, found = sys._getframe(2), []
    while frame:
        if str(frame.f_globals.get("__name__", "")).startswith(OURS):
            found.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return tuple(found)


@pytest.fixture
def unanswered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Unanswered]:
    away = Unanswered()
    errors = {
        MlflowClient: MlflowException("API request failed: nobody there"),
        RDBStorage: StorageInternalError("nobody there"),
    }
    for kind, error in errors.items():
        for name, method in inspect.getmembers(kind, inspect.isfunction):
            if not name.startswith("_") and name != "remove_session":
                artifacts = name.endswith("_artifacts")
                of_s3 = EndpointConnectionError(endpoint_url="http://s3:9000")
                monkeypatch.setattr(kind, name, away.wrap(method, of_s3 if artifacts else error))
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(run, "FLUSH_S", 0.05)
    yield away
    away.armed = False


def done(command: Command, **asked: str) -> str:
    options = [part for name, text in asked.items() for part in (f"--{name}", text)]
    done = CliRunner().invoke(command, options)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_a_training(store_uri: str, unanswered: Unanswered) -> None:
    unanswered.armed = True
    done(train, **SMALL, **PINNED, epochs="1")
    unanswered.armed = False
    assert len(unanswered.paths) > 10
    assert spool.waiting() == []
    (record,) = Tracker(store_uri).find(Query(kinds=("train",)))
    assert (record.status, record.tags["energy_valid"]) == ("FINISHED", "true")


def test_a_sweep_with_repeats(store_uri: str, unanswered: Unanswered, tmp_path: Path) -> None:
    unanswered.armed = True
    done(sweep, **SMALL, **PINNED, epochs="1,2", trials="2", repeats="2", study="s")
    unanswered.armed = False
    assert len(unanswered.paths) > 30
    assert spool.waiting() == []
    tracker = Tracker(store_uri)
    trials, repeated = (tracker.find(Query(study="s", kinds=(k,))) for k in ("trial", "repeat"))
    assert (len(trials), len(repeated)) == (2, len(repeats.finalists(trials)))
    sessions = tracker.find(Query(study="s", kinds=SESSION_KINDS))
    assert {record.status for record in [*sessions, *trials, *repeated]} == {"FINISHED"}
    for name, records in (("s", trials), ("s/repeats", repeated)):
        study = load_study(storage=f"sqlite:///{tmp_path / 'optuna.db'}", study_name=name)
        assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * len(records)


def test_a_grid_of_sweeps(store_uri: str, unanswered: Unanswered) -> None:
    unanswered.armed = True
    two = {"model": "tiny", "task": "qa,sentiment", "seed": "0", "trials": "2", "epochs": "1,2"}
    done(grid, **SMALL, **PINNED, **two, study="g")
    unanswered.armed = False
    assert len(unanswered.paths) > 30
    assert spool.waiting() == []
    records = Tracker(store_uri).find(Query(study="g", parts=True, kinds=("trial",)))
    assert [record.status for record in records] == ["FINISHED"] * 4
