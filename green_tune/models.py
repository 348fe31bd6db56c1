"""The table of base models, and what a model's name means: a row, a hub id or a folder.

Adding a model is adding a row. Nothing is downloaded or loaded here: `hub` and `training` do.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from green_tune.errors import ModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row: a short name for a base model of the hub."""

    name: str
    hub_id: str
    parameters_b: float  # billions, embeddings included


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a base model comes from. `place` is a hub id, a folder, or `tiny`."""

    kind: Literal["built", "folder", "hub"]
    place: str
    name: str  # how runs, tables and adapters call it


# All four are gated: their licence is accepted once, on the model's page of the hub.
MODELS = (
    Model(name="llama-2-7b", hub_id="meta-llama/Llama-2-7b-hf", parameters_b=6.738),
    Model(name="mistral-7b", hub_id="mistralai/Mistral-7B-v0.1", parameters_b=7.242),
    Model(name="gemma-2b", hub_id="google/gemma-2b", parameters_b=2.506),
    Model(name="gemma-7b", hub_id="google/gemma-7b", parameters_b=8.538),
)

TINY = "tiny"


def resolve(name: str) -> Source:
    """What `name` stands for.

    Raises:
        ModelError: it is no row, no hub id, and no folder that holds a model.
    """
    if name == TINY:
        return Source(kind="built", place=TINY, name=TINY)
    if row := next((model for model in MODELS if model.name == name), None):
        return Source(kind="hub", place=row.hub_id, name=row.name)
    if folder := _existing(name):
        return _folder(folder)
    if HUB_ID.fullmatch(name):
        return Source(kind="hub", place=name, name=name)
    raise ModelError(_unknown(name))


def _existing(name: str) -> Path | None:
    try:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError):  # too long a name, or the home of a user who does not exist
        return None


def _folder(folder: Path) -> Source:
    for needed, pattern in (("config.json", "config.json"), ("a tokenizer", "tokenizer*")):
        if not any(folder.glob(pattern)):
            raise ModelError(f"model={folder} is a folder without {needed}, so not a base model")
    return Source(kind="folder", place=str(folder.resolve()), name=folder.resolve().name)


def _unknown(name: str) -> str:
    if "/" in name:
        return f"model={name} is neither a folder that exists nor a hub id (owner/name)"
    names = ", ".join([TINY, *(model.name for model in MODELS)])
    return f"model={name} is unknown; known: {names}, a hub id (owner/name), or a folder"
