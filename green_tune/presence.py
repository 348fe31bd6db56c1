"""Who else measures on this machine: which share of a joule is ours, so that none counts twice.

Every meter counts the whole machine, and the whole of each GPU that it uses. So at each moment the
machine's energy is split equally among the meters that run then, and a GPU's among those that use
it. Each announces itself by a file in a folder of the machine, /dev/shm/green-tune-meters, or
where GREEN_TUNE_METERS says; containers see one another only where they share that folder.

Whoever is in doubt counts less: what is split wrongly (after kill -9, for up to one sampling
interval) is lost, never counted twice. What energy is, and where it is read, is not known here.
"""

import fcntl
import json
import logging
import math
import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # a reboot empties it
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KEPT_S = 600.0  # a meter that was held up for longer may miss who came and went meanwhile
LONGEST = 1 << 16  # bytes of a file; ours have some hundred
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which part of the energy of a stretch of time is this meter's, from above 0 to 1.

    `machine` is that of CPU and RAM, `gpus` that of each own GPU by its UUID; `others` is how many
    other meters were there at any time in the stretch.
    """

    machine: float
    gpus: Mapping[str, float]
    others: int


@dataclass(frozen=True, kw_only=True)
class _Life:
    """Another meter; `stamped_s` is the last time that it wrote down itself."""

    started_s: float
    ended_s: float  # infinite while it is alive
    stamped_s: float
    gpus: frozenset[str] = frozenset()

    @property
    def alive(self) -> bool:
        return self.ended_s == math.inf


NOBODY = _Life(started_s=math.inf, ended_s=-math.inf, stamped_s=math.inf)  # never there, kept


class Presence:
    """This meter among those of the machine. All times are those of `clock`.

    The clock must be one for all processes, as time.monotonic() is on Linux. Energy counts from
    after `enter` until before `leave`.
    """

    def __init__(
        self,
        gpus: Sequence[str] = (),
        folder: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gpus, self.folder, self.clock = tuple(gpus), folder or default_folder(), clock
        self._boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        self._lives: dict[str, _Life] = {}  # by file name; those that are over are not read again
        self._name = ""
        self._fd: int | None = None
        _close_in_children(self)

    def enter(self) -> None:
        """Announces this meter; where that cannot be, says so and counts as if alone."""
        if self._fd is None:
            self._announce()
            self._look()  # who is dead already was so before anything is counted here
            self._tidy()

    def leave(self) -> None:
        """Notes that this meter has ended."""
        if self._fd is not None:
            with suppress(OSError):  # then it looks killed, which is safe
                os.write(self._fd, _line({"ended_s": self.clock()}))
            self._close()

    def shares(self, start_s: float, end_s: float) -> Shares:
        """This meter's part of the energy from `start_s` to `end_s`, which is not in the future.

        It is the mean over this time of 1 / (meters present). So under constant power the shares
        of all meters, each with its own intervals, add up to the whole. Never raises.
        """
        self._look()
        there = [x for x in self._lives.values() if x.started_s < end_s and x.ended_s > start_s]
        gpus = {
            uuid: _mean_share((x for x in there if uuid in x.gpus), start_s, end_s)
            for uuid in self.gpus
        }
        machine = _mean_share(there, start_s, end_s)
        return Shares(machine=machine, gpus=gpus, others=len(there))

    def _announce(self) -> None:
        """Shows a file that is complete and locked already.

        The lock is flock's. POSIX locks are not inherited by forks, but are lost as soon as this
        process closes any descriptor of the file, as a second meter in it does whenever it looks,
        and it could not see that the first one holds them. So: flock, and forks close theirs.
        """
        try:
            _make(self.folder)
            self._fd, hidden = tempfile.mkstemp(prefix=".", dir=self.folder)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchmod(self._fd, 0o644)  # other users read it
            started = {"boot": self._boot, "gpus": self.gpus, "started_s": self.clock()}
            os.write(self._fd, _line(started))
            self._name = f"{os.getpid()}-{Path(hidden).name[1:]}.json"
            Path(hidden).replace(self.folder / self._name)
        except OSError as error:
            self._close()
            log.warning("other runs on this machine cannot be seen, and what they spend counts "
                        "here too: no file can be made in %s (%s)", self.folder, error)  # fmt: skip

    def _look(self) -> None:
        """Brings what is known of the others up to date."""
        try:
            names = {x.name for x in os.scandir(self.folder) if x.name.endswith(".json")}
        except FileNotFoundError:
            names = set()
        except OSError:
            return  # what is known stays so
        for name in names - {self._name}:
            if name not in self._lives or self._lives[name].alive:
                self._meet(name)
        for name in self._lives.keys() - names:
            self._miss(name)
        if self._fd is not None and self._name not in names:
            self._close()  # a logout removes what the user has in /dev/shm (systemd's RemoveIPC)
            self._announce()

    def _meet(self, name: str) -> None:
        """Reads the file of a meter that is new, or was alive when last seen."""
        with suppress(OSError):  # unreadable now, perhaps not so in a second
            self._lives[name] = _read(self.folder / name, self._boot, self.clock)

    def _miss(self, name: str) -> None:
        """A file is gone: so is its meter, from now on; long after, so is its memory."""
        life, now = self._lives[name], self.clock()
        if life.alive:
            self._lives[name] = replace(life, ended_s=now)
        elif now - life.ended_s > KEPT_S:
            del self._lives[name]

    def _tidy(self) -> None:
        """Removes the files of meters that are over, once nobody can still ask for their time."""
        for name, life in self._lives.items():
            if not life.alive and self.clock() - life.stamped_s > KEPT_S:
                with suppress(OSError):  # another user's, or removed by another
                    (self.folder / name).unlink()

    def _close(self) -> None:
        """Ends the lock, unless another process has it as well."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def _mean_share(others: Iterable[_Life], start_s: float, end_s: float) -> float:
    """The mean of 1 / (1 + others present) from start to end, by the stretches between changes."""
    lives = list(others)
    if not lives or end_s <= start_s:
        return 1 / (1 + len(lives))
    changes = {time_s for life in lives for time_s in (life.started_s, life.ended_s)}
    cuts = [start_s, *sorted(x for x in changes if start_s < x < end_s), end_s]
    parts = 0.0
    for since_s, until_s in pairwise(cuts):
        present = sum(life.started_s <= since_s and life.ended_s >= until_s for life in lives)
        parts += (until_s - since_s) / (1 + present)
    return parts / (end_s - start_s)


