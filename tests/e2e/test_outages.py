"""kill -9 of the team's servers at random moments of trainings and sweeps: no result is lost.

MLflow's server, its database (the study's, too) and its store of artifacts are killed one at a
time, and come back after some seconds with the data that they had. What a training wrote must then
be there as if nothing had happened, to the last bit of its adapter, and nothing be trained twice.

GREEN_TUNE_OUTAGES says how often at least (4). The moments are drawn from GREEN_TUNE_OUTAGES_SEED.
"""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from native import Server
from optuna import load_study
from optuna.trial import TrialState
from postgres import Postgres
from servers import S3, Mlflow

from green_tune import spool
from green_tune.storage import open_storage

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
OUTAGES = int(os.environ.get("GREEN_TUNE_OUTAGES", "4"))
SEED = int(os.environ.get("GREEN_TUNE_OUTAGES_SEED", "1"))
AWAY_S, BETWEEN_S = (0.5, 3.0), (0.2, 3.0)
TRAININGS = 3  # of a round: a training, and the trials of a sweep
PATIENCE_S = 240.0
TRAIN = {
    "gpu": "cpu", "country": "FRA", "task": "sentiment", "epochs": "12", "evals": "6",
    "max_train_examples": "160", "max_eval_examples": "16", "checkpoint_minutes": "0.02",
}  # fmt: skip
SWEEP = {
    "study": "s", "gpu": "cpu", "country": "FRA", "trials": "2", "epochs": "4", "evals": "4",
    "max_train_examples": "160", "max_eval_examples": "16", "early_stop": "false", "reuse": "never",
}  # fmt: skip


class Command:
    """One command in a process, and what it printed."""

    def __init__(self, folder: Path, entry: str, environment: Mapping[str, str]) -> None:
        asked = TRAIN if entry == "train" else SWEEP if entry == "sweep" else {}
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self._printed = folder / f"{time.time_ns()}.txt"
        with self._printed.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", f"entrypoints.{entry}", *words], cwd=folder,
                env=os.environ | own | dict(environment), stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._printed.read_text()

    def ends(self, code: int = 0) -> str:
        """Waits for its end; what it said."""
        assert self.process.wait(timeout=PATIENCE_S) == code, self.said
        return self.said

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Team:
    """The three servers, and what clients need."""

    def __init__(self, postgres: Postgres, closing: ExitStack) -> None:
        self.postgres, self.s3 = postgres, S3()
        closing.callback(self.s3.close)
        database = postgres.new_database().replace("://", "+psycopg2://")
        self.mlflow = Mlflow(database, self.s3)
        closing.callback(self.mlflow.close)
        self.study = postgres.new_database()
        self.environment = {
            "MLFLOW_TRACKING_URI": self.mlflow.url,
            "GREEN_TUNE_STUDY_STORAGE": self.study,
        }
        self.client = MlflowClient(self.mlflow.url)
        self.outages: list[str] = []
        self.commands: list[Command] = []
        self.experiment_id = ""

    def start(self, folder: Path, entry: str, **more: str) -> Command:
        self.commands.append(Command(folder, entry, self.environment | more))
        return self.commands[-1]

    def fail(self, servers: Sequence[Server], draw: random.Random) -> None:
        """Kills one of them, and starts it again a while later."""
        server = draw.choice(servers)
        server.stop(signal.SIGKILL)
        time.sleep(draw.uniform(*AWAY_S))
        server.start()
        self.outages.append(server.name)
        time.sleep(draw.uniform(*BETWEEN_S))

    def runs(self, kind: str) -> list[Run]:
        where = [self.experiment_id]
        found = self.client.search_runs(where, f"tags.`green_tune.kind` = '{kind}'")
        return list(found)


@pytest.fixture(scope="module")
def servers(postgres: Postgres) -> Iterator[Team]:
    with ExitStack() as closing:
        yield Team(postgres, closing)


@pytest.fixture
def team(servers: Team, request: pytest.FixtureRequest) -> Iterator[Team]:
    """With an experiment of the test's own."""
    name = request.node.name
    servers.experiment_id = servers.client.create_experiment(name)
    servers.environment["MLFLOW_EXPERIMENT_NAME"] = name
    yield servers
    for command in servers.commands:
        command.kill()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> "Result":
    """What the training comes to where nothing fails."""
    folder = tmp_path_factory.mktemp("undisturbed")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    state = {"XDG_STATE_HOME": str(folder / "state"), "GREEN_TUNE_METERS": str(folder / "meters")}
    Command(folder, "train", {"MLFLOW_TRACKING_URI": uri} | state).ends()
    client = MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    return Result(client, run, folder)


