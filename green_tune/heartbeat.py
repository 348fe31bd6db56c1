"""What a run has spent so far, on disk: after kill -9 the next command logs it.

One file for each run that is under way, in the user's state folder: lines of JSON, each on disk
before the next is measured. The file is gone once the run has its own figures.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from green_tune import worker
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


def last(run_id: str) -> Measurement | None:
    """What the run had spent at its last heartbeat; None where it had none that can be read."""
    try:
        beats = list(_beats(run_id))
        return _measurement(beats) if beats else None
    except (KeyError, TypeError, ValueError) as error:  # of another version of green-tune
        log.warning("the heartbeats of run %s cannot be read: %s", run_id, error)
        return None


def of_the_dead() -> list[str]:
    """The runs whose heartbeats a process of this machine has left behind."""
    run_ids = [path.stem for path in sorted(_folder().glob("*.jsonl"))]
    first = {run_id: next(_beats(run_id), {}) for run_id in run_ids}
    return [run_id for run_id in run_ids if worker.is_dead(str(first[run_id].get("worker")))]


def forget(run_id: str) -> None:
    """Removes the heartbeats of a run whose figures are in the store, if there are any."""
    with suppress(OSError):  # where none could be written, as was said then
        _path(run_id).unlink(missing_ok=True)


def _write(file: FileIO, data: bytes) -> None:
    if file.write(data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file.fileno())


def _beats(run_id: str) -> Iterator[dict[str, Any]]:
    path = _path(run_id)
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


def _folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "green-tune" / "heartbeats"