def _read(path: Path, boot: str, clock: Callable[[], float]) -> _Life:
    """A meter's life from its file.

    Raises:
        OSError: the file cannot be read.
    """
    # A stranger's pipe must not block, and a link leads elsewhere.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    try:
        locked = _is_locked(fd)  # asked first: who is found dead has written its last word
        text = os.read(fd, LONGEST)
    finally:
        os.close(fd)
    # Without a lock and without an end it was killed: it was there until now, for all we know.
    return _parse(text, boot, unended_s=math.inf if locked else clock())


def _parse(text: bytes, boot: str, unended_s: float) -> _Life:
    """A line when it began, another when it ended; nobody's if no meter of this boot wrote it."""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        begun, *ended = [json.loads(line) for line in lines]
        stamps = [float(begun["started_s"]), *(float(end["ended_s"]) for end in ended)]
        gpus = frozenset(begun["gpus"])
        known = begun["boot"] == boot
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError):
        return NOBODY
    ended_s = stamps[-1] if ended else unended_s
    life = _Life(started_s=stamps[0], ended_s=ended_s, stamped_s=stamps[-1], gpus=gpus)
    return life if known else NOBODY


def _is_locked(fd: int) -> bool:
    """Whether a living process holds the lock: the kernel ends it with the process, however."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _line(what: Mapping[str, object]) -> bytes:
    return json.dumps(what).encode() + b"\n"


def _make(folder: Path) -> None:
    """A folder like /tmp: all users write, and remove only what is theirs."""
    with suppress(FileExistsError):
        folder.mkdir(parents=True)
        folder.chmod(0o1777)  # mkdir's mode is cut by the umask


def default_folder() -> Path:
    """Where the meters of this machine announce themselves."""
    if named := os.environ.get("GREEN_TUNE_METERS"):
        return Path(named)
    shared = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK | os.X_OK)
    return (SHARED_MEMORY if shared else Path(tempfile.gettempdir())) / "green-tune-meters"


def _close_in_children(presence: Presence) -> None:
    """A fork that outlives this process would hold its lock."""
    mine = weakref.ref(presence)

    def close() -> None:
        if there := mine():
            there._close()

    os.register_at_fork(after_in_child=close)