class Result:
    """What must be there of a training, and is the same whenever it is trained."""

    def __init__(self, client: MlflowClient, run: Run, folder: Path) -> None:
        names = ("train_loss", "val_loss", "learning_rate", "grad_norm")
        history = {name: client.get_metric_history(run.info.run_id, name) for name in names}
        self.curves = {
            name: sorted((point.step, point.value) for point in points)
            for name, points in history.items()
        }
        copy = Path(client.download_artifacts(run.info.run_id, "adapter", str(folder)))
        self.adapter = (copy / "adapter_model.safetensors").read_bytes()
        self.artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
        self.status = run.info.status
        self.params = run.data.params
        self.names = {name for name in run.data.metrics if not name.startswith("quote.")}


def check(team: Team, run: Run, undisturbed: Result, folder: Path) -> None:
    """Nothing is missing of a run, and nothing in it twice."""
    result = Result(team.client, run, folder)
    assert result.curves == undisturbed.curves
    assert result.adapter == undisturbed.adapter
    assert result.artifacts == undisturbed.artifacts
    assert result.status == "FINISHED"
    assert result.params == undisturbed.params
    assert undisturbed.names <= result.names
    assert run.data.metrics["energy_kwh"] > 0
    assert run.data.tags["energy_valid"] == "true"


def until(seen: Callable[[], object], *commands: Command) -> None:
    """While the commands go on."""
    deadline = time.monotonic() + PATIENCE_S
    while not seen():
        for command in commands:
            assert command.process.poll() is None, command.said
            assert time.monotonic() < deadline, command.said
        time.sleep(0.05)


def test_servers_that_fail_in_mid_run_cost_no_result(
    team: Team,
    undisturbed: Result,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """As many rounds of a training beside a sweep as it takes for the outages."""
    draw, rounds = random.Random(SEED), 0
    while len(team.outages) < OUTAGES:
        rounds += 1
        SWEEP["study"], SWEEP["seed"] = f"s{rounds}", str(rounds)
        commands = [team.start(tmp_path, entry) for entry in ("train", "sweep")]
        begun = rounds
        until(
            lambda: len(team.runs("train")) >= begun <= len(team.runs("sweep")),  # noqa: B023
            *commands,
        )
        while any(command.process.poll() is None for command in commands):
            team.fail((team.mlflow, team.postgres, team.s3), draw)
        said = [command.ends() for command in commands]
        assert spool.waiting() == [], "\n".join(said)
        for run in team.runs("train"):
            check(team, run, undisturbed, tmp_path)
        study = load_study(storage=open_storage(team.study), study_name=SWEEP["study"])
        assert [t.state for t in study.trials] == [TrialState.COMPLETE] * (TRAININGS - 1), said[1]
    trials = team.runs("trial")
    assert len(trials) == (TRAININGS - 1) * rounds  # none was begun twice
    for run in trials:
        assert (run.info.status, run.data.tags["energy_valid"]) == ("FINISHED", "true")
        assert {f.path for f in team.client.list_artifacts(run.info.run_id)} >= {"adapter"}
    record_property("outages", len(team.outages))
    record_property("trainings", TRAININGS * rounds)


def test_a_server_that_stays_away_gets_what_it_missed_by_the_next_command(
    team: Team, undisturbed: Result, tmp_path: Path
) -> None:
    """Of one training that ended meanwhile, and of one that was killed meanwhile and goes on."""
    states = Path(os.environ["XDG_STATE_HOME"]) / "green-tune"
    ended, killed = (team.start(tmp_path, "train", GREEN_TUNE_PATIENCE_S="1") for _ in range(2))
    both = ended, killed
    until(
        lambda: len([r for r in team.runs("train") if "train_loss" in r.data.metrics]) == 2, *both
    )
    team.mlflow.stop(signal.SIGKILL)
    until(
        lambda: len(spool.waiting()) == 2 == len(list(states.glob("checkpoints/*/state.pt"))), *both
    )
    killed.kill()
    said = ended.ends(code=2)
    assert re.search("what it came to is kept in .*: the next command delivers it", said)
    assert "Traceback" not in said
    assert len(list(states.glob("checkpoints/*/state.pt"))) == 1  # of the other one
    team.mlflow.start()
    assert {run.info.status for run in team.runs("train")} == {"RUNNING"}
    said = team.start(tmp_path, "train").ends()
    assert "that waited here are delivered" in said
    assert "goes on with run" in said
    assert spool.waiting() == []
    runs = team.runs("train")
    assert len(runs) == 2
    for run in runs:
        check(team, run, undisturbed, tmp_path)
