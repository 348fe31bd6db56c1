"""A run in two standard formats: CodeCarbon's `emissions.csv` and Boavizta's BoAmps report.

Owns what goes into which field of them, as pure functions. The CSV is CodeCarbon's own record, to
the letter; the BoAmps report carries our figures. Nobody's name, machine or folder is written,
and what is not known is left out, or called unknown where the format wants a word.

BoAmps: github.com/Boavizta/BoAmps, model/report_schema.json and the schemas beside it (CC BY 4.0).
"""

import csv
import io
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from codecarbon.output_methods.boamps import models as form
from codecarbon.output_methods.boamps.mapper import map_emissions_to_boamps
from codecarbon.output_methods.emissions_data import EmissionsData

from green_tune import __version__, models
from green_tune.footprint import SECONDS_PER_HOUR, Measurement
from green_tune.job import Job

DIGITS = 4  # of a share of 1
MOSTLY = 0.5  # a report is of low quality when more than this share of its energy is modelled
# Free text in BoAmps: the hub's names of the tasks, in the camel case that BoAmps asks for.
FAMILIES = {
    "qa": "questionAnswering", "summarization": "summarization", "sentiment": "textClassification",
}  # fmt: skip
FRAMEWORKS = ("torch", "transformers", "peft")
HUB = "https://huggingface.co"
BUILT_IN = ("sample", "hub")  # the data sets that everybody can get; all others are folders
GIVEN = "given"  # the zone of an intensity that was typed as a number


