"""What a run has spent so far, on disk: after kill -9 the next command logs it.

One file for each run that is under way, in the user's state folder: lines of JSON, each on disk
before the next is measured. The file is gone once the run has its own figures.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from green_tune.footprint import Basis, Measurement, Segment, appended


def beat(run_id: str, basis: Basis, segments: Sequence[Segment]) -> None:
    """Writes down what the run has spent since the heartbeat before.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    path = _path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    beat = {"basis": asdict(basis), "segments": [asdict(segment) for segment in segments]}
    with path.open("a") as file:
        file.write("\n" + json.dumps(beat))  # the break first: a line cut by a full disk ends here
        file.flush()
        os.fsync(file.fileno())


def last(run_id: str) -> Measurement | None:
    """What the run had spent at its last heartbeat; None where it had none."""
    segments: list[Segment] = []
    basis = None
    for known in _beats(run_id):
        basis = Basis(**known["basis"])
        for segment in known["segments"]:
            segments = appended(segments, Segment(**segment))
    return Measurement(segments=segments, basis=basis) if basis else None


def forget(run_id: str) -> None:
    """Removes the heartbeats of a run whose figures are in the store, if there are any."""
    with suppress(OSError):  # where none could be written, as was said then
        _path(run_id).unlink(missing_ok=True)


def _beats(run_id: str) -> Iterator[dict[str, Any]]:
    path = _path(run_id)
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except json.JSONDecodeError:  # blank, or cut in half by a kill
            continue


def _path(run_id: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "green-tune" / "heartbeats" / f"{run_id}.jsonl"
