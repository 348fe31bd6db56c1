"""A real PostgreSQL server for the tests: the team server's own, in a folder of the moment."""

import secrets
import shutil
import sys
import tempfile
from pathlib import Path

import sqlalchemy
from sqlalchemy.pool import NullPool

sys.path.append(str(Path(__file__).parents[1] / "docker"))  # a script's folder, as when it runs

import processes

SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "60",
    "fsync": "off",  # nothing here outlives the tests
    "timezone": "America/St_Johns",  # unlike UTC by hours and a half, and with a summer time
}


class Postgres(processes.Postgres):
    """It runs already; it can be stopped and started again."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="green-tune-postgres-"))
        super().__init__(folder, secrets.token_urlsafe(12), processes.free_port(), SETTINGS)
        self.start()

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"study_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> None:
        with self._connected(database) as connection:
            connection.exec_driver_sql(statement.replace("%", "%%"))  # psycopg2 formats it

    def ask(self, query: str, database: str = "postgres") -> list[str]:
        """The first column of the answer."""
        with self._connected(database) as connection:
            return [str(found) for found in connection.scalars(sqlalchemy.text(query))]

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

    def _connected(self, database: str) -> sqlalchemy.Connection:
        url = self.url(database).replace("://", "+psycopg2://")
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        return engine.connect()
