"""What was measured before: a run of the very same config, and what earlier studies found best.

Pure functions over records, and one over a job. Whatever decides a result is in the fingerprint;
what only decides how it is reckoned (country, PUE) or kept (checkpoints) is not.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from green_tune import points
from green_tune.config import TrainConfig, read
from green_tune.footprint import Basis
from green_tune.job import Job
from green_tune.results import PROCESSES, REUSED, STUDY, Evaluation, RunRecord, to_tag
from green_tune.space import SPECS, Space

UNDECIDING = ("model", "revision", "data", "gpu", "country", "pue", "checkpoint_minutes", "resume",
              "quality_examples", "min_gain_per_g")  # fmt: skip
PLANNED = ("precision", "quantization")  # a sweep pins them; the plan has what came of them
OWN = ("train", "eval", "save")  # phases that a config decides; a sweep shares the setup
SCORED = ("quality.", "start_quality.")  # task metrics, which not every run has
TAKEN_OVER = ("gpu_type", "device", "base_", "model_family", "data_digest", "version.", "energy_")
TAKEN_FIGURES = ("val_loss", "val_bits_per_byte", "start_val_loss", "steps", "train_tokens",
                 "energy_modelled_share")  # fmt: skip
FIRST = 3  # trials that a study takes from earlier ones


def fingerprint(job: Job, versions: Mapping[str, str]) -> str:
    """The same for two runs that differ by chance alone: config, data, seed, device, versions."""
    left_out = (*UNDECIDING, *PLANNED)
    params = {k: v for k, v in job.config.to_params().items() if k not in left_out}
    decided = {k: v for k, v in job.plan.to_params().items() if k != "plan.reasons"}
    found = {
        "model": job.source.name,
        "files": _files(job) if job.source.kind == "folder" else "",
        "commit": job.commit,
        "data": job.data.digest,
        "devices": [str(device) for device in job.devices],
        "world": job.rank.world,
        # By grams, the country decides when patience ends; and with it whose adapter is the best.
        "min_gain_per_kwh": job.config.min_gain_per_g * job.intensity.g_per_kwh * job.config.pue,
    }
    text = json.dumps([params, decided, found, dict(versions)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _files(job: Job) -> list[tuple[str, int, int]]:
    """A folder's files as they are now: its name says little about the weights in it."""
    files = sorted(path for path in Path(job.source.place).iterdir() if path.is_file())
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


def usable(records: Iterable[RunRecord]) -> RunRecord | None:
    """The newest run whose figures can stand for a trial's: whole, trusted, and its own."""
    found = [
        record
        for record in records
        if record.status == "FINISHED"
        and record.tags.get("energy_valid") == "true"
        and not record.ended_early
        and record.course
        and {f"{phase}/energy_kwh" for phase in OWN} <= record.metrics.keys()
        and "val_loss" in record.metrics
        and REUSED not in record.tags
        and PROCESSES not in record.tags
        and "green_tune.sessions" not in record.tags  # each of them had a setup within its course
    ]
    return max(found, key=lambda record: record.started, default=None)


def has_quality(record: RunRecord) -> bool:
    """Whether its task metrics were measured."""
    return any(name.startswith(SCORED[0]) for name in record.metrics)


def as_trial(
    record: RunRecord, basis: Basis, *, scored: bool = False
) -> tuple[dict[str, float], str]:
    """A run's figures as those of a trial, which has no setup of its own.

    Its task metrics, and what they have cost, are among them where a trial is `scored`: the cell of
    a grid is, the trial of a sweep is not. Returns metrics, and its course as a tag; kilograms are
    of the sweep's own intensity.
    """
    figures = record.metrics
    phases = (*OWN, "quality") if scored else OWN
    kwh = sum(figures.get(f"{phase}/energy_kwh", 0.0) for phase in phases)
    hours = sum(figures.get(f"{phase}/runtime_h", 0.0) for phase in phases)
    metrics = {name: figures[name] for name in TAKEN_FIGURES if name in figures}
    metrics |= {name: figures[name] for name in figures if scored and name.startswith(SCORED)}
    metrics |= {"energy_kwh": kwh, "emissions_kg": basis.kg(kwh), "runtime_h": hours}
    return metrics, to_tag(_without_start(record, basis))


def _without_start(record: RunRecord, basis: Basis) -> list[Evaluation]:
    """Its first and last validation with what was spent since the first."""
    began = record.course[0].emissions_kg
    total = record.metrics["emissions_kg"]
    scale = basis.kg(record.metrics["energy_kwh"]) / total if total else 1.0
    ends = (record.course[0], record.course[-1])  # of those between, adapters may not be there
    return [
        replace(point, emissions_kg=max(0.0, (point.emissions_kg - began) * scale))
        for point in ends
    ]


def best_values(records: Sequence[RunRecord], space: Space) -> list[dict[str, Any]]:
    """The configs that earlier studies found best, as far as the space holds them whole.

    The greenest, the knee and the best of the newest study's front; empty without one.
    """
    ended = [point.record for point in points.points(records) if point.ended]
    if not ended:
        return []
    newest = max(ended, key=lambda record: record.started).tags.get(STUDY)
    front = points.ended_front([record for record in ended if record.tags.get(STUDY) == newest])
    chosen = [points.knee(front), points.best(front), points.greenest(front)]
    values = [values_of(point.record, space) for point in chosen if point]
    return [one for i, one in enumerate(values) if one and one not in values[:i]][:FIRST]


def usual(space: Space) -> dict[str, Any]:
    """What `train` would do by default, as far as the space allows it."""
    default = TrainConfig().__dict__
    return {name: default[name] for name, dimension in space.items() if default[name] in dimension}


def values_of(record: RunRecord, space: Space) -> dict[str, Any]:
    """What a run had for each dimension of a space; empty where the space does not hold it all."""
    if not all(name in record.params for name in space):
        return {}
    values = {name: read(SPECS[name], record.params[name]) for name in space}
    return values if all(values[name] in space[name] for name in space) else {}  # type: ignore[operator]
