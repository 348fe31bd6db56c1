"""The folder of a registered version: what it may hold, its seal, and whether it is to be trusted.

A parcel comes from a store that others write to: what is not known is refused, by `scrutiny`.
`seal` alone writes, and only the manifest. The module composes nothing that a parcel holds, and
knows no store, no torch and no peft. It cannot judge the parcel's code, which plain MLflow would
run; `same_code` says whether it is our own.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from green_tune import scrutiny, terms
from green_tune.errors import AdapterError
from green_tune.scrutiny import AGAIN, DISTRUST, is_whole, refused, shown
from green_tune.weights import check_weights

ADAPTER = "adapter"  # the folder of the adapter, in a run and in a version
CONFIG = "adapter_config.json"  # in that folder, like the next four
WEIGHTS = "adapter_model.safetensors"
RECIPE = "recipe.json"
CARD = "README.md"
LABEL = "label.png"
MANIFEST = "manifest.json"  # beside that folder, like all below
MLMODEL = "MLmodel"
CODE = "code/green_tune_predictor.py"
REQUIREMENTS, CONDA, VIRTUALENV = "requirements.txt", "conda.yaml", "python_env.yaml"
META = "registered_model_meta"  # MLflow leaves it beside what it downloads; of no use to us

OF_ADAPTER = frozenset({CONFIG, WEIGHTS, RECIPE, CARD, LABEL})  # a run's has at least two of them
OF_VERSION = frozenset({f"{ADAPTER}/{name}" for name in OF_ADAPTER}) | {
    MANIFEST, MLMODEL, CODE, REQUIREMENTS, CONDA, VIRTUALENV,
}  # fmt: skip
FOLDERS = (ADAPTER, "code")

PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
SCRIPTS = (".dll", ".dylib", ".py", ".pyc", ".pyd", ".pyw", ".sh", ".so")


def check_names(names: Iterable[str], *, version: bool) -> None:
    """Whether these are the files of a version, or else of an adapter; before any download.

    `names` are relative to the folder, with `/`. Each is compared as it is, so that no other case,
    no look-alike and no way out of the folder can pass.

    Raises:
        AdapterError: one is unknown or there twice, or one is missing.
    """
    known = OF_VERSION | {META} if version else OF_ADAPTER
    seen: set[str] = set()
    for name in names:
        if name not in known:
            raise refused(shown(name), _why_not(name))
        if name in seen:
            raise refused(name, "is there twice")
        seen.add(name)
    if missing := sorted((OF_VERSION if version else {CONFIG, WEIGHTS}) - seen):
        raise AdapterError(f"the adapter is incomplete, it lacks {', '.join(missing)}: {AGAIN}")


def _why_not(name: str) -> str:
    if name.lower().endswith(PICKLES):
        return "is not read, as a pickle can run code when it is read"
    if name.lower().endswith(SCRIPTS):
        return "is code, which no adapter needs"
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "leads out of the folder"
    return "is no part of an adapter"


def seal(folder: Path) -> str:
    """Writes the manifest of a parcel that is otherwise complete; the sha256 of its bytes.

    Raises:
        AdapterError: a file is missing, unknown, or not a regular file.
    """
    names = sorted({*_files(folder)} - {MANIFEST, META})
    check_names([*names, MANIFEST], version=True)
    files = {name: _entry(folder / name) for name in names}
    data = json.dumps({"format": 1, "files": files}, indent=1, sort_keys=True).encode() + b"\n"
    (folder / MANIFEST).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def check(folder: Path, seal: str) -> None:
    """All that can be checked of a downloaded version; `seal` is what `seal` returned for it.

    Raises:
        AdapterError: it is incomplete, was changed, or holds what an adapter does not need.
    """
    check_sealed(folder, seal)
    check_adapter(folder / ADAPTER)
    check_recipe(folder / ADAPTER)
    check_mlmodel(folder)


def check_sealed(folder: Path, seal: str) -> None:
    """Whether a version's files are those that were sealed, byte for byte, and all there are.

    Raises:
        AdapterError: a file is missing, shorter, changed, unknown, or not a regular file.
    """
    check_names(_files(folder), version=True)
    data = scrutiny.read(folder / MANIFEST, scrutiny.JSON_BYTES)
    if hashlib.sha256(data).hexdigest() != seal:
        raise refused(folder / MANIFEST, "is not as it was sealed", f"{AGAIN}, or {DISTRUST}")
    for name, entry in _entries(folder / MANIFEST, data).items():
        _check_entry(folder / name, entry)


def _files(folder: Path) -> list[str]:
    return scrutiny.files(folder, FOLDERS)


def _entry(path: Path) -> dict[str, Any]:
    with scrutiny.opened(path) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"sha256": digest, "bytes": os.fstat(file.fileno()).st_size}


def _entries(path: Path, data: bytes) -> dict[str, Any]:
    """What the manifest says of each file; the names are known before any becomes a path."""
    manifest = scrutiny.parsed(path, data)
    if is_whole(manifest.get("format"), 2, 2**31):
        raise refused(path, "was made by a newer green-tune", "update green-tune")
    files = manifest.get("files")
    whole = manifest.keys() == {"format", "files"} and scrutiny.same(manifest["format"], 1)
    if not (whole and isinstance(files, dict)):
        raise refused(path, "is no manifest of format 1")
    check_names([*files, MANIFEST], version=True)
    return files


def _check_entry(path: Path, sealed: Any) -> None:
    there = _entry(path)
    if there == sealed:
        return
    size = sealed.get("bytes") if isinstance(sealed, dict) else None
    if type(size) is int and there["bytes"] < size:
        raise refused(path, f"is incomplete, with {there['bytes']} of {size} bytes", AGAIN)
    raise refused(path, "is not as it was sealed", f"{AGAIN}, or {DISTRUST}")


def same_code(folder: Path) -> bool:
    """Whether the code of a version is, byte for byte, this green-tune's own predictor.

    Raises:
        AdapterError: the version's code cannot be read.
    """
    ours = Path(__file__).with_name("predictor.py").read_bytes()
    with scrutiny.opened(folder / CODE) as file:
        return file.read(len(ours) + 1) == ours


def check_adapter(folder: Path) -> dict[str, Any]:
    """The config of an adapter, of a run or a version, once config and weights are in order.

    Raises:
        AdapterError: a file is missing or unknown, the config asks for more than LoRA or DoRA, or
            the weights are not those of such an adapter.
    """
    check_names(scrutiny.files(folder, ()), version=False)
    config = terms.config(folder / CONFIG)
    check_weights(folder / WEIGHTS, config)
    return config


def check_recipe(folder: Path) -> dict[str, Any]:
    """The recipe in an adapter's folder, once it is whole and has the base model of the config.

    Raises:
        AdapterError: it is missing, of a newer format, or says what it may not.
    """
    return terms.recipe(folder / RECIPE, terms.config(folder / CONFIG))


def check_mlmodel(folder: Path) -> None:
    """Whether MLflow would load a version by its own code alone, among packages that are known.

    Raises:
        AdapterError: MLmodel or an environment file asks for anything else.
    """
    terms.check_mlmodel(folder / MLMODEL)
    terms.check_requirements(folder / REQUIREMENTS)
    terms.check_environment(folder / CONDA)
    terms.check_environment(folder / VIRTUALENV)
