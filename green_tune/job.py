"""A job: what was asked, joined with what was found for it, before anything heavy starts.

Everything a user can get wrong is found here in about a second, and nothing is loaded or
written. It imports no door but NVML's and, for those who ask for it, the hub's.
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from green_tune import data, hardware, intensity, models, nvml, ranks, store, tasks
from green_tune.config import TrainConfig
from green_tune.hardware import Device
from green_tune.intensity import Intensity
from green_tune.models import Source
from green_tune.plan import Plan, make_plan
from green_tune.ranks import Rank
from green_tune.shapes import Shape, check_causal
from green_tune.tasks import Task

log = logging.getLogger(__name__)

GIB = 2**30


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
    shape: Shape | None = None  # None where its config.json does not tell
    family: str = ""

    @property
    def device(self) -> Device:
        """The device of this process."""
        return self.devices[self.rank.local]

    def with_config(self, config: TrainConfig) -> "Job":
        """The same job with other hyperparameters: a trial of a sweep."""
        return replace(self, config=config, plan=self._plan(config))

    def pinned(self, largest: TrainConfig) -> "Job":
        """The job with the precision and the bits of base weights that its largest trial needs.

        Trials that differ in these would not be comparable.

        Raises:
            DoesNotFit: the largest trial does not fit.
        """
        plan = self._plan(largest)
        fixed = {"precision": plan.precision, "quantization": plan.quantization}
        return self.with_config(replace(self.config, **fixed))  # type: ignore[arg-type]

    def _plan(self, config: TrainConfig) -> Plan:
        return _plan(
            config, self.device, self.shape, self.family, self.data.shared, self.rank.world
        )


def prepare(config: TrainConfig) -> Job:
    """Finds everything that `config` names.

    Raises:
        DoesNotFit: the model is too large for the device; found before its data is looked for.
        UsageError: something is unknown, missing, malformed, not here or out of reach.
    """
    task = tasks.resolve(config.task)
    zone = intensity.resolve(config.country)
    source = models.resolve(config.model)
    rank = ranks.this()
    devices = hardware.choose_for(rank.here, config.gpu, nvml.find_gpus(), _cpu())
    device = devices[rank.local]
    if device.gpu_type == "unknown":
        log.warning("%s is not in the table of GPUs: running with safe settings", device.name)
    if known := models.shape_of(source):
        _plan(config, device, known, known.family, 0.0, rank.world)  # does it fit, before the hub
    store.check_reachable(store.tracking_uri())
    commit = _commit(source, config.revision)
    described = _config_json(source, commit)
    check_causal(described, source.name)
    shape, family = Shape.of(described), str(described.get("model_type", ""))
    _plan(config, device, shape, family, 0.0, rank.world)  # and before the data is read
    examples = data.load(
        task,
        config.data,
        max_train=config.max_train_examples,
        max_validation=config.max_eval_examples,
    )
    return Job(
        config=config,
        plan=_plan(config, device, shape, family, examples.shared, rank.world),
        rank=rank,
        devices=devices,
        source=source,
        commit=commit,
        task=task,
        data=examples,
        intensity=zone,
        shape=shape,
        family=family,
    )


def device(gpu: str) -> Device:
    """The one device that is asked for, of those that are here.

    Raises:
        ConfigError: the name is not in the table.
        HardwareMismatch: it is not in this machine.
    """
    return hardware.choose(gpu, nvml.find_gpus(), _cpu())


def _plan(
    config: TrainConfig, device: Device, shape: Shape | None, family: str, shared: float, world: int
) -> Plan:
    return make_plan(
        config,
        device,
        shape,
        processes=world,
        shared=shared,
        family=family,
        liger=bool(find_spec("liger_kernel")),
        nf4=bool(find_spec("bitsandbytes")),
    )


def _config_json(source: Source, commit: str) -> Mapping[str, Any]:
    if (config := models.config_of(source)) is not None:
        return config
    from green_tune import hub  # only those who ask for the hub pay for its libraries

    return hub.model_config(source.place, commit)


def _commit(source: Source, revision: str) -> str:
    if source.kind != "hub":
        return ""
    from green_tune import hub  # only those who ask for the hub pay for its libraries

    return hub.check_model(source.place, revision)


def _cpu() -> Device:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Device(kind="cpu", name=_cpu_name(), memory_gib=min(pages * size, _allowed()) / GIB)


def _allowed() -> float:
    """What a container may use of the memory, in bytes."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.exists() else "max"
    return float(text) if text.isdigit() else math.inf


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {os.cpu_count()} threads"
