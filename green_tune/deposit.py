"""The store of artifacts: whether it keeps what it is given, tried with a small object.

A look of `doctor`. What is written is read and removed again, whatever happens. A door to boto3,
which MLflow uses for s3:// itself, with the same settings; here with time limits.
"""

import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from green_tune.checkup import WORTH, WRONG, Finding, first_line, ms, nearest, refused
from green_tune.errors import StoreError
from green_tune.services import ANSWER_S, REFUSALS, Answer

CONNECT_S = 3.0
PROXY = "/api/2.0/mlflow-artifacts/artifacts"
LEFT = "green-tune-doctor.txt"
PLAIN = {"Content-Type": "text/plain"}
PROBE = b"green-tune doctor: may be removed\n"
S3_FIXES = {  # by the code of an S3 server's refusal
    "NoSuchBucket": "create the bucket, or correct the experiment's artifact location",
    "AccessDenied": "grant these keys the right to read, write and delete in the bucket",
    "RequestTimeTooSkewed": "set this machine's clock: S3 refuses what is 15 minutes off",
}
S3_KEYS = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_PROFILE, or a role)"


def look(place: str, uri: str) -> Finding:
    """A small object is written, read and removed, as a run's files would be."""
    kind = urlsplit(place).scheme
    if kind == "s3":
        return _in_bucket(place)
    if kind == "mlflow-artifacts" or (kind in ("http", "https") and PROXY in place):
        return _through_server(place, uri)
    if kind in ("", "file"):
        return _in_folder(place, uri)
    what = f"{kind}: is a kind of place that doctor does not know; not looked at"
    fix = f"try a short run: python -m entrypoints.train, and look for its files in {kind}:"
    return Finding(name="artifacts", what=what, level=WORTH, fix=fix)


def _in_folder(place: str, uri: str) -> Finding:
    folder = Path(urlsplit(place).path if place.startswith("file:") else place)
    if uri.startswith("http"):
        what = f"{folder}, a folder: right only if it is the same on the server and here"
        fix = "start the server with --artifacts-destination, and make a new experiment"
        if not folder.is_dir():
            return Finding(name="artifacts", what=what, level=WRONG, fix=fix)
    try:
        with tempfile.TemporaryFile(dir=nearest(folder)) as file:
            file.write(PROBE)
            file.flush()
    except OSError as error:
        what = f"nothing can be written in {folder}: {error.strerror}"
        return Finding(name="artifacts", what=what, level=WRONG, fix="make it writable")
    return Finding(name="artifacts", what=f"{folder}: written, removed")


def _through_server(place: str, uri: str) -> Finding:
    """Who may not remove what is there writes a file of one name, so that one is left at most."""
    from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

    resolve: Any = MlflowArtifactsRepository.resolve_uri
    root, name, begun = resolve(place, uri), _new_name(), time.monotonic()
    try:
        if _remove(root, name).status in REFUSALS:
            name = LEFT
        try:
            got = Answer(root, f"/{name}", "PUT", data=PROBE, extra_headers=PLAIN)
            got = Answer(root, f"/{name}") if got.ok else got
        finally:
            gone = _remove(root, name).ok
    except StoreError as error:
        return refused("artifacts", error)
    if not got.ok:
        return _not_through(got)
    if got.content != PROBE:
        return _unlike("through the server")
    kept = "removed" if gone else f"left there as {name}, since we may not remove it"
    what = f"through the server: written, read and {kept}, in {ms(time.monotonic() - begun)}"
    return Finding(name="artifacts", what=what)


def _remove(root: str, name: str) -> Answer:
    return Answer(root, f"/{name}", "DELETE")


def _not_through(got: Answer) -> Finding:
    if got.status in REFUSALS:
        fix = "ask for the right to edit the experiment"
    else:
        fix = "the server cannot use its own store: look at its log, its bucket and its keys"
    what = f"through the server: refused (status {got.status}): {got.reason}"
    return Finding(name="artifacts", what=what, level=WRONG, fix=fix)


def _unlike(where: str) -> Finding:
    what, fix = f"{where}: what is read is not what was written", "look at what is before the store"
    return Finding(name="artifacts", what=what, level=WRONG, fix=fix)


def _in_bucket(place: str) -> Finding:
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
    )

    parts, begun = urlsplit(place), time.monotonic()
    where = {"Bucket": parts.netloc, "Key": f"{parts.path}/{_new_name()}"[1:]}
    address = f"s3://{parts.netloc}"
    try:
        same = _kept_and_removed(_s3(), where)
    except ClientError as error:
        return _refused_by_s3(address, where["Key"], error)
    except (BotoCoreError, ValueError) as error:  # the latter of an address that is none
        reason = first_line(error)
        keys = "credentials" in reason.lower()
        fix = S3_KEYS if keys else "start the S3 server, or correct MLFLOW_S3_ENDPOINT_URL"
        return Finding(name="artifacts", what=f"{address}: {reason}", level=WRONG, fix=fix)
    what = f"{address}: written, read and removed in {ms(time.monotonic() - begun)}"
    return Finding(name="artifacts", what=what) if same else _unlike(address)


def _refused_by_s3(address: str, key: str, error: Any) -> Finding:
    if error.operation_name == "DeleteObject":
        fix = "an administrator may remove it; trainings do not need that right"
        what = f"{address}: written and read, but not removed: {key}"
        return Finding(name="artifacts", what=what, level=WORTH, fix=fix)
    fix = S3_FIXES.get(error.response.get("Error", {}).get("Code", ""), S3_KEYS)
    what = f"{address}: {first_line(error)}"
    return Finding(name="artifacts", what=what, level=WRONG, fix=fix)


def _kept_and_removed(client: Any, where: dict[str, str]) -> bool:
    """Whether what is read is what was written; it is removed whatever happens."""
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository

    given: Any = S3ArtifactRepository.get_s3_file_upload_extra_args
    extra = given() or {}
    try:
        client.put_object(**where, Body=PROBE, **extra)
        same = bool(client.get_object(**where)["Body"].read() == PROBE)
    except BaseException:
        with suppress(BotoCoreError, ClientError):  # it may be there for all that
            client.delete_object(**where)
        raise
    client.delete_object(**where)
    return same


def _new_name() -> str:
    return f"green-tune-doctor-{uuid4().hex}.txt"


def _s3() -> Any:
    """A client as MLflow's, but impatient."""
    import boto3  # type: ignore[import-untyped]
    from botocore.config import Config
    from mlflow import environment_variables

    settings: Any = environment_variables

    return boto3.Session().client(  # of its own: the default one remembers earlier keys
        "s3",
        endpoint_url=settings.MLFLOW_S3_ENDPOINT_URL.get(),
        verify=False if settings.MLFLOW_S3_IGNORE_TLS.get() else None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": settings.MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE.get()},
            connect_timeout=CONNECT_S,
            read_timeout=ANSWER_S,
            retries={"total_max_attempts": 1},
        ),
    )
