"""Whether a safetensors file holds the weights of a LoRA adapter, and nothing else.

It reads the header itself, so that whatever a library would pass over is refused, and the numbers
in pieces, so that a large file needs little memory. It knows the names that peft gives to LoRA's
matrices, but no torch, and not the base model: whether the layers exist there is not for it to say.
"""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from green_tune.scrutiny import AGAIN, opened, parsed, refused, shown

HEADER_BYTES = 2**24  # an adapter of every expert of a large mixture needs a third of it
CHUNK_BYTES = 2**24
PATH = re.compile(r"(?=.{1,300}\Z)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")  # of a layer in a model

# Bytes of a number, and the bits of its exponent: where all are set it is infinite, or none
# (IEEE 754; a bfloat16 is the upper half of a float32).
EXPONENTS = {"F32": (4, 0x7F800000), "F16": (2, 0x7C00), "BF16": (2, 0x7F80)}

PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
MAGNITUDE = "lora_magnitude_vector"
PARTS = "|".join(re.escape(part) for part in (*PAIRS[0], *PAIRS[1], MAGNITUDE))
NAME = re.compile(rf"base_model\.model\.(?P<layer>.+)\.(?P<part>{PARTS})")

Layers = Mapping[str, Mapping[str, "Tensor"]]


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One entry of the header; `start` and `end` count bytes after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def check_weights(path: Path, config: Mapping[str, Any]) -> None:
    """Whether the file holds a pair of matrices, of the right rank, for layers of the config.

    The format: https://github.com/huggingface/safetensors#format. `config` is an
    adapter_config.json that was found in order.

    Raises:
        AdapterError: it is cut off, or something in it is missing, unknown or not finite.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(size - 8, HEADER_BYTES):
            raise refused(path, "is incomplete, or no safetensors", AGAIN)
        tensors = list(_tensors(path, parsed(path, file.read(length))))
        _check_layout(path, tensors, size - 8 - length)
        _check_layers(path, _layers(path, tensors), config)
        for tensor in tensors:
            _check_finite(path, file, 8 + length, tensor)


def _tensors(path: Path, header: Mapping[str, Any]) -> Iterator[Tensor]:
    if header.get("__metadata__", {"format": "pt"}) != {"format": "pt"}:
        raise refused(path, 'has other metadata than {"format": "pt"}')
    for name, entry in header.items():
        if name != "__metadata__":
            yield _tensor(path, name, entry)


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [start, end]}:
            if all(type(number) is int for number in (*shape, start, end)):
                tensor = Tensor(name=name, dtype=dtype, shape=(*shape,), start=start, end=end)
                if len(entry) == 3 and _is_of_lora(tensor):  # noqa: PLR2004
                    return tensor
    raise refused(path, f"has {shown(name)} as {shown(entry)}, which no adapter has")


def _is_of_lora(tensor: Tensor) -> bool:
    return tensor.dtype in EXPONENTS and len(tensor.shape) in (1, 2) and min(tensor.shape) > 0


def _check_layout(path: Path, tensors: Iterable[Tensor], size: int) -> None:
    """The tensors lie end to end, each as long as its shape says, and fill the file."""
    position = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.start):
        end = position + math.prod(tensor.shape) * EXPONENTS[tensor.dtype][0]
        if (tensor.start, tensor.end) != (position, end):
            raise refused(path, f"has {shown(tensor.name)} at a place that its shape forbids")
        position = end
    if position > size:
        raise refused(path, f"is incomplete, {position - size} bytes are missing", AGAIN)
    if position < size:
        raise refused(path, f"has {size - position} bytes after its last tensor")


def _layers(path: Path, tensors: Iterable[Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for tensor in tensors:
        named = NAME.fullmatch(tensor.name)
        if named is None or not PATH.fullmatch(named["layer"]):
            raise refused(path, f"has {shown(tensor.name)}, which is no part of LoRA")
        layers.setdefault(named["layer"], {})[named["part"]] = tensor
    return layers


def _check_layers(path: Path, layers: Layers, config: Mapping[str, Any]) -> None:
    """Each layer is one that the config names, and whatever it names has a layer."""
    targets = config["target_modules"]
    named = set() if targets == "all-linear" else set(targets)
    met: set[str] = set()
    for layer, parts in layers.items():
        found = named & _endings(layer)
        if (named and not found) or not (layer in named or _is_chosen(layer, config)):
            raise refused(path, f"adapts {shown(layer)}, which the config does not")
        _check_parts(path, layer, parts, config)
        met |= found
    lost = set() if config.get("layers_to_transform") else named - met
    if lost or not layers:
        raise refused(path, f"has no weights for {min(lost, default='any layer')}", AGAIN)


def _endings(layer: str) -> set[str]:
    """The names by which peft finds a layer: its own, and each end of it from a dot on."""
    parts = layer.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


def _is_chosen(layer: str, config: Mapping[str, Any]) -> bool:
    """Whether layers_to_transform has the layer's number: the first in its name, as for peft."""
    chosen = config.get("layers_to_transform")
    number = next((int(part) for part in layer.split(".") if part.isdecimal()), None)
    return not chosen or number in chosen


def _check_parts(
    path: Path, layer: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]
) -> None:
    dora = {MAGNITUDE} if config.get("use_dora") else set()
    pair = next((pair for pair in PAIRS if parts.keys() == {*pair, *dora}), None)
    if pair is None:
        raise refused(path, f"has for {shown(layer)} only or also {', '.join(sorted(parts))}")
    rank, down, up = config["r"], parts[pair[0]].shape, parts[pair[1]].shape
    if not (len(down) == len(up) == 2 and down[0] == up[1] == rank):  # noqa: PLR2004
        raise refused(path, f"has for {shown(layer)} shapes {down} and {up}, not of rank {rank}")
    if dora and parts[MAGNITUDE].shape != up[:1]:
        raise refused(path, f"has for {shown(layer)} magnitudes of another size than its matrices")


def _check_finite(path: Path, file: BinaryIO, offset: int, tensor: Tensor) -> None:
    import numpy as np

    width, exponent = EXPONENTS[tensor.dtype]
    file.seek(offset + tensor.start)
    for start in range(tensor.start, tensor.end, CHUNK_BYTES):
        numbers = np.frombuffer(file.read(min(CHUNK_BYTES, tensor.end - start)), f"<u{width}")
        if np.any((numbers & exponent) == exponent):
            raise refused(path, f"has numbers in {shown(tensor.name)} that are infinite, or none")
