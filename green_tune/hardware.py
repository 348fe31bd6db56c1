"""The table of GPUs, and pure functions over it: which one is this, which one was meant.

It knows data sheets. It does not look at the machine: `nvml` finds the devices, `job` chooses.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from green_tune.errors import ConfigError, HardwareMismatch


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One row of the table: dense peaks from the maker's data sheet.

    NVIDIA prints rates with structured sparsity first; the dense ones here are half of those.
    `bf16_tflops` is None where bf16 is emulated or missing: slow, and a waste of energy.
    """

    name: str
    pattern: str  # matched against the name that the driver reports
    capability: tuple[int, int]
    memory_gib: int
    power_limit_w: int
    bandwidth_gb_per_s: int
    fp32_tflops: float
    fp16_tflops: float
    bf16_tflops: float | None
    found_in: str  # where one can be rented, for the message when it is not here

    @property
    def family(self) -> str:
        """The name without its variant: a100 for a100-40 and a100-80."""
        return self.name.split("-")[0]


@dataclass(frozen=True, kw_only=True)
class Device:
    """What is in this machine. `gpu` is its row of the table, None for a CPU or an unknown GPU."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory_gib: float
    capability: tuple[int, int] = (0, 0)
    index: int = 0
    uuid: str = ""
    gpu: Gpu | None = None

    @property
    def gpu_type(self) -> str:
        """How runs are grouped: the row's name, `cpu`, or `unknown`."""
        if self.kind == "cpu":
            return "cpu"
        return self.gpu.name if self.gpu else "unknown"

    def __str__(self) -> str:
        return f"{self.name}, {self.memory_gib:.0f} GiB"


def _row(name: str, pattern: str, capability: str, *numbers: float | None, at: str) -> Gpu:
    memory, watts, bandwidth, fp32, fp16, bf16 = numbers
    major, minor = capability.split(".")
    return Gpu(
        name=name,
        pattern=pattern,
        capability=(int(major), int(minor)),
        memory_gib=int(memory or 0),
        power_limit_w=int(watts or 0),
        bandwidth_gb_per_s=int(bandwidth or 0),
        fp32_tflops=fp32 or 0.0,
        fp16_tflops=fp16 or 0.0,
        bf16_tflops=bf16,
        found_in=at,
    )


# name, driver's name, compute capability; GiB, W, GB/s, TFLOP/s in fp32, fp16, bf16.
# Sources: NVIDIA's data sheets and architecture whitepapers of each product.
GPUS = (
    _row("t4", r"\bT4\b", "7.5", 16, 70, 320, 8.1, 65, None, at="AWS g4dn, GCP n1, Colab"),
    _row("l4", r"\bL4\b", "8.9", 24, 72, 300, 30.3, 121, 121, at="GCP g2, AWS g6, Colab"),
    _row("a100-40", r"\bA100\b.*\b40GB", "8.0", 40, 400, 1555, 19.5, 312, 312,
         at="GCP a2-highgpu, AWS p4d, Colab"),
    _row("a100-80", r"\bA100\b.*\b80GB", "8.0", 80, 400, 2039, 19.5, 312, 312,
         at="GCP a2-ultragpu, AWS p4de, Azure NC A100 v4"),
    _row("v100", r"\bV100\b", "7.0", 16, 300, 900, 15.7, 125, None, at="AWS p3, GCP n1"),
    _row("p100", r"\bP100\b", "6.0", 16, 250, 732, 9.3, 18.7, None, at="GCP n1, Kaggle"),
    _row("a10g", r"\bA10G\b", "8.6", 24, 300, 600, 35, 70, 70, at="AWS g5"),
    _row("a10", r"\bA10\b", "8.6", 24, 150, 600, 31.2, 125, 125, at="Azure NV A10 v5, Lambda"),
    _row("a40", r"\bA40\b", "8.6", 48, 300, 696, 37.4, 149.7, 149.7, at="RunPod, Vast"),
    _row("a6000", r"\bRTX A6000\b", "8.6", 48, 300, 768, 38.7, 154.8, 154.8, at="Lambda, RunPod"),
    _row("l40s", r"\bL40S\b", "8.9", 48, 350, 864, 91.6, 362, 362, at="AWS g6e, RunPod"),
    _row("l40", r"\bL40\b", "8.9", 48, 300, 864, 90.5, 181, 181, at="RunPod, Vast"),
    _row("rtx3090", r"\bRTX 3090$", "8.6", 24, 350, 936, 35.6, 71, 71, at="Vast, RunPod"),
    _row("rtx4090", r"\bRTX 4090$", "8.9", 24, 450, 1008, 82.6, 165, 165, at="Vast, RunPod"),
    _row("rtx5090", r"\bRTX 5090$", "12.0", 32, 575, 1792, 104.8, 209.5, 209.5,
         at="Vast, RunPod"),
    _row("h100-pcie", r"\bH100 PCIe\b", "9.0", 80, 350, 2000, 51.2, 756, 756, at="Lambda, Vast"),
    _row("h100-nvl", r"\bH100 NVL\b", "9.0", 94, 400, 3900, 60, 835, 835, at="Azure NC H100 v5"),
    _row("h100", r"\bH100\b", "9.0", 80, 700, 3350, 67, 989.5, 989.5, at="GCP a3, AWS p5"),
    _row("h200", r"\bH200\b", "9.0", 141, 700, 4800, 67, 989.5, 989.5, at="AWS p5e, GCP a3-ultra"),
    _row("b200", r"\bB200\b", "10.0", 180, 1000, 7700, 75, 2250, 2250, at="AWS p6, GCP a4"),
)  # fmt: skip


