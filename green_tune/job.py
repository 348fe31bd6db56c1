"""A job: what was asked, joined with what was found for it, before anything heavy starts.

Everything a user can get wrong is found here in about a second, and nothing is loaded or
written. It imports no door but NVML's and, for those who ask for it, the hub's.
"""

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from green_tune import data, hardware, intensity, models, nvml, ranks, store, tasks
from green_tune.config import TrainConfig
from green_tune.errors import ConfigError
from green_tune.hardware import Device
from green_tune.intensity import Intensity
from green_tune.models import Source
from green_tune.ranks import Rank
from green_tune.tasks import Task

log = logging.getLogger(__name__)

BF16_FROM = (8, 0)  # the first compute capability with native bf16; older ones emulate it


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the hardware makes of a config, with a reason for each choice.

    The examples of one optimiser step are batch_size x accumulation_steps, as asked, however
    they are cut into micro-batches.
    """

    precision: str
    attention: str
    micro_batch_size: int
    accumulation: int
    reasons: tuple[str, ...]

    def to_params(self) -> dict[str, str]:
        """The plan as MLflow params, its reasons included."""
        return {
            "plan.precision": self.precision,
            "plan.attention": self.attention,
            "plan.micro_batch_size": str(self.micro_batch_size),
            "plan.accumulation": str(self.accumulation),
            "plan.reasons": "; ".join(self.reasons),
        }


@dataclass(frozen=True, kw_only=True)
class Job:
    """One fine-tuning run, ready to start."""

    config: TrainConfig
    plan: Plan
    rank: Rank
    devices: tuple[Device, ...]  # of the processes on this node, in their order
    source: Source
    commit: str  # of a hub model; empty for others
    task: Task
    data: data.Data
    intensity: Intensity

    @property
    def device(self) -> Device:
        """The device of this process."""
        return self.devices[self.rank.local]

    def with_config(self, config: TrainConfig) -> "Job":
        """The same job with other hyperparameters: a trial of a sweep."""
        return replace(self, config=config, plan=make_plan(config, self.device))


def prepare(config: TrainConfig) -> Job:
    """Finds everything that `config` names.

    Raises:
        UsageError: something is unknown, missing, malformed, not here or out of reach.
    """
    task = tasks.resolve(config.task)
    zone = intensity.resolve(config.country)
    source = models.resolve(config.model)
    rank = ranks.this()
    devices = hardware.choose_for(rank.here, config.gpu, nvml.find_gpus(), _cpu())
    plan = make_plan(config, devices[rank.local], rank.world)
    store.check_reachable(store.tracking_uri())
    examples = data.load(
        task,
        config.data,
        max_train=config.max_train_examples,
        max_validation=config.max_eval_examples,
    )
    return Job(
        config=config,
        plan=plan,
        rank=rank,
        devices=devices,
        source=source,
        commit=_commit(source, config.revision),
        task=task,
        data=examples,
        intensity=zone,
    )


def make_plan(config: TrainConfig, device: Device, processes: int = 1) -> Plan:
    """What the device makes of the config.

    Raises:
        ConfigError: the asked precision would be emulated or is not supported there, or the
            examples of a step cannot be shared equally by that many processes.
    """
    precision, reason = _precision(config, device)
    reasons = [reason, "attention sdpa: runs everywhere"]
    micro = config.batch_size
    if device.gpu_type == "unknown":
        micro = 1
        reasons.append("micro-batch 1: this GPU is not in the table, its limits are not known")
        log.warning("%s is not in the table of GPUs: running with safe settings", device.name)
    mine = _share(config.batch_size * config.accumulation_steps, processes)
    if processes > 1:
        micro = math.gcd(micro, mine)
        reasons.append(f"{mine} examples of each step in each of {processes} processes")
    return Plan(
        precision=precision,
        attention="sdpa",
        micro_batch_size=micro,
        accumulation=mine // micro,
        reasons=tuple(reasons),
    )


def _share(examples: int, processes: int) -> int:
    if examples % processes:
        raise ConfigError(
            f"batch_size x accumulation_steps = {examples} examples of a step cannot be shared "
            f"equally by {processes} processes; take a multiple of {processes}"
        )
    return examples // processes


def _precision(config: TrainConfig, device: Device) -> tuple[str, str]:
    native_bf16 = device.kind == "cuda" and device.capability >= BF16_FROM
    asked = config.precision
    if asked == "bf16" and device.kind == "cuda" and not native_bf16:
        raise ConfigError(f"precision=bf16 would be emulated on {device.name}; use fp16 or auto")
    if asked == "fp16" and device.kind == "cpu":
        raise ConfigError("precision=fp16 needs a GPU; use fp32 or auto")
    if asked != "auto":
        return asked, f"{asked}: asked for"
    if device.kind == "cpu":
        return "fp32", "fp32: a CPU"
    if device.gpu is None:
        return "fp32", "fp32: the GPU is not in the table"
    return ("bf16", "bf16: native") if native_bf16 else ("fp16", "fp16: bf16 would be emulated")


def _commit(source: Source, revision: str) -> str:
    if source.kind != "hub":
        return ""
    from green_tune import hub  # only those who ask for the hub pay for its libraries

    return hub.check_model(source.place, revision)


def _cpu() -> Device:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Device(kind="cpu", name=_cpu_name(), memory_gib=pages * size / 2**30)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} threads"
