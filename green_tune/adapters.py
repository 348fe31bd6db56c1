"""An adapter by what a user calls it, brought here whole: a folder, a run, a registered name.

What is downloaded is known by name and size before, goes to a folder of its own, and is checked
there before anybody may use it. What may be in it, `parcel` knows.
"""

import errno
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from green_tune import bars, parcel, stop
from green_tune.errors import AdapterError, DataError, ModelError, StoreError
from green_tune.footprint import GRAMS_PER_KG
from green_tune.predictor import BaseMissing, InputError
from green_tune.registry import Registry
from green_tune.scrutiny import shown
from green_tune.versions import ADDRESS, SEAL, Version

RUN_ID = re.compile(r"[0-9a-f]{32}")
RUN_PATH = re.compile(r"runs:/(?P<run>[0-9a-f]{32})/(?P<path>adapter|checkpoints/step-\d+)")
MODELS = "models:/"  # before a registered name, as MLflow writes it
NAMED = re.compile(r"(?P<name>[^@/]+)([@/](?P<wanted>[^@/]+))?")
LONGEST = 500  # characters of a name that are shown as they are
MIB = 2**20
LARGEST_MIB = 20_000  # of a file: no adapter is larger
FULL = (errno.ENOSPC, errno.EDQUOT)
USUAL = ("best", "latest")  # what a name alone means, whichever there is


@dataclass(frozen=True, kw_only=True)
class Named:
    """What a name stands for: a folder of this machine, or an address in the store."""

    text: str
    folder: Path | None = None
    address: str = ""
    version: Version | None = None

    @property
    def run_address(self) -> str:
        """Where its run has it, such as runs:/ID/adapter; empty for a folder."""
        return self.version.tags.get(ADDRESS, "") if self.version else self.address

    @property
    def run_id(self) -> str:
        """The run that it is from; empty for a folder."""
        found = RUN_PATH.fullmatch(self.run_address)
        return found["run"] if found else ""


def find(text: str, registry: Registry) -> Named:
    """What is called so: FOLDER, RUN_ID, runs:/RUN_ID/checkpoints/step-N, NAME, NAME@ALIAS, NAME/3.

    Raises:
        AdapterError: nothing is; with what there is.
    """
    if text.startswith(MODELS):
        return _registered(text.removeprefix(MODELS), registry)
    if found := _folder(text):
        return Named(text=text, folder=found)
    if RUN_ID.fullmatch(text):
        return Named(text=text, address=f"runs:/{text}/adapter")
    if RUN_PATH.fullmatch(text):
        return Named(text=text, address=text)
    if text.startswith(("runs:", "/", ".", "~")):
        raise AdapterError(
            f"adapter={_printed(text)} is neither a folder with an adapter nor a run's adapter"
        )
    return _registered(text, registry)


def _folder(text: str) -> Path | None:
    """The folder that holds the adapter itself, if it is one; of a pulled version, that within."""
    try:
        folder = Path(text).expanduser()
        inner = folder / parcel.ADAPTER
        whole = next((f for f in (inner, folder) if (f / parcel.CONFIG).exists()), None)
        return whole.resolve() if whole else None
    except (OSError, RuntimeError, ValueError):  # too long a name, or the home of nobody
        return None


def _printed(text: str) -> str:
    return text if len(text) <= LONGEST and text.isprintable() else shown(text)


def _registered(text: str, registry: Registry) -> Named:
    parts = NAMED.fullmatch(text)
    if not parts or _printed(text) != text:
        raise AdapterError(
            f"adapter={_printed(text)} is no folder with an adapter, no run's id, and no name "
            "such as NAME, NAME@ALIAS or NAME/VERSION"
        )
    name = parts["name"]
    if wanted := parts["wanted"]:
        version = registry.version(name, wanted)
    else:
        aliases = {alias for one in registry.versions(name) for alias in one.aliases}
        version = registry.version(name, USUAL[0] if USUAL[0] in aliases else USUAL[1])
    return Named(text=text, address=str(version), version=version)


def bring(named: Named, registry: Registry, to: Path) -> Path:
    """The folder of an adapter that was found, downloaded into `to` where need be, and checked.

    Raises:
        AdapterError: it is not whole, or not to be trusted.
    """
    if named.folder:
        parcel.check_adapter(named.folder)
        return named.folder
    if named.version:
        fetch_version(named.version, registry, to)
        return to / parcel.ADAPTER
    place = registry.place(named.address)
    _fetch(registry, place, registry.files(place), to, version=False)
    parcel.check_adapter(to)
    return to


