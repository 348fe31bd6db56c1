"""Which GPUs a process may use: CUDA_VISIBLE_DEVICES as CUDA reads it, and no driver is no GPU."""

import pynvml
import pytest
from fakes import FakeGpu, FakeNvml

from green_tune.errors import HardwareMismatch
from green_tune.nvml import find_gpus

T4 = FakeGpu("Tesla T4", "GPU-1111aaaa-0000", capability=(7, 5), gib=15)
A100 = FakeGpu("NVIDIA A100-SXM4-80GB", "GPU-2222bbbb-0000", capability=(8, 0), gib=80)
OLD = FakeGpu("NVIDIA GeForce GTX 1080", "GPU-2222cccc-0000", capability=(6, 1), gib=8)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeNvml(monkeypatch, T4, A100, OLD)


def test_all_gpus_are_found_with_their_rows(nvml: FakeNvml) -> None:
    assert [
        (gpu.name, gpu.uuid, gpu.capability, gpu.memory_gib, gpu.index) for gpu in find_gpus()
    ] == [(g.name, g.uuid, g.capability, g.gib, index) for index, g in enumerate(nvml.gpus)]
    assert [gpu.gpu_type for gpu in find_gpus()] == ["t4", "a100-80", "unknown"]
    assert {gpu.kind for gpu in find_gpus()} == {"cuda"}


@pytest.mark.parametrize(
    ("mask", "indices"),
    [
        ("0", [0]),
        ("1,0", [1, 0]),
        (" 2 , 1 ", [2, 1]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", [0]),
        ("1,7,0", [1]),
        ("2,x,0", [2]),
        ("0,,1", [0]),
        ("GPU-1111", [0]),
        ("GPU-2222c,GPU-1111aaaa-0000", [2, 0]),
        ("GPU-1111,GPU-9999,1", [0]),
        ("1,GPU-1111", [1, 0]),
    ],
)
def test_the_mask_is_read_as_cuda_reads_it(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, mask: str, indices: list[int]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [(gpu.index, gpu.name) for gpu in find_gpus()] == [
        (i, nvml.gpus[i].name) for i in indices
    ]


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_without_a_driver_there_is_no_gpu(nvml: FakeNvml, error: int) -> None:
    nvml.no_driver = error
    assert find_gpus() == []
    assert nvml.open == 0


def test_the_session_is_closed_after_an_answer_and_after_a_fault(nvml: FakeNvml) -> None:
    find_gpus()
    assert nvml.open == 0
    nvml.broken = True
    with pytest.raises(pynvml.NVMLError):
        find_gpus()
    assert nvml.open == 0


def test_a_part_of_a_gpu_is_refused_and_never_replaced_by_the_cpu(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(HardwareMismatch, match="MIG"):
        find_gpus()
