"""Many workers in one database: it is made once, nothing runs twice, the dead are found."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState
from postgres import Postgres
from sqlalchemy.exc import OperationalError

from green_tune import storage, store
from green_tune.errors import StoreError
from green_tune.storage import Lease, locked, lost, open_storage

DEADLINE_S = 60.0
SECRET = "hunter2/%{x}:y"
NEVER = "v99.0.0.a"

LOADED = """
import os, sys, optuna
from green_tune import storage
url = sys.argv[1]
optuna.logging.set_verbosity(optuna.logging.WARNING)
def load():
    return optuna.load_study(study_name="s", storage=storage.open_storage(url))
"""
FORKED = """
count = int(sys.argv[2])
import psycopg2  # this, and a study of no interest, so that all is loaded once only
loads = optuna.create_study(storage=storage.open_storage("sqlite:///loads.db"))
loads.tell(loads.ask(), 1.0)
loads._storage._backend.engine.dispose()
for _ in range(count):
    if not os.fork():
        break
else:
    sys.exit(any([os.wait()[1] for _ in range(count)]))
"""  # what follows is run by that many processes at once
OPEN = LOADED + FORKED + "storage.open_storage(url)"
POP = (
    LOADED
    + FORKED
    + """
study = load()
while "n" in (trial := study.ask()).user_attrs:
    with storage.Lease(study, trial._trial_id):
        print(trial.user_attrs["n"], flush=True)
        study.tell(trial, 1.0)
study.tell(trial, state=optuna.trial.TrialState.FAIL)
"""
)
WORK = (
    LOADED
    + """
storage.HEARTBEAT_S = 0.2
study = load()
trial = study.ask()
with storage.Lease(study, trial._trial_id):
    print(trial.number, flush=True)
    sys.stdin.readline()
"""
)
HOLD = (
    LOADED
    + """
with storage.locked(url):
    print("in", flush=True)
    sys.stdin.readline()
"""
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'optuna.db'}"
    address: str = request.getfixturevalue("postgres_url")
    return address


def new_study(url: str) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url), study_name="s", direction="minimize")


@contextmanager
def process(script: str, url: str, count: int = 1) -> Iterator["subprocess.Popen[str]"]:
    """A process that runs `script`."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", script, url, str(count)]
    env = os.environ | {"PYTHONPATH": str(Path(storage.__file__).parents[1])}
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env) as child:
        try:
            yield child
        finally:
            child.kill()


def line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def together(script: str, url: str, count: int) -> list[str]:
    """What processes wrote that began at the same moment, and all ended well."""
    with process(script, url, count) as parent:
        written = parent.communicate()[0].split()
    assert parent.returncode == 0
    return written


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.05)


def numbers(trials: list[optuna.trial.FrozenTrial]) -> list[int]:
    return [trial.number for trial in trials]


def test_eight_processes_may_open_an_empty_database_at_once(url: str) -> None:
    assert together(OPEN, url, 8) == []
    assert new_study(url).trials == []


def test_of_six_processes_one_runs_each_queued_trial(url: str) -> None:
    study = new_study(url)
    for n in range(60):
        study.enqueue_trial({}, user_attrs={"n": n})
    assert sorted(map(int, together(POP, url, 6))) == list(range(60))
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 60


