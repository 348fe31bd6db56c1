"""What this machine has and lacks: CPU, memory, GPUs and who can use them, counters, disks.

Each function is one look of `doctor`. It imports what it needs itself, so that a library which is
missing is a line on the screen and not the end of it; it writes nothing, and asks no network.
A door to NVML (what is free, which CUDA the driver serves) and to CodeCarbon (its table of CPUs).
"""

import json
import logging
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from green_tune.checkup import WORTH, WRONG, Finding, nearest, refused
from green_tune.errors import HardwareMismatch

if TYPE_CHECKING:
    from green_tune.hardware import Device

GIB = 2**30
LOW_MEMORY_GIB = 2.0  # what torch, MLflow and the smallest training take together
LOW_DISK_GIB = 1.0  # some runs with their adapters, or one checkpoint
FULL = 0.9  # of a GPU's memory: less than this is free where others are at it
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
MEMORY_INFO = Path("/proc/meminfo")
ASK_TORCH = (
    "import json, torch; c = torch.cuda; "
    "print(json.dumps({'available': c.is_available(), 'kernels': c.get_arch_list()}))"
)
ASK_TORCH_S = 30.0  # its import alone takes seconds, and many from a slow disk


def torch() -> Iterator[Finding]:
    """Which build of torch is here, and, where there is a GPU, whether it can use that."""
    from green_tune import nvml

    version, cuda = _torch_build()
    what = f"{version}, built for {f'CUDA {cuda}' if cuda else 'the CPU alone'}"
    gpus = nvml.find_gpus()
    if not gpus:
        yield Finding(name="torch", what=what)
        return
    served = _cuda_of_driver()
    problem, fix = _no_cuda(version, cuda, served) or _no_kernels(_torch_says(), gpus)
    if problem:
        yield Finding(name="torch", what=f"{what}: {problem}", level=WRONG, fix=fix)
    else:
        yield Finding(name="torch", what=f"{what}; the driver serves CUDA {served}")


def cpu() -> Iterator[Finding]:
    """The CPU, and how much of it a container may use."""
    from green_tune import job

    allowed, threads = _allowed_cpus(), os.cpu_count() or 1
    yield Finding(name="cpu", what=job.this_cpu().name)
    if allowed < threads and "OMP_NUM_THREADS" not in os.environ:
        what = f"this process may use {allowed:g} of {threads} threads; torch would start more"
        fix = f"export OMP_NUM_THREADS={max(1, math.floor(allowed))}"
        yield Finding(name="cpu", what=what, level=WORTH, fix=fix)


def memory() -> Iterator[Finding]:
    """The machine's memory, within what a container allows."""
    from green_tune import job

    total, free = job.this_cpu().memory_gib, _available_gib()
    what = f"{min(free, total):.1f} of {total:.1f} GiB available"
    if free < LOW_MEMORY_GIB:
        fix = "end other programs, or give the container more memory"
        yield Finding(name="memory", what=what, level=WORTH, fix=fix)
    else:
        yield Finding(name="memory", what=what)


def gpus(asked: str) -> Iterator[Finding]:
    """The GPUs that this process may use, and whether the one that is asked for is among them."""
    from green_tune import job, nvml

    versions = nvml.versions()
    try:
        there = nvml.find_gpus()
        for device in there:
            yield from _gpu(device, versions["driver"])
        job.device(asked)
    except HardwareMismatch as error:
        yield refused("gpu", error)
        return
    if there:
        return
    if versions:
        mask = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "none is here" if mask is None else f"CUDA_VISIBLE_DEVICES={mask} hides them all"
        what = f"driver {versions['driver']} is here, but no GPU: {hidden}"
        yield Finding(name="gpu", what=what, level=WORTH, fix="unset it, or look at nvidia-smi")
    else:
        yield Finding(name="gpu", what="none: no NVIDIA driver; trainings run on the CPU")


def precision(asked: str) -> Iterator[Finding]:
    """The arithmetic that a plan chooses here, unless it is told another."""
    from green_tune import job, rules
    from green_tune.config import TrainConfig

    try:
        device = job.device(asked)
    except HardwareMismatch:  # which the look at the GPUs says
        return
    yield Finding(name="precision", what=rules.precision(TrainConfig(), device, "")[1])


def cpu_energy() -> Iterator[Finding]:
    """How the CPU's energy would be known: by its counter, or by a model."""
    from green_tune import emissions

    if line := emissions.unreadable_rapl():
        what, _, fix = line.partition("; to measure it: ")
        yield Finding(name="cpu", what=what, level=WORTH, fix=fix)
    elif any(emissions.RAPL.glob("intel-rapl*/energy_uj")):
        yield Finding(name="cpu", what=emissions.CPU_METHODS["intel_rapl"])
    else:
        yield _modelled_cpu()
    if line := emissions.ignored_settings(os.environ):
        what, _, why = line.partition("; ")
        yield Finding(name="codecarbon", what=what, level=WORTH, fix=f"nothing to do: {why}")


