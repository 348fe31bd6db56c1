"""The team's server without Docker: PostgreSQL, an S3 store and MLflow's server, on the loopback.

    python docker/native.py --folder FOLDER [--port 5000] [--workers 2] [--no-login]

All that it keeps is in FOLDER: the secrets, made at the first start, and the data, there again at
the next. It runs until Ctrl-C. What each server is, `processes` knows, and what they serve, `team`.
"""

import argparse
import os
import signal
import socket
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from random import SystemRandom
from types import FrameType

import team
from processes import HOST, S3, WORKERS, Mlflow, Postgres, Server, Unready

__all__ = ["Server", "Stack", "check_free", "three_ports"]

LOOK_S = 0.5  # between looks at the servers that run


class Stack:
    """The three in one folder, at three ports, one after the other."""

    def __init__(
        self, folder: Path, port: int, *, asks: bool = True, workers: int = WORKERS
    ) -> None:
        self.folder, self.asks = folder, asks
        for each in (port, port + 1, port + 2):
            check_free(each)
        _make_folder(folder)
        team.make_secrets(folder / "secrets")
        self.secrets = team.read_secrets(folder / "secrets")
        self.postgres = Postgres(folder / "postgres", self.secrets["postgres"], port + 2)
        self.s3 = S3(folder / "artifacts", self.secrets["s3"], port + 1)
        self.mlflow = self._server(port, workers)

    @property
    def servers(self) -> tuple[Server, ...]:
        """In the order in which they start."""
        return self.postgres, self.s3, self.mlflow

    def start(self, closing: ExitStack) -> None:
        """Each when the one before it answers; `closing` stops them, the last one first."""
        for server in self.servers:
            closing.callback(server.stop)
            server.start()
            if server is self.postgres:
                superuser = self.postgres.url("postgres").replace("://", "+psycopg2://")
                team.make_databases(superuser, self.secrets)
            elif server is self.s3:
                team.make_bucket(self.s3.url, self.secrets["s3"])

    def watch(self) -> str:
        """Waits until one of them has ended; what is to be said of it."""
        while True:
            for server in self.servers:
                if (code := server.ended) is not None:
                    return f"{server.name} has ended with {code} (what it wrote: {server.log})"
            time.sleep(LOOK_S)

    def told(self) -> str:
        """Writes what a member's shell needs, for the user alone; what to do with it."""
        kept = self.folder / "team.env"
        kept.touch(mode=0o600)
        kept.chmod(0o600)
        database = f"{HOST}:{self.postgres.port}"
        needed = team.needed(self.mlflow.url, database, self.secrets, asks=self.asks)
        kept.write_text(team.exports(needed))
        login = " MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD," if self.asks else ""
        asked = f"user admin, password in {self.folder}/secrets/admin" if self.asks else "no login"
        return (
            f"MLflow's server is up at {self.mlflow.url} ({asked}), PostgreSQL at {database}.\n"
            f"In another shell: source {kept}    for MLFLOW_TRACKING_URI,{login} "
            "GREEN_TUNE_STUDY_STORAGE\n"
            "Ctrl-C stops it; the same command starts it again with all that it has.\n"
        )

    def _server(self, port: int, workers: int) -> Mlflow:
        where, database = self.folder / "server", f"{HOST}:{self.postgres.port}"
        where.mkdir(mode=0o700, exist_ok=True)
        environment = {**self.s3.environment, "PGPASSWORD": self.secrets["mlflow"], **team.hosts()}
        if self.asks:
            environment |= team.login(where, database, self.secrets)
        place = team.address("tracking", database)
        return Mlflow(where, place, port, environment, workers=workers)


def check_free(port: int) -> None:
    """Raises Unready for a port that somebody has."""
    try:
        socket.create_server((HOST, port)).close()
    except (OSError, OverflowError):
        raise Unready(
            f"port {port} cannot be had; with --port N the three are N, N+1 and N+2"
        ) from None


def three_ports() -> int:
    """The first of three that nobody has, below those that clients are given."""
    while True:
        first = SystemRandom().randrange(20_000, 32_000)
        with suppress(Unready):
            for port in range(first, first + 3):
                check_free(port)
            return first


def _make_folder(folder: Path) -> None:
    """For its user alone; for root others may pass, since PostgreSQL is `nobody` then."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
        for name in ("secrets", "artifacts"):
            (folder / name).mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Unready(f"{folder} cannot be used: {error.strerror}") from None
    closed = [str(above) for above in folder.parents if not above.stat().st_mode & 0o001]
    if os.geteuid() == 0 and closed:
        raise Unready(
            f"PostgreSQL does not run as root, and `nobody` cannot enter {closed[0]}: start it as "
            "another user, or name another folder"
        )


def _stopped(number: int, frame: FrameType | None) -> None:
    """One signal stops it; a second one finds it at that."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def run(folder: Path, port: int, *, asks: bool, workers: int) -> str:
    """Until it is stopped, or one of the servers has ended; what is to be said of that."""
    with ExitStack() as closing:
        stack = Stack(folder, port, asks=asks, workers=workers)
        stack.start(closing)
        sys.stdout.write(stack.told())
        sys.stdout.flush()
        return stack.watch()


def main() -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description="The team's server without Docker.")
    parser.add_argument("--folder", type=Path, required=True, help="where its data are")
    parser.add_argument("--port", type=int, default=team.PORT, help="of MLflow's server")
    parser.add_argument("--workers", type=int, default=WORKERS, help="processes of MLflow's server")
    parser.add_argument("--no-login", action="store_true", help="who reaches the port may do all")
    asked = parser.parse_args()
    folder, asks = asked.folder.resolve(), not asked.no_login
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _stopped)
    try:
        ended = run(folder, asked.port, asks=asks, workers=asked.workers)
    except KeyboardInterrupt:
        return 0
    except Unready as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"error: {ended}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