def test_a_killed_worker_is_missed_and_a_living_one_is_not(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(url)
    with process(WORK, url) as dead, process(WORK, url) as alive:
        killed, living = int(line(dead)), int(line(alive))
        assert lost(study) == []
        monkeypatch.setattr(storage, "LEASE_S", 3.0)  # SQLite's clock has whole seconds
        dead.kill()
        until(lambda: numbers(lost(study)) == [killed])
        assert killed != living
        study.tell(killed, state=TrialState.FAIL)
        assert lost(study) == []


def test_a_worker_that_died_before_its_first_heartbeat_is_missed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(url)
    number = study.ask().number
    assert lost(study) == []
    monkeypatch.setattr(storage, "LEASE_S", 1.0)
    until(lambda: numbers(lost(study)) == [number])


def test_only_running_trials_of_the_same_study_are_missed(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = new_study(url)
    other = optuna.create_study(storage=study._storage, study_name="other")
    other.ask()
    study.tell(study.ask(), 1.0)
    study.enqueue_trial({})
    monkeypatch.setattr(storage, "LEASE_S", -1.0)
    assert lost(study) == []
    assert numbers(lost(other)) == [0]


def test_a_lock_keeps_others_out_and_is_freed_by_a_kill(url: str) -> None:
    entered = threading.Event()

    def enter() -> None:
        with locked(url):
            entered.set()

    with process(HOLD, url) as child:
        assert line(child) == "in"
        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.5)
        child.send_signal(signal.SIGKILL)
        waiting.join(DEADLINE_S)
    assert entered.is_set()


def test_a_lock_is_one_for_all_spellings_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def made_by_one(url: str) -> ExitStack:
        names.append(url)
        return ExitStack()

    monkeypatch.setattr(store, "made_by_one", made_by_one)
    for url in ("sqlite:///optuna.db", f"sqlite:///{tmp_path}/x/../optuna.db"):
        with locked(url):
            pass
    assert names == [f"sqlite:///{tmp_path}/optuna.db"] * 2


@pytest.mark.timeout(DEADLINE_S)
def test_a_thread_that_holds_the_lock_may_take_it_again(url: str) -> None:
    with locked(url), locked(url):
        open_storage(url)


def test_a_result_survives_the_servers_restart(postgres: Postgres, postgres_url: str) -> None:
    study = new_study(postgres_url)
    trial = study.ask()
    postgres.restart()
    study.tell(trial, 1.5)
    assert study.trials[0].value == 1.5


def test_a_lease_goes_on_after_an_outage_of_which_it_says_one_line(
    postgres: Postgres,
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = new_study(postgres_url)
    monkeypatch.setattr(storage, "HEARTBEAT_S", 0.1)
    trial = study.ask()
    with Lease(study, trial._trial_id) as lease:
        postgres.stop()
        until(lambda: caplog.messages)
        failed_at = lease._last
        time.sleep(0.5)  # further failures, of which nothing is said
        postgres.start()
        until(lambda: lease._last > failed_at)
    assert len(caplog.messages) == 1
    assert postgres.password not in caplog.text


def test_a_lease_does_not_wait_for_a_heartbeat_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(storage, "STOP_S", 0.1)
    beats: list[int] = []
    second, back = threading.Event(), threading.Event()

    def record_heartbeat(trial_id: int) -> None:
        beats.append(trial_id)
        if len(beats) > 1:
            second.set()
            back.wait()

    hanging: Any = SimpleNamespace(record_heartbeat=record_heartbeat, remove_session=lambda: None)
    with Lease(hanging, 7) as lease:
        assert beats == [7]
        second.wait()
    assert lease._thread.is_alive()
    back.set()
    lease._thread.join()


def test_every_transaction_in_a_file_may_write_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    engine = open_storage(f"sqlite:///{path}").engine
    with engine.connect() as reading:
        assert reading.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        other = sqlite3.connect(path, timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_heartbeats_are_in_utc_whatever_the_server_prefers(postgres_url: str) -> None:
    with open_storage(postgres_url).engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        connection.rollback()
        assert connection.exec_driver_sql("SHOW timezone").scalar() == "UTC"


def test_odd_characters_in_a_path_or_a_password_are_kept(
    tmp_path: Path, postgres: Postgres, postgres_url: str
) -> None:
    folder = tmp_path / "a {b} 100%"
    folder.mkdir()
    assert new_study(f"sqlite:///{folder / 'optuna.db'}").trials == []
    assert (folder / "optuna.db").exists()
    name = postgres_url.rsplit("/", 1)[1]
    postgres.execute(f"CREATE ROLE odd LOGIN PASSWORD '{SECRET}'")
    postgres.execute(f"ALTER DATABASE {name} OWNER TO odd")
    assert new_study(with_user(postgres_url, "odd", quote(SECRET, safe=""))).trials == []


def with_user(url: str, user: str, password: str) -> str:
    return f"postgresql://{user}:{password}@{url.rpartition('@')[2]}"


def refusal(url: str) -> str:
    """The one line that is said; and no password is in it, nor in a traceback."""
    with pytest.raises(StoreError) as caught:
        open_storage(url)
    said = str(caught.value)
    assert "\n" not in said
    assert ";" in said  # after it stands what to do
    shown = "".join(traceback.format_exception(caught.value))
    for part in ("hunter2", "{x}", quote(SECRET, safe="")):
        assert part not in shown
    return said


def change(url: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_tables_of_another_version_are_refused_with_what_to_install(url: str) -> None:
    open_storage(url)
    change(
        url,
        f"UPDATE alembic_version SET version_num = '{NEVER}'",
        "UPDATE version_info SET library_version = '9.1.0'",
    )
    assert "pip install optuna==9.1.0" in refusal(url)
    change(url, "UPDATE alembic_version SET version_num = 'v3.0.0.a'")
    assert "optuna storage upgrade" in refusal(url)


def test_another_programs_database_is_left_as_it_is(url: str) -> None:
    change(url, "CREATE TABLE alembic_version (version_num VARCHAR(32))")
    assert "a database of its own" in refusal(url)
    with pytest.raises(OperationalError if "sqlite" in url else sqlalchemy.exc.ProgrammingError):
        change(url, "SELECT * FROM studies")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "optuna.db"
    path.write_text("not at all a database, and longer than the header of one\n" * 9)
    said = refusal(f"sqlite:///{path}")
    assert str(path) in said
    assert "move the file away" in said


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "unable to open" in refusal(f"sqlite:///{tmp_path}/none/optuna.db")


def test_a_wrong_password_is_not_repeated(postgres_url: str) -> None:
    said = refusal(with_user(postgres_url, "tuner", quote(SECRET, safe="")))
    assert "password authentication failed" in said
    assert "correct the user or the password" in said


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("postgresql://tuner:hunter2@127.0.0.1:1/x", "start the server"),
        ("postgresql://tuner:hunter2@127.0.0.1:1/x?password=hunter2", "start the server"),
        ("postgresql://tuner:hunter2@127.0.0.1:1/x?hunter2=1", "cannot be used"),
        ("postgresql://tuner:pass@hunter2@127.0.0.1/x", "%40"),
        ("postgresql://tuner:hunter2@127.0.0.1:hunter2/x", "no database's address"),
        ("hunter2", "no database's address"),
        ("postgresql+pg8000://tuner:hunter2@127.0.0.1/x", "needs the Python package pg8000"),
        ("postgresql+none://tuner:hunter2@127.0.0.1/x", "is unknown"),
        ("mysql+none://tuner:hunter2@127.0.0.1/x", "is unknown"),
        ("oracle://tuner:hunter2@127.0.0.1/x", "cannot be kept in oracle"),
        ("postgres://tuner:hunter2@127.0.0.1/x", "cannot be kept in postgres"),
        ("sqlite://", "names no file"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line(address: str, says: str) -> None:
    assert says in refusal(address)


def test_a_database_that_is_not_there_is_named(postgres: Postgres) -> None:
    said = refusal(postgres.url("none"))
    assert 'database "none" does not exist' in said
    assert postgres.password not in said


@pytest.mark.parametrize(
    ("kind", "warned"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False)]
)
def test_a_file_across_a_network_is_warned_of(
    kind: str,
    warned: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mounts, shared = tmp_path / "mounts", tmp_path / "my runs"
    shared.mkdir()
    mounts.write_text(f"dev / ext4 rw 0 0\nhost:/x {tmp_path}/my\\040runs {kind} rw 0 0\n")
    monkeypatch.setattr(storage, "MOUNTS", mounts)
    open_storage(f"sqlite:///{shared / 'optuna.db'}")
    assert [("PostgreSQL" in message) for message in caplog.messages] == [True] * warned
