"""What is here, and what would go wrong: all checks in their order, each with its fix.

The two looks that are about this program itself, its libraries and what it has left open, are here;
the others are in `machine`, `services`, `schemas` and `deposit`. Nothing is made, and what a look
has to write is removed. Each function imports what it needs itself, so that a library which is
missing is a line on the screen and not the end of it.
"""

import platform
import re
from collections.abc import Generator, Iterable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from green_tune import checkup, machine, schemas, services, store
from green_tune.checkup import WORTH, WRONG, Check, Finding, refused
from green_tune.config import DoctorConfig
from green_tune.errors import StoreError

PACKAGE, OURS = "green-tune", "green_tune"
CONDA = Path(__file__).parents[1] / "conda.yaml"  # where the package itself is not installed
DATABASES = ("postgresql", "mysql")


def look(config: DoctorConfig) -> list[Finding]:
    """Everything that is found, in the order of the screen."""
    return checkup.examine(checks(config))


def checks(config: DoctorConfig) -> list[Check]:
    """What is looked at, in the order of the screen; all at the same time."""
    network = "check the network, the address and the name server"
    look_at_gpu = "a GPU that hangs needs its driver loaded again, or a restart: nvidia-smi"
    disk = "a disk does not answer: look at network file systems (mount, df)"
    gpu, country = config.gpu, config.country
    return [
        Check(group="software", name="python", look=python, needs=("packaging",)),
        Check(group="software", name="libraries", look=libraries),
        Check(group="software", name="torch", look=machine.torch, needs=(f"{OURS}.nvml",),
              fix=look_at_gpu, limit_s=40),
        Check(group="machine", name="cpu", look=machine.cpu, needs=(f"{OURS}.job",)),
        Check(group="machine", name="memory", look=machine.memory, needs=(f"{OURS}.job",)),
        Check(group="machine", name="gpu", look=partial(machine.gpus, gpu), needs=(f"{OURS}.job",),
              fix=look_at_gpu),
        Check(group="machine", name="precision", look=partial(machine.precision, gpu),
              needs=(f"{OURS}.job",), fix=look_at_gpu),
        Check(group="machine", name="disk", look=machine.disks, needs=("huggingface_hub",),
              fix=disk),
        Check(group="energy", name="cpu", look=machine.cpu_energy,
              needs=(f"{OURS}.emissions", "codecarbon.core.cpu")),
        Check(group="energy", name="gpu", look=machine.gpu_energy, needs=(f"{OURS}.nvml",),
              fix=look_at_gpu),
        Check(group="energy", name="meters", look=machine.meters, needs=(f"{OURS}.presence",)),
        Check(group="energy", name="intensity", look=partial(machine.intensity, country),
              needs=(f"{OURS}.intensity",)),
        Check(group="stores", name="tracking", look=runs, fix=network, limit_s=20, writes=True,
              needs=("mlflow", "boto3", f"{OURS}.databases", f"{OURS}.deposit")),
        Check(group="stores", name="studies", look=schemas.studies, fix=network, limit_s=10,
              needs=(f"{OURS}.databases",)),
        Check(group="hub", name="hub", look=services.hub, fix=network, limit_s=10,
              needs=("huggingface_hub",)),
        Check(group="left open", name="checkpoints", look=checkpoints, fix=disk,
              needs=(f"{OURS}.checkpoint",)),
        Check(group="left open", name="runs", look=left_open, fix=disk,
              needs=(f"{OURS}.heartbeat",)),
        Check(group="left open", name="results", look=spooled, fix=disk, needs=(f"{OURS}.spool",)),
    ]  # fmt: skip


def runs() -> Iterator[Finding]:
    """The tracking store, its registry, and the artifact store of the experiment in use."""
    uri = store.tracking_uri()
    try:
        store.check_reachable(uri)
        place = yield from _tracking(uri)
    except StoreError as error:
        yield refused("tracking", error)
        place = None
    if place is None:
        for name in ("registry", "artifacts"):
            what = "not looked at: the tracking store comes first"
            yield Finding(name=name, what=what, level=WORTH, fix="as for tracking")
        return
    from green_tune import deposit

    yield from services.registry(uri)
    yield deposit.look(place, uri)