def identify(name: str) -> Gpu | None:
    """The row of a device by the name that its driver reports; None where no row fits."""
    return next((gpu for gpu in GPUS if re.search(gpu.pattern, name, re.IGNORECASE)), None)


def check_known(asked: str) -> None:
    """Raises ConfigError when `asked` is neither auto, cpu, a row, nor a family of rows."""
    if asked.lower() not in {"auto", "cpu", *(n for gpu in GPUS for n in (gpu.name, gpu.family))}:
        names = ", ".join(gpu.name for gpu in GPUS)
        raise ConfigError(f"gpu={asked} is unknown; known: auto, cpu, {names}; {new_row()}")


def can_run(kernels: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether a GPU can run one of a build's kernels, by their names, as torch lists them.

    A binary (sm_86) is for its own major capability and the same or a higher minor one; PTX
    (compute_90) is for all from its own on (CUDA C++ Programming Guide, "Application
    Compatibility"). A GPU whose capability nobody knows, (0, 0), is let through.
    """
    if not any(capability):
        return True
    found = re.findall(r"\b(sm|compute)_(\d+)(\d)", " ".join(kernels))
    return any(
        (int(major), int(minor)) <= capability
        and (kind == "compute" or int(major) == capability[0])
        for kind, major, minor in found
    )


def new_row() -> str:
    """What a GPU needs to be known: the columns of its row."""
    columns = [spec.name for spec in fields(Gpu) if spec.name != "name"]
    return f"to add one, a row of hardware.GPUS needs {', '.join(columns)}"


def choose(asked: str, gpus: Sequence[Device], cpu: Device) -> Device:
    """The device to train on: the one that was asked for, or the first of what is here.

    Raises:
        ConfigError: the name is not in the table.
        HardwareMismatch: the named GPU is not in this machine.
    """
    check_known(asked)
    asked = asked.lower()
    if asked == "cpu":
        return cpu
    if asked == "auto":
        return gpus[0] if gpus else cpu
    for device in gpus:
        if device.gpu and asked in (device.gpu.name, device.gpu.family):
            return device
    raise HardwareMismatch(_not_here(asked, gpus, cpu))


def choose_for(
    processes: int, asked: str, gpus: Sequence[Device], cpu: Device
) -> tuple[Device, ...]:
    """A device for each process of this node: one CPU for all, or equal GPUs, one for each.

    Raises:
        ConfigError: the name is not in the table.
        HardwareMismatch: the named GPU is not in this machine, or not often enough.
    """
    first = choose(asked, gpus, cpu)
    if first.kind == "cpu":
        return (cpu,) * processes
    same = [gpu for gpu in gpus if gpu.name == first.name]
    if len(same) < processes:
        raise HardwareMismatch(
            f"{processes} processes were started on this node, which has {len(same)} x "
            f"{first.name}: start as many as there are GPUs"
        )
    return tuple(same[:processes])


def _not_here(asked: str, gpus: Sequence[Device], cpu: Device) -> str:
    row = next(gpu for gpu in GPUS if asked in (gpu.name, gpu.family))
    found = "; ".join(str(device) for device in gpus) or f"no GPU, a CPU ({cpu})"
    return (
        f"gpu={asked} is not in this machine; found: {found}. "
        f"Take what is here with gpu=auto{'' if gpus else ' or gpu=cpu'}, "
        f"or run this command where there is a {asked.upper()} ({row.found_in})"
    )
