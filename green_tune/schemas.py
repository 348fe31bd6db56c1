"""The tables of MLflow and Optuna, in a file or on a server: ours to use, and of which version?

Each function is a look, or a part of one, of `doctor`. Nothing is changed: an SQLite file is only
read, and on a PostgreSQL server a table is made in a transaction that is taken back. Versions are
read from the libraries' migrations, as files; `storage` and `tracking` are who makes tables.
"""

import os
import re
import sqlite3
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from green_tune import store
from green_tune.checkup import WRONG, Finding, first_line, gone, ms, off, refused
from green_tune.errors import StoreError

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

CONNECT_S, ANSWER_S = 3, 4
TRACKING, STUDY = "MLFLOW_TRACKING_URI", "GREEN_TUNE_STUDY_STORAGE"
FOLDER = "mlruns"  # of artifacts, where MLflow's client makes an experiment in a database
EXPERIMENTS = "SELECT experiment_id, name, artifact_location, lifecycle_stage FROM experiments"
REVISION = re.compile(r"""^revision\s*(?::[^=]*)?=\s*["']([^"']+)["']""", re.MULTILINE)
DOWN = re.compile(r"^down_revision\s*(?::[^=]*)?=\s*(.+)$", re.MULTILINE)
MIGRATIONS = {"mlflow": "store/db_migrations", "optuna": "storages/_rdb/alembic"}


def tracking_file(uri: str) -> Generator[Finding, None, str | None]:
    """MLflow's tables in an SQLite file; returns where the artifacts go."""
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
    if not path.exists():
        yield Finding(name="tracking", what=f"{path} will be made by the first run")
        return FOLDER
    try:
        with closing(_read_only(path)) as database:
            revision = _first(database, "SELECT version_num FROM alembic_version")
            rows = database.execute(EXPERIMENTS).fetchall()
    except sqlite3.Error as error:
        fix = f"if a run is under way, try again; else move it away, or correct {TRACKING}"
        what = f"{path} is no store of MLflow's that can be read: {error}"
        yield Finding(name="tracking", what=what, level=WRONG, fix=fix)
        return None
    yield from _writable("tracking", path, TRACKING)
    upgrade = f"back it up, then: mlflow db upgrade sqlite:///{path}"
    yield _schema("tracking", str(path), "mlflow", revision, upgrade)
    name, location, stage = _chosen(rows)
    yield from gone(name, stage)
    return location


def tracking_database(uri: str) -> Generator[Finding, None, str | None]:
    """MLflow's tables on a database server; returns where the artifacts go.

    Raises:
        StoreError: it cannot be used.
    """
    from sqlalchemy import make_url

    from green_tune import databases

    where = make_url(uri)
    try:
        with databases.explained(where), _connected(where) as connection:
            return (yield from _tracking_tables(connection, databases.shown(where)))
    except StoreError as error:  # `databases` is about studies
        raise StoreError(str(error).replace(STUDY, TRACKING)) from None


def _tracking_tables(connection: "Connection", shown: str) -> Generator[Finding, None, str]:
    begun = time.monotonic()
    tables = _names(connection)
    shown = f"{shown} answers in {ms(time.monotonic() - begun)}"
    if "experiments" not in tables:
        yield from _empty(connection, "tracking", f"{shown}; the first run makes its tables")
        return FOLDER
    revision = _scalar(connection, "SELECT version_num FROM alembic_version")
    upgrade = f'back it up, then: mlflow db upgrade "${TRACKING}"'
    yield _schema("tracking", shown, "mlflow", revision, upgrade)
    rows = connection.exec_driver_sql(EXPERIMENTS).all()
    name, location, stage = _chosen([tuple(row) for row in rows])
    yield from gone(name, stage)
    return location


