"""A database that cannot be used is one line, with what to do, and never a password."""

import traceback
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
import sqlalchemy
from postgres import Postgres
from sqlalchemy.exc import OperationalError

from green_tune import databases
from green_tune.errors import StoreError
from green_tune.storage import open_storage

SECRET = "hunter2/%{x}:y"
NEVER = "v99.0.0.a"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def new_study(url: str) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url))


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
    monkeypatch.setattr(databases, "MOUNTS", mounts)
    open_storage(f"sqlite:///{shared / 'optuna.db'}")
    assert [("PostgreSQL" in message) for message in caplog.messages] == [True] * warned