def _tracking(uri: str) -> Generator[Finding, None, str | None]:
    """The tracking store; returns where artifacts go, None where it cannot be used or known."""
    kind = urlsplit(uri).scheme.split("+")[0]
    if kind in ("http", "https"):
        return (yield from services.tracking(uri))
    if kind == "sqlite":
        return (yield from schemas.tracking_file(uri))
    if kind in DATABASES:
        return (yield from schemas.tracking_database(uri))
    fix = "or set MLFLOW_TRACKING_URI to a server, a database or an SQLite file"
    what = f"{kind}: is a kind of store that doctor does not know; not looked at"
    yield Finding(name="tracking", what=what, level=WORTH, fix=fix)
    return None


def python() -> Iterator[Finding]:
    """The version of Python, against what the package asks for."""
    from packaging.specifiers import SpecifierSet

    wanted, here = _pins()[1], platform.python_version()
    what = f"{here} ({wanted}), {platform.system()} {platform.machine()}"
    if SpecifierSet(wanted).contains(here):
        yield Finding(name="python", what=what)
    else:
        fix = "make install PYTHON=/path/to/python3.11"
        yield Finding(name="python", what=what, level=WRONG, fix=fix)


def libraries() -> Iterator[Finding]:
    """Each library of the package, against its pin: figures of another version are others."""
    pins = _pins()[0]
    there = {name: _version(name) for name in pins}
    missing = [name for name, version in there.items() if version is None]
    other = [name for name, version in there.items() if version not in (None, pins[name])]
    if missing:
        what = f"not installed: {', '.join(missing)}"
        yield Finding(name="libraries", what=what, level=WRONG, fix=checkup.INSTALL)
    if other:
        named = ", ".join(f"{name} {there[name]} (pinned {pins[name]})" for name in other)
        what = f"other than pinned, so that figures may be others, too: {named}"
        yield Finding(name="libraries", what=what, level=WORTH, fix=_installing(other, pins))
    if not missing and not other:
        yield Finding(name="libraries", what=f"all {len(pins)} as pinned")


def checkpoints() -> Iterator[Finding]:
    """Trainings that were stopped, and that the same command would go on with."""
    from green_tune import checkpoint, worker

    def at_work(folder: Path) -> bool:
        holder = folder / checkpoint.HOLDER
        return holder.exists() and worker.is_alive(holder.read_text(errors="replace"))

    waiting = [folder for folder in checkpoint.folders() if not at_work(folder)]
    if not waiting:
        yield Finding(name="checkpoints", what="no stopped training waits to be gone on with")
        return
    what = f"{len(waiting)} stopped trainings can go on, the youngest is run {waiting[0].name}"
    fix = f"the same train command goes on with it; if nobody will, rm -r {waiting[0].parent}/*"
    yield Finding(name="checkpoints", what=what, level=WORTH, fix=fix)


def left_open() -> Iterator[Finding]:
    """Runs of processes that died, which the next command closes."""
    from green_tune import heartbeat

    if dead := heartbeat.of_the_dead():
        what = f"{len(dead)} runs were left open by processes that died; their energy is kept here"
        fix = "any command closes them, such as mlflow run . -e compare, in the same store"
        yield Finding(name="runs", what=what, level=WORTH, fix=fix)
    else:
        yield Finding(name="runs", what="none was left open by a process that died")


def spooled() -> Iterator[Finding]:
    """Results that wait on this machine for a store that was away."""
    from green_tune import spool

    if waiting := spool.waiting():
        about, folder = waiting[0]
        what = f"{len(waiting)} runs wait for their store, the first is {about.name} for "
        fix = f"any command delivers them, once that answers; they are kept in {folder.parent}"
        yield Finding(name="results", what=f"{what}{about.address}", level=WORTH, fix=fix)
    else:
        yield Finding(name="results", what="none waits for a store that was away")


def _pins() -> tuple[dict[str, str], str]:
    """The version of each library that the package asks for, and of Python."""
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        text = CONDA.read_text()
        release = re.search(r"- python=([\d.]+)", text)
        return _exact(text.split()), f"=={release[1]}.*" if release else ">=3.11"
    needs = [text for text in package.requires or () if ";" not in text]
    return _exact(needs), str(package.metadata["Requires-Python"])


def _exact(texts: Iterable[str]) -> dict[str, str]:
    return {name: pin for name, sign, pin in (text.partition("==") for text in texts) if sign}


def _version(name: str) -> str | None:
    """Of a library, without the build that stands behind a +."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _installing(names: Iterable[str], pins: Mapping[str, str]) -> str:
    return f"pip install {' '.join(f'{name}=={pins[name]}' for name in names)}"
