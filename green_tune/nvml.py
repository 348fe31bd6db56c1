"""The door to NVML: which GPUs this process may use, asked in milliseconds and without torch.

CUDA_VISIBLE_DEVICES is honoured as CUDA reads it: indices or UUIDs, and nothing after the first
entry that is not there. Without a driver the answer is no GPU.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from green_tune.errors import HardwareMismatch
from green_tune.hardware import Device, identify

GIB = 2**30


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
