"""Which GPUs a process may use: CUDA_VISIBLE_DEVICES as CUDA reads it, and no driver is no GPU."""

from collections.abc import Callable
from types import SimpleNamespace

import pynvml
import pytest

from green_tune.errors import HardwareMismatch
from green_tune.nvml import GIB, find_gpus

Gpu = tuple[str, str, tuple[int, int], int]  # name, uuid, capability, GiB

T4 = ("Tesla T4", "GPU-1111aaaa-0000", (7, 5), 15)
A100 = ("NVIDIA A100-SXM4-80GB", "GPU-2222bbbb-0000", (8, 0), 80)
OLD = ("NVIDIA GeForce GTX 1080", "GPU-2222cccc-0000", (6, 1), 8)


class FakeNvml:
    """NVML over a made-up machine; it answers only while a session is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: Gpu) -> None:
        self.gpus = gpus
        self.broken = False
        self.no_driver: int | None = None
        self.sessions: list[str] = []
        for name in ("Init", "Shutdown"):
            monkeypatch.setattr(pynvml, f"nvml{name}", getattr(self, name.lower()))
        answers: dict[str, Callable[..., object]] = {
            "Count": lambda: len(gpus),
            "HandleByIndex": lambda index: gpus[index],
            "Name": lambda gpu: gpu[0],
            "UUID": lambda gpu: gpu[1],
            "CudaComputeCapability": lambda gpu: list(gpu[2]),
            "MemoryInfo": lambda gpu: SimpleNamespace(total=gpu[3] * GIB),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", self.in_session(answer))

    def init(self) -> None:
        if self.no_driver is not None:
            raise pynvml.NVMLError(self.no_driver)
        self.sessions.append("open")

    def shutdown(self) -> None:
        assert self.sessions[-1] == "open"
        self.sessions[-1] = "closed"

    def in_session(self, answer: Callable[..., object]) -> Callable[..., object]:
        def ask(*handle: object) -> object:
            assert self.sessions[-1] == "open"
            if self.broken:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return answer(*handle)

        return ask


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return FakeNvml(monkeypatch, T4, A100, OLD)


def test_all_gpus_are_found_with_their_rows(nvml: FakeNvml) -> None:
    assert [
        (gpu.name, gpu.uuid, gpu.capability, gpu.memory_gib, gpu.index) for gpu in find_gpus()
    ] == [(*gpu, index) for index, gpu in enumerate(nvml.gpus)]
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
    assert [(gpu.index, gpu.name) for gpu in find_gpus()] == [(i, nvml.gpus[i][0]) for i in indices]


@pytest.mark.parametrize(
    "error", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED]
)
def test_without_a_driver_there_is_no_gpu(nvml: FakeNvml, error: int) -> None:
    nvml.no_driver = error
    assert find_gpus() == []
    assert nvml.sessions == []


def test_the_session_is_closed_after_an_answer_and_after_a_fault(nvml: FakeNvml) -> None:
    find_gpus()
    nvml.broken = True
    with pytest.raises(pynvml.NVMLError):
        find_gpus()
    assert nvml.sessions == ["closed", "closed"]


def test_a_part_of_a_gpu_is_refused_and_never_replaced_by_the_cpu(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1234")
    with pytest.raises(HardwareMismatch, match="MIG"):
        find_gpus()
