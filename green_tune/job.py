"""A job: what was asked, joined with what was found for it, before anything heavy starts.

Everything a user can get wrong is found here in about a second, and nothing is loaded or
written. It imports no door but NVML's and, for those who ask for it, the hub's.
"""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from green_tune import data, hardware, intensity, models, nvml, ranks, store, tasks
from green_tune.config import TrainConfig
from green_tune.errors import ModelError
from green_tune.fit import as_device
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
        return _plan(config, self.device, self.shape, self.family, self.data.shared, self.rank)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found for a run, whichever device it is for."""

    config: TrainConfig
    source: Source
    commit: str
    task: Task
    data: data.Data
    intensity: Intensity
    shape: Shape | None
    family: str

    @property
    def max_seq_len(self) -> int:
        """Tokens of an example: as asked, and at most what the base model was built for."""
        asked = self.config.max_seq_len
        return min(asked, self.shape.context) if self.shape else asked

    def on(
        self, devices: tuple[Device, ...], rank: Rank = ranks.ALONE, *, nf4: bool | None = None
    ) -> Job:
        """The job on these devices; `nf4` says that bitsandbytes is there, whatever is here.

        Raises:
            DoesNotFit: the model is too large for the device.
            ConfigError: what was asked is not supported there.
        """
        device, shared = devices[rank.local], self.data.shared
        plan = _plan(self.config, device, self.shape, self.family, shared, rank, nf4=nf4)
        found = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return Job(**found, plan=plan, rank=rank, devices=devices)


def prepare(config: TrainConfig) -> Job:
    """Finds everything that `config` names.

    Raises:
        DoesNotFit: the model is too large for the device; found before its data is looked for.
        UsageError: something is unknown, missing, malformed, not here or out of reach.
    """
    named = _named(config)
    source = named.source
    rank = ranks.this()
    devices = hardware.choose_for(rank.here, config.gpu, nvml.find_gpus(), this_cpu())
    device = devices[rank.local]
    if device.gpu_type == "unknown":
        log.warning("%s is not in the table of GPUs: running with safe settings", device.name)
    if known := models.shape_of(source):
        _plan(config, device, known, known.family, 0.0, rank)  # does it fit, before the hub
    store.check_reachable(store.tracking_uri())
    commit = _commit(source, config.revision)
    shape, family = _shape(source, commit)
    _plan(config, device, shape, family, 0.0, rank)  # and before the data is read
    return _found(config, named, commit, shape, family).on(devices, rank)


def find(config: TrainConfig, *, ask_hub: bool = True) -> Found:
    """Finds what does not depend on a device, for a job that is only foretold.

    A base model of the table needs no hub for that: its shape is known. Its commit is then empty.
    Without `ask_hub` it is not even asked for, and the shape of any other one of the hub is None.

    Raises:
        UsageError: something is unknown, missing, malformed or out of reach.
    """
    named = _named(config)
    source = named.source
    commit, shape, family = _foreseen(source, config.revision, ask_hub)
    return _found(config, named, commit, shape, family)


def device(gpu: str) -> Device:
    """The one device that is asked for, of those that are here.

    Raises:
        ConfigError: the name is not in the table.
        HardwareMismatch: it is not in this machine.
    """
    return hardware.choose(gpu, nvml.find_gpus(), this_cpu())


def devices(asked: str) -> list[tuple[Device, bool]]:
    """The devices of a comma list, and whether each is here; `auto` is this machine and the table.

    Raises:
        ConfigError: a name is not in the table.
    """
    gpus, cpu = nvml.find_gpus(), this_cpu()
    names = [name.strip() for name in asked.lower().split(",")]
    found: dict[str, tuple[Device, bool]] = {}
    for name in names:
        hardware.check_known(name)
        rows = [gpu for gpu in hardware.GPUS if name in ("auto", gpu.name, gpu.family)]
        if name in ("auto", "cpu"):
            mine = hardware.choose(name, gpus, cpu)
            found.setdefault(mine.gpu_type, (mine, True))
        for row in rows:
            mine = next((one for one in gpus if one.gpu == row), None) or as_device(row)
            found.setdefault(row.name, (mine, mine in gpus))
    return list(found.values())


def _plan(  # noqa: PLR0913 - what a plan depends on
    config: TrainConfig,
    device: Device,
    shape: Shape | None,
    family: str,
    shared: float,
    rank: Rank,
    *,
    nf4: bool | None = None,
) -> Plan:
    return make_plan(
        config,
        device,
        shape,
        processes=rank.world,
        divisions=rank.divisions,
        shared=shared,
        family=family,
        liger=bool(find_spec("liger_kernel")),
        nf4=bool(find_spec("bitsandbytes")) if nf4 is None else nf4,
    )


class _Named(NamedTuple):
    """What the names in a config stand for."""

    task: Task
    intensity: Intensity
    source: Source


def _named(config: TrainConfig) -> _Named:
    return _Named(
        tasks.resolve(config.task),
        intensity.resolve(config.country),
        models.resolve(config.model),
    )


def _found(
    config: TrainConfig, named: _Named, commit: str, shape: Shape | None, family: str
) -> Found:
    """With its data, which is read last."""
    examples = data.load(
        named.task,
        config.data,
        max_train=config.max_train_examples,
        max_validation=config.max_eval_examples,
    )
    return Found(
        config=config, commit=commit, data=examples, shape=shape, family=family, **named._asdict()
    )


def _shape(source: Source, commit: str) -> tuple[Shape | None, str]:
    described = _config_json(source, commit)
    check_causal(described, source.name)
    return Shape.of(described), str(described.get("model_type", ""))


def _foreseen(source: Source, revision: str, ask_hub: bool) -> tuple[str, Shape | None, str]:
    """Commit, shape and family; those of a model of the table without its config.json."""
    known = models.shape_of(source)
    if source.kind == "hub" and not ask_hub:
        return "", known, known.family if known else ""
    try:
        commit = _commit(source, revision)
        return commit, *_shape(source, commit)
    except ModelError:
        if known is None:
            raise
        return "", known, known.family


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


def this_cpu() -> Device:
    """The CPU of this machine, with the memory that this process may use."""
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
