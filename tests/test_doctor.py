"""What `doctor` says of real services, working and broken, and of GPUs that are made up."""

import _thread
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import processes
import pynvml
import pytest
import requests
from botocore.exceptions import EndpointConnectionError
from click.testing import CliRunner, Result
from conftest import ROOT
from fakes import FakeGpu, FakeNvml
from huggingface_hub import constants
from mlflow import MlflowClient
from postgres import Postgres
from servers import BUCKET, S3

from entrypoints.doctor import doctor as command
from green_tune import (
    checkup,
    deposit,
    doctor,
    emissions,
    machine,
    schemas,
    services,
    spool,
    storage,
)
from green_tune import store as stores
from green_tune.checkup import WELL, WORTH, WRONG, Check, Finding
from green_tune.config import DoctorConfig
from green_tune.spool import About

TRACKING, STUDY = "MLFLOW_TRACKING_URI", "GREEN_TUNE_STUDY_STORAGE"
PASSWORD = "jackdaw-sphinx-quartz"  # the one that is planted everywhere
ADMIN = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(10)}
MEMBER = {"MLFLOW_TRACKING_USERNAME": "rosa", "MLFLOW_TRACKING_PASSWORD": secrets.token_hex(10)}
LOGIN = """[mlflow]
default_permission = EDIT
database_uri = sqlite:///{folder}/accounts.db
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that is not there, no token and no login."""
    monkeypatch.setattr(constants, "ENDPOINT", f"http://{closed()}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("HF_TOKEN", "MLFLOW_EXPERIMENT_NAME", *ADMIN):
        monkeypatch.delenv(name, raising=False)
    yield
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def team(s3: S3) -> Iterator[str]:
    """An MLflow server with accounts, its artifacts in S3: the admin's, and a member's."""
    folder = Path(tempfile.mkdtemp(prefix="green-tune-doctor-"))
    (folder / "login.ini").write_text(LOGIN.format(folder=folder))
    environment = s3.environment | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "login.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN["MLFLOW_TRACKING_PASSWORD"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(10),
    }
    database, port = f"sqlite:///{folder}/mlflow.db", processes.free_port()
    server = processes.Mlflow(folder, database, port, environment, workers=1)
    server.start()
    requests.post(
        f"{server.url}/api/2.0/mlflow/users/create",
        json={"username": "rosa", "password": MEMBER["MLFLOW_TRACKING_PASSWORD"]},
        auth=("admin", ADMIN["MLFLOW_TRACKING_PASSWORD"]),
        timeout=30,
    ).raise_for_status()
    yield server.url
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def login(team: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, str]], None]:
    """Gives a login to that server."""
    monkeypatch.setenv(TRACKING, team)

    def give(account: Mapping[str, str]) -> None:
        for name, text in account.items():
            monkeypatch.setenv(name, text)

    return give


