"""The table of base models, and what a model's name means: a row, a hub id or a folder.

Adding a model is adding a row. Nothing is downloaded or loaded here: `hub` and `training` do.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from green_tune.errors import ModelError
from green_tune.shapes import SHAPES, Shape

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True)
class Model:
    """One row: a short name for a base model of the hub."""

    name: str
    hub_id: str

    @property
    def shape(self) -> Shape:
        """Its layers and widths."""
        return SHAPES[self.name]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a base model comes from. `place` is a hub id, a folder, or a name of `BUILT`."""

    kind: Literal["built", "folder", "hub"]
    place: str
    name: str  # how runs, tables and adapters call it


# All four are gated: their licence is accepted once, on the model's page of the hub.
MODELS = (
    Model(name="llama-2-7b", hub_id="meta-llama/Llama-2-7b-hf"),
    Model(name="mistral-7b", hub_id="mistralai/Mistral-7B-v0.1"),
    Model(name="gemma-2b", hub_id="google/gemma-2b"),
    Model(name="gemma-7b", hub_id="google/gemma-7b"),
)

TINY = "tiny"
TINY_CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 1024,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BUILT = {  # on the spot, by `tiny`: two sizes, so that what depends on the size can be seen
    TINY: TINY_CONFIG,
    "tiny-wide": TINY_CONFIG | {"hidden_size": 128, "intermediate_size": 256},
}


def resolve(name: str) -> Source:
    """What `name` stands for.

    Raises:
        ModelError: it is no row, no hub id, and no folder that holds a model.
    """
    if name in BUILT:
        return Source(kind="built", place=name, name=name)
    if row := next((model for model in MODELS if model.name == name), None):
        return Source(kind="hub", place=row.hub_id, name=row.name)
    if folder := _existing(name):
        return _folder(folder)
    if HUB_ID.fullmatch(name):
        return Source(kind="hub", place=name, name=name)
    raise ModelError(_unknown(name))


def shape_of(source: Source) -> Shape | None:
    """The shape of a model of the table, known without its config.json."""
    return next((row.shape for row in MODELS if row.hub_id == source.place), None)


def config_of(source: Source) -> Mapping[str, Any] | None:
    """The config.json of what is built in or in a folder; None for what is on the hub.

    Raises:
        ModelError: the file is no JSON object.
    """
    if source.kind == "built":
        return BUILT[source.place]
    return read_config(Path(source.place) / "config.json") if source.kind == "folder" else None


def read_config(path: Path) -> Mapping[str, Any]:
    """A base model's config.json.

    Raises:
        ModelError: it cannot be read, or is no JSON object.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a JSON object")
    return config


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
    names = ", ".join([*BUILT, *(model.name for model in MODELS)])
    return f"model={name} is unknown; known: {names}, a hub id (owner/name), or a folder"