def gpu_energy() -> Iterator[Finding]:
    """How the GPUs' energy would be known: by NVML's counter, or by its power readings."""
    from green_tune import nvml

    try:
        there = nvml.find_gpus()
        for device in there:
            method = nvml.GpuEnergy([device]).methods["gpu"]
            if method == nvml.COUNTER:
                yield Finding(name=f"gpu {device.index}", what=method)
            else:
                fix = "nothing to do; the counter begins with Volta, and runs say how it is known"
                yield Finding(name=f"gpu {device.index}", what=method, level=WORTH, fix=fix)
    except HardwareMismatch as error:
        yield refused("gpu", error)


def intensity(country: str) -> Iterator[Finding]:
    """The grams of a kilowatt-hour, and how we know."""
    from green_tune import intensity as zones

    zone = zones.resolve(country)
    year = f", {zone.year}" if zone.year and zone.year not in zone.source else ""
    what = f"{zone.note} ({zone.source}{year})"
    if zone.assumed:
        fix = "-P country=FRA (your ISO code), or -P country=56 (g CO2e per kWh), with each command"
        yield Finding(name="intensity", what=what, level=WORTH, fix=fix)
    else:
        yield Finding(name="intensity", what=what)


def meters() -> Iterator[Finding]:
    """Whether meters of this machine can see each other, in the folder that they share."""
    from green_tune import presence

    folder = presence.default_folder()
    if os.access(nearest(folder), os.W_OK | os.X_OK):
        yield Finding(name="meters", what=f"see one another in {folder}")
    else:
        what = f"no file can be made in {folder}: two runs at once would count their energy twice"
        fix = f"chmod 1777 {folder}, or GREEN_TUNE_METERS=FOLDER, one for all runs of the machine"
        yield Finding(name="meters", what=what, level=WORTH, fix=fix)


def disks() -> Iterator[Finding]:
    """Room where runs, models, temporary files and checkpoints go, each file system once."""
    shared: dict[int, list[str]] = {}
    for name, folder in _folders().items():
        there = nearest(folder)
        if not os.access(there, os.W_OK):
            fix = f"make {there} writable, or name another folder ({WAYS[name]})"
            yield Finding(name=name, what=f"{folder} is not writable", level=WRONG, fix=fix)
        shared.setdefault(there.stat().st_dev, []).append(name)
    for names in shared.values():
        yield _room(names, shutil.disk_usage(nearest(_folders()[names[0]])).free / GIB)


def _torch_build() -> tuple[str, str]:
    """Version and CUDA of torch, from its file: importing it takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise ImportError("No module named 'torch'", name="torch")
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return str(build["__version__"]), str(build["cuda"] or "")


def _cuda_of_driver() -> str:
    """The newest CUDA that the driver serves, such as 12.8."""
    import pynvml

    found = int(_asked(pynvml.nvmlSystemGetCudaDriverVersion_v2) or 0)
    return f"{found // 1000}.{found % 1000 // 10}"


def _asked(question: Callable[..., Any], *about: Any) -> Any:
    """NVML's answer; None where there is none."""
    import pynvml

    pynvml.nvmlInit()
    try:
        return question(*about)
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def _no_cuda(version: str, cuda: str, served: str) -> tuple[str, str] | None:
    """Why this build cannot speak with the driver: it must be of its major version, or older."""
    if not cuda:
        fix = f"pip install --force-reinstall torch=={version.partition('+')[0]}, a build with CUDA"
        return "the GPU stays unused", fix
    if int(cuda.split(".")[0]) > int(served.split(".")[0]):
        fix = f"a driver for CUDA {cuda.split('.')[0]}, or torch's build for CUDA {served}"
        return f"the driver serves CUDA {served} at most", fix
    return None


