"""Where results are kept, and that a place which cannot hold them is noticed at once."""

import socket
import threading
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import pytest

from green_tune import store
from green_tune.errors import ConfigError, StoreAway, StoreError
from green_tune.store import check_reachable, study_url, tracking_uri

TRACKING, STUDY = "MLFLOW_TRACKING_URI", "GREEN_TUNE_STUDY_STORAGE"
NETWORKED = ("http", "https", "postgresql", "postgresql+psycopg2", "mysql+pymysql")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, and nothing set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(TRACKING, raising=False)
    monkeypatch.delenv(STUDY, raising=False)
    return tmp_path


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Somebody who listens on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def closed() -> str:
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"127.0.0.1:{listening.getsockname()[1]}"


def refusal(url: str) -> str:
    with pytest.raises(StoreError) as caught:
        check_reachable(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_runs_are_kept_in_the_working_folder(here: Path) -> None:
    assert tracking_uri() == f"sqlite:///{here}/mlflow.db"
    assert study_url() == f"sqlite:///{here}/optuna.db"
    check_reachable(tracking_uri())
    check_reachable(study_url())
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("tracking", "study"),
    [
        ("sqlite:////data/runs/mlflow.db", "sqlite:////data/runs/optuna.db"),
        ("sqlite:///runs/mlflow.db", "sqlite:///{here}/runs/optuna.db"),
        ("sqlite:///mlflow.db", "sqlite:///{here}/optuna.db"),
        ("http://tracking:5000", "sqlite:///{here}/optuna.db"),
    ],
)
def test_a_study_stands_beside_the_tracking_store(
    here: Path, monkeypatch: pytest.MonkeyPatch, tracking: str, study: str
) -> None:
    monkeypatch.setenv(TRACKING, tracking)
    assert tracking_uri() == tracking
    assert study_url() == study.format(here=here)


def test_a_study_may_be_kept_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STUDY, "postgresql://host/db")
    assert study_url() == "postgresql://host/db"


@pytest.mark.parametrize("scheme", NETWORKED)
def test_a_server_that_listens_is_reachable(server: socket.socket, scheme: str) -> None:
    check_reachable(f"{scheme}://user:secret@127.0.0.1:{server.getsockname()[1]}/path")


@pytest.mark.parametrize("scheme", NETWORKED)
def test_a_study_storage_that_is_down_is_named_without_its_password(
    closed: str, scheme: str
) -> None:
    line = refusal(f"{scheme}://user:secret@{closed}/db")
    assert closed in line
    assert STUDY in line
    assert "secret" not in line


def test_a_tracking_server_that_is_down_is_named_with_what_to_do(
    closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TRACKING, f"http://{closed}")
    line = refusal(f"http://{closed}")
    assert line.startswith(f"nobody answers at {closed} (")
    assert "start the server" in line
    assert f"unset {TRACKING}" in line


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".invalid"])
def test_a_host_that_cannot_exist_is_named(host: str) -> None:
    assert f"{host}:5000" in refusal(f"http://{host}:5000")


@pytest.mark.parametrize("address", ["localhost:abc", "localhost:99999", "[::1", ""])
def test_an_address_that_is_none_is_shown_whole(address: str) -> None:
    assert f"http://{address}" in refusal(f"http://{address}")


@pytest.mark.parametrize("rest", ["u:sec/ret@host/db", "u:secret@/db", "u:secret@host:port/db"])
def test_an_address_that_is_none_is_shown_without_its_password(rest: str) -> None:
    line = refusal(f"postgresql://{rest}")
    assert f"postgresql://{rest.split('@')[1]}" in line
    assert "sec" not in line


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/data/mlruns", "file:///data/mlruns"])
def test_a_folder_of_files_is_refused_with_what_would_do(
    monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.setenv(TRACKING, uri)
    line = refusal(uri)
    assert line.startswith(f"{uri} is a folder, which MLflow 3 no longer accepts")
    assert "sqlite:///" in line
    assert f"unset {TRACKING}" in line


@pytest.mark.parametrize("url", ["optuna.db", "file:///data/optuna.db"])
def test_a_study_storage_that_is_no_url_is_refused_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv(STUDY, url)
    line = refusal(url)
    assert url in line
    assert STUDY in line
    assert "MLflow" not in line


@pytest.mark.parametrize("kind", ["missing", "file"])
@pytest.mark.parametrize("prefix", ["sqlite:///", "sqlite+pysqlite:///"])
def test_a_database_whose_folder_is_not_there_is_refused(
    here: Path, kind: str, prefix: str
) -> None:
    (here / "file").touch()
    for place in (here / kind, Path(kind)):
        line = refusal(f"{prefix}{place}/mlflow.db")
        assert str(place) in line
        assert "create" in line


def test_a_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path, made = tmp_path / "runs.db", list[str]()

    def halfway(url: str) -> None:
        Path(url.removeprefix("sqlite:///")).write_text("half of the tables")
        raise KeyboardInterrupt

    def whole(url: str) -> None:
        made.append(url)
        Path(url.removeprefix("sqlite:///")).write_text("all of the tables")

    with pytest.raises(KeyboardInterrupt):
        store.make_whole(f"sqlite:///{path}", halfway)
    assert not path.exists()
    for _ in range(2):
        store.make_whole(f"sqlite:///{path}", whole)
    assert path.read_text() == "all of the tables"
    assert len(made) == 1
    store.make_whole("postgresql://server/runs", halfway)  # a server's database is not ours to make


def test_only_one_process_at_a_time_makes_a_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    order: list[str] = []

    def enter(name: str) -> None:
        with store.made_by_one(url):
            order.append(f"{name} in")
            time.sleep(0.05)
            order.append(f"{name} out")

    threads = [threading.Thread(target=enter, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    url, precious = f"sqlite:///{tmp_path / 'runs.db'}", tmp_path / "precious"
    precious.write_text("of somebody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
        with store.made_by_one(url):
            (lock,) = tmp_path.glob("*.lock")
        lock.unlink()
        lock.symlink_to(precious)
        with pytest.raises(OSError, match="lock"), store.made_by_one(url):
            pass
    assert precious.read_text() == "of somebody"


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite:///runs.db?timeout=5"])
def test_what_is_no_plain_file_is_left_to_mlflow(here: Path, url: str) -> None:
    store.make_whole(url, lambda draft: pytest.fail(f"{draft} was made"))
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("given", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_postgresql_is_spoken_to_with_the_driver_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{given}://me:pw@host:5433/runs")
    assert store.tracking_uri() == "postgresql+psycopg2://me:pw@host:5433/runs"


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_patience_that_is_no_number_is_said_before_anything_is_waited_for(
    here: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", text)
    with pytest.raises(ConfigError, match=f"GREEN_TUNE_PATIENCE_S={text} is no number of seconds"):
        store.check_reachable(store.tracking_uri())


def test_a_store_that_answers_within_the_patience_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(store, "FIRST_WAIT_S", 0.0)
    errors: Iterator[Exception] = iter([OSError("away"), OSError("away"), ValueError("wrong")])

    def call() -> None:
        raise next(errors)

    with pytest.raises(ValueError, match="wrong"):
        store.patiently(call, lambda error: str(error) * isinstance(error, OSError))
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    errors = repeat(OSError("away"))
    with pytest.raises(StoreAway, match="away"):
        store.patiently(call, str)
