"""Which GPUs a process may use: CUDA_VISIBLE_DEVICES as CUDA reads it, and no driver is no GPU."""

import pynvml
import pytest
from fakes import FakeClock, FakeGpu, FakeNvml

from green_tune.errors import HardwareMismatch
from green_tune.nvml import GpuEnergy, find_gpus, versions

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


def test_the_versions_that_shape_a_measurement_are_known(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, "nvmlSystemGetDriverVersion", lambda: "570.1")
    monkeypatch.setattr(pynvml, "nvmlSystemGetNVMLVersion", lambda: "12.570.1")
    assert versions() == {"driver": "570.1", "nvml": "12.570.1"}
    nvml.no_driver = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    assert versions() == {}


def test_the_gpu_that_the_mask_names_is_the_one_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = FakeClock()
    gpus = [FakeGpu(uuid=f"GPU-{n}", watts=100.0 * n, clock=clock.monotonic) for n in (1, 2, 3)]
    FakeNvml(monkeypatch, *gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-3,GPU-1")
    energy = GpuEnergy(find_gpus())
    assert (energy.uuids, energy.indices) == (["GPU-3", "GPU-1"], [2, 0])
    clock.pass_(36)
    spent = energy.spent(36, {"GPU-3": 0.5})
    assert spent["gpu_counted_kwh"] == pytest.approx(0.004)
    assert spent["energy_gpu_kwh"] == pytest.approx(0.003 / 2 + 0.001)
    assert spent["gpu_busy_h"] == pytest.approx(0.01)
    assert energy.facts() == {"gpu_power_limit_w": 800.0}  # at rest they were never seen


def test_a_gpu_that_is_cut_into_parts_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeGpu()
    FakeNvml(monkeypatch, gpu)
    gpu.mig = (1, 1)
    with pytest.raises(HardwareMismatch, match="switch MIG off"):
        GpuEnergy(find_gpus())
    gpu.mig = None  # a GPU that knows no parts
    assert GpuEnergy(find_gpus()).faults() == []
