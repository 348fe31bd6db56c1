"""The checkpoint of the run that this process trains: where it is kept, and who may go on from it.

One folder for each run that is under way or was stopped, in the user's state folder; a lock in it
is held for as long as its process lives. What is in a state, and how it becomes bytes, its caller
knows; no store is asked.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from green_tune import __version__, heartbeat, store, worker
from green_tune.errors import ConfigError, RunFailed, Undelivered
from green_tune.job import Job
from green_tune.models import Source

log = logging.getLogger(__name__)

IDENTITY, STATE, HOLDER = "identity.json", "state.pt", "worker"
DIGEST = hashlib.sha256().digest_size  # bytes before the state, by which a torn one is known
# Options that shape no number of the training: `gpu` is how a device is asked for, and what was
# found is compared itself; `quality_examples` is measured around it; the others are about
# checkpoints. Country and PUE are compared, as a run's kilograms have one basis.
NOT_COMPARED = ("gpu", "quality_examples", "checkpoint_minutes", "resume")
# Choices of the plan that shape numbers; the cut of a step does so in its last bits.
PLANNED = (
    "precision", "quantization", "batching", "attention", "kernels", "compile", "examples",
    "micro_batch_tokens", "micro_batch_size",
)  # fmt: skip
LIBRARIES = ("torch", "transformers", "peft", "accelerate")
EXPERIMENT = ("MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
AUTO, NEVER = "auto", "never"


class Checkpoint:
    """The checkpoint of one training, which may go on from that of an earlier session.

    `run_id` is the run to go on with; empty where there is none, until something is written.
    """

    def __init__(self, job: Job, held: "_Held | None" = None) -> None:
        self._job = job
        self._held = held
        self._warned = False
        self.run_id = held.folder.name if held else ""
        self.wanted = job.rank.world == 1 and job.config.checkpoint_minutes > 0

    def read(self) -> bytes | None:
        """The state of the earlier session; None where there is none."""
        return _state(self._held.folder) if self._held else None

    def write(self, run_id: str, data: bytes) -> bool:
        """Puts a state in place of the one before; False, and one warning, where it cannot be.

        The state before stays until this one is whole on disk.
        """
        try:
            self._held = self._held or _made(self._job, run_id)
            _replace(self._held.folder / STATE, hashlib.sha256(data).digest(), data)
        except OSError as error:
            if not self._warned:
                reason = error.strerror or error
                log.warning(
                    "the checkpoint could not be written (%s); the one before stays", reason
                )
            self._warned = True
            return False
        self.run_id = run_id
        return True

    def remove(self) -> None:
        """There is nothing to go on with: the run has ended, or is no longer in its store."""
        if self._held:
            self._held.remove()
        self._held, self.run_id = None, ""

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """A block that trains: the checkpoint is removed once it has finished, or failed for good.

        It stays, and is free, when the block was stopped, the store was away, and after a bug.
        """
        try:
            yield
        except (RunFailed, Undelivered):
            self.remove()
            raise
        except BaseException:
            self._release()
            raise
        self.remove()

    def _release(self) -> None:
        if self._held:
            os.close(self._held.lock)
        self._held = None


def claim(job: Job) -> Checkpoint:
    """What this command goes on with, from now on nobody else's; if nothing, an empty checkpoint.

    Raises:
        ConfigError: `resume` names a run that has no checkpoint, has one of another training or a
            damaged one, or is still being trained.
    """
    asked = job.config.resume
    if job.rank.world > 1 and asked not in (AUTO, NEVER):
        raise ConfigError(f"resume={asked}: runs of several processes have no checkpoints")
    if asked == NEVER or job.rank.world > 1:
        return Checkpoint(job)
    held = _same(job) if asked == AUTO else _named(job, asked)
    if held:
        heartbeat.set_aside(held.folder.name)
    return Checkpoint(job, held)


def identity(job: Job) -> dict[str, str]:
    """What must be equal for a training to go on as if it had never been stopped."""
    config = {k: v for k, v in job.config.to_params().items() if k not in NOT_COMPARED}
    plan = {f"plan.{name}": str(getattr(job.plan, name)) for name in PLANNED}
    versions = {f"version.{name}": metadata.version(name) for name in LIBRARIES}
    found = {
        "data_digest": job.data.digest,
        "base_model_commit": job.commit,
        "base_model_files": _files(job.source),
        "gpu_type": job.device.gpu_type,
        "threads": _threads() if job.device.kind == "cpu" else "",
        "version.green_tune": __version__,
        "tracking store": store.address(store.tracking_uri()),
        "experiment": next(filter(None, map(os.environ.get, EXPERIMENT)), ""),
    }
    return config | plan | versions | found


class _Held(NamedTuple):
    """A folder that is this process's, by a lock that even kill -9 opens."""

    folder: Path
    lock: int

    def remove(self) -> None:
        """Removes the folder, its state first: without one, nobody goes on with the rest."""
        with suppress(OSError):
            (self.folder / STATE).unlink(missing_ok=True)
            shutil.rmtree(self.folder)
        os.close(self.lock)