def emissions_csv(codecarbon: EmissionsData) -> str:
    """The record as CodeCarbon's own `emissions.csv` holds it: a header and one row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(codecarbon.values), lineterminator="\n")
    writer.writeheader()
    writer.writerow(codecarbon.values)
    return text.getvalue()


def boamps(
    job: Job, measurement: Measurement, codecarbon: EmissionsData, report_id: str
) -> dict[str, Any]:
    """A BoAmps report with our figures: energy in kWh without PUE, durations in s, times in UTC.

    CodeCarbon's record gives the system alone. The report is a draft: who publishes it, and under
    which licence, is for its publisher to add.
    """
    mapped = map_emissions_to_boamps(
        replace(codecarbon, gpu_count=0),  # every GPU of the machine; ours is put in its place
        task=_task(job, measurement),
        header=_header(measurement, report_id),
        quality=_quality(measurement),
        infra_overrides={
            "infra_type": "other",  # a cloud's machine or one's own: nobody has told us
            "components": [*_gpu(job, measurement), _ram(codecarbon)],
        },
    )
    measure, environment = _measure(job, measurement, codecarbon), _environment(job, measurement)
    return replace(mapped, measures=[measure], environment=environment).to_dict()


def _header(measurement: Measurement, report_id: str) -> form.BoAmpsHeader:
    ended_s = max(segment.ended_s for segment in measurement.segments)
    return form.BoAmpsHeader(
        report_id=report_id, report_datetime=_utc(ended_s), report_status="draft"
    )


def _task(job: Job, measurement: Measurement) -> form.BoAmpsTask:
    return form.BoAmpsTask(
        task_stage="finetuning",
        task_family=FAMILIES.get(job.task.name, job.task.name),
        algorithms=[_algorithm(job)],
        dataset=[_dataset(job)],
        task_description=_description(job, measurement),
    )


def _algorithm(job: Job) -> form.BoAmpsAlgorithm:
    hub_id = job.source.place if job.source.kind == "hub" else ""
    known = [model.shape.parameters_b for model in models.MODELS if model.hub_id == hub_id]
    tree = f"/tree/{job.commit}" if job.commit else ""
    return form.BoAmpsAlgorithm(
        training_type="supervisedLearning",
        algorithm_type="llm",
        foundation_model_name=job.source.name,
        foundation_model_uri=f"{HUB}/{hub_id}{tree}" if hub_id else None,
        parameters_number=known[0] if known else None,
        framework=" + ".join(FRAMEWORKS),
        framework_version=" + ".join(f"{name} {version(name)}" for name in FRAMEWORKS),
        epochs_number=job.config.epochs,
        optimizer="adamw, lora",
        quantization=job.plan.precision,  # where BoAmps wants fp32, fp16, bf16 or int8
    )


def _dataset(job: Job) -> form.BoAmpsDataset:
    asked = job.config.data
    return form.BoAmpsDataset(
        data_usage="input",
        data_type="text",
        data_format=None if asked in BUILT_IN else "json",
        data_quantity=len(job.data.train),
        source="public" if asked in BUILT_IN else "other",
        source_uri=f"{HUB}/datasets/{job.task.hub.id}" if asked == "hub" else None,
    )


def _description(job: Job, measurement: Measurement) -> str:
    """What BoAmps has no field for."""
    config, total = job.config, measurement.total
    said = [
        f"LoRA fine-tuning for {job.task.name}: rank {config.lora_rank}, batch size "
        f"{config.batch_size} x {config.accumulation_steps} accumulation steps, learning rate "
        f"{config.learning_rate:g}, {len(job.data.validation)} validation examples",
        f"energy: cpu {total.energy_cpu_kwh:.6g} kWh, gpu {total.energy_gpu_kwh:.6g} kWh, "
        f"ram {total.energy_ram_kwh:.6g} kWh",
        f"emissions: {total.emissions_kg:.6g} kg CO2e ({job.intensity.note}, PUE "
        f"{measurement.basis.pue:g})",
        *measurement.flags,
        *(f"not to be trusted: {fault}" for fault in measurement.faults),
    ]
    return "; ".join(said)


def _measure(job: Job, measurement: Measurement, codecarbon: EmissionsData) -> form.BoAmpsMeasure:
    """One for the whole run: several would read as rival measures of the same energy."""
    total, methods = measurement.total, measurement.basis.methods
    known = "; ".join(f"{part} {how}" for part, how in methods.items())
    busy_h = sum(segment.gpu_busy_h for segment in measurement.segments)
    on_gpu = job.device.kind == "cuda"
    return form.BoAmpsMeasure(
        measurement_method=f"green-tune with codecarbon {codecarbon.codecarbon_version}; {known}",
        version=__version__,
        cpu_tracking_mode=methods["cpu"],
        gpu_tracking_mode=methods["gpu"] if on_gpu else None,
        average_utilization_cpu=codecarbon.cpu_utilization_percent / 100 or None,
        average_utilization_gpu=_part(busy_h, total.runtime_h) if on_gpu else None,
        power_consumption=total.energy_kwh,
        measurement_duration=total.runtime_h * SECONDS_PER_HOUR,
        measurement_date_time=_utc(min(s.started_s for s in measurement.segments)),
    )


def _gpu(job: Job, measurement: Measurement) -> list[form.BoAmpsHardware]:
    if job.device.kind != "cuda":
        return []
    whole_kwh = sum(segment.gpu_counted_kwh for segment in measurement.segments)
    return [
        form.BoAmpsHardware(
            component_type="gpu",
            component_name=job.device.name,
            nb_component=len(job.devices),
            memory_size=round(job.device.memory_gib),
            manufacturer="nvidia",
            share=_part(measurement.total.energy_gpu_kwh, whole_kwh),
        )
    ]


def _ram(codecarbon: EmissionsData) -> form.BoAmpsHardware:
    """As CodeCarbon's own, but whole: its fractions of a gigabyte are against the schema."""
    return form.BoAmpsHardware(component_type="ram", memory_size=round(codecarbon.ram_total_size))


def _environment(job: Job, measurement: Measurement) -> form.BoAmpsEnvironment:
    """The country only where the intensity is a country's; the format insists on some word."""
    named = not job.intensity.assumed and job.intensity.zone != GIVEN
    return form.BoAmpsEnvironment(
        country=job.intensity.zone if named else "unknown",
        power_source_carbon_intensity=measurement.basis.g_per_kwh,
    )


def _quality(measurement: Measurement) -> str:
    """BoAmps means errors of 10, 25 or 50 %: no software meter is known to keep the first."""
    if not measurement.valid or measurement.energy_modelled_share > MOSTLY:
        return "low"
    return "medium"


def _part(some: float, whole: float) -> float:
    """Between 0 and 1; the whole where there is nothing to divide by."""
    return min(1.0, round(some / whole, DIGITS)) if whole else 1.0


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
