"""Which database an address means, with which settings, and in one line why it cannot be used.

It opens none and knows no study: that is `storage`. Nothing that it says holds a password.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import optuna
import sqlalchemy
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from green_tune.errors import StoreError

log = logging.getLogger(__name__)

BUSY_S = 60.0  # how long SQLite waits for another worker's transaction
RECYCLE_S = 1800  # before firewalls and servers drop idle connections, often after an hour

SETTING = "GREEN_TUNE_STUDY_STORAGE"
KINDS = ("sqlite", "postgresql", "mysql")
SCHEMES = "sqlite:///FILE, postgresql://USER:PASSWORD@HOST/DATABASE or mysql://..."
# A vanished machine is noticed within a minute, by either side; by default that takes hours.
LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
FIXES = {  # what to do, by a part of a driver's message
    "password": f"correct the user or the password in {SETTING}",
    "Access denied": f"correct the user or the password in {SETTING}",
    "not a database": f"move the file away, or name another one in {SETTING}",
    "readonly": "make the file and its folder writable",
    "locked": "another program holds it: end that one, or try again",
    "does not exist": f"create it, or correct {SETTING}",
    "permission denied": "grant the user the right to create tables there",
    "refused": f"start the server, or correct {SETTING}",
}
NETWORKED = ("nfs", "cifs", "smb", "9p", "afs", "lustre", "ceph", "gpfs", "beegfs", "fuse.sshfs",
             "fuse.gluster", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "glusterfs")  # fmt: skip
MOUNTS = Path("/proc/mounts")


def parse(url: str) -> URL:
    """The parts of `url`. What is wrong with it may hold a part of a password, so it is not said.

    A second @ would make the rest of a password the name of a host, which drivers repeat.

    Raises:
        StoreError: no database that a study can be kept in is meant.
    """
    try:
        where = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        raise StoreError(f"{SETTING} is no database's address; give {SCHEMES}") from None
    kind = where.get_backend_name()
    if kind not in KINDS:
        raise StoreError(f"a study cannot be kept in {kind}; give {SETTING} as {SCHEMES}")
    if kind == "sqlite" and where.database in (None, "", ":memory:"):
        raise StoreError(f"{SETTING} names no file; give {SCHEMES}")
    if kind != "sqlite" and url.count("@") > 1:
        raise StoreError(
            f"the address in {SETTING} has more than one @; write those of the password as %40"
        )
    # SQLAlchemy 2.1 takes another driver by default than 2.0; ours is installed with the package.
    return (
        where.set(drivername="postgresql+psycopg2") if where.drivername == "postgresql" else where
    )


def literal(where: URL) -> str:
    """As Optuna wants it, which formats it."""
    return where.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


def engine_options(where: URL) -> dict[str, Any]:
    """SQLAlchemy's settings for it: waits, and tests of connections that may be dead."""
    if where.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_S}}
    return {
        "connect_args": connect_args(where),
        "pool_pre_ping": True,
        "pool_recycle": RECYCLE_S,
    }


def connect_args(where: URL) -> dict[str, Any]:
    """LIBPQ for the drivers that stand on it; what the address says itself is left."""
    if where.drivername not in ("postgresql+psycopg2", "postgresql+psycopg"):
        return {}
    return {name: value for name, value in LIBPQ.items() if name not in where.query}


def shown(where: URL) -> str:
    """The database, as it can be shown."""
    if where.get_backend_name() == "sqlite":
        return str(where.database)
    kept = URL.create(where.drivername, host=where.host, port=where.port, database=where.database)
    return kept.render_as_string()


@contextmanager
def explained(where: URL) -> Iterator[None]:
    """Turns what a user can cause into one line, without the chain that a password may be in."""
    try:
        yield
    except NoSuchModuleError:
        raise StoreError(f"{where.drivername} is unknown; give {SETTING} as {SCHEMES}") from None
    except ImportError as error:
        package = error.name or getattr(error.__cause__, "name", None) or where.drivername
        raise StoreError(
            f"{where.drivername} needs the Python package {package}, which is not there; install it"
        ) from None
    except (
        SQLAlchemyError,
        optuna.exceptions.OptunaError,
        OSError,
        TypeError,  # an unknown setting in the address
    ) as error:
        reason = reason_of(error, where)
        known = (fix for part, fix in FIXES.items() if part in reason)
        fix = next(known, f"correct {SETTING}, or unset it to keep to a file in this folder")
        raise StoreError(f"{shown(where)} cannot be used: {reason}; {fix}") from None


def reason_of(error: BaseException, where: URL) -> str:
    """The first line of the driver's own message, without passwords."""
    if isinstance(error, optuna.exceptions.StorageInternalError) and error.__cause__:
        error = error.__cause__
    message = str(getattr(error, "orig", None) or error).strip() or type(error).__name__
    line = message.splitlines()[0]
    for secret in _secrets(where):
        for written in (secret, quote(secret, safe=""), quote_plus(secret)):
            line = line.replace(written, "***")
    return line


def _secrets(where: URL) -> list[str]:
    asked = (str(value) for name, value in where.query.items() if "pass" in name.lower())
    return [secret for secret in (where.password, *asked) if secret]


def warn_of_network(folder: Path) -> None:
    """Says so where SQLite would be kept on another machine."""
    kind = _file_system(folder)
    if kind.startswith(NETWORKED):
        log.warning(
            "%s is a network file system (%s), where SQLite loses trials; use a local folder or "
            "a PostgreSQL server in %s", folder, kind, SETTING,
        )  # fmt: skip


def _file_system(folder: Path) -> str:
    """The kind of file system that `folder` is on, as Linux names it; elsewhere nothing."""
    if not MOUNTS.exists():
        return ""
    mounts = [line.split()[1:3] for line in MOUNTS.read_text().splitlines()]
    kinds = {point.replace("\\040", " "): kind for point, kind in mounts}
    holders = (str(part) for part in (folder, *folder.parents))
    return next((kinds[part] for part in holders if part in kinds), "")
