"""The team's server as an admin starts it, and members who use it by whole commands.

One start of `docker/native.py` serves all: PostgreSQL, an S3 store, MLflow's server with a login.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import native
import optuna
import processes
import program
import pytest
import sqlalchemy
import team
from mlflow import MlflowClient
from optuna.trial import TrialState

from green_tune import parcel
from green_tune.storage import open_storage

pytestmark = pytest.mark.e2e

SCRIPT = Path(native.__file__)
MEMBER = "rosa"
FEW = {
    "gpu": "cpu", "country": "FRA", "max_train_examples": "24", "max_eval_examples": "8",
    "evals": "1",
}  # fmt: skip
PATIENCE_S = 180.0


class Team:
    """The script as its own process, and what it says."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port
        self._printed = folder.with_suffix(".txt")
        words = ["--folder", str(folder), "--port", str(port), "--workers", "1"]
        self.command = [sys.executable, str(SCRIPT), *words]
        self.start()

    def start(self) -> None:
        with self._printed.open("w") as out:
            self._process = subprocess.Popen(self.command, stdout=out, stderr=out)
        deadline = time.monotonic() + PATIENCE_S
        while "Ctrl-C stops it" not in self.said:
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.1)

    @property
    def said(self) -> str:
        """All of the last start."""
        return self._printed.read_text()

    def end(self, how: signal.Signals | None = signal.SIGINT) -> int:
        """Its exit code, asked to end or by itself."""
        if how:
            self._process.send_signal(how)
        return self._process.wait(PATIENCE_S)

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    @property
    def exports(self) -> dict[str, str]:
        """The admin's."""
        return sourced((self.folder / "team.env").read_text())

    @property
    def listening(self) -> list[int]:
        """Which of its three ports somebody answers at."""
        found = []
        for port in range(self.port, self.port + 3):
            with suppress(OSError), socket.create_connection((processes.HOST, port), timeout=5):
                found.append(port)
        return found

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)
        shutil.rmtree(self.folder)
        self._printed.unlink()


