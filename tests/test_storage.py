"""Many workers in one database: it is made once, nothing runs twice, the dead are found."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from postgres import Postgres

from green_tune import storage, store
from green_tune.storage import Lease, locked, lost, open_storage

DEADLINE_S = 60.0

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
        os.write(1, b"%d\\n" % trial.user_attrs["n"])  # in one piece: six write to one pipe
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


def said_by(lease: Lease, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a lease has said; those that other tests have left alive notice an outage as well."""
    thread = lease._thread.ident
    return [record.message for record in caplog.records if record.thread == thread]


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
        until(lambda: lease._failed)
        failed_at, said = lease._last, len(said_by(lease, caplog))
        time.sleep(0.5)  # further failures, of which nothing is said
        postgres.start()
        until(lambda: lease._last > failed_at)
    assert said == len(said_by(lease, caplog)) > 0
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
