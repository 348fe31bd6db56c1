"""What a store has not taken yet, on this machine's disk and in its order, until it answers.

One folder for each run and process, in the user's state folder; a lock on it is held for as long
as its process lives, so that what a killed one has left is the next command's to deliver. How an
act reaches a store, its caller knows.
"""

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from green_tune import store
from green_tune.errors import StoreAway, StoreError

ABOUT, ACTS, REFUSED = "about.json", "acts.jsonl", "refused.jsonl"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Act:
    """One thing that is written of a run; acts of one kind are in the order of their writing.

    `folder` holds the files of those that have some. Files wait for the store of artifacts, all
    others for that of runs, and the end of a run for both.
    """

    kind: Literal["params", "tags", "metrics", "dataset", "files", "table", "end"]
    what: Any
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class About:
    """Whose acts these are: a run, in the store at an address without user and password."""

    run_id: str
    name: str
    address: str
    sessions: int


class Spool:
    """The acts of one run that wait. What is put here survives the death of its process."""

    def __init__(self, about: About) -> None:
        self.about = about
        self.folder = _home() / f"{about.run_id}.{time.time_ns()}"
        self._lock: int | None = None
        self._waiting = 0

    @classmethod
    def left(cls, folder: Path) -> Self | None:
        """What a process has left that is gone; None where one is at it, or nothing is there."""
        try:
            about = About(**json.loads((folder / ABOUT).read_text()))
            lock = os.open(folder, os.O_RDONLY)
        except (OSError, ValueError, TypeError):  # delivered meanwhile, or hardly begun
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        spool = cls(about)
        spool.folder, spool._lock = folder, lock
        spool._waiting = len(list(spool._acts()))
        return spool

    def __len__(self) -> int:
        return self._waiting

    def put(self, act: Act) -> None:
        """Adds an act; its files are copied.

        Raises:
            OSError: the disk is full, or the folder not writable.
        """
        self._open()
        if act.folder:
            kept = self.folder / str(time.time_ns())
            shutil.copytree(act.folder, kept)
            act = Act(kind=act.kind, what=act.what, folder=Path(kept.name))
        _append(self.folder / ACTS, _line(act))
        self._waiting += 1

    def deliver(self, perform: Callable[[Act], None]) -> None:
        """Performs what waits, in its order; an act that was performed twice is as once.

        While artifacts cannot be written, the rest is. What a store refuses it would refuse again:
        it is kept in a file beside, and said.

        Raises:
            StoreAway: something still waits.
        """
        left: list[Act] = []
        away: dict[bool, StoreAway] = {}  # by whether it is about files
        for act in self._acts():
            files = act.kind == "files"
            if files in away or (act.kind == "end" and left):
                left.append(act)
                continue
            try:
                perform(act)
            except StoreAway as error:
                away[files] = error
                left.append(act)
            except StoreError as error:
                self._refuse(act, error)
        self._keep(left)
        if left:
            raise next(iter(away.values()))

    def close(self) -> None:
        """Nothing more comes; what waits is the next command's."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def _open(self) -> None:
        if self._lock is None:
            self.folder.mkdir(mode=0o700, parents=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write(self.folder / ABOUT, json.dumps(asdict(self.about)))

    def _acts(self) -> Iterator[Act]:
        path = self.folder / ACTS
        for text in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):  # cut in half by a kill
                kind, what, files = json.loads(text)
                yield Act(kind=kind, what=what, folder=self.folder / files if files else None)

    def _keep(self, left: list[Act]) -> None:
        """What still waits takes the place of all; without any, the folder goes."""
        self._waiting = len(left)
        if left:
            _write(self.folder / ACTS, "".join(map(_line, left)))
            return
        (self.folder / ACTS).unlink(missing_ok=True)
        if not (self.folder / REFUSED).exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            self.close()

    def _refuse(self, act: Act, error: StoreError) -> None:
        _append(self.folder / REFUSED, _line(act))
        log.warning(
            "%s: %s; what it does not take (%s) is kept in %s",
            self.about.name, error, act.kind, self.folder / REFUSED,
        )  # fmt: skip


def left_for(address: str) -> Iterator[Spool]:
    """What waits for the store at an address and is nobody's any more, the oldest first."""
    for folder in sorted(_home().glob("*.*"), key=lambda path: path.suffix):
        if (spool := Spool.left(folder)) is None:
            continue
        try:
            if len(spool) and spool.about.address == address:
                yield spool
        finally:
            spool.close()


def waiting() -> list[tuple[About, Path]]:
    """Every run of which something waits, and where; for whoever reports it."""
    found: list[tuple[About, Path]] = []
    for path in sorted(_home().glob(f"*/{ACTS}")):
        with suppress(OSError, ValueError, TypeError):
            about = About(**json.loads((path.parent / ABOUT).read_text()))
            found.append((about, path.parent))
    return found


def _line(act: Act) -> str:
    return json.dumps([act.kind, act.what, act.folder.name if act.folder else ""]) + "\n"


def _append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, text: str) -> None:
    """Under another name first: what was there stays until the new one is whole."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    draft.replace(path)


def _home() -> Path:
    return store.state_folder("spool")
