"""The door to NVML: which GPUs this process may use, and the energy of those that it does.

CUDA_VISIBLE_DEVICES is honoured as CUDA reads it: indices or UUIDs, and nothing after the first
entry that is not there. Without a driver the answer is no GPU. From finding to measuring a GPU
goes by its UUID: NVML, CUDA and CodeCarbon each number them in their own way.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pynvml

from green_tune.errors import HardwareMismatch
from green_tune.footprint import SECONDS_PER_HOUR
from green_tune.hardware import Device, identify

GIB = 2**30
MILLI = 1000
JOULES_PER_KWH = 3.6e6
STILL_S = 0.9  # a counter that moves every 0.1 s at the slowest has moved by then
COUNTER = "measured: NVML energy counter"
SAMPLED = "measured: NVML power readings, once a second"


def find_gpus() -> list[Device]:
    """The NVIDIA GPUs that this process may use, in CUDA's order.

    Raises:
        HardwareMismatch: the mask names a part of a GPU.
    """
    with _session() as there:
        if not there:
            return []
        gpus = [_device(index) for index in range(pynvml.nvmlDeviceGetCount())]
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


@contextmanager
def _session() -> Iterator[bool]:
    """NVML for the time of a block; False where there is no driver or no library."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()


def _device(index: int) -> Device:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    name = pynvml.nvmlDeviceGetName(handle)
    return Device(
        kind="cuda",
        name=name,
        memory_gib=pynvml.nvmlDeviceGetMemoryInfo(handle).total / GIB,
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        index=index,
        uuid=pynvml.nvmlDeviceGetUUID(handle),
        gpu=identify(name),
    )


def _visible(gpus: list[Device], mask: str | None) -> list[Device]:
    if mask is None:
        return gpus
    chosen: list[Device] = []
    for entry in (part.strip() for part in mask.split(",")):
        if entry.startswith("MIG-"):
            raise HardwareMismatch(
                f"CUDA_VISIBLE_DEVICES={mask} names a part of a GPU (MIG), whose energy cannot be "
                "told from its neighbours'; name a whole GPU, or use gpu=cpu with it unset"
            )
        match = next((gpu for gpu in gpus if _names(entry, gpu)), None)
        if match is None:  # CUDA ignores everything after the first entry that is not there
            break
        chosen.append(match)
    return chosen


def _names(entry: str, gpu: Device) -> bool:
    if entry.isdigit():
        return int(entry) == gpu.index
    return entry.startswith("GPU-") and gpu.uuid.startswith(entry)


def versions() -> dict[str, str]:
    """Of the driver and of NVML, which both have a say in what is measured; empty without them."""
    with _session() as there:
        if not there:
            return {}
        return {
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "nvml": pynvml.nvmlSystemGetNVMLVersion(),
        }