def _same(job: Job) -> _Held | None:
    """The youngest state of the same training that nobody is at work on; damaged ones go."""
    mine = identity(job)
    for folder in folders():
        theirs = _identity(folder)
        if theirs not in (mine, None) or not (held := _hold(folder)):
            continue
        if theirs == mine and _state(folder) is not None:
            return held
        log.warning("the checkpoint of run %s is damaged and was removed", folder.name)
        held.remove()
    return None


def _named(job: Job, run_id: str) -> _Held:
    """The checkpoint of a run whose id begins like this."""
    there = folders()
    found = [folder for folder in there if folder.name.startswith(run_id)]
    if len(found) != 1:
        known = ", ".join(folder.name for folder in there) or "none here"
        which = "no run of this id has a checkpoint" if not found else "several runs begin so"
        raise ConfigError(f"resume={run_id}: {which}; those that have one: {known}")
    (folder,) = found
    theirs = _identity(folder)
    if theirs is not None:
        _check_same(folder.name, theirs, identity(job))
    if not (held := _hold(folder)):
        raise ConfigError(f"run {folder.name} is still being trained by process {_holder(folder)}")
    if theirs is None or _state(folder) is None:
        os.close(held.lock)
        raise ConfigError(f"the checkpoint of run {folder.name} is damaged; give resume=never")
    return held


def _check_same(run_id: str, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    for name in {**theirs, **mine}:
        if (was := theirs.get(name)) != (now := mine.get(name)):
            raise ConfigError(
                f"run {run_id} was trained with {name}={was}, now it is {now}; "
                "give the same, or resume=never"
            )


def _made(job: Job, run_id: str) -> _Held:
    """The folder of a run that has had none.

    Raises:
        OSError: the disk is full, or the folder not writable or not to be locked.
    """
    folder = _home() / run_id
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = _hold(folder)
    if not held:
        raise BlockingIOError(f"{folder} is locked by another process")
    try:
        _replace(folder / IDENTITY, json.dumps(identity(job), indent=2).encode())
    except OSError:
        held.remove()
        raise
    return held


def _hold(folder: Path) -> _Held | None:
    """Locks a folder, so that of two processes one has it; None where another has, or had, it."""
    try:
        lock = os.open(folder / HOLDER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:  # removed by who has finished it
        return None
    if not _locked(lock, folder / HOLDER):
        os.close(lock)
        return None
    with suppress(OSError):  # on a full disk it says nothing, and the lock holds all the same
        os.truncate(lock, 0)
        os.write(lock, worker.this().encode())
    return _Held(folder, lock)


def _locked(lock: int, path: Path) -> bool:
    """True when the lock is ours, and on the file that still has this name."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path.stat().st_ino == os.fstat(lock).st_ino
    except (BlockingIOError, FileNotFoundError):
        return False


def _holder(folder: Path) -> str:
    """Who holds it, as a line for the screen."""
    text = (folder / HOLDER).read_text() if (folder / HOLDER).exists() else ""
    place, pid, _ = text.rsplit(":", 2) if text.count(":") > 1 else ("", "?", "")
    return f"{pid} on {place.partition('/')[0]}"


def _replace(path: Path, *parts: bytes) -> None:
    """Writes a file under another name first: what was there stays until the new one is whole."""
    draft = path.with_name(f"{path.name}.new")
    try:
        with draft.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """The new name is on disk, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _state(folder: Path) -> bytes | None:
    """The state in a folder; None where it is not whole."""
    try:
        text = (folder / STATE).read_bytes()
    except OSError:
        return None
    digest, data = text[:DIGEST], text[DIGEST:]
    return data if hashlib.sha256(data).digest() == digest else None


def _identity(folder: Path) -> dict[str, str] | None:
    """What a checkpoint was made with; None where that cannot be read."""
    try:
        known = json.loads((folder / IDENTITY).read_text())
    except (OSError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def folders() -> Sequence[Path]:
    """Those that hold a state, the youngest first."""
    found: list[tuple[float, Path]] = []
    for path in _home().glob(f"*/{STATE}"):
        with suppress(OSError):  # removed since
            found.append((path.stat().st_mtime, path.parent))
    return [folder for _, folder in sorted(found, reverse=True)]


def _files(source: Source) -> str:
    """Whether a folder's model is still the one that it was, without reading gigabytes of it."""
    if source.kind != "folder":
        return ""
    files = sorted(path for path in Path(source.place).iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _threads() -> str:
    """How many threads share a sum on a CPU, which shapes its last bits."""
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())


def _home() -> Path:
    return store.state_folder("checkpoints")