class Member:
    """Somebody with an account, a copy of the program, and none of the store's keys."""

    def __init__(self, folder: Path, exports: Mapping[str, str]) -> None:
        self.folder = folder
        program.copy_to(folder)
        kept = {name: text for name, text in os.environ.items() if name[:4] != "AWS_"}
        self.environment = kept | {
            **exports,
            "GREEN_TUNE_METERS": str(folder / "meters"),
            "XDG_STATE_HOME": str(folder / "state"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, entry: str, **asked: str) -> subprocess.Popen[str]:
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        return subprocess.Popen(
            [sys.executable, "-m", f"entrypoints.{entry}", *words], cwd=self.folder,
            env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, entry: str, **asked: str) -> str:
        return finished(self.start(entry, **asked))


def sourced(lines: str) -> dict[str, str]:
    """What a shell has in its environment after such lines."""
    done = subprocess.run(
        ["sh", "-ec", f"{lines}\nenv"], env={}, text=True, capture_output=True, check=True
    )
    pairs = (line.partition("=") for line in done.stdout.splitlines())
    return {name: text for name, _, text in pairs if name.startswith(("MLFLOW_", "GREEN_TUNE_"))}


def finished(process: subprocess.Popen[str]) -> str:
    """What a command said that went well."""
    said, error = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, said + error
    return said


@pytest.fixture(scope="module")
def server() -> Iterator[Team]:
    # Not pytest's own folder: for root PostgreSQL is `nobody`, who cannot enter it.
    started = Team(Path(tempfile.mkdtemp(prefix="green-tune-team-")), native.three_ports())
    yield started
    started.close()


@pytest.fixture(scope="module")
def member(server: Team, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """With an account that the admin has made."""
    command = [sys.executable, str(SCRIPT.with_name("team.py")), "member", MEMBER]
    done = subprocess.run(
        command, env=os.environ | server.exports, text=True, capture_output=True, check=True
    )
    again = subprocess.run(
        command, env=os.environ | server.exports, text=True, capture_output=True, check=False
    )
    assert again.returncode == 1
    already = f"error: no account for {MEMBER}: User (username={MEMBER}) already exists."
    assert again.stderr == f"{already}\n"  # MLflow itself shows the password's hash there
    return Member(tmp_path_factory.mktemp("member"), sourced(done.stdout))


@pytest.fixture
def client(member: Member, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Asks the server as the member does."""
    for name in (team.USER, team.PASSWORD):
        monkeypatch.setenv(name, member.environment[name])
    return MlflowClient(member.environment["MLFLOW_TRACKING_URI"])


@pytest.fixture(scope="module")
def swept(member: Member) -> list[str]:
    """What two workers of one study said who began it at once."""
    asked = FEW | {"study": "s", "trials": "4", "batch_size": "4..8", "epochs": "1"}
    workers = [member.start("sweep", **asked) for _ in range(2)]
    ends = [worker.communicate(timeout=PATIENCE_S) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], ends
    return [said for said, _ in ends]


def test_what_it_prints_and_keeps_gives_no_password_away(server: Team, member: Member) -> None:
    every = [part for name in team.READERS for part in server.secret(name).split(",")]
    assert not any(secret in server.said for secret in every)
    for log in server.folder.glob("*/log"):
        assert not any(secret in log.read_text() for secret in every), log
    running = Path("/proc").glob("[0-9]*/cmdline")  # which everybody on the machine can read
    for process in running:
        with suppress(OSError):
            assert not any(
                secret in process.read_bytes().decode(errors="replace") for secret in every
            )
    assert {path.stat().st_mode & 0o777 for path in (server.folder / "secrets").iterdir()} == {
        0o600
    }
    assert (server.folder / "team.env").stat().st_mode & 0o777 == 0o600


def test_two_workers_share_a_study_that_is_compared_promoted_and_pulled(
    server: Team, member: Member, swept: list[str], client: MlflowClient
) -> None:
    storage = open_storage(member.environment["GREEN_TUNE_STUDY_STORAGE"])
    trials = optuna.load_study(storage=storage, study_name="s").get_trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    (sweep,) = client.search_runs(["0"], "tags.`green_tune.kind` = 'sweep'")
    nested = client.search_runs(["0"], f"tags.`mlflow.parentRunId` = '{sweep.info.run_id}'")
    kinds = sorted(run.data.tags["green_tune.kind"] for run in nested)
    assert kinds == ["trial"] * 4 + ["worker"]
    assert len({run.data.tags["green_tune.worker"] for run in nested}) == 2
    assert {run.info.status for run in [sweep, *nested]} == {"FINISHED"}
    assert all("Study s: 4 trials, 0 of them failed" in said for said in swept)

    assert "4 runs of 1 base model" in member.run("compare", study="s")
    member.run("promote", study="s", examples="0")
    pulled = str(member.folder / "pulled")
    assert "checksums verified" in member.run("pull", adapter="tiny-sentiment@best", output=pulled)
    stored = server.folder / "artifacts" / "data" / team.BUCKET / "mlflow"
    assert list(stored.rglob(parcel.WEIGHTS)), "the server has not put them there"
    check_no_secret(server, member, client)


def check_no_secret(server: Team, member: Member, client: MlflowClient) -> None:
    """In no param, tag or artifact, nor in what a command leaves on disk."""
    mine = member.environment[team.PASSWORD]
    known = [mine, *(part for name in team.READERS for part in server.secret(name).split(","))]
    for run in client.search_runs(["0"]):
        assert not any(secret in str(run.to_dictionary()) for secret in known)
    places = [server.folder / "artifacts" / "data", member.folder]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        text = path.read_bytes()
        assert not any(secret.encode() in text for secret in known), path


def test_a_wrong_password_is_one_line_that_does_not_repeat_it(member: Member) -> None:
    right, wrong = member.environment[team.PASSWORD], secrets.token_hex(12)
    member.environment[team.PASSWORD] = wrong
    try:
        process = member.start("train", **FEW)
        said, error = process.communicate(timeout=PATIENCE_S)
    finally:
        member.environment[team.PASSWORD] = right
    assert (process.returncode, said) == (2, "")
    (line,) = error.splitlines()
    assert line.startswith("error: ")
    assert "not authenticated" in line
    assert team.PASSWORD in line  # where to set it
    assert wrong not in line


def test_a_member_may_train_and_join_but_delete_nothing_of_the_admins(
    server: Team, member: Member, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in server.exports.items():
        monkeypatch.setenv(name, text)
    theirs = client.create_experiment("the admin's")
    for name in (team.USER, team.PASSWORD):
        monkeypatch.setenv(name, member.environment[name])
    run = client.create_run(theirs)
    client.log_metric(run.info.run_id, "a", 1.0)
    with pytest.raises(Exception, match="Permission denied"):
        client.delete_experiment(theirs)
    studies = member.environment["GREEN_TUNE_STUDY_STORAGE"]
    runs = studies.replace("://", "+psycopg2://").replace("/studies", "/tracking")
    with pytest.raises(sqlalchemy.exc.OperationalError, match="permission denied"):
        sqlalchemy.create_engine(runs).connect()


def test_a_member_with_the_keys_puts_an_adapter_into_the_store_itself(
    server: Team, member: Member, client: MlflowClient, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    keys = team.keys(f"http://{processes.HOST}:{server.port + 1}", server.secret("s3"))
    places = f"{processes.HOST}:{server.port + 2}"
    database = team.address("tracking", places)
    own = keys | {"PGPASSWORD": server.secret("mlflow")}
    asks = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "s", "MLFLOW_AUTH_ADMIN_PASSWORD": "", **own}
    asks |= {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "login.ini")}
    (tmp_path / "login.ini").write_text(
        team.LOGIN.format(accounts=team.address("accounts", places))
    )
    direct = processes.Mlflow(
        tmp_path / "direct", database, processes.free_port(), asks, proxied=False, workers=1
    )
    direct.start()
    before = dict(member.environment)
    member.environment |= keys | {
        "MLFLOW_TRACKING_URI": direct.url, "MLFLOW_EXPERIMENT_NAME": "direct",
    }  # fmt: skip
    try:
        said = member.run("train", **FEW, quality_examples="0")
    finally:
        member.environment = before
        direct.stop()
    (run_id,) = re.findall("runs:/([0-9a-f]{32})/adapter", said)
    root = client.get_run(run_id).info.artifact_uri
    assert root.startswith(f"s3://{team.BUCKET}/mlflow/")
    stored = server.folder / "artifacts" / "data" / root.removeprefix("s3://")
    assert (stored / "adapter" / parcel.WEIGHTS).is_file()


def test_a_server_that_dies_ends_the_others_and_the_next_start_has_everything_again(
    server: Team, swept: list[str], client: MlflowClient
) -> None:
    first = {name: server.secret(name) for name in team.READERS}
    before = client.search_runs(["0"])
    (rclone,) = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(server.folder / "artifacts").encode() in path.read_bytes()
    ]
    os.kill(rclone, signal.SIGKILL)
    assert server.end(None) == 1
    assert server.said.splitlines()[-1].startswith("error: the S3 store has ended with -9")
    assert server.listening == []
    server.start()
    assert {name: server.secret(name) for name in team.READERS} == first
    assert len(server.listening) == 3
    again = client.search_runs(["0"])
    assert [run.to_dictionary() for run in again] == [run.to_dictionary() for run in before]
    adapter = next(run for run in again if run.data.tags["green_tune.kind"] == "trial")
    assert client.list_artifacts(adapter.info.run_id)
    assert server.end() == 0
    assert server.listening == []
