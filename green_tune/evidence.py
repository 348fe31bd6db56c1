"""What a forecast of a run rests on: the best of what is known here, and how it is called.

In this order: the same config measured on this device before; a fit over earlier runs of the same
base model, or of its family, on it; a sounding of this machine; the table of peaks. Pure functions
over records: what the store holds, and a pace that somebody sounded, are given.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from green_tune import hardware, pace, peaks
from green_tune.budget import Amount
from green_tune.effort import Work
from green_tune.errors import ConfigError
from green_tune.hardware import Device
from green_tune.job import Job
from green_tune.pace import Pace, Phases, Seen
from green_tune.results import FINGERPRINT, PROCESSES, REUSED, RunRecord

Layer = Literal["same", "fit", "probe", "table"]
LAYERS: tuple[Layer, ...] = ("same", "fit", "probe", "table")

# What is multiplied and divided by for an interval as long as there are fewer than nine past errors
# of the same evidence: assumed, and said to be. Of a probe's quotes on one CPU nine in ten were
# within 1.14 of whole commands, and within 1.08 of trials (benchmarks/quote.py).
ASSUMED = {"same": 1.15, "fit": 1.3, "probe": 1.25, "table": peaks.ASSUMED_FACTOR}

FEWEST = 3  # runs that make a fit
NEWEST = 40  # of them count: machines and versions change
FAMILY, SOUNDED = "model_family", "quote.sounded"  # tags
SETUP_OF_A_TRIAL_S = 0.1  # its adapter and its run; assumed until trials were measured
OWN = ("train",)  # kinds of runs with a setup of their own
PHASES = ("setup", "train", "eval", "quality", "save", "between")
ALIKE = ("plan.precision", "plan.quantization", "plan.batching", "plan.checkpointing", "use_dora")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a run is expected to take, phase by phase, and why one may believe it.

    Hours and kWh. `runs` are those that it rests on.
    """

    layer: Layer
    phases: Phases
    note: str
    runs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known beforehand: the newest runs of the store, and what was sounded in this process.

    `sounded` are paces by what they hold for (see `sounded`), with words on what they are; one that
    `insists` on them looks at no run that they cover.
    """

    records: Sequence[RunRecord] = ()
    sounded: Mapping[str, tuple[Pace, str]] = field(default_factory=dict)
    insists: bool = False


def find(job: Job, work: Work, known: Known, fingerprint: str, *, kind: str = "train") -> Evidence:
    """The best evidence for a run of a `kind` (train, trial or cell) of a job.

    Raises:
        ConfigError: nothing is known of its device, not even by the table.
    """
    here = [record for record in known.records if is_of(record, job.device)]
    if known.insists and sounded(job) in known.sounded:
        here = []
    if same := _same(here, fingerprint, job, kind):
        return _as_measured(same)
    start, whence = _start(job, here, known)
    if kind not in OWN:
        start = replace(start, setup_s=SETUP_OF_A_TRIAL_S)
    if runs := _alike(here, job):
        return _fit(start, runs, job, work, kind)
    layer: Layer = "probe" if whence else "table"
    note = whence or _by_table(job.device)
    return Evidence(layer=layer, phases=start.phases(work), note=note)


def is_of(record: RunRecord, device: Device) -> bool:
    """Whether a run was on such a device: GPUs of the table by their type, others by their name."""
    if record.tags.get("gpu_type") != device.gpu_type:
        return False
    return device.gpu is not None or record.tags.get("device", "") == str(device)


def _same(records: Sequence[RunRecord], fingerprint: str, job: Job, kind: str) -> list[RunRecord]:
    """Runs of the very same config; those that had a setup of their own apart from others."""
    scored = str(job.config.quality_examples)  # which decides no result, and what it costs
    return [
        record
        for record in records
        if record.tags.get(FINGERPRINT) == fingerprint
        and record.params.get("quality_examples") == scored
        and _is_whole(record)
        and (record.kind in OWN) == (kind in OWN)
    ]


def _as_measured(records: Sequence[RunRecord]) -> Evidence:
    """The mean of what they have taken."""
    seen = [_phases(record) for record in records]
    names = dict.fromkeys(name for phases in seen for name in phases)
    mean = {name: _mean(phases[name] for phases in seen if name in phases) for name in names}
    times = "once" if len(records) == 1 else f"{len(records)} times"
    return Evidence(
        layer="same",
        phases=mean,
        note=f"this very config, measured here {times} before",
        runs=tuple(record.run_id for record in records),
    )


def _start(job: Job, here: Sequence[RunRecord], known: Known) -> tuple[Pace, str]:
    """What a fit begins with: a pace that was sounded, now or before, else the table."""
    if found := known.sounded.get(sounded(job)):
        return found
    for record in reversed(here):
        if record.tags.get(SOUNDED) == sounded(job) and (pace_ := Pace.read(record.metrics)):
            return pace_, f"a probe of run {record.run_id[:8]}: {record.tags.get('quote.note', '')}"
    return table(job), ""


def usual(job: Job, known: Known) -> Pace:
    """How a whole run of such a job goes here, its setup included: for what runs share."""
    here = [record for record in known.records if is_of(record, job.device)]
    start, _ = _start(job, here, known)
    alone = [_seen(record, OWN[0]) for record in _alike(here, job) if record.kind in OWN]
    return pace.fitted(start, alone) if alone else start


def table(job: Job) -> Pace:
    """What the table of GPUs says of a job's device.

    Raises:
        ConfigError: it has no row there.
    """
    device, shape = job.device, job.shape
    assert shape is not None  # whoever forecasts has looked
    if device.kind == "cpu":
        return peaks.pace_of_cpu(device, shape, os.cpu_count() or 1)
    if device.gpu is None:
        raise ConfigError(f"{device.name} is not in the table of GPUs; {hardware.new_row()}")
    return peaks.pace(device.gpu, job.plan.precision, job.plan.quantization, shape)


def _by_table(device: Device) -> str:
    if device.gpu is None:
        return "rates assumed of a CPU: an order of magnitude"
    share = f"{peaks.EFFICIENCY:.0%} of its peak"
    return f"the table of GPUs, {device.gpu.name} at {share}: an order of magnitude"


def tags_of_probe(job: Job, note: str) -> dict[str, str]:
    """By what a sounding is found again."""
    return {
        "gpu_type": job.device.gpu_type,
        "device": str(job.device),
        "base_model": job.source.name,
        FAMILY: job.family,
        SOUNDED: sounded(job),
        "quote.note": note,
    }


def sounded(job: Job) -> str:
    """What a sounding holds for: other jobs of the same text have the same pace."""
    adapter = f"{job.config.lora_targets}/{job.config.lora_layers}/{job.config.use_dora}"
    plan = (job.plan.precision, job.plan.batching, job.plan.checkpointing)
    return f"{job.source.name} {job.task.name} {adapter} {' '.join(map(str, plan))}"


def _alike(records: Sequence[RunRecord], job: Job) -> list[RunRecord]:
    """Enough runs of the same base model, else of its family; none if they are too few."""
    params = job.config.to_params() | job.plan.to_params()
    usable = [
        record
        for record in records
        if _is_whole(record)
        and Work.read(record.metrics)
        and all(record.params.get(name) == params[name] for name in ALIKE)
    ]
    same = [record for record in usable if record.tags.get("base_model") == job.source.name]
    family = [record for record in usable if record.tags.get(FAMILY) == job.family]
    for found in (same, family):
        if len(found) >= FEWEST:
            return found[-NEWEST:]
    return []


def _fit(start: Pace, runs: Sequence[RunRecord], job: Job, work: Work, kind: str) -> Evidence:
    fitted = pace.fitted(start, [_seen(record, kind) for record in runs])
    of_task = [_seen(r, kind) for r in runs if r.params.get("task") == job.task.name]
    own = pace.fitted(start, of_task) if of_task else start  # a label is sooner said than a summary
    fitted = replace(fitted, quality_s_per_example=own.quality_s_per_example)
    models = {record.tags.get("base_model", "") for record in runs}
    what = job.source.name if models == {job.source.name} else f"{job.family} models"
    return Evidence(
        layer="fit",
        phases=fitted.phases(work),
        note=f"a fit over {len(runs)} runs of {what} here",
        runs=tuple(record.run_id for record in runs),
    )


def _seen(record: RunRecord, kind: str) -> Seen:
    """A run's phases; those that trials and runs alone have unlike, of its own kind alone."""
    phases = _phases(record)
    if (record.kind in OWN) != (kind in OWN):
        phases = {name: spent for name, spent in phases.items() if name not in ("setup", "save")}
    work = Work.read(record.metrics)
    assert work is not None  # `_alike` has seen to it
    return Seen(work=work, phases=phases)


def _is_whole(record: RunRecord) -> bool:
    """A run that went to its end and was measured, in one session and with the machine to itself.

    Beside another run it takes longer and has a part of the energy: no one is quoted so.
    """
    return (
        record.status == "FINISHED"
        and record.tags.get("energy_valid") == "true"
        and not record.ended_early
        and not record.shared
        and REUSED not in record.tags
        and PROCESSES not in record.tags
        and "green_tune.sessions" not in record.tags
        and "train/energy_kwh" in record.metrics
    )


def _phases(record: RunRecord) -> dict[str, Amount]:
    figures = record.metrics
    return {
        phase: Amount(
            runtime_h=figures[f"{phase}/runtime_h"], energy_kwh=figures[f"{phase}/energy_kwh"]
        )
        for phase in PHASES
        if f"{phase}/runtime_h" in figures
    }


def _mean(amounts: Iterable[Amount]) -> Amount:
    found = list(amounts)
    return sum(found, Amount()).times(1 / len(found))
