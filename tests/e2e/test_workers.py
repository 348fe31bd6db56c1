"""Several workers of one study, as real processes: started at once, killed, too late, launched.

What they share is the study's storage and the store of runs; each is the same command again.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import optuna
import program
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from green_tune import tiny
from green_tune.storage import open_storage

pytestmark = pytest.mark.e2e

ASKED = {
    "study": "s", "gpu": "cpu", "country": "FRA", "max_train_examples": "48",
    "max_eval_examples": "8", "evals": "2", "epochs": "1..2",
}  # fmt: skip
POLL_S = 0.01
PATIENCE_S = 240.0


class Worker:
    """One command of the sweep, and what it prints."""

    def __init__(
        self, command: Sequence[str], folder: Path, name: str, env: dict[str, str]
    ) -> None:
        self._printed = folder / f"{name}.txt"
        with self._printed.open("w") as out:
            self.process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=out, stderr=out, start_new_session=True
            )
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        return self._printed.read_text()

    def finish(self) -> str:
        """Waits for a good end; what it said."""
        assert self.process.wait(timeout=PATIENCE_S) == 0, self.said
        return self.said


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A worker that was killed, with the trial that it was at and its session, both runs' ids."""

    worker: Worker
    trial: str
    session: set[str]


class House:
    """A folder with a copy of the program and a store of runs, beside the study's storage."""

    def __init__(self, folder: Path, store_uri: str, study_url: str) -> None:
        self.folder = folder
        program.copy_to(folder)
        self.client = MlflowClient(store_uri)
        self._study_url = study_url
        self._hearts = folder / "state" / "green-tune" / "heartbeats"
        self._workers: list[Worker] = []
        self._numbers = count()

    def start(self, *, launcher: bool = False, **options: object) -> Worker:
        """Starts one more worker of the study."""
        asked = {key: str(value) for key, value in (ASKED | options).items()}
        command = [sys.executable, "-m", "entrypoints.sweep"]
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        if launcher:
            command = ["mlflow", "run", ".", "-e", "sweep", "--env-manager", "local"]
            words = [word for key, text in asked.items() for word in ("-P", f"{key}={text}")]
        own = {
            "GREEN_TUNE_STUDY_STORAGE": self._study_url,
            "OMP_NUM_THREADS": "1",  # there are as many workers as cores, or more
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        name = f"worker-{next(self._numbers)}"
        self._workers.append(Worker(command + words, self.folder, name, os.environ | own))
        return self._workers[-1]

    def close(self) -> None:
        """Leaves no process behind."""
        for worker in self._workers:
            if worker.process.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.process.wait()

    def runs(self, *kinds: str) -> list[Run]:
        """The runs of some kinds, or all, oldest first."""
        found = self.client.search_runs(["0"], max_results=1000)
        mine = [run for run in found if not kinds or kind_of(run) in kinds]
        return sorted(mine, key=lambda run: run.info.start_time)

    def parent(self) -> Run:
        """The study's own run; there is one alone."""
        (parent,) = self.runs("sweep")
        return parent

    def running(self) -> set[str]:
        return {run.info.run_id for run in self.runs() if run.info.status == "RUNNING"}

    def hearts(self) -> set[str]:
        """The runs that have heartbeats on disk."""
        return {path.stem for path in self._hearts.glob("*.jsonl")}

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials of the study in some states, or all."""
        study = optuna.load_study(storage=open_storage(self._study_url), study_name="s")
        return study.get_trials(states=states or None)

    def kill_in_a_trial(self, *workers: Worker) -> Killed:
        """Kills one of these workers in the middle of a trial."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for worker, run_id in self._at_work(workers):
                os.killpg(worker.pid, signal.SIGSTOP)
                if run_id in self.hearts():  # while it has them, the trial's end is not written
                    os.killpg(worker.pid, signal.SIGKILL)
                    worker.process.wait()
                    mine = [run for run in self.runs() if pid_of(run) == worker.pid]
                    left = {r.info.run_id for r in mine if r.info.status == "RUNNING"}
                    return Killed(worker=worker, trial=run_id, session=left - {run_id})
                os.killpg(worker.pid, signal.SIGCONT)
            assert all(worker.process.poll() is None for worker in workers), workers[0].said
            time.sleep(POLL_S)
        raise AssertionError("no trial began")

    def artifacts(self, run: Run) -> Path:
        """A copy of all that a run holds."""
        copy: Path = self.folder / "artifacts" / run.info.run_id
        copy.mkdir(parents=True, exist_ok=True)
        self.client.download_artifacts(run.info.run_id, "", str(copy))
        return copy

    def _at_work(self, workers: Sequence[Worker]) -> list[tuple[Worker, str]]:
        """Who trains, and in which run: its params are there."""
        by_pid = {worker.pid: worker for worker in workers}
        return [
            (by_pid[pid_of(run)], run.info.run_id)
            for run in self.runs("trial")
            if pid_of(run) in by_pid and run.info.status == "RUNNING" and run.data.params
        ]


@pytest.fixture
def make_house(
    tmp_path: Path, store_uri: str, request: pytest.FixtureRequest
) -> Callable[[str], House]:
    """Makes the house of a test around a study's storage; whoever is still at work there ends."""

    def make(study_url: str = f"sqlite:///{tmp_path / 'optuna.db'}") -> House:
        house = House(tmp_path, store_uri, study_url)
        request.addfinalizer(house.close)
        return house

    return make


def kind_of(run: Run) -> str:
    return str(run.data.tags.get("green_tune.kind", ""))


def pid_of(run: Run) -> int:
    return int(run.data.tags["green_tune.worker"].split(":")[-2])


def test_four_workers_that_start_at_once_share_a_study_in_postgresql_and_one_may_be_killed(
    make_house: Callable[..., House], postgres_url: str
) -> None:
    house = make_house(postgres_url)
    workers = [house.start(trials=10) for _ in range(4)]
    killed = house.kill_in_a_trial(*workers)
    for worker in workers:
        if worker is not killed.worker:
            worker.finish()
    check_living_closed_the_trial(house, killed)
    house.start(trials=10).finish()
    check_study(house, killed, trials=10, sessions=5)
    check_secret(house, postgres_url)


def test_workers_go_on_when_the_one_that_began_the_study_is_killed_and_a_late_one_trains_nothing(
    make_house: Callable[..., House], tmp_path: Path
) -> None:
    model = shutil.copytree(tiny.folder(), tmp_path / "a-model")
    house = make_house()
    first = house.start(model=model, trials=7)
    wait_for(lambda: bool(house.runs("sweep")), first)
    others = [house.start(model=model, trials=7) for _ in range(2)]
    killed = house.kill_in_a_trial(first)
    for worker in others:
        worker.finish()
    check_living_closed_the_trial(house, killed)
    (model / "model.safetensors").write_bytes(b"nobody can load this")
    before = house.runs("trial")
    said = house.start(model=model, trials=7).finish()
    assert said.count("Study s: 8 trials, 1 of them failed") == 1
    assert "trial 8" not in said
    assert [run.data.metrics for run in house.runs("trial")] == [r.data.metrics for r in before]
    check_study(house, killed, trials=7, sessions=4)
    assert house.parent().data.metrics["overhead/energy_kwh"] > 0  # of the one that was killed


def test_a_second_launchers_run_is_nested_in_the_first_ones(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    workers = [house.start(launcher=True, trials=6)]
    wait_for(lambda: bool(house.runs("sweep")), workers[0])
    workers += [house.start(launcher=True, trials=6)]
    for worker in workers:
        worker.finish()
    parent, (late,) = house.parent(), house.runs("worker")
    for run in (parent, late):
        assert run.data.tags["mlflow.project.entryPoint"] == "sweep"
        assert run.data.params["learning_rate"] == "5e-05..0.002"
    assert late.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert "mlflow.parentRunId" not in parent.data.tags
    assert len(house.runs()) == 2 + 6  # neither worker has made a run beside its launcher's
    check_complete(house, trials=6)
    check_totals(house)


def wait_for(seen: Callable[[], bool], worker: Worker) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not seen():
        assert worker.process.poll() is None, worker.said
        assert time.monotonic() < deadline, worker.said
        time.sleep(POLL_S)


def check_living_closed_the_trial(house: House, killed: Killed) -> None:
    """Nothing but the dead worker's own session is open once the others have ended."""
    assert house.trials(TrialState.RUNNING, TrialState.WAITING) == []
    assert house.client.get_run(killed.trial).info.status == "FAILED"
    assert len(killed.session) == 1
    assert house.running() <= killed.session


def check_study(house: House, killed: Killed, *, trials: int, sessions: int) -> None:
    """All trials are there once, all under one run, and one more that was cut off and tried again.

    The others have lost nothing by it, and nothing of it is left open.
    """
    assert len(house.runs("sweep", "worker")) == sessions
    check_complete(house, trials=trials)
    (lost,) = house.trials(TrialState.FAIL)
    assert lost.user_attrs["run_id"] == killed.trial
    assert lost.user_attrs["tried_again"] is True
    (again,) = [t for t in house.trials() if t.user_attrs.get("retry_of_trial") == lost.number]
    assert again.user_attrs["retry_of"] == killed.trial
    assert again.state == TrialState.COMPLETE
    assert again.params == lost.params
    dead = house.client.get_run(killed.trial)
    assert dead.info.status == dead.data.tags["green_tune.status"] == "FAILED"
    assert dead.data.tags["green_tune.error"] == "its process died"
    assert dead.data.metrics["energy_kwh"] > 0
    assert dead.data.metrics["emissions_kg"] > 0
    retry = house.client.get_run(again.user_attrs["run_id"])
    assert retry.data.tags["green_tune.retry_of"] == killed.trial
    retries = [run for run in house.runs() if "green_tune.retry_of" in run.data.tags]
    assert [run.info.run_id for run in retries] == [retry.info.run_id]
    check_totals(house)


def check_complete(house: House, *, trials: int) -> None:
    """Each counted trial is one finished run under the study's, with the figures of the study."""
    complete = house.trials(TrialState.COMPLETE)
    assert len(complete) == trials
    assert house.trials(TrialState.RUNNING, TrialState.WAITING, TrialState.PRUNED) == []
    assert len({tuple(sorted(trial.params.items())) for trial in complete}) == trials
    finished = {r.info.run_id: r for r in house.runs("trial") if r.info.status == "FINISHED"}
    assert sorted(trial.user_attrs["run_id"] for trial in complete) == sorted(finished)
    for trial in complete:
        run = finished[trial.user_attrs["run_id"]]
        assert run.data.tags["green_tune.trial"] == str(trial.number)
        assert trial.values == [run.data.metrics["val_loss"], run.data.metrics["emissions_kg"]]
    nested = house.runs("trial", "worker")
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {house.parent().info.run_id}
    assert house.parent().info.status == "FINISHED"
    assert house.running() == set()
    assert house.hearts() == set()


def check_totals(house: House) -> None:
    """The study's own run has what all have spent together, and each trial once in its table."""
    trials, sessions = house.runs("trial"), house.runs("sweep", "worker")
    parent = house.parent()
    for name in ("emissions_kg", "energy_kwh", "runtime_h"):
        spent = [run.data.metrics[name] for run in trials]
        spent += [run.data.metrics[f"overhead/{name}"] for run in sessions]
        assert all(amount > 0 for amount in spent)
        assert parent.data.metrics[name] == pytest.approx(sum(spent), rel=1e-9)
    table = json.loads((house.artifacts(parent) / "trials.json").read_text())
    column = table["columns"].index("run_id")
    ids = sorted(run.info.run_id for run in trials)
    assert sorted(row[column] for row in table["data"]) == ids


def check_secret(house: House, study_url: str) -> None:
    """The storage's address is in nothing that the workers have left: store, artifacts, output."""
    for run in house.runs():
        house.artifacts(run)
    (*_, password), _ = (part.split(":") for part in study_url.split("://")[1].split("@"))
    assert files_with(house.folder, "5e-05..0.002"), "what is in a param would be found"
    assert files_with(house.folder, password) == []
    assert files_with(house.folder, "GREEN_TUNE_STUDY_STORAGE=") == []


def files_with(folder: Path, text: str) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")
    return [path for path in files if text.encode() in path.read_bytes()]
