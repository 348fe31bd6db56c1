"""Where results are kept: the tracking store and the study's storage, by URL.

It decides and checks addresses, with the standard library only, so that a server that is down
is noticed at once. `tracking` and `sweep` open what it names.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from green_tune.errors import StoreError

TIMEOUT_S = 3.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file in the working folder, as `mlflow run` has it.

    Named in full, because MLflow's own default turns to a file store, which it then refuses,
    wherever an old ./mlruns is found.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


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
    """Raises StoreError when nobody listens at `url`, or its SQLite file cannot be there."""
    parts = urlsplit(url)
    scheme = parts.scheme.split("+")[0]
    if scheme == "sqlite":
        _check_folder(Path(url.split("///", 1)[-1]).parent)
    elif scheme in PORTS and parts.hostname:
        _check_listening(url, parts.hostname, parts.port or PORTS[scheme])
    elif scheme in ("", "file"):
        raise StoreError(
            f"{url} is a folder, which MLflow 3 no longer accepts as a tracking store; "
            "use sqlite:///FILE, a server's http://HOST:PORT, or unset MLFLOW_TRACKING_URI"
        )


def _check_folder(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise StoreError(f"the folder {folder} of the store does not exist or is not writable")


def _check_listening(url: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=TIMEOUT_S).close()
    except OSError as error:
        raise StoreError(
            f"nobody answers at {host}:{port} ({error}); start the server, or unset "
            "MLFLOW_TRACKING_URI to keep runs in an SQLite file in this folder"
            if url == tracking_uri()
            else f"the study's storage at {host}:{port} cannot be reached ({error})"
        ) from None
