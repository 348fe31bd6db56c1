import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parcels
import pytest
from parcels import Entry
from safetensors.numpy import load_file

from green_tune import parcel
from green_tune.errors import AdapterError
from green_tune.weights import check_weights

Q = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
INFINITE = {"F32": struct.pack("<f", float("inf")), "F16": struct.pack("<e", float("-inf")),
            "BF16": struct.pack("<f", float("inf"))[2:]}  # fmt: skip
NO_NUMBER = {"F32": struct.pack("<f", float("nan")), "F16": struct.pack("<e", float("nan")),
             "BF16": struct.pack("<f", float("nan"))[2:]}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parcels.save_adapter(
        tmp_path_factory.mktemp("made") / "adapter", target_modules=["q_proj"]
    )


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def _zeros(shape: list[int], dtype: str = "F32") -> Entry:
    width = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "F64": 8, "F8_E4M3": 1}[dtype]
    size = width
    for length in shape:
        size *= length
    return dtype, shape, bytes(size)


def _check(adapter: Path, **config: Any) -> None:
    said = json.loads((adapter / parcel.CONFIG).read_text())
    check_weights(adapter / parcel.WEIGHTS, said | config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({A: None}, "only or also lora_B.weight"),
        ({B: None}, "only or also lora_A.weight"),
        ({A: None, B: None}, None),  # whether a layer is missing, the seal knows
        ({f"{Q}.lora_magnitude_vector": _zeros([16])}, "only or also"),
        ({f"{Q}.lora_embedding_A": _zeros([2, 16])}, "only or also"),
        ({f"{Q}.lora_B.bias": _zeros([16])}, "no part of LoRA"),
        ({f"{Q}.base_layer.weight": _zeros([16, 16])}, "no part of LoRA"),
        ({"base_model.model.lm_head.weight": _zeros([40, 16])}, "no part of LoRA"),
        ({"lm_head.weight": _zeros([40, 16])}, "no part of LoRA"),
        ({"model.q_proj.lora_A.weight": _zeros([2, 16])}, "no part of LoRA"),
        ({A + "\n": _zeros([2, 16])}, "no part of LoRA"),
        ({A.replace("layers", "lаyers"): _zeros([2, 16])}, "no part of LoRA"),
        ({A.replace("self_attn", "../.."): _zeros([2, 16])}, "no part of LoRA"),
        ({"base_model.model." + "x." * 200 + "lora_A.weight": _zeros([2, 16])}, "no part of LoRA"),
        (
            {A.replace("q_proj", "k_proj"): _zeros([2, 16])},
            "k_proj', which the config does not",
        ),
        ({A: _zeros([3, 16]), B: _zeros([16, 3])}, "not of rank 2"),
        ({A: _zeros([16, 2])}, "not of rank 2"),
        ({B: _zeros([2, 16])}, "not of rank 2"),
        ({A: _zeros([32])}, "not of rank 2"),
        ({A: _zeros([2, 4, 4])}, "which no adapter has"),
        ({A: _zeros([2, 0])}, "which no adapter has"),
        ({A: _zeros([])}, "which no adapter has"),
        ({A: _zeros([2, 16], "I64")}, "which no adapter has"),
        ({A: _zeros([2, 16], "F64")}, "which no adapter has"),
        ({A: _zeros([2, 16], "F8_E4M3")}, "which no adapter has"),
        ({A: _zeros([2, 16], "BF16"), B: _zeros([16, 2], "F16")}, None),
        ({A: ("F32", [2, 16], bytes(127))}, "at a place that its shape forbids"),
        ({A: ("F32", [2, 2**62], bytes(128))}, "at a place that its shape forbids"),
    ],
    ids=str,
)
def test_only_whole_pairs_of_the_right_shape_pass(
    adapter: Path, change: dict[str, Entry | None], words: str | None
) -> None:
    tensors = parcels.read_tensors(adapter / parcel.WEIGHTS)
    changed = {name: entry for name, entry in (tensors | change).items() if entry}
    parcels.write_tensors(adapter / parcel.WEIGHTS, changed)
    if words is None:
        return _check(adapter)
    with pytest.raises(AdapterError, match=words) as caught:
        _check(adapter)
    assert str(caught.value).isprintable()
    return None


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [INFINITE, NO_NUMBER])
def test_a_single_number_that_is_not_finite_is_found(
    adapter: Path, dtype: str, bad: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("green_tune.weights.CHUNK_BYTES", 16)
    tensors = parcels.read_tensors(adapter / parcel.WEIGHTS)
    zeros = _zeros([2, 16], dtype)
    parcels.write_tensors(adapter / parcel.WEIGHTS, tensors | {A: zeros})
    _check(adapter)
    width = len(bad[dtype])
    for place in range(0, len(zeros[2]), width):
        data = zeros[2][:place] + bad[dtype] + zeros[2][place + width :]
        parcels.write_tensors(adapter / parcel.WEIGHTS, tensors | {A: (dtype, [2, 16], data)})
        with pytest.raises(AdapterError, match="infinite, or none"):
            _check(adapter)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_largest_finite_numbers_pass(adapter: Path, dtype: str) -> None:
    largest = {"F32": b"\xff\xff\x7f\xff", "F16": b"\xff\xfb", "BF16": b"\x7f\xff"}[dtype]
    tensors = parcels.read_tensors(adapter / parcel.WEIGHTS)
    tensors[A] = (dtype, [2, 16], largest * 32)
    parcels.write_tensors(adapter / parcel.WEIGHTS, tensors)
    _check(adapter)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header[A]["data_offsets"].reverse(),
        lambda header: header[B].update(data_offsets=header[A]["data_offsets"]),
        lambda header: header[A].update(data_offsets=[-128, 0]),
        lambda header: header[A].update(data_offsets=[0, 2**63]),
        lambda header: header[A].update(data_offsets=[0.0, 128.0]),
        lambda header: header[A].update(data_offsets=[0, 64, 128]),
        lambda header: header[A].update(data_offsets=None),
        lambda header: header[A].update(shape=[True, 32]),
        lambda header: header[A].update(shape=[-2, -16]),
        lambda header: header[A].update(shape=["2", 16]),
        lambda header: header[A].update(shape=[2] * 1000),
        lambda header: header[A].update(more=1),
        lambda header: header[A].update(dtype=["F32"]),
        lambda header: header.update({A: []}),
        lambda header: header.update(__metadata__={"format": "pt", "code": "x"}),
        lambda header: header.update(__metadata__={"format": "np"}),
        lambda header: header.update(__metadata__=None),
        lambda header: header.clear(),
    ],
)
def test_a_header_that_means_something_else_is_refused(
    adapter: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = adapter / parcel.WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    parcels.write_safetensors(path, header, data[8 + length :])
    _check(adapter)
    change(header)
    parcels.write_safetensors(path, header, data[8 + length :])
    with pytest.raises(AdapterError):
        _check(adapter)


@pytest.mark.parametrize(
    ("length", "words"),
    [
        (2**60, "incomplete, or no safetensors"),
        (2**64 - 1, "incomplete, or no safetensors"),
        (0, "incomplete, or no safetensors"),
        (5, "cannot be read as JSON"),
    ],
)
def test_a_header_of_another_length_is_refused(adapter: Path, length: int, words: str) -> None:
    data = (adapter / parcel.WEIGHTS).read_bytes()
    (adapter / parcel.WEIGHTS).write_bytes(struct.pack("<Q", length) + data[8:])
    with pytest.raises(AdapterError, match=words):
        _check(adapter)


def test_a_header_that_is_longer_than_any_adapters_is_not_read(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _check(adapter)
    monkeypatch.setattr("green_tune.weights.HEADER_BYTES", 100)
    with pytest.raises(AdapterError, match="no safetensors"):
        _check(adapter)


def test_a_header_with_one_tensor_twice_is_refused(adapter: Path) -> None:
    entry = json.dumps({"dtype": "F32", "shape": [2, 16], "data_offsets": [0, 128]})
    text = f'{{"{A}": {entry}, "{A}": {entry}}}'
    parcels.write_safetensors(adapter / parcel.WEIGHTS, text.encode(), bytes(128))
    with pytest.raises(AdapterError, match="a key is there twice"):
        _check(adapter)


def test_bytes_after_the_last_tensor_are_refused_and_a_cut_off_file_is_incomplete(
    adapter: Path,
) -> None:
    path = adapter / parcel.WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data + b"PK\3\4")
    with pytest.raises(AdapterError, match="4 bytes after its last tensor"):
        _check(adapter)
    for length in (0, 1, 7, 8, 100, len(data) - 300, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(AdapterError, match=r"incomplete.*: download it again"):
            _check(adapter)


def test_the_weights_are_those_that_the_config_names(adapter: Path) -> None:
    _check(adapter, target_modules="all-linear")
    _check(adapter, layers_to_transform=[0, 1])
    _check(adapter, target_modules=["layers.0.self_attn.q_proj", "layers.1.self_attn.q_proj"])
    refused: list[tuple[dict[str, Any], str]] = [
        ({"target_modules": ["proj"]}, "which the config does not"),
        ({"target_modules": ["k_proj"]}, "which the config does not"),
        ({"layers_to_transform": [1]}, "layers.0.self_attn.q_proj', which the config does not"),
        ({"target_modules": ["q_proj", "k_proj"]}, "no weights for k_proj"),
        ({"r": 3}, "not of rank 3"),
        ({"use_dora": True}, "only or also lora_A.weight, lora_B.weight"),
    ]
    for config, words in refused:
        with pytest.raises(AdapterError, match=words):
            _check(adapter, **config)


def test_doras_magnitudes_have_the_size_of_its_layer(tmp_path: Path) -> None:
    adapter = parcels.save_adapter(tmp_path / "adapter", target_modules=["q_proj"], use_dora=True)
    _check(adapter)
    tensors = parcels.read_tensors(adapter / parcel.WEIGHTS)
    for shape in ([15], [16, 1], [1]):
        tensors[f"{Q}.lora_magnitude_vector"] = _zeros(shape)
        parcels.write_tensors(adapter / parcel.WEIGHTS, tensors)
        with pytest.raises(AdapterError, match="magnitudes of another size"):
            _check(adapter)
    with pytest.raises(AdapterError, match="only or also"):
        _check(adapter, use_dora=False)


def test_every_flipped_bit_of_a_header_is_found(adapter: Path) -> None:
    path = adapter / parcel.WEIGHTS
    whole = path.read_bytes()
    text = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    for place in range(8 + len(text.rstrip())):  # it is padded with blanks
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with pytest.raises(AdapterError):
                _check(adapter)


def test_what_passes_holds_the_numbers_that_the_library_reads(adapter: Path) -> None:
    _check(adapter)
    read = load_file(adapter / parcel.WEIGHTS)
    tensors = parcels.read_tensors(adapter / parcel.WEIGHTS)
    assert {name: one.tobytes() for name, one in read.items()} == {
        name: data for name, (_, _, data) in tensors.items()
    }