def _chosen(rows: Sequence[tuple[Any, ...]]) -> tuple[str, str, str]:
    """Name, place and stage of the experiment that runs would go to, which may be still to make."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    wanted = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    for row in rows:
        if (str(row[0]) == number) if number else (row[1] == wanted):
            return str(row[1]), str(row[2]), str(row[3])
    return wanted, FOLDER, ""


def studies() -> Iterator[Finding]:
    """The database of studies: whether it can be used, and for what."""
    from green_tune import databases

    url = store.study_url()
    try:
        where = databases.parse(url)
        store.check_reachable(url)
        if where.get_backend_name() == "sqlite":
            yield from _study_file(Path(str(where.database)))
            return
        with databases.explained(where), _connected(where) as connection:
            yield from _study_tables(connection, databases.shown(where))
    except StoreError as error:
        yield refused("studies", error)


def _study_file(path: Path) -> Iterator[Finding]:
    if not path.exists():
        yield Finding(name="studies", what=f"{path} will be made by the first sweep")
        return
    try:
        with closing(_read_only(path)) as database:
            names = {row[0] for row in database.execute("SELECT name FROM sqlite_master")}
            revision = None
            if "alembic_version" in names:
                revision = _first(database, "SELECT version_num FROM alembic_version")
    except sqlite3.Error as error:
        fix = f"move the file away, or name another one in {STUDY}"
        what = f"{path} cannot be read: {error}"
        yield Finding(name="studies", what=what, level=WRONG, fix=fix)
        return
    yield from _writable("studies", path, STUDY)
    yield _of_studies(str(path), names, revision)


def _study_tables(connection: "Connection", shown: str) -> Iterator[Finding]:
    begun = time.monotonic()
    names = _names(connection)
    shown = f"{shown} answers in {ms(time.monotonic() - begun)}"
    if "alembic_version" not in names and "version_info" not in names:
        yield from _empty(connection, "studies", f"{shown}; its tables can be made")
    else:
        revision = None
        if "alembic_version" in names:
            revision = _scalar(connection, "SELECT version_num FROM alembic_version")
        yield _of_studies(shown, names, revision)
        yield from _may_write(connection, "trials" if "trials" in names else "")
    if connection.dialect.name == "postgresql":
        there = _scalar(connection, "SELECT extract(epoch FROM clock_timestamp())")
        yield from off("studies", "the database's", time.time() - float(there))


def _of_studies(shown: str, names: set[str], revision: Any) -> Finding:
    if "alembic_version" in names and "version_info" not in names:
        fix = f"give studies a database of their own in {STUDY}"
        what = f"{shown}; it holds another program's tables, perhaps MLflow's"
        return Finding(name="studies", what=what, level=WRONG, fix=fix)
    if not names:
        return Finding(name="studies", what=f"{shown}; its tables are made by the first sweep")
    upgrade = f'back it up, then: optuna storage upgrade --storage "${STUDY}"'
    return _schema("studies", shown, "optuna", revision, upgrade)


def _empty(connection: "Connection", name: str, what: str) -> Iterator[Finding]:
    """Whether tables could be made: one is, in a transaction that is taken back."""
    from sqlalchemy.exc import SQLAlchemyError

    if connection.dialect.name != "postgresql":  # others keep what a transaction has made
        yield Finding(name=name, what=what)
        return
    try:
        connection.exec_driver_sql(f"CREATE TABLE green_tune_doctor_{uuid4().hex} (id integer)")
    except SQLAlchemyError as error:
        reason = first_line(getattr(error, "orig", None) or error)
        fix = "grant its user the right to create tables there (GRANT CREATE ON SCHEMA public)"
        yield Finding(name=name, what=f"no table can be made: {reason}", level=WRONG, fix=fix)
    else:
        yield Finding(name=name, what=what)
    finally:
        connection.rollback()


def _may_write(connection: "Connection", table: str) -> Iterator[Finding]:
    if connection.dialect.name != "postgresql" or not table:
        return
    allowed = _scalar(connection, f"SELECT has_table_privilege('{table}', 'INSERT')")
    if not allowed or _scalar(connection, "SHOW transaction_read_only") == "on":
        what, fix = "its tables can only be read", "grant its user the right to write, or take the"
        yield Finding(name="studies", what=what, level=WRONG, fix=f"{fix} primary server")


def _schema(name: str, shown: str, library: str, revision: Any, upgrade: str) -> Finding:
    """Whether the tables are those of the library that is here."""
    version, known = metadata.version(library), revisions(library)
    if revision == known[0]:
        return Finding(name=name, what=f"{shown}, tables of {library} {version}")
    what = f"{shown}: its tables are not those of {library} {version}, which will not use them"
    if revision in known:
        return Finding(name=name, what=f"{what}; they are older", level=WRONG, fix=upgrade)
    fix = f"install the {library} that made it, or use another database"
    return Finding(name=name, what=f"{what}; they are of another one", level=WRONG, fix=fix)


def revisions(library: str) -> list[str]:
    """The versions of a library's tables, the newest first; read from its files, nothing is run.

    Its migrations name themselves and those that they follow; the newest is followed by none.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        raise ImportError(f"No module named '{library}'", name=library)
    folder = Path(spec.origin).parent / MIGRATIONS[library] / "versions"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("*.py")]
    names = {found[1] for text in texts if (found := REVISION.search(text))}
    followed = " ".join(found[1] for text in texts if (found := DOWN.search(text)))
    past = {name for name in names if re.search(rf"[\"']{re.escape(name)}[\"']", followed)}
    return [*sorted(names - past), *sorted(past)]


def _read_only(path: Path) -> sqlite3.Connection:
    """An SQLite file as it is; without a journal beside it, even one in WAL mode leaves none."""
    logged = path.with_name(f"{path.name}-wal")
    way = "mode=ro" if logged.exists() and logged.stat().st_size else "immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{way}", uri=True, timeout=CONNECT_S)


def _first(database: sqlite3.Connection, query: str) -> Any:
    found = database.execute(query).fetchone()
    return found[0] if found else None


def _writable(name: str, path: Path, setting: str) -> Iterator[Finding]:
    if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        fix = f"make the file and its folder writable, or correct {setting}"
        yield Finding(name=name, what=f"{path} can only be read", level=WRONG, fix=fix)


@contextmanager
def _connected(where: "URL") -> "Iterator[Connection]":
    """A connection that waits for no one, and whose transaction is taken back."""
    import sqlalchemy
    from sqlalchemy.pool import NullPool

    from green_tune import databases

    settings = databases.connect_args(where)
    if settings:
        settings = {**settings, "connect_timeout": CONNECT_S}
    engine = sqlalchemy.create_engine(where, poolclass=NullPool, connect_args=settings)
    with engine.connect() as connection:
        if where.get_backend_name() == "postgresql":
            connection.exec_driver_sql(f"SET statement_timeout = {ANSWER_S * 1000}")
            connection.commit()  # a rollback would undo it
        yield connection


def _names(connection: "Connection") -> set[str]:
    """The tables of a database."""
    from sqlalchemy import inspect

    return set(inspect(connection).get_table_names())


def _scalar(connection: "Connection", query: str) -> Any:
    return connection.exec_driver_sql(query).scalar()
