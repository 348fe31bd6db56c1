"""Where results are kept: the tracking store and the study's storage, by URL.

It decides and checks addresses, with the standard library only, so that a server that is down
is noticed at once. `tracking` and `sweep` open what it names.
"""

import fcntl
import hashlib
import logging
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from green_tune import secrecy
from green_tune.errors import ConfigError, StoreAway, StoreError

T = TypeVar("T")
log = logging.getLogger(__name__)
TIMEOUT_S = 3.0
PATIENCE_S = 120.0  # a result waits so long for a store that is away, by default
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 10.0
LOGIN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the working folder, as `mlflow run` has it.

    Named in full, because MLflow's own default turns to a file store, which it then refuses,
    wherever an old ./mlruns is found. PostgreSQL is spoken to with the driver that is installed:
    what SQLAlchemy takes by itself has changed from version to version.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    return _with_driver(uri)


def registry_uri(tracking: str) -> str:
    """MLFLOW_REGISTRY_URI, or the tracking store's address: it has a registry of its own."""
    return _with_driver(os.environ.get("MLFLOW_REGISTRY_URI") or tracking)


def _with_driver(uri: str) -> str:
    return re.sub("^postgres(ql)?://", "postgresql+psycopg2://", uri)


def study_url() -> str:
    """GREEN_TUNE_STUDY_STORAGE, or an SQLite file beside the tracking store's.

    An environment variable and no parameter: MLflow logs parameters, and a database URL may
    hold a password.
    """
    if url := os.environ.get("GREEN_TUNE_STUDY_STORAGE"):
        return url
    uri = tracking_uri()
    folder = Path(uri.removeprefix("sqlite:///")).parent if uri.startswith("sqlite") else Path.cwd()
    return f"sqlite:///{folder.resolve() / 'optuna.db'}"


def check_reachable(url: str) -> None:
    """Raises StoreError when nobody listens at `url`, or its SQLite file cannot be there.

    Also ConfigError when the patience with a store is no number: needed later, it is known now.
    """
    patience_s()
    setting = _setting(url)
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.split("+")[0], parts.hostname, parts.port
    except ValueError:  # its text may hold a part of a password
        raise StoreError(f"{_hide(url)} is no address; correct {setting}") from None
    if scheme == "sqlite":
        _check_folder(Path(url.split("///", 1)[-1]).parent, setting)
    elif scheme in PORTS and not host:
        raise StoreError(f"{_hide(url)} names no host; correct {setting}")
    elif scheme in PORTS and "@" in parts.netloc.partition("@")[2] + url.partition(parts.netloc)[2]:
        raise StoreError(  # else the rest of a password would be taken for a host, and named
            f"the address in {setting} has an @ that is not before its host; write an @ of a "
            "password as %40, its / as %2F and its # as %23"
        )
    elif scheme in PORTS:
        _check_listening(str(host), port or PORTS[scheme], setting)
    elif scheme in ("", "file"):
        study = setting == "GREEN_TUNE_STUDY_STORAGE"
        what = "no database" if study else "a folder, which MLflow 3 no longer accepts"
        raise StoreError(
            f"{secrecy.hide(url)} is {what}; use sqlite:///FILE, a server's URL, or unset {setting}"
        )


def _setting(url: str) -> str:
    """Where a user has named an address."""
    if url == tracking_uri():
        return "MLFLOW_TRACKING_URI"
    named = "MLFLOW_REGISTRY_URI" in os.environ and url == registry_uri("")
    return "MLFLOW_REGISTRY_URI" if named else "GREEN_TUNE_STUDY_STORAGE"


@contextmanager
def made_by_one(url: str) -> Iterator[None]:
    """A block that only one process of this user is in at a time, for an SQLite file.

    MLflow and Optuna make their tables when they first open it, and two that do so at once
    break each other.
    """
    if not url.startswith("sqlite"):
        yield
        return
    name = f"green-tune-{os.getuid()}-{hashlib.sha256(url.encode()).hexdigest()[:16]}.lock"
    # Everybody writes to this folder: a link that somebody has put there is not followed.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(Path(tempfile.gettempdir()) / name, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # freed when it is closed, or by the process's death
        yield
    finally:
        os.close(descriptor)


def make_whole(url: str, make: Callable[[str], object]) -> None:
    """Makes an SQLite file that is not there yet under another name first.

    A process that is killed while MLflow makes its tables leaves half of them, which it never
    opens again.
    """
    path = Path(url.removeprefix("sqlite:///"))
    if not url.startswith("sqlite:///") or ":memory:" in url or "?" in url or path.exists():
        return
    draft = path.with_name(f"{path.name}.new")
    for left in (draft, draft.with_name(f"{draft.name}-journal")):
        left.unlink(missing_ok=True)
    make(f"sqlite:///{draft}")
    draft.replace(path)


def address(url: str) -> str:
    """A store's address without the user, password and query that it may hold."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def state_folder(name: str = "") -> Path:
    """Where this user's commands keep what outlives them; or one kind of it, by its name."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "green-tune" / name


def patience_s() -> float:
    """How long a result waits for a store that is away: GREEN_TUNE_PATIENCE_S.

    Raises:
        ConfigError: it is no number of seconds.
    """
    asked = os.environ.get("GREEN_TUNE_PATIENCE_S", str(PATIENCE_S))
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"GREEN_TUNE_PATIENCE_S={asked} is no number of seconds")
    return seconds


def patiently(call: Callable[[], T], away: Callable[[Exception], str]) -> T:
    """Calls until a store answers, for `patience_s` at the most.

    `away` says in words that nobody answered, and "" of other errors, which are raised.

    Raises:
        StoreAway: nobody has answered.
    """
    wait_s, until_s = FIRST_WAIT_S, time.monotonic() + patience_s()
    while True:
        try:
            return call()
        except Exception as error:
            why = away(error)
            if not why:
                raise
            if time.monotonic() > until_s:
                raise StoreAway(why) from None
            log.warning("%s, trying on", why)
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _hide(url: str) -> str:
    """`url` without the user, password and query that it may hold."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _check_folder(folder: Path, setting: str) -> None:
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise StoreError(
            f"the folder {folder} of the store does not exist or is not writable; "
            f"create it, or change {setting}"
        )


def _check_listening(host: str, port: int, setting: str) -> None:
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except (OSError, UnicodeError) as error:  # a name that no host can have is a UnicodeError
        raise StoreError(
            f"nobody answers at {host}:{port} ({error}); start the server, or unset {setting} "
            "to keep to an SQLite file in this folder"
        ) from None
