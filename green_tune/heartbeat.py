"""What a run has spent so far, on disk: after kill -9 the next command logs it.

One file of JSON lines for each run that is under way, in the user's state folder; each line is a
footprint and is on disk before the next is measured. It is gone once the run has its own figures.
"""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from green_tune.results import Footprint


def beat(run_id: str, footprint: Footprint) -> None:
    """Writes down what the run has spent so far.

    Raises:
        OSError: the disk is full or the folder not writable.
    """
    path = _path(run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"time_s": time.time()} | asdict(footprint)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def last(run_id: str) -> Footprint | None:
    """What the run had spent at its last heartbeat; None where it had none."""
    lines = _path(run_id).read_text().splitlines() if _path(run_id).exists() else []
    for line in reversed(lines):
        try:
            known = json.loads(line)
        except json.JSONDecodeError:  # a line that the kill cut in half
            continue
        return _footprint(known)
    return None


def forget(run_id: str) -> None:
    """Removes the heartbeats of a run whose figures are in the store."""
    _path(run_id).unlink(missing_ok=True)


def _footprint(known: dict[str, Any]) -> Footprint:
    del known["time_s"]
    return Footprint(**known)


def _path(run_id: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "green-tune" / "heartbeats" / f"{run_id}.jsonl"