def fetch_version(version: Version, registry: Registry, to: Path) -> None:
    """Downloads a version into a folder, and checks it there.

    Raises:
        AdapterError: it is not whole, or not to be trusted.
    """
    if not version.is_ours or SEAL not in version.tags:
        raise AdapterError(f"{version} was not promoted by green-tune: its content is not known")
    place = registry.place(version)
    _fetch(registry, place, registry.files(place), to, version=True)
    parcel.check(to, version.tags[SEAL])


def _fetch(
    registry: Registry, place: str, files: Mapping[str, int], to: Path, *, version: bool
) -> None:
    if not files:
        raise AdapterError(f"there is no adapter at {place}; it may have been deleted")
    parcel.check_names(files, version=version)
    _check_space(files, to)
    with bars.bar("download", total=sum(files.values()), in_bytes=True) as bar:
        for path, size in sorted(files.items()):
            stop.check()
            with _room_named(to):
                registry.fetch(place, path, to)
            bar.update(size)


def _check_space(files: Mapping[str, int], to: Path) -> None:
    largest = max(files, key=lambda path: files[path])
    if files[largest] > LARGEST_MIB * MIB:
        raise AdapterError(f"{largest} has {files[largest] / MIB:,.0f} MiB: that is no adapter")
    needed, free = sum(files.values()), shutil.disk_usage(to).free
    if needed > free:
        raise AdapterError(
            f"the adapter needs {needed / MIB:.1f} MiB, and {to.parent} has {free / MIB:.1f} MiB "
            "free: make room, or name another folder with output="
        )


@contextmanager
def _room_named(to: Path) -> Iterator[None]:
    """A block in which a full disk has its own name, whoever meets it."""
    try:
        yield
    except (OSError, StoreError) as error:
        cause: BaseException | None = error
        while cause and getattr(cause, "errno", None) not in FULL:
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise AdapterError(
            f"no space left in {to.parent}: make room, or name another folder with output="
        ) from error


@contextmanager
def problems_named() -> Iterator[None]:
    """A block in which a predictor's refusals are errors of ours, of one line."""
    try:
        yield
    except BaseMissing as error:
        raise ModelError(str(error)) from None
    except InputError as error:
        raise DataError(str(error)) from None


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to fill that gets its name when the block ends well; before, nothing has it.

    Raises:
        AdapterError: it cannot be made there, or something has got its name meanwhile.
    """
    with _made(folder):
        scratch = TemporaryDirectory(
            prefix=f".{folder.name[:20]}-", dir=folder.parent, ignore_cleanup_errors=True
        )
    with scratch as name:
        yield Path(name)
        with _made(folder):
            Path(name).chmod(0o755)  # temporary folders are their owner's alone
            Path(name).rename(folder)


@contextmanager
def _made(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AdapterError(
            f"{folder} cannot be made: {error.strerror}; name another folder with output="
        ) from None


def wished(versions: Sequence[Version], *, task: str, base: str, max_g: float) -> Version:
    """The best adapter for a task, on a base model, whose training took at most so many grams.

    An empty wish is none. The best has the fewest bits per byte of validation text, which compares
    base models with different tokenizers.

    Raises:
        AdapterError: there is none; with what there is.
    """
    ours = [version for version in versions if version.is_ours]
    if not ours:
        raise AdapterError("no adapter is registered yet: mlflow run . -e promote -P study=...")
    wishes = {"task": (("task",), task), "base": (("base_model", "base_place"), base)}
    for name, (tags, wish) in wishes.items():
        if wish and not (kept := [v for v in ours if wish in map(v.tags.get, tags)]):
            there = sorted({v.tags.get(tags[0], "") for v in ours})
            raise AdapterError(f"no adapter is registered for {name}={wish}; there is "
                               f"{', '.join(there)}")  # fmt: skip
        ours = kept if wish else ours
    cheap = [v for v in ours if not max_g or v.pair[1] * GRAMS_PER_KG <= max_g]
    if not cheap:
        least = min(v.pair[1] for v in ours) * GRAMS_PER_KG
        raise AdapterError(f"none of {len(ours)} adapters took at most {max_g:g} g CO2e: the "
                           f"cheapest took {least:.3g} g")  # fmt: skip
    return min(cheap, key=_quality)


def _quality(version: Version) -> tuple[float, float, int]:
    bits = version.figure("val_bits_per_byte")
    return (math.inf if math.isnan(bits) else bits, version.pair[1], version.number)
