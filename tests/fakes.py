"""What hardware would be: clocks, a machine of constant power, and NVML over made-up GPUs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pynvml
import pytest

from green_tune.footprint import Basis, Measurement
from green_tune.hardware import Device, identify
from green_tune.meter import Meter
from green_tune.nvml import GpuEnergy

GIB = 2**30
JOULES_PER_KWH = 3.6e6
NEVER_S = 1e6  # of real time: readings come at edges alone, or when a test asks for one
G_PER_KWH = 400.0


def a_cpu(memory_gib: float = 8) -> Device:
    """A machine without a GPU, as it is found."""
    return Device(kind="cpu", name="Xeon", memory_gib=memory_gib)


def a_gpu(name: str, capability: tuple[int, int], memory_gib: float = 16) -> Device:
    """A GPU as it is found, by the name that its driver gives."""
    return Device(
        kind="cuda", name=name, memory_gib=memory_gib, capability=capability, gpu=identify(name)
    )


class FakeClock:
    """All clocks of a machine; `pass_` lets time go by."""

    def __init__(self) -> None:
        self.machine = uuid4().hex
        self.now_s = 1000.0
        self.suspended_s = 0.0
        self.offset_s = 1.8e9
        self.worked_s = self.busy_s = 0.0

    def pass_(self, seconds: float, cpus: float = 1.0, others: float = 0.0) -> None:
        self.now_s += seconds
        self.worked_s += cpus * seconds
        self.busy_s += (cpus + others) * seconds

    def monotonic(self) -> float:
        return self.now_s

    def since_boot(self) -> float:
        return self.now_s + self.suspended_s

    def utc(self) -> float:
        return self.since_boot() + self.offset_s

    def worked(self) -> float:
        return self.worked_s

    def busy(self) -> float:
        return self.busy_s


class FakeMachine:
    """CPUs and memory of constant power."""

    def __init__(self, cpu_w: float = 8.0, ram_w: float = 20.0) -> None:
        self.watts = {"energy_cpu_kwh": cpu_w, "energy_ram_kwh": ram_w}
        self.methods = {"cpu": "measured: a fake", "ram": "modelled: a fake"}
        self.error: Exception | None = None

    def start(self) -> None:
        """Nothing to find."""

    def spent(self, seconds: float) -> dict[str, float]:
        if self.error:
            raise self.error
        return {name: watts * seconds / JOULES_PER_KWH for name, watts in self.watts.items()}


class FakeGpu:
    """A GPU of constant power, whose counter follows a clock."""

    def __init__(
        self,
        name: str = "NVIDIA A100-SXM4-80GB",
        uuid: str = "GPU-aaaa",
        *,
        capability: tuple[int, int] = (8, 0),
        gib: float = 80,
        watts: float = 300.0,
        clock: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.name, self.uuid, self.capability, self.gib = name, uuid, capability, gib
        self.watts, self.limit_w, self.utilisation = watts, 400.0, 100
        self.clock = clock
        self.counted_mj = 5e9  # since the driver was loaded
        self.read_s = clock()
        self.mig: tuple[int, int] | None = (0, 0)
        self.processes = 1
        self.counts = True
        self.lost = False

    def draw(self, watts: float) -> None:
        """Another power from now on."""
        self.count()
        self.watts = watts

    def count(self) -> None:
        now = self.clock()
        self.counted_mj += self.watts * (now - self.read_s) * 1000
        self.read_s = now

    def counter(self) -> int:
        if not self.counts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        self.count()
        return self.counted_mj  # type: ignore[return-value]  # NVML's is whole; the fake is exact

    def mig_mode(self) -> tuple[int, int]:
        if self.mig is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.mig


class FakeNvml:
    """NVML over a made-up machine; it answers only while a session is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *gpus: FakeGpu) -> None:
        self.gpus = gpus
        self.broken = False
        self.no_driver: int | None = None
        self.open = 0
        monkeypatch.setattr(pynvml, "nvmlInit", self.init)
        monkeypatch.setattr(pynvml, "nvmlShutdown", self.shutdown)
        answers: dict[str, Callable[..., Any]] = {
            "Count": lambda: len(gpus),
            "HandleByIndex": lambda index: gpus[index],
            "HandleByUUID": lambda uuid: next(gpu for gpu in gpus if gpu.uuid == uuid),
            "Name": lambda gpu: gpu.name,
            "UUID": lambda gpu: gpu.uuid,
            "CudaComputeCapability": lambda gpu: list(gpu.capability),
            "MemoryInfo": lambda gpu: SimpleNamespace(total=gpu.gib * GIB),
            "MigMode": lambda gpu: gpu.mig_mode(),
            "TotalEnergyConsumption": lambda gpu: gpu.counter(),
            "PowerUsage": lambda gpu: gpu.watts * 1000,
            "EnforcedPowerLimit": lambda gpu: gpu.limit_w * 1000,
            "UtilizationRates": lambda gpu: SimpleNamespace(gpu=gpu.utilisation),
            "ComputeRunningProcesses": lambda gpu: [SimpleNamespace(pid=1)] * gpu.processes,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvmlDeviceGet{name}", self.in_session(answer))

    def init(self) -> None:
        if self.no_driver is not None:
            raise pynvml.NVMLError(self.no_driver)
        self.open += 1

    def shutdown(self) -> None:
        assert self.open
        self.open -= 1

    def in_session(self, answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(*handle: Any) -> Any:
            assert self.open
            if self.broken or any(getattr(gpu, "lost", False) for gpu in handle):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return answer(*handle)

        return ask


@contextmanager
def running(clock: FakeClock, gpus: GpuEnergy | None = None) -> Iterator[Meter]:
    """A meter whose account is not compared with CodeCarbon, which knows nothing of fakes."""
    with pytest.MonkeyPatch.context() as patch:  # one folder of meters for each made-up machine
        patch.setenv("GREEN_TUNE_METERS", f"{os.environ['GREEN_TUNE_METERS']}-{clock.machine}")
        meter = Meter(
            FakeMachine(),
            gpus,
            Basis(g_per_kwh=G_PER_KWH, pue=1.25),
            clock=clock,
            interval_s=NEVER_S,
        )
    with meter:
        meter.open(checked=False)
        yield meter


def watts(measurement: Measurement, phase: str) -> float:
    footprint = measurement.phases()[phase]
    return footprint.energy_kwh * 1000 / footprint.runtime_h