def _torch_says() -> dict[str, Any]:
    """What torch itself sees, in a process of its own, which may hang or crash."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_TORCH],
            capture_output=True,
            text=True,
            timeout=ASK_TORCH_S,
            check=True,
        )
        return dict(json.loads(done.stdout))
    except subprocess.CalledProcessError as error:
        return {"error": str(error.stderr).strip().splitlines()[-1:] or "it crashed"}
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {ASK_TORCH_S:g} s"}


def _no_kernels(said: Mapping[str, Any], gpus: "Iterable[Device]") -> tuple[str, str]:
    """Why torch cannot compute on these GPUs; empty texts where it can."""
    from green_tune.hardware import can_run

    if "error" in said:
        return f"torch fails: {said['error']}", "pip install --force-reinstall torch"
    if not said["available"]:
        return "torch sees no GPU", 'look at: python -c "import torch; torch.cuda.init()"'
    for gpu in gpus:
        if not can_run(said["kernels"], gpu.capability):
            fix = "torch's build for an older CUDA, which still serves it, or another GPU"
            capability = ".".join(map(str, gpu.capability))
            return f"it has no kernels for {gpu.name} (capability {capability})", fix
    return "", ""


def _allowed_cpus() -> float:
    """How many threads this process may use, by its mask and its container's quota."""
    threads = float(len(os.sched_getaffinity(0)))
    text = CPU_QUOTA.read_text().split() if CPU_QUOTA.exists() else ["max"]
    return min(threads, int(text[0]) / int(text[1])) if text[0].isdigit() else threads


def _available_gib() -> float:
    """Memory that programs can still get, as Linux reckons; unlimited where it does not say."""
    text = MEMORY_INFO.read_text() if MEMORY_INFO.exists() else ""
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    return int(found[1]) * 1024 / GIB if found else math.inf


def _gpu(device: "Device", driver: str) -> Iterator[Finding]:
    import pynvml

    from green_tune import nvml

    name = f"gpu {device.index}"
    about = _asked(lambda: pynvml.nvmlDeviceGetMemoryInfo(_handle(device)))
    free = about.free / GIB if about else math.nan
    capability = ".".join(map(str, device.capability))
    what = (
        f"{device.name}: {free:.1f} of {device.memory_gib:.1f} GiB free, driver {driver}, "
        f"compute capability {capability}"
    )
    if device.gpu is None:
        fix = "add its row to hardware.GPUS; until then trainings take the safe settings"
        yield Finding(name=name, what=f"{what}; not in the table", level=WORTH, fix=fix)
    else:
        yield Finding(name=name, what=f"{what}; {device.gpu.name} in the table")
    others = nvml.GpuEnergy([device]).strangers(-1)  # doctor itself is not one of them
    if others or free < FULL * device.memory_gib:
        what = f"{others} other processes are at it, with {device.memory_gib - free:.1f} GiB"
        fix = "end them, or name another GPU in CUDA_VISIBLE_DEVICES: their energy counts as yours"
        yield Finding(name=name, what=what, level=WORTH, fix=fix)


def _handle(device: "Device") -> Any:
    import pynvml

    return pynvml.nvmlDeviceGetHandleByUUID(device.uuid)


def _modelled_cpu() -> Finding:
    """Where there is no counter: a model by the rated power, if CodeCarbon's table has it."""
    from codecarbon.core.cpu import TDP

    from green_tune import emissions

    logging.getLogger("codecarbon").setLevel(logging.ERROR)  # it warns of a CPU unknown to it
    found: Any = TDP()  # type: ignore[no-untyped-call]
    method = emissions.CPU_METHODS["cpu_load"].format(watts=found.tdp or 0)
    fix = "nothing to do in a virtual machine: runs say that it is a model, and between what bounds"
    if found._get_cpu_power_from_registry(found.model) is None:
        method += f", assumed: {found.model} is not in CodeCarbon's table"
    return Finding(name="cpu", what=f"{method}; no RAPL counter here", level=WORTH, fix=fix)


WAYS = {  # how a user moves each
    "work": "cd there",
    "hub cache": "HF_HOME",
    "temporary": "TMPDIR",
    "state": "XDG_STATE_HOME",
}


def _folders() -> dict[str, Path]:
    from huggingface_hub import constants

    from green_tune import store

    return {
        "work": Path.cwd(),
        "hub cache": Path(constants.HF_HUB_CACHE),
        "temporary": Path(tempfile.gettempdir()),
        "state": store.state_folder(),
    }


def _room(names: list[str], free_gib: float) -> Finding:
    """Of one file system, which several of the folders may share."""
    needed = _largest_base_gib()
    what = f"{free_gib:.1f} GiB free for {', '.join(names)}"
    ways = ", ".join(dict.fromkeys(WAYS[name] for name in names))
    if free_gib < LOW_DISK_GIB:
        fix = f"make room, or go elsewhere ({ways})"
        return Finding(name="disk", what=what, level=WRONG, fix=fix)
    if "hub cache" in names and free_gib < needed:
        fix = f"a larger disk for {WAYS['hub cache']}, if you train one of them"
        short = f"{what}; the largest 7B base takes {needed:.1f} GiB"
        return Finding(name="disk", what=short, level=WORTH, fix=fix)
    return Finding(name="disk", what=what)


def _largest_base_gib() -> float:
    """Of the table's base models, as the hub keeps them: two bytes a weight."""
    from green_tune.models import MODELS

    return max(model.shape.parameters for model in MODELS) * 2 / GIB
