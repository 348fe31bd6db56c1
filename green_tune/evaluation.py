"""One evaluation of an adapter: measured, and a run of its own in the store.

`evaluate` asks for it by name, `promote` for what it registers. What is predicted is `appraisal`'s
affair; this joins it with the meter and the store.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from green_tune import adapters, appraisal, bill
from green_tune.appraisal import Appraisal
from green_tune.data import Split
from green_tune.footprint import Basis
from green_tune.hardware import Device
from green_tune.intensity import Intensity
from green_tune.meter import Meter
from green_tune.predictor import Predictor
from green_tune.results import RunRecord
from green_tune.tasks import Example
from green_tune.tracking import Tracker
from green_tune.training import synchronize
from green_tune.versions import ADDRESS, QUALITY_ON

KIND = "evaluate"
GIB = 2**30
ROOM = 0.7  # of the memory, for weights


@dataclass(frozen=True, kw_only=True)
class Case:
    """An adapter in a folder, what it is tried on, and where.

    `address` is where the adapter's run has it, and empty where nobody knows; `train` are the
    examples that a trivial answer is taken from.
    """

    name: str
    folder: Path
    address: str
    split: Split
    train: Sequence[Example]
    zone: Intensity
    pue: float
    device: Device


def obstacle(recipe: Mapping[str, Any], device: Device) -> str:
    """Why an adapter cannot be evaluated here without a download; empty where it can."""
    base = recipe["base"]
    folder = Path(base["place"])
    if base["kind"] == "hub":
        from green_tune import hub  # only those who need the hub pay for its libraries

        folder = hub.cached_folder(base["place"], base["revision"]) or folder
    if not folder.is_dir():
        return f"its base model {base['name']} is not on this machine"
    weights_gib = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / GIB
    if weights_gib > ROOM * device.memory_gib:
        return f"its base model has {weights_gib:.0f} GiB, too much for {device}"
    return ""


def run(case: Case, asked: Mapping[str, str], tracker: Tracker) -> tuple[Appraisal, RunRecord]:
    """Predicts everything with the adapter and without; the run has scores and what it took.

    Raises:
        ModelError: the base model is missing, or another one than the adapter's.
        DataError: an input cannot be predicted.
        MeasurementError: the meter did not start.
    """
    if case.device.kind == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = case.device.uuid  # before torch looks
    tags = {"gpu_type": case.device.gpu_type, "device": str(case.device)} | case.zone.to_tags()
    tags |= {QUALITY_ON: case.split.source}
    tags |= {ADDRESS: case.address} if case.address else {}
    basis = Basis(g_per_kwh=case.zone.g_per_kwh, pue=case.pue)
    with Meter.on((case.device,), basis) as meter:
        meter.open()
        with (
            tracker.run(KIND, f"evaluate {case.name}", asked=asked, tags=tags) as current,
            bill.alone(current, meter),
        ):
            found = _appraised(case, meter)
            current.log_metrics(found.to_metrics())
    return found, tracker.get(current.id)


def _appraised(case: Case, meter: Meter) -> Appraisal:
    with adapters.problems_named():
        with meter.phase("setup", synchronize):
            predictor = Predictor(case.folder, device=case.device.kind)
        return appraisal.appraise(predictor, case.split, case.train, meter, synchronize)