class GpuEnergy:
    """The energy of whole GPUs, each by its own counter or, before Volta, its power readings.

    A reading that fails is made good by the next one that does not, since the counter goes on; one
    that fails to the end, or a counter that runs backwards, is a fault.

    Raises:
        HardwareMismatch: a GPU is cut into parts (MIG), whose energies cannot be told apart.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        pynvml.nvmlInit()
        self._gpus = [_Gpu(device) for device in devices]
        counted = all(gpu.counts for gpu in self._gpus)
        self.methods = {"gpu": COUNTER if counted else SAMPLED}
        self.indices = [gpu.index for gpu in self._gpus]
        self.uuids = [device.uuid for device in devices]

    def start(self) -> None:
        """From now on."""
        for gpu in self._gpus:
            gpu.start()

    def spent(self, seconds: float, shares: Mapping[str, float]) -> dict[str, float]:
        """Energy since the call before, that many seconds ago, by segment field.

        `shares` is the part of each GPU, by UUID, that is this run's.
        """
        readings = [(gpu.spent(seconds), shares.get(gpu.uuid, 1.0)) for gpu in self._gpus]
        sums = {name: sum(r[name] for r, _ in readings) for name in readings[0][0]}
        ours = sum(reading["gpu_counted_kwh"] * share for reading, share in readings)
        busy_h = sums["gpu_busy_h"] / len(readings)
        return sums | {"energy_gpu_kwh": ours, "gpu_busy_h": busy_h}

    def facts(self) -> dict[str, float]:
        """Enforced power limit and lowest power seen at rest, summed over the GPUs, in watts."""
        limits, idle = [g.limit_w for g in self._gpus], [g.idle_w for g in self._gpus]
        known = {"gpu_power_limit_w": limits, "gpu_idle_w": idle}
        return {name: sum(filter(None, watts)) for name, watts in known.items() if all(watts)}

    def faults(self) -> list[str]:
        """What went wrong since the call before."""
        return [fault for gpu in self._gpus for fault in gpu.faults()]

    def unread(self) -> list[str]:
        """The GPUs whose last reading failed, so that what they spent since is not known."""
        return [gpu.name for gpu in self._gpus if gpu.blind]

    def strangers(self, known: int) -> int:
        """Processes that compute on the busiest of these GPUs, this one and `known` ones left out.

        In a container NVML may name processes by their numbers outside of it, so they are counted
        and not looked up.
        """
        return max(0, max(len(gpu.processes()) for gpu in self._gpus) - 1 - known)


class _Gpu:
    """One GPU, read again and again."""

    def __init__(self, device: Device) -> None:
        self.uuid, self.index, self.name = device.uuid, device.index, device.name
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(device.uuid)
        _check_whole(self._handle, device)
        self.counts = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption) is not None
        limit = self._ask(pynvml.nvmlDeviceGetEnforcedPowerLimit)
        self.limit_w = limit / MILLI if limit else None
        self.idle_w: float | None = None
        self._faults: list[str] = []
        self.start()

    def start(self) -> None:
        self._counter_mj = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption)
        self._power_w = self._power() or 0.0
        self.blind = False

    def spent(self, seconds: float) -> dict[str, float]:
        before, power = self._power_w, self._power()
        self._power_w = before if power is None else power
        sampled = (before + self._power_w) / 2 * seconds / JOULES_PER_KWH
        if not self.counts and power is None:
            self._faults.append(
                f"the power of {self.name} could not be read, and it has no counter"
            )
        return {
            "gpu_counted_kwh": self._counted(sampled, seconds) if self.counts else sampled,
            "gpu_sampled_kwh": sampled,
            "gpu_busy_h": self._busy() * seconds / SECONDS_PER_HOUR,
        }

    def faults(self) -> list[str]:
        faults, self._faults = self._faults, []
        return faults

    def processes(self) -> list[Any]:
        return self._ask(pynvml.nvmlDeviceGetComputeRunningProcesses) or []

    def _counted(self, sampled: float, seconds: float) -> float:
        """Energy by the counter; by the power readings where the counter is no good, a fault."""
        now, before = self._ask(pynvml.nvmlDeviceGetTotalEnergyConsumption), self._counter_mj
        self.blind = now is None
        if now is None:
            return 0.0
        self._counter_mj = now
        if before is None:
            return sampled
        if now < before:  # a driver that was loaded again counts from zero
            self._faults.append(f"the energy counter of {self.name} ran backwards")
            return sampled
        if now == before and seconds >= STILL_S and sampled:
            self._faults.append(f"the energy counter of {self.name} stands still")
            return sampled
        return float(now - before) / MILLI / JOULES_PER_KWH

    def _power(self) -> float | None:
        milliwatts = self._ask(pynvml.nvmlDeviceGetPowerUsage)
        return None if milliwatts is None else float(milliwatts) / MILLI

    def _busy(self) -> float:
        rates = self._ask(pynvml.nvmlDeviceGetUtilizationRates)
        if rates is not None and rates.gpu == 0 and not self.blind:
            self.idle_w = min(self._power_w, self.idle_w or self._power_w)
        return float(rates.gpu) / 100 if rates is not None else 0.0

    def _ask(self, question: Any) -> Any:
        """NVML's answer; None where there is none, now or ever."""
        try:
            return question(self._handle)
        except pynvml.NVMLError:
            return None


def _check_whole(handle: Any, device: Device) -> None:
    try:
        enabled, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # a GPU that knows no parts
        return
    if enabled:
        raise HardwareMismatch(
            f"{device.name} is cut into parts (MIG), whose energy cannot be told from their "
            "neighbours'; switch MIG off (nvidia-smi -mig 0), or take another GPU"
        )
