"""What a run has spent so far, on disk: after kill -9 the next command logs it.

One file for each run that is under way, in the user's state folder: lines of JSON, each on disk
before the next is measured. The file is gone once the run has its own figures. A run that goes on
before it has those of the session that was killed keeps them in a file beside it.
"""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from green_tune import store, worker
from green_tune.footprint import COLUMNS, Basis, Measurement, Segment, appended

log = logging.getLogger(__name__)


def beat(
    run_id: str,
    basis: Basis,
    segments: Sequence[Segment],
    flags: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> None:
    """Writes down what the run has spent since the heartbeat before; all of it or nothing.

    `flags` and `faults` are all that are known so far.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    path = _path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        size = file.tell()
        head = {} if size else {"basis": asdict(basis), "worker": worker.this()}
        known = {"flags": list(flags), "faults": list(faults)}
        rows = {"segments": [_row(segment) for segment in segments]}
        line = json.dumps(head | rows | {name: said for name, said in known.items() if said}) + "\n"
        try:
            _write(file, line.encode())
        except OSError:
            file.truncate(size)
            raise


def set_aside(run_id: str) -> None:
    """Keeps what a session that is dead has left, as another one of the same run begins."""
    with suppress(FileNotFoundError):
        _path(run_id).rename(_folder() / f"{run_id}.{time.time_ns()}.jsonl")


def last(run_id: str) -> Measurement | None:
    """What the run had spent at its last heartbeat; None where it had none that can be read.

    While another session of it is under way, that of those before.
    """
    whole: Measurement | None = None
    for path in _left(run_id):
        if session := _read(path):
            whole = session.after(whole) if whole else session
    return whole


def of_the_dead() -> list[str]:
    """The runs whose heartbeats a process of this machine has left behind, each once."""
    paths = sorted(_folder().glob("*.jsonl"))
    return list(dict.fromkeys(_run_id(path) for path in paths if _is_dead(path)))


def forget(run_id: str) -> None:
    """Removes the heartbeats of a run whose figures are in the store, those that `last` has."""
    with suppress(OSError):  # where none could be written, as was said then
        for path in _left(run_id):
            path.unlink(missing_ok=True)


def _left(run_id: str) -> list[Path]:
    """Its files, the oldest first; that of a session which goes on is left alone."""
    path, before = _path(run_id), sorted(_folder().glob(f"{run_id}.*.jsonl"))
    goes_on = before and path.exists() and not _is_dead(path)
    return before if goes_on else [*before, path]


def _is_dead(path: Path) -> bool:
    """True for what was set aside, and for the file of a process that is gone."""
    if path != _path(_run_id(path)):
        return True
    return worker.is_dead(str(next(_beats(path), {}).get("worker")))


def _read(path: Path) -> Measurement | None:
    try:
        beats = list(_beats(path))
        return _measurement(beats) if beats else None
    except (KeyError, TypeError, ValueError) as error:  # of another version of green-tune
        log.warning("the heartbeats of run %s cannot be read: %s", _run_id(path), error)
        return None


def _write(file: FileIO, data: bytes) -> None:
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _beats(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(errors="replace") as file:
        for line in file:
            try:
                known = json.loads(line)
            except json.JSONDecodeError:  # cut in half by a kill
                continue
            if isinstance(known, dict):
                yield known


def _measurement(beats: Sequence[dict[str, Any]]) -> Measurement:
    segments: list[Segment] = []
    for beat in beats:
        for row in beat["segments"]:
            segments = appended(segments, Segment(**dict(zip(COLUMNS, row, strict=True))))
    return Measurement(
        segments=segments,
        basis=Basis(**beats[0]["basis"]),
        flags=beats[-1].get("flags", []),
        faults=beats[-1].get("faults", []),
    )


def _row(segment: Segment) -> list[Any]:
    return [getattr(segment, name) for name in COLUMNS]


def _path(run_id: str) -> Path:
    return _folder() / f"{run_id}.jsonl"


def _run_id(path: Path) -> str:
    return path.name.partition(".")[0]


def _folder() -> Path:
    return store.state_folder("heartbeats")