class Hub(BaseHTTPRequestHandler):
    """A hub that gives these statuses by what a path ends with, and else 200."""

    statuses: Mapping[str, int] = {}

    def do_GET(self) -> None:
        status = next((s for end, s in self.statuses.items() if self.path.endswith(end)), 200)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    handler = type("Handler", (Hub,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield handler
        server.shutdown()


def closed() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def found(look: Callable[[], Any]) -> list[Finding]:
    return checkup.examine([Check(group="group", name="look", look=look, limit_s=30)])


def one(look: Callable[[], Any], name: str) -> Finding:
    """The worst that is said under a name."""
    named = [finding for finding in found(look) if finding.name == name]
    return max(named, key=lambda finding: (WELL, WORTH, WRONG).index(finding.level))


def asked(*options: str) -> Result:
    return CliRunner().invoke(command, options)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def an_sqlite_file(path: Path, *statements: str) -> str:
    with closing(sqlite3.connect(path)) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    return f"sqlite:///{path}"


# How findings come about.


def test_looks_are_taken_at_the_same_time_and_shown_in_their_order() -> None:
    meet = threading.Barrier(3)

    def look(name: str) -> Iterator[Finding]:
        meet.wait(timeout=20)  # nobody passes before all three are here
        yield Finding(name=name, what="was there")

    names = ["c", "a", "b"]
    checks = [Check(group="g", name=n, look=partial(look, n), limit_s=30) for n in names]
    assert [(f.name, f.level) for f in checkup.examine(checks)] == [(n, WELL) for n in names]


def test_a_look_that_hangs_is_a_line_with_its_fix_after_what_it_had_found() -> None:
    over = threading.Event()

    def look() -> Iterator[Finding]:
        yield Finding(name="first", what="found")
        over.wait(60)

    check = Check(group="g", name="slow", look=look, limit_s=0.2, fix="look at the network")
    first, late = checkup.examine([check])
    over.set()
    assert (first.name, first.level, first.group) == ("first", WELL, "g")
    assert (late.name, late.level, late.fix) == ("slow", WRONG, "look at the network")
    assert late.what == "no answer within 0.2 s"


def test_a_look_that_fails_is_a_line_and_hides_no_other() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding(name="broken", what="so far")
        raise RuntimeError("three\nlines\nlong")

    def whole() -> Iterator[Finding]:
        yield Finding(name="whole", what="well")

    checks = [Check(group="g", name=look.__name__, look=look) for look in (broken, whole)]
    so_far, failed, well = checkup.examine(checks)
    assert (so_far.level, well.level, failed.level) == (WELL, WELL, WRONG)
    assert failed.what == "this look failed itself: RuntimeError: three"


def test_a_library_that_is_missing_is_a_line_with_the_way_to_install_it() -> None:
    def look() -> Iterator[Finding]:
        import not_here_either  # type: ignore[import-not-found]  # noqa: F401

        yield Finding(name="never", what="said")

    before = Check(group="g", name="before", look=look, needs=("not_here",))
    within = Check(group="g", name="within", look=look)
    for finding, name in zip(
        checkup.examine([before, within]), ("not_here", "not_here_either"), strict=True
    ):
        assert finding.level == WRONG
        assert finding.what.startswith(f"not looked at: {name} cannot be imported")
        assert "make install" in finding.fix


def test_what_a_library_says_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    said = f"no login as rosa with {PASSWORD} at http://rosa:other-one@host"

    def look() -> Iterator[Finding]:
        yield Finding(name="a", what=said, level=WRONG, fix=said)
        raise RuntimeError(said)

    shown = checkup.screen(found(look))
    assert shown.count("no login as rosa") == 3
    assert PASSWORD not in shown
    assert "other-one" not in shown


def test_a_look_that_writes_is_waited_for_when_the_command_is_stopped() -> None:
    tidied, writing = threading.Event(), threading.Event()

    def stops() -> Iterator[Finding]:
        writing.wait(60)
        _thread.interrupt_main()
        tidied.wait(60)
        yield Finding(name="never", what="shown")

    def writes() -> Iterator[Finding]:
        writing.set()
        time.sleep(0.3)
        tidied.set()
        yield Finding(name="writes", what="and removes")

    checks = [
        Check(group="g", name="stops", look=stops, limit_s=60),
        Check(group="g", name="writes", look=writes, limit_s=60, writes=True),
    ]
    was = signal.signal(signal.SIGINT, signal.default_int_handler)  # a command of ours has its own
    try:
        with pytest.raises(KeyboardInterrupt):
            checkup.examine(checks)
    finally:
        signal.signal(signal.SIGINT, was)
    assert tidied.is_set()


def test_a_screen_is_80_columns_wide_and_aligned_and_says_the_fix_below() -> None:
    long = "some words that are said of it " * 6
    shown = checkup.screen(
        [
            Finding(name="a", group="one", what="well", seconds=0.1),
            Finding(name="b", group="one", what=long, level=WORTH, fix=long),
            Finding(name="c", group="two", what="broken", level=WRONG, fix="mend it"),
        ],
        width=80,
    )
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[:2] == ["one", "  ✓ a             well"]
    assert {line[:18].strip() for line in lines if "some words" in line[18:]} <= {"! b", ""}
    assert "                  → some words" in shown
    assert lines[-4:] == [
        "  ✗ c             broken",
        "                  → mend it",
        "",
        "1 wrong, 1 worth knowing",
    ]


# The command.


def test_an_empty_folder_has_all_that_is_needed_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    done = asked()
    assert done.exit_code == 0, done.output
    assert "✗" not in done.stdout
    assert f"{tmp_path}/mlflow.db will be made by the first run" in " ".join(done.stdout.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [("--json",), ("--json", "true", "--country", "FRA")])
def test_json_is_one_object_with_each_check(options: Sequence[str]) -> None:
    done = asked(*options)
    said = json.loads(done.stdout)
    assert (said["well"], done.exit_code) == (True, 0)
    for check in said["checks"]:
        assert set(check) == {"name", "group", "level", "what", "fix", "seconds"}
        assert check["level"] in (WELL, WORTH, WRONG)
        assert check["what"]
        assert check["fix"] or check["level"] == WELL
        assert check["seconds"] >= 0
    groups = dict.fromkeys(check["group"] for check in said["checks"])
    assert list(groups) == [
        "software", "machine", "energy", "stores", "hub", "left open",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options", [("--gpu", "t5"), ("--country", "FRX"), ("--json", "maybe"), ("--jsn",)]
)
def test_bad_input_is_one_line_and_exit_code_2(options: Sequence[str]) -> None:
    done = asked(*options)
    assert done.exit_code == 2
    assert not done.stdout
    assert "Traceback" not in done.stderr


def test_everything_is_broken_and_each_is_a_line_without_a_secret(
    monkeypatch: pytest.MonkeyPatch, hub: type[Hub]
) -> None:
    hub.statuses = {"/api/whoami-v2": 401}
    monkeypatch.setenv(TRACKING, f"http://user:{PASSWORD}@{closed()}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    monkeypatch.setenv(STUDY, f"postgresql://user:{PASSWORD}@{closed()}/studies")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    monkeypatch.setenv("HF_TOKEN", f"hf_{PASSWORD}")
    done = asked("--gpu", "t4", "--json")
    assert done.exit_code == 1
    assert "Traceback" not in done.output
    assert PASSWORD not in done.output
    assert PASSWORD[:8] not in done.output
    said = json.loads(done.stdout)
    wrong = {check["name"]: check for check in said["checks"] if check["level"] == WRONG}
    assert set(wrong) == {"gpu", "tracking", "studies", "token"}
    assert all(check["fix"] for check in wrong.values())
    assert not said["well"]


@pytest.mark.parametrize(
    ("tracking", "studies"),
    [
        ("sqlite:////nowhere/at/all/mlflow.db", "sqlite:////nowhere/at/all/optuna.db"),
        ("runs", "nonsense"),
        ("http://", "postgresql://host:port/name"),
        ("http://[::1", "redis://localhost/0"),
        ("http://no-such-host.invalid:5000", "postgresql://no-such-host.invalid/name"),
        ("postgresql://no-such-host.invalid/name", "mysql://no-such-host.invalid/name"),
        ("garbage", "garbage"),
    ],
)
def test_an_address_of_nothing_is_wrong_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: str, studies: str
) -> None:
    (tmp_path / "garbage.db").write_bytes(b"not a database at all" * 99)
    garbage = f"sqlite:///{tmp_path}/garbage.db"
    monkeypatch.setenv(TRACKING, garbage if tracking == "garbage" else tracking)
    monkeypatch.setenv(STUDY, garbage if studies == "garbage" else studies)
    for look, name in ((doctor.runs, "tracking"), (schemas.studies, "studies")):
        finding = one(look, name)
        assert finding.level == WRONG
        assert finding.fix
        assert "failed itself" not in finding.what
    assert {f.level for f in found(doctor.runs) if f.name != "tracking"} == {WORTH}


def test_under_the_launcher_its_run_has_the_report(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    client = MlflowClient(store_uri)
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    done = asked("--country", "FRA")
    assert done.exit_code == 0, done.output
    run = client.get_run(run_id)
    assert run.data.tags["green_tune.kind"] == "doctor"
    assert run.data.params["country"] == "FRA"
    assert run.info.status == "FINISHED"
    said = json.loads(Path(client.download_artifacts(run_id, "doctor.json")).read_text())
    shown = Path(client.download_artifacts(run_id, "doctor.txt")).read_text()
    assert said["summary"] == run.data.tags["mlflow.note.content"] == shown.splitlines()[-1]


def test_what_waits_is_said_with_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = {"results": doctor.spooled, "checkpoints": doctor.checkpoints, "runs": doctor.left_open}
    assert {one(look, name).level for name, look in looks.items()} == {WELL}
    about = About(run_id="a1", name="tiny-qa", address="http://host:5000", sessions=1)
    monkeypatch.setattr(spool, "waiting", lambda: [(about, tmp_path / "spool" / "a1.1")])
    finding = one(doctor.spooled, "results")
    assert (finding.level, str(tmp_path / "spool") in finding.fix) == (WORTH, True)
    assert "tiny-qa for http://host:5000" in finding.what
    stopped = tmp_path / "state" / "green-tune" / "checkpoints" / "0123abc"
    stopped.mkdir(parents=True)
    (stopped / "state.pt").write_bytes(b"half of it")
    finding = one(doctor.checkpoints, "checkpoints")
    assert (finding.level, "run 0123abc" in finding.what) == (WORTH, True)
    beats = tmp_path / "state" / "green-tune" / "heartbeats"
    beats.mkdir(parents=True)
    (beats / "0123abc.1.jsonl").write_text("{}\n")
    assert one(doctor.left_open, "runs").level == WORTH


def test_other_versions_are_worth_knowing_and_missing_libraries_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = {"numpy": "1.0", "torch": "2.13.0"}
    monkeypatch.setattr(doctor, "_pins", lambda: ({"numpy": "2.4.6", "torch": "2.13.0"}, ">=3.9"))
    monkeypatch.setattr(doctor, "_version", there.get)
    (finding,) = found(doctor.libraries)
    assert (finding.level, finding.fix) == (WORTH, "pip install numpy==2.4.6")
    assert "numpy 1.0 (pinned 2.4.6)" in finding.what
    del there["torch"]
    missing, _ = found(doctor.libraries)
    assert (missing.level, missing.what) == (WRONG, "not installed: torch")
    monkeypatch.setattr(doctor, "_pins", lambda: ({}, ">=3.99"))
    assert one(doctor.python, "python").level == WRONG


def test_conda_s_pins_stand_in_where_the_package_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed, _ = doctor._pins()
    monkeypatch.setattr(doctor, "PACKAGE", "not-installed-at-all")
    assert doctor._pins() == (installed, "==3.11.*")


def test_where_nothing_is_installed_it_still_says_so(tmp_path: Path) -> None:
    gone = ("mlflow", "optuna", "pynvml", "codecarbon", "pycountry", "huggingface_hub", "torch")
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Without:\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name.split('.')[0] not in {gone!r}:\n"
        "            return PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Without\n"
        "from entrypoints.doctor import doctor\n"
        "doctor(args=['--json'])\n"
    )
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=paths, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (1, "")
    said = {(c["group"], c["name"]): c for c in json.loads(done.stdout)["checks"]}
    for library, name in (
        ("pynvml", ("energy", "gpu")),
        ("pycountry", ("machine", "memory")),
        ("mlflow", ("stores", "tracking")),
        ("optuna", ("stores", "studies")),
        ("pycountry", ("energy", "intensity")),
        ("huggingface_hub", ("hub", "hub")),
    ):
        assert f"{library} cannot be imported" in said[name]["what"]
        assert (said[name]["level"], said[name]["fix"]) == (WRONG, checkup.INSTALL)
    assert said["left open", "results"]["level"] == WELL
    assert list(tmp_path.iterdir()) == []


# Tables.


def test_versions_of_tables_are_those_that_the_libraries_name(tmp_path: Path) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    opened = storage.open_storage(f"sqlite:///{tmp_path}/optuna.db")
    assert schemas.revisions("optuna")[0] == opened.get_head_version()
    assert set(schemas.revisions("optuna")) == set(opened.get_all_versions())
    latest: Any = _get_latest_schema_revision
    assert schemas.revisions("mlflow")[0] == latest()


def test_files_of_both_libraries_are_well_and_stay_as_they_are(
    store_uri: str, tmp_path: Path
) -> None:
    storage.open_storage(stores.study_url()).engine.dispose()
    before = files(tmp_path)
    assert [f.level for f in found(doctor.runs)] == [WELL] * 3
    (studies,) = found(schemas.studies)
    assert (studies.level, "tables of optuna" in studies.what) == (WELL, True)
    assert files(tmp_path) == before


def test_a_study_that_somebody_is_at_is_read_with_what_was_written_last(tmp_path: Path) -> None:
    opened = storage.open_storage(stores.study_url())
    with opened.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v9'")
        connection.commit()
        assert (tmp_path / "optuna.db-wal").stat().st_size  # where that is, and nowhere else
        assert one(schemas.studies, "studies").level == WRONG
    opened.engine.dispose()


@pytest.mark.parametrize(
    ("revision", "what", "fix"),
    [("older", "are older", "upgrade"), ("of the future", "another one", "install the")],
)
def test_tables_of_another_version_are_wrong(
    store_uri: str, tmp_path: Path, revision: str, what: str, fix: str
) -> None:
    storage.open_storage(stores.study_url()).engine.dispose()
    for library, look, name in (
        ("mlflow", doctor.runs, "tracking"),
        ("optuna", schemas.studies, "studies"),
    ):
        there = schemas.revisions(library)[-1] if revision == "older" else revision
        path = tmp_path / f"{library}.db"
        an_sqlite_file(path, f"UPDATE alembic_version SET version_num = '{there}'")
        finding = one(look, name)
        assert finding.level == WRONG
        assert what in finding.what
        assert fix in finding.fix


def test_a_database_of_mlflow_s_is_none_for_studies(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STUDY, store_uri)
    finding = one(schemas.studies, "studies")
    assert (finding.level, "another program's tables" in finding.what) == (WRONG, True)


def test_a_deleted_experiment_is_wrong(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient(store_uri)
    client.delete_experiment(client.create_experiment("old"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    finding = one(doctor.runs, "experiment")
    assert (finding.level, "restore" in finding.fix) == (WRONG, True)


def test_an_empty_database_can_have_tables_and_gets_none(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(STUDY, postgres_url)
    monkeypatch.setenv(TRACKING, postgres_url)
    assert "its tables can be made" in one(schemas.studies, "studies").what
    assert [f.level for f in found(doctor.runs)] == [WELL] * 3
    count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert postgres.ask(count, postgres_url.rpartition("/")[2]) == ["0"]
    storage.open_storage(postgres_url).engine.dispose()
    assert "tables of optuna" in one(schemas.studies, "studies").what


def test_a_database_that_may_only_be_read_is_wrong(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, reader = postgres_url.rpartition("/")[2], f"reader_{secrets.token_hex(4)}"
    postgres.execute(f"CREATE ROLE {reader} LOGIN PASSWORD '{PASSWORD}'")
    login = f"postgresql://{reader}:{PASSWORD}@127.0.0.1:{postgres.port}/{name}"
    monkeypatch.setenv(STUDY, login)
    empty = one(schemas.studies, "studies")
    assert (empty.level, "no table can be made" in empty.what) == (WRONG, True)
    assert "GRANT CREATE" in empty.fix
    storage.open_storage(postgres_url).engine.dispose()
    postgres.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}", name)
    full = one(schemas.studies, "studies")
    assert (full.level, full.what) == (WRONG, "its tables can only be read")


@pytest.mark.parametrize("broken", ["password", "database", "server"])
def test_a_database_that_lets_nobody_in_is_wrong_without_a_secret(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    url = {
        "password": f"postgresql://tuner:{PASSWORD}@127.0.0.1:{postgres.port}/postgres",
        "database": postgres.url("not_there"),
        "server": f"postgresql://tuner:{PASSWORD}@{closed()}/postgres",
    }[broken]
    monkeypatch.setenv(STUDY, url)
    monkeypatch.setenv(TRACKING, url)
    for look, name in ((schemas.studies, "studies"), (doctor.runs, "tracking")):
        finding = one(look, name)
        assert finding.level == WRONG
        assert finding.fix
        assert PASSWORD not in finding.what
        assert postgres.password not in finding.what
        assert (STUDY if name == "studies" else TRACKING) in finding.fix
        assert (TRACKING if name == "studies" else STUDY) not in finding.fix


# Stores of artifacts.


def test_artifacts_in_s3_are_tried_and_nothing_is_left(
    s3: S3, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in s3.environment.items():
        monkeypatch.setenv(name, text)
    MlflowClient(store_uri).create_experiment("direct", f"s3://{BUCKET}/mlflow/7")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "direct")
    before = s3.names()
    finding = one(doctor.runs, "artifacts")
    assert (finding.level, "written, read and removed" in finding.what) == (WELL, True)
    assert s3.names() == before


@pytest.mark.parametrize(
    ("setting", "text", "bucket", "fix"),
    [
        ("AWS_DEFAULT_REGION", "us-east-1", "not-there", "create the bucket"),
        ("AWS_SECRET_ACCESS_KEY", PASSWORD, BUCKET, "AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "somebody", BUCKET, "AWS_ACCESS_KEY_ID"),
        ("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9", BUCKET, "start the S3 server"),
        ("MLFLOW_S3_ENDPOINT_URL", "nonsense", BUCKET, "MLFLOW_S3_ENDPOINT_URL"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_wrong(
    s3: S3, monkeypatch: pytest.MonkeyPatch, setting: str, text: str, bucket: str, fix: str
) -> None:
    for name, right in s3.environment.items():
        monkeypatch.setenv(name, right)
    monkeypatch.setenv(setting, text)
    before = s3.names()
    finding = deposit.look(f"s3://{bucket}/mlflow/7", "sqlite:///mlflow.db")
    assert (finding.level, finding.name) == (WRONG, "artifacts")
    assert fix in finding.fix
    assert PASSWORD not in finding.what
    assert s3.names() == before


def test_what_was_written_to_s3_is_removed_when_it_cannot_be_read(
    s3: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, right in s3.environment.items():
        monkeypatch.setenv(name, right)
    client, seen = deposit._s3(), []

    def get_object(**where: str) -> None:
        seen.append(s3.names())
        raise EndpointConnectionError(endpoint_url=s3.url)

    monkeypatch.setattr(client, "get_object", get_object)  # the network ends there
    monkeypatch.setattr(deposit, "_s3", lambda: client)
    before = s3.names()
    assert deposit.look(f"s3://{BUCKET}/mlflow/7", "sqlite:///mlflow.db").level == WRONG
    assert len(seen[0]) == len(before) + 1
    assert s3.names() == before


def test_a_folder_for_artifacts_is_tried_and_one_that_is_a_file_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert deposit.look(str(tmp_path / "new" / "0"), "sqlite:///x").level == WELL
    assert deposit.look(str(tmp_path / "file" / "0"), "sqlite:///x").level == WRONG
    assert deposit.look(f"file://{tmp_path}", "sqlite:///x").level == WELL
    assert deposit.look("/not/on/this/machine", "http://server").level == WRONG
    assert deposit.look("gs://bucket/runs", "http://server").level == WORTH
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# MLflow's server.


def test_a_server_that_lets_us_in_is_well_and_nothing_is_left(
    login: Callable[[Mapping[str, str]], None], s3: S3
) -> None:
    login(ADMIN)
    before = s3.names()
    tracking, registry, artifacts = found(doctor.runs)
    assert "as admin" in tracking.what
    assert {tracking.level, registry.level, artifacts.level} == {WELL}
    assert "through the server: written, read and removed" in artifacts.what
    assert s3.names() == before


def test_who_may_not_remove_leaves_one_small_file_however_often_it_is_tried(
    login: Callable[[Mapping[str, str]], None], s3: S3
) -> None:
    login(MEMBER)
    before = s3.names()
    for _ in range(2):
        artifacts = one(doctor.runs, "artifacts")
        assert artifacts.level == WELL
        assert f"left there as {deposit.LEFT}" in artifacts.what
    (left,) = set(s3.names()) - set(before)
    assert Path(left).name == deposit.LEFT
    s3.path(left).unlink()


@pytest.mark.parametrize("account", [{}, {**ADMIN, "MLFLOW_TRACKING_PASSWORD": PASSWORD}])
def test_a_login_that_is_refused_or_missing_is_wrong_without_a_secret(
    login: Callable[[Mapping[str, str]], None], account: Mapping[str, str]
) -> None:
    login(account)
    findings = {finding.name: finding for finding in found(doctor.runs)}
    tracking = findings["tracking"]
    assert (tracking.level, "refuses us" in tracking.what) == (WRONG, True)
    assert ("as admin" in tracking.what) == bool(account)
    assert "MLFLOW_TRACKING_USERNAME" in tracking.fix
    assert PASSWORD not in tracking.what
    assert {findings[name].level for name in ("registry", "artifacts")} == {WORTH}


def test_a_deleted_experiment_of_a_server_is_wrong(
    team: str, login: Callable[[Mapping[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    login(ADMIN)
    client = MlflowClient(team)
    client.delete_experiment(client.create_experiment("old"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "old")
    assert one(doctor.runs, "experiment").level == WRONG
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "to be made")
    assert {finding.level for finding in found(doctor.runs)} == {WELL}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "987654")
    assert client.get_experiment_by_name("to be made") is None


def test_something_else_at_the_address_is_wrong(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACKING, s3.url)
    tracking = one(doctor.runs, "tracking")
    assert (tracking.level, "no MLflow server" in tracking.what) == (WRONG, True)


def test_a_server_that_listens_and_says_nothing_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(TRACKING, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracking = one(doctor.runs, "tracking")
    assert tracking.level == WRONG
    assert "gives no answer" in tracking.what
    assert "timed out" in tracking.what


@pytest.mark.parametrize(
    ("there", "levels"), [("3.17.9", []), ("3.11.0", [WORTH]), ("2.22.4", [WRONG])]
)
def test_a_server_of_another_version_is_said(there: str, levels: list[str]) -> None:
    assert [f.level for f in services._of_another_version(there, "3.17.2")] == levels


@pytest.mark.parametrize(
    ("status", "text", "fix"),
    [
        (403, "Invalid Host header - possible DNS rebinding attack", "--allowed-hosts"),
        (403, '{"message": "Permission denied"}', "MLFLOW_TRACKING_USERNAME"),
        (503, "Service Unavailable", "server's log"),
    ],
)
def test_a_refusal_is_told_from_a_failure(status: int, text: str, fix: str) -> None:
    answer: Any = SimpleNamespace(status=status, text=text, reason=text)
    finding = services._not_let_in("http://user:pw7x@mlflow:5000", answer)
    assert (finding.level, fix in finding.fix) == (WRONG, True)
    assert "pw7x" not in finding.what
    assert finding.what.startswith("http://mlflow:5000 ")


def test_clocks_that_are_apart_are_said() -> None:
    now = time.time()
    assert list(services._skewed("tracking", "the server's", formatdate(now, usegmt=True))) == []
    assert list(services._skewed("tracking", "the server's", "")) == []
    (apart,) = services._skewed("tracking", "the server's", formatdate(now - 3600, usegmt=True))
    assert apart.level == WORTH
    assert "36" in apart.what


# The hub.


def test_without_a_hub_or_a_token_there_is_something_worth_knowing() -> None:
    there, token = found(services.hub)
    assert (there.level, token.level) == (WORTH, WORTH)
    assert "cannot be known offline" in there.what
    assert "HF_TOKEN" in token.fix


def test_offline_by_wish_is_not_tried(monkeypatch: pytest.MonkeyPatch, hub: type[Hub]) -> None:
    hub.statuses = {"": 500}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", f"hf_{PASSWORD}")
    there, token = found(services.hub)
    assert (there.level, token.what) == (WORTH, "HF_TOKEN: not tried")


@pytest.mark.parametrize(
    ("statuses", "levels"),
    [
        ({}, [WELL, WELL, WELL]),
        ({"/google/gemma-2b/auth-check": 403}, [WELL, WELL, WORTH]),
        ({"/api/whoami-v2": 401}, [WELL, WRONG]),
    ],
)
def test_a_token_is_tried_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, hub: type[Hub], statuses: dict[str, int], levels: list[str]
) -> None:
    hub.statuses = statuses
    monkeypatch.setenv("HF_TOKEN", f"hf_{PASSWORD}")
    findings = found(services.hub)
    assert [finding.level for finding in findings] == levels
    shown = checkup.screen(findings)
    assert PASSWORD not in shown
    assert PASSWORD[:8] not in shown
    assert ("gemma-2b (google/gemma-2b)" in shown) == (levels[-1] == WORTH)


# The machine: GPUs are made up, since there is none.


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeNvml]:
    """A machine with these GPUs, of which this much memory is free, and a driver for CUDA 12.8."""

    def have(*gpus: FakeGpu, free: float = 0.99) -> FakeNvml:
        nvml = FakeNvml(monkeypatch, *gpus)

        def about(gpu: FakeGpu) -> SimpleNamespace:
            return SimpleNamespace(total=gpu.gib * 2**30, free=free * gpu.gib * 2**30)

        answers: dict[str, Callable[..., Any]] = {
            "nvmlDeviceGetMemoryInfo": about,
            "nvmlSystemGetDriverVersion": lambda: "570.86.10",
            "nvmlSystemGetNVMLVersion": lambda: "12.570.86",
            "nvmlSystemGetCudaDriverVersion_v2": lambda: 12080,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, nvml.in_session(answer))
        return nvml

    return have


def idle(name: str, capability: tuple[int, int], **rest: Any) -> FakeGpu:
    gpu = FakeGpu(name, f"GPU-{name}", capability=capability, **rest)
    gpu.processes = 0
    return gpu


def test_a_gpu_is_said_with_its_memory_its_precision_and_its_counter(
    gpus: Callable[..., FakeNvml],
) -> None:
    gpus(idle("NVIDIA A100-SXM4-80GB", (8, 0)))
    (gpu,) = found(partial(machine.gpus, "auto"))
    assert gpu.level == WELL
    for part in ("A100", "79.2 of 80.0 GiB free", "570.86.10", "capability 8.0", "a100-80 in"):
        assert part in gpu.what
    assert one(partial(machine.precision, "auto"), "precision").what == "bf16: native"
    assert one(machine.gpu_energy, "gpu 0").what == "measured: NVML energy counter"


def test_a_gpu_without_a_counter_an_unknown_one_and_a_shared_one_are_worth_knowing(
    gpus: Callable[..., FakeNvml],
) -> None:
    p100, odd = idle("Tesla P100-PCIE-16GB", (6, 0), gib=16), idle("Odd 1", (9, 0))
    p100.counts, odd.processes = False, 2
    gpus(p100, odd)
    assert one(machine.gpu_energy, "gpu 0").level == WORTH
    assert "power readings" in one(machine.gpu_energy, "gpu 0").what
    unknown, others = (f for f in found(partial(machine.gpus, "auto")) if f.name == "gpu 1")
    assert (unknown.level, "not in the table" in unknown.what) == (WORTH, True)
    assert (others.level, others.what[:17]) == (WORTH, "2 other processes")
    assert one(partial(machine.precision, "p100"), "precision").what.startswith("fp16")


def test_a_gpu_that_is_cut_into_parts_or_not_the_one_asked_for_is_wrong(
    gpus: Callable[..., FakeNvml], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = idle("NVIDIA A100-SXM4-80GB", (8, 0))
    gpus(whole)
    missing = one(partial(machine.gpus, "t4"), "gpu")
    assert (missing.level, "gpu=t4 is not in this machine" in missing.what) == (WRONG, True)
    assert found(partial(machine.precision, "t4")) == []
    whole.mig = (1, 1)
    assert one(partial(machine.gpus, "auto"), "gpu").level == WRONG
    cut = one(machine.gpu_energy, "gpu")
    assert (cut.level, "nvidia-smi -mig 0" in cut.fix) == (WRONG, True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert one(partial(machine.gpus, "auto"), "gpu").level == WRONG
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    hidden = one(partial(machine.gpus, "auto"), "gpu")
    assert (hidden.level, "hides them all" in hidden.what) == (WORTH, True)


@pytest.mark.parametrize(
    ("cuda", "said", "problem"),
    [
        ("", {}, "stays unused"),
        ("13.0", {}, "serves CUDA 12.8 at most"),
        ("12.6", {"available": False, "kernels": []}, "sees no GPU"),
        ("12.6", {"error": "it crashed"}, "it crashed"),
        ("12.6", {"available": True, "kernels": ["sm_75", "sm_80"]}, "capability 7.0"),
        ("12.6", {"available": True, "kernels": ["sm_70", "sm_80"]}, ""),
        ("12.8", {"available": True, "kernels": ["sm_60", "sm_70", "sm_120"]}, ""),
    ],
)
def test_torch_is_held_against_the_driver_and_the_gpu(
    gpus: Callable[..., FakeNvml],
    monkeypatch: pytest.MonkeyPatch,
    cuda: str,
    said: dict[str, Any],
    problem: str,
) -> None:
    gpus(idle("Tesla V100-SXM2-16GB", (7, 0), gib=16))
    monkeypatch.setattr(machine, "_torch_build", lambda: ("2.13.0", cuda))
    monkeypatch.setattr(machine, "_torch_says", lambda: said)
    (torch,) = found(machine.torch)
    assert torch.level == (WRONG if problem else WELL)
    assert problem in torch.what
    assert bool(torch.fix) == bool(problem)


def test_torch_s_build_is_read_without_importing_it() -> None:
    from importlib.metadata import version

    assert machine._torch_build()[0] == version("torch")


@pytest.mark.parametrize(
    ("free", "level", "fix"),
    [(0.5, WRONG, "make room"), (5.0, WORTH, "HF_HOME"), (500.0, WELL, "")],
)
def test_room_on_disks_is_held_against_runs_and_a_base(
    monkeypatch: pytest.MonkeyPatch, free: float, level: str, fix: str
) -> None:
    usage = SimpleNamespace(free=free * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    disk = one(machine.disks, "disk")
    assert (disk.level, fix in disk.fix) == (level, True)


def test_a_counter_that_may_not_be_read_comes_with_the_way_to_read_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line = emissions.unreadable_rapl
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").touch()
    monkeypatch.setattr(emissions, "RAPL", tmp_path)
    monkeypatch.setattr(emissions, "unreadable_rapl", lambda: line(tmp_path))
    assert one(machine.cpu_energy, "cpu").what == "measured: RAPL counter"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    counter = one(machine.cpu_energy, "cpu")
    assert (counter.level, counter.fix[:14]) == (WORTH, "sudo chmod a+r")
    assert one(machine.meters, "meters").level == WORTH
    assert one(machine.disks, "work").level == WRONG


def test_an_intensity_that_is_assumed_is_worth_knowing() -> None:
    assert one(partial(machine.intensity, "world"), "intensity").level == WORTH
    france = one(partial(machine.intensity, "FRA"), "intensity")
    assert (france.level, "France" in france.what, "assumed" in france.what) == (WELL, True, False)


def test_a_container_s_share_of_the_cpus_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert one(machine.cpu, "cpu").level == WELL
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    share = one(machine.cpu, "cpu")
    assert (share.level, share.fix) == (WORTH, "export OMP_NUM_THREADS=2")
    assert "2.5 of 64 threads" in share.what


def test_little_memory_is_worth_knowing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "MEMORY_INFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1048576 kB\n")
    memory = one(machine.memory, "memory")
    assert (memory.level, memory.what[:3]) == (WORTH, "1.0")


def test_every_check_has_a_name_of_its_own_in_its_group() -> None:
    names = [(check.group, check.name) for check in doctor.checks(DoctorConfig())]
    assert len(set(names)) == len(names)
