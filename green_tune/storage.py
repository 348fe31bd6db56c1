"""The door to the study's database: many workers in one SQLite file, PostgreSQL or MySQL.

It owns how the database is opened, who may change its tables, and which trials have lost their
worker. It does not know what a trial does, nor what becomes of a lost one; what an address means
and what a driver's errors say is `databases`. SQLite is for the workers of one machine: its locks
are not reliable on a network file system. The tests run SQLite and PostgreSQL; for MySQL the same
is done as its manual has it, and nobody has run it yet.

Optuna's own heartbeats stay off. They work in `Study.optimize` only, `ask` warns of them, and one
database error ends them; their retry copies what belongs to the first attempt. Ours use its table.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, Connection, Engine, event, func, text
from sqlalchemy.pool import NullPool

from green_tune import databases, store
from green_tune.clock import Clock
from green_tune.databases import SETTING
from green_tune.errors import StoreError

log = logging.getLogger(__name__)

HEARTBEAT_S = 10.0
LEASE_S = 60.0  # since the last heartbeat: a database may be away for most of it
TICK_S = 1.0  # how late a heartbeat may be after an outage or a suspension of the machine
STOP_S = 1.0  # the longest that the end of a lease waits for a heartbeat on its way
LOCK_POLL_S = 0.1  # asking again keeps a wait open to signals, which a blocking query does not

# Heartbeats have no time zone: with a session's own, summer time would end every lease at once.
SESSION = {
    "postgresql": "SET TIME ZONE 'UTC'; SET tcp_keepalives_idle = 30; "
    "SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3",
    "mysql": "SET time_zone = '+00:00'",
}
TRY_LOCK = {
    "postgresql": "SELECT pg_try_advisory_lock(CAST(:key AS bigint))",
    "mysql": "SELECT GET_LOCK(CAST(:key AS CHAR), 0)",
}

_here = threading.local()  # the locks that this thread holds


def open_storage(url: str) -> RDBStorage:
    """The study's database with its tables, for any number of workers.

    Every transaction in SQLite takes the right to write at its beginning: there SELECT FOR UPDATE
    locks nothing, and two workers would run one queued trial. Connections to a server are tested
    before use, so that its restart during a trial does not lose the result.

    Raises:
        StoreError: the database cannot be reached or used, or its tables are of another version.
    """
    where = databases.parse(url)
    with locked(url), databases.explained(where):
        _check_ours(where)
        storage = RDBStorage(
            databases.literal(where),
            engine_kwargs=databases.engine_options(where),
            skip_compatibility_check=True,  # it would deadlock with itself after the hooks below
        )
        _check_version(storage, where)
        _set_up(storage.engine, where)
    return storage


@contextmanager
def locked(url: str) -> Iterator[None]:
    """A block that one process is in at a time, of all that use this database, on any machine.

    Freed by the process's death. A thread that is in already may enter again; two threads of one
    process exclude each other. For SQLite it holds among the processes of one user and machine.
    A server that restarts frees it too early, and a pooler of transactions (PgBouncer's) voids it.

    Raises:
        StoreError: the database cannot be reached.
    """
    where = databases.parse(url)
    held: set[str] = vars(_here).setdefault("held", set())
    if url in held:
        yield
        return
    with _lock(where):
        held.add(url)
        try:
            yield
        finally:
            held.discard(url)


class Lease:
    """A running trial's sign of life: heartbeats, by a thread, until the block ends.

    The first is there when the block begins. Whatever a database raises is logged once for each
    outage and tried again; a lease survives outages of less than LEASE_S.
    """

    def __init__(self, source: optuna.Study | RDBStorage, trial_id: int) -> None:
        self._storage = _rdb(source)
        self._trial_id = trial_id
        self._over = threading.Event()
        self._failed = False
        self._last = float("-inf")
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        while not self._over.wait(min(TICK_S, HEARTBEAT_S)):
            # Suspension counts: on waking, this has to be faster than another worker's `lost`.
            if Clock.since_boot() - self._last >= HEARTBEAT_S:
                self._beat()
        self._storage.remove_session()

    def _beat(self) -> None:
        try:
            self._storage.record_heartbeat(self._trial_id)
        except Exception as error:  # a trial must not end because its database is away
            if not self._failed:
                reason = databases.reason_of(error, self._storage.engine.url)
                log.warning("the study's storage takes no heartbeat, trying on: %s", reason)
            self._failed = True
        else:
            self._failed = False
            self._last = Clock.since_boot()


def lost(study: optuna.Study) -> list[FrozenTrial]:
    """The running trials whose worker gave no sign of life for LEASE_S, by the database's clock.

    A trial whose worker died before its first heartbeat counts from its start, which that worker's
    machine wrote down: for the moment between the two, clocks have to agree within LEASE_S.
    """
    trials, beats = models.TrialModel.__table__, models.TrialHeartbeatModel.__table__
    seen = func.coalesce(beats.c.heartbeat, trials.c.datetime_start)
    running = (
        sqlalchemy.select(trials.c.trial_id, seen, func.now())
        .select_from(trials.outerjoin(beats))
        .where(trials.c.study_id == study._study_id, trials.c.state == TrialState.RUNNING)
    )
    with _rdb(study).engine.connect() as connection:
        over = {
            trial_id
            for trial_id, at, now in connection.execute(running)
            if at is None or now.replace(tzinfo=None) - at > timedelta(seconds=LEASE_S)
        }
    found = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)) if over else []
    return [trial for trial in found if trial._trial_id in over]


def _rdb(source: optuna.Study | RDBStorage) -> RDBStorage:
    storage: Any = source._storage if isinstance(source, optuna.Study) else source
    backend: RDBStorage = getattr(storage, "_backend", storage)  # Optuna puts a cache around it
    return backend


def _check_ours(where: URL) -> None:
    """Before a table is made: MLflow, too, keeps its version in `alembic_version`."""
    settings = databases.engine_options(where)["connect_args"]
    engine = sqlalchemy.create_engine(where, poolclass=NullPool, connect_args=settings)
    with engine.connect() as connection:
        tables = sqlalchemy.inspect(connection).get_table_names()
    if "alembic_version" in tables and "version_info" not in tables:
        raise StoreError(
            f"{databases.shown(where)} holds another program's tables, perhaps MLflow's; "
            f"give the study a database of its own in {SETTING}"
        )


def _check_version(storage: RDBStorage, where: URL) -> None:
    current = storage.get_current_version()
    if current == storage.get_head_version():
        return
    with storage.engine.connect() as connection:
        made_by = connection.scalar(sqlalchemy.select(models.VersionInfoModel.library_version))
    shown = databases.shown(where)
    here = f"{shown} was made by optuna {made_by} and optuna {optuna.__version__} is here"
    if current in storage.get_all_versions():
        raise StoreError(
            f'{here}; run: optuna storage upgrade --storage "${SETTING}", or use another database'
        )
    raise StoreError(f"{here}; pip install optuna=={made_by}, or use another database")


def _set_up(engine: Engine, where: URL) -> None:
    """What every connection is given from now on; those that are open are closed for it."""
    if where.get_backend_name() == "sqlite":
        databases.warn_of_network(Path(str(where.database)).resolve().parent)
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
        event.listen(engine, "connect", _leave_transactions_to_us)
        event.listen(engine, "begin", _begin_immediate)
    else:
        event.listen(engine, "connect", _set_session(where))
    engine.dispose()


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _set_session(where: URL) -> Any:
    statement = SESSION[where.get_backend_name()]

    def set_session(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()  # a rollback would undo it

    return set_session


def _lock(where: URL) -> AbstractContextManager[None]:
    if where.get_backend_name() == "sqlite":
        return store.made_by_one(f"sqlite:///{Path(str(where.database)).resolve()}")
    return _server_lock(where)


@contextmanager
def _server_lock(where: URL) -> Iterator[None]:
    """A lock of the database's server, which lives as long as a connection of its own."""
    # MySQL's locks are of the whole server, PostgreSQL's of one database.
    digest = hashlib.sha256(f"green-tune {where.database}".encode()).digest()
    key = int.from_bytes(digest[:8], signed=True)
    with databases.explained(where):
        connection = _lock_engine(where).connect()
    try:
        with databases.explained(where):
            while not connection.scalar(text(TRY_LOCK[where.get_backend_name()]), {"key": key}):
                time.sleep(LOCK_POLL_S)
        yield
    finally:
        connection.close()


def _lock_engine(where: URL) -> Engine:
    engine = sqlalchemy.create_engine(
        where,
        poolclass=NullPool,
        pool_reset_on_return=None,  # nothing to take back, and the server may be gone
        isolation_level="AUTOCOMMIT",
        connect_args=databases.connect_args(where),
    )
    event.listen(engine, "connect", _set_session(where))
    return engine
