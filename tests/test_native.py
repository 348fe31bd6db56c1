"""The team's server in parts: its secrets, its databases, its processes that end and start again.

The whole of it is in e2e/test_team.py.
"""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import native
import processes
import pytest
import sqlalchemy
import team
from postgres import Postgres
from servers import BUCKET, S3
from sqlalchemy.pool import NullPool

NATIVE = Path(native.__file__)


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("secrets")
    team.make_secrets(folder)
    return team.read_secrets(folder)


@pytest.fixture(scope="module")
def databases(postgres: Postgres, secrets: dict[str, str]) -> Postgres:
    """A server with the team's roles and databases."""
    superuser = postgres.url("postgres").replace("://", "+psycopg2://")
    team.make_databases(superuser, secrets)
    team.make_databases(superuser, secrets)  # nothing is made twice
    return postgres


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.close()


def started(*words: str, path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    """The script, where it ends by itself."""
    return subprocess.run(
        [sys.executable, str(NATIVE), *words], env=os.environ | {"PATH": path}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def test_secrets_are_made_once_each_another_one_and_for_their_owner_alone(tmp_path: Path) -> None:
    team.make_secrets(tmp_path)
    first = team.read_secrets(tmp_path)
    assert len(set(first.values())) == len(first) == 6
    assert all(len(text) >= 40 for text in first.values())
    for name in first:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name
    (tmp_path / "session").unlink()
    (tmp_path / ".session").write_text("a start that was cut off here")
    team.make_secrets(tmp_path)
    again = team.read_secrets(tmp_path)
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"session"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(first)


def test_in_containers_each_secret_belongs_to_who_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = os.geteuid(), os.getegid()
    monkeypatch.setattr(team, "READERS", dict.fromkeys(team.READERS, me))  # others need root
    monkeypatch.setattr(team, "STORE", me[0])
    (folder := tmp_path / "secrets").mkdir()
    (artifacts := tmp_path / "artifacts").mkdir()
    team.make_secrets(folder)
    team.hand_over(folder, artifacts)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {0o440}  # nobody else's


def test_of_the_containers_users_only_two_share_a_secret() -> None:
    users = [user for user, _ in team.READERS.values()]
    assert set(users) == {999, team.STORE, team.SERVER}
    shared = {name for name, (user, group) in team.READERS.items() if user != group}
    assert shared == {"s3"}


def test_what_a_member_sources_is_safe_for_a_shell(secrets: dict[str, str]) -> None:
    odd = secrets | {"admin": "a'b $(false) c"}
    places = "http://127.0.0.1:5000", "127.0.0.1:5432"
    lines = team.exports(team.needed(*places, odd))
    said = subprocess.run(
        ["sh", "-ec", f'{lines}printf "%s|%s" "$MLFLOW_TRACKING_PASSWORD" '
         '"$GREEN_TUNE_STUDY_STORAGE"'], text=True, capture_output=True, check=True,
    )  # fmt: skip
    url = f"postgresql://tuner:{secrets['tuner']}@127.0.0.1:5432/studies"
    assert said.stdout == f"a'b $(false) c|{url}"
    without = team.exports(team.needed(*places, odd, asks=False))
    assert "PASSWORD" not in without
    assert odd["admin"] not in without


def test_a_role_enters_its_own_databases_alone(
    databases: Postgres, secrets: dict[str, str]
) -> None:
    for role in ("mlflow", "tuner"):
        for database, owner in team.OWNERS.items():
            address = databases.url(database).partition("@")[2]
            url = f"postgresql+psycopg2://{role}:{secrets[role]}@{address}"
            engine = sqlalchemy.create_engine(url, poolclass=NullPool)
            if role == owner:
                with engine.begin() as mine:
                    mine.exec_driver_sql("CREATE TABLE mine (a INT)")
                    mine.exec_driver_sql("DROP TABLE mine")
            else:
                with pytest.raises(sqlalchemy.exc.OperationalError, match="permission denied"):
                    engine.connect()


def test_a_new_password_is_taken_over_at_the_next_start(
    databases: Postgres, secrets: dict[str, str]
) -> None:
    superuser = databases.url("postgres").replace("://", "+psycopg2://")
    address = databases.url("studies").partition("@")[2]
    try:
        team.make_databases(superuser, secrets | {"tuner": "another"})
        url = f"postgresql+psycopg2://tuner:another@{address}"
        sqlalchemy.create_engine(url, poolclass=NullPool).connect().close()
    finally:
        team.make_databases(superuser, secrets)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_database_that_was_stopped_or_killed_starts_again_with_its_data(
    postgres: Postgres, how: signal.Signals
) -> None:
    postgres.execute(f"CREATE TABLE before_{how.name} AS SELECT 7 AS a")
    held = sqlalchemy.create_engine(postgres.url("postgres").replace("://", "+psycopg2://"))
    with held.connect():  # a client is there
        postgres.stop(how)
        assert not postgres.answers()
        assert postgres.ended is not None
        postgres.start()
    held.dispose()
    assert postgres.ask(f"SELECT a FROM before_{how.name}") == ["7"]
    postgres.execute(f"DROP TABLE before_{how.name}")


def test_a_store_that_was_killed_starts_again_with_its_objects_and_keys(s3: S3) -> None:
    import boto3  # type: ignore[import-untyped]

    client = boto3.client(
        "s3", endpoint_url=s3.url, aws_access_key_id=s3.key, aws_secret_access_key=s3.secret
    )
    client.put_object(Bucket=BUCKET, Key="a/b", Body=b"c")
    s3.stop(signal.SIGKILL)
    assert not s3.answers()
    s3.start()
    assert s3.names() == ["a/b"]
    assert client.get_object(Bucket=BUCKET, Key="a/b")["Body"].read() == b"c"
    assert s3.secret not in " ".join(s3._command)  # which all of the machine's users can read
    team.make_bucket(s3.url, f"{s3.key},{s3.secret}")  # as at every start
    assert s3.names() == ["a/b"]


def test_a_server_that_does_not_start_is_said_with_its_own_last_line(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "raise SystemExit('no such key')"]
    server = processes.Server("the S3 store", program, tmp_path, processes.free_port())
    with pytest.raises(processes.Unready, match=r"the S3 store did not start: no such key .*log"):
        server.start()


def test_a_port_that_is_taken_is_said_before_anything_is_made(tmp_path: Path) -> None:
    with socket.create_server((processes.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = started("--folder", str(tmp_path / "team"), "--port", str(port - 1))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: port ")
    assert "cannot be had" in line
    assert not (tmp_path / "team").exists()


def test_a_folder_that_cannot_be_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = started("--folder", str(tmp_path / "file" / "team"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.endswith("cannot be used: Not a directory")


def test_in_a_container_the_server_gets_its_secrets_by_no_argument(
    tmp_path: Path, secrets: dict[str, str]
) -> None:
    mine = ("mlflow", "admin", "session", "s3")  # the others its user may not read
    for name in mine:
        (tmp_path / name).write_text(secrets[name])
    stand_in = tmp_path / "mlflow-stand-in"  # it says what it was started with
    stand_in.mkdir()
    (stand_in / "mlflow").write_text('#!/bin/sh\necho "$@"\nenv\ncat "$MLFLOW_AUTH_CONFIG_PATH"\n')
    (stand_in / "mlflow").chmod(0o755)
    program = f"import team, pathlib; team.SECRETS = pathlib.Path({str(tmp_path)!r})"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; team.main('serve')"], text=True, capture_output=True,
        env=os.environ | {"PATH": f"{stand_in}:{os.environ['PATH']}", team.HOSTS: "a.example.org",
                          "PYTHONPATH": str(NATIVE.parent)}, check=True,
    )  # fmt: skip
    arguments, *rest = done.stdout.splitlines()
    assert "--artifacts-destination s3://adapters/mlflow" in arguments
    assert "@postgres:5432/tracking" in arguments
    assert arguments.endswith("--app-name basic-auth")
    for name in mine:
        assert not any(part in arguments for part in secrets[name].split(","))
    assert f"PGPASSWORD={secrets['mlflow']}" in rest
    assert f"MLFLOW_AUTH_ADMIN_PASSWORD={secrets['admin']}" in rest
    assert "MLFLOW_DISABLE_TELEMETRY=true" in rest
    assert f"{team.HOSTS}=a.example.org,localhost:*,127.0.0.1:*" in rest  # `member` asks from here
    assert "database_uri = postgresql+psycopg2://mlflow@postgres:5432/accounts" in rest


def test_a_command_that_there_is_not_gets_the_list_of_those_there_are() -> None:
    script = [sys.executable, str(NATIVE.with_name("team.py"))]
    for words in ([], ["nothing"], ["member"]):
        done = subprocess.run([*script, *words], text=True, capture_output=True, check=False)
        assert done.returncode == 1
        assert "team.py member NAME" in done.stderr


def test_an_account_where_no_server_answers_is_one_line() -> None:
    url = f"http://{processes.HOST}:{processes.free_port()}"
    needed = team.needed(url, "127.0.0.1:1", {"tuner": "t", "admin": "a"})
    done = subprocess.run(
        [sys.executable, str(NATIVE.with_name("team.py")), "member", "rosa"],
        env=os.environ | dict(needed), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no account for rosa: the server does not answer")
