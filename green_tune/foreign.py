"""Runs that other tools wrote: their figures under our names, by a small table.

CodeCarbon's figures are known by its own field names, whatever stands before them (codecarbon/,
system/); losses and hyperparameters by the names that transformers' Trainer, LLaMA-Factory, Axolotl
and Lightning log. What the names do not say stays unknown: which data, and at which intensity.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace

from green_tune import hardware
from green_tune.models import MODELS
from green_tune.query import EXPERIMENT
from green_tune.results import RunRecord

FOREIGN = "foreign"  # the kind of a record whose run has none
FOUND = "green_tune.foreign"  # tag of it: under which names its figures were found
SECONDS_PER_HOUR = 3600.0

# Ours, theirs, and what theirs is multiplied by. CodeCarbon's units: kg, kg/s, kWh and s
# (`output_methods/emissions_data.py`); its energy has its PUE in it already.
FIGURES = (
    ("emissions_kg", "emissions", 1.0),
    ("emissions_rate_kg_per_h", "emissions_rate", SECONDS_PER_HOUR),
    ("runtime_h", "duration", 1 / SECONDS_PER_HOUR),
    ("energy_kwh", "energy_consumed", 1.0),
    ("energy_cpu_kwh", "cpu_energy", 1.0),
    ("energy_gpu_kwh", "gpu_energy", 1.0),
    ("energy_ram_kwh", "ram_energy", 1.0),
)
PARTS = ("energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh")
LOSSES = ("eval_loss", "eval/loss", "val_loss", "val/loss", "validation_loss", "valid_loss")
PARAMS = {
    "batch_size": (
        *("per_device_train_batch_size", "micro_batch_size", "train_batch_size", "batch_size"),
    ),
    "accumulation_steps": ("gradient_accumulation_steps", "accumulate_grad_batches"),
    "learning_rate": ("learning_rate", "lr"),
    "warmup_steps": ("warmup_steps", "num_warmup_steps"),
    "epochs": ("num_train_epochs", "num_epochs", "max_epochs", "epochs"),
    "lora_rank": ("lora_rank", "lora_r"),
    "task": ("task", "task_name", "dataset", "dataset_name", "datasets"),
    "seed": ("seed",),
}
MODEL = ("model_name_or_path", "base_model", "_name_or_path", "model_name", "model")
GPU = ("gpu_type", "gpu_model", "gpu_name", "gpu")
COUNTED = re.compile(r"(\d+) x (.+)")  # 4 x Tesla T4, as CodeCarbon says it


def mapped(record: RunRecord) -> RunRecord:
    """A run of another tool as a record of kind `foreign`; ours as it is.

    Metrics in kWh, kg, h and nats, as far as they were found. Its data are a panel of their own
    for each experiment, since nobody knows whether they are those of another run.
    """
    if record.kind:
        return record
    metrics, names = _figures(record.metrics)
    params, asked = _first(PARAMS, record.params)
    labels = {**record.params, **record.tags}
    tags = {
        "base_model": _model(_text(MODEL, labels)),
        "gpu_type": _gpu(_text(GPU, labels)),
        "data_digest": _data(record.tags.get(EXPERIMENT, "?")),
        FOUND: ", ".join([*names, *asked]),
        EXPERIMENT: record.tags.get(EXPERIMENT, "?"),
    }
    return replace(record, kind=FOREIGN, params=params, metrics=metrics, tags=tags)


def _data(experiment: str) -> str:
    """A digest of unknown data; a report shows six signs of it, which must tell it from others."""
    return f"{experiment[-6:]:0>6}, the unknown data of experiment {experiment}"


def _figures(metrics: Mapping[str, float]) -> tuple[dict[str, float], list[str]]:
    """Our figures, and the names that they were found under."""
    before = _prefix(metrics)
    names = {ours: before + theirs for ours, theirs, _ in FIGURES if before + theirs in metrics}
    by = {ours: factor for ours, _, factor in FIGURES}
    found = {ours: metrics[name] * by[ours] for ours, name in names.items()}
    if "energy_kwh" not in found and found.keys() >= set(PARTS):
        found["energy_kwh"] = math.fsum(found[part] for part in PARTS)
    if loss := next((name for name in LOSSES if name in metrics), ""):
        found["val_loss"] = metrics[loss]
    return found, [*names.values(), *([loss] if loss else [])]


def _prefix(metrics: Mapping[str, float]) -> str:
    """What stands before CodeCarbon's names: where most of them are, so that none is another's."""
    known = {theirs for _, theirs, _ in FIGURES}
    before = [
        name[: -len(last)] for name in metrics if (last := re.split(r"[/.]", name)[-1]) in known
    ]
    return max(
        sorted(set(before), key=lambda text: (len(text), text)), key=before.count, default=""
    )


def _first(
    table: Mapping[str, tuple[str, ...]], texts: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """For each row the first of its names that is there, and these names."""
    names = {ours: next((n for n in row if _is_said(texts, n)), "") for ours, row in table.items()}
    found = {ours: name for ours, name in names.items() if name}
    return {ours: texts[name] for ours, name in found.items()}, list(found.values())


def _text(names: tuple[str, ...], texts: Mapping[str, str]) -> str:
    return next((texts[name] for name in names if _is_said(texts, name)), "")


def _is_said(texts: Mapping[str, str], name: str) -> bool:
    return texts.get(name, "None") not in ("", "None")


def _model(name: str) -> str:
    """Our short name of a hub model where there is one; else as it was given, or unknown."""
    short = (model.name for model in MODELS if model.hub_id.lower() == name.lower())
    return next(short, name or "unknown")


def _gpu(name: str) -> str:
    """A row of the table, with how many of it; unknown where none fits."""
    count, one = found.groups() if (found := COUNTED.fullmatch(name)) else ("1", name)
    row = hardware.identify(one) or next((g for g in hardware.GPUS if g.name == one.lower()), None)
    if row is None:
        return "unknown"
    return row.name if count == "1" else f"{count} x {row.name}"
