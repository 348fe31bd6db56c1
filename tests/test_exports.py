import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from codecarbon import OfflineEmissionsTracker
from codecarbon.output_methods.emissions_data import EmissionsData
from codecarbon.output_methods.file import FileOutput

from green_tune import exports, models, tasks
from green_tune.footprint import Basis, Measurement, Segment
from green_tune.hardware import Device
from green_tune.job import Job
from green_tune.models import Source

MakeJob = Callable[..., Job]

# What Boavizta's BoAmps asks for, as a table: the type of each field or the words that it allows
# (of a data set's types and formats, those for text), "!" where it is required. From
# github.com/Boavizta/BoAmps, model/: report_schema.json at 01f4c8e, algorithm_ 5546e7f, dataset_
# 4080193, hardware_ 20c9a98; published under CC BY 4.0. measure_schema.json could not be had: its
# fields are from the repository's example report and from the reference page of Saauan/BoAmps, a
# fork, at dc01920.
TEXT, NUMBER, WHOLE, SHARE = "text", "number", "whole", "share"
Form = dict[str, Any]
ALGORITHM: Form = {
    "trainingType": TEXT, "algorithmType": TEXT, "algorithmName": TEXT, "algorithmUri": TEXT,
    "foundationModelName": TEXT, "foundationModelUri": TEXT, "parametersNumber": NUMBER,
    "framework": TEXT, "frameworkVersion": TEXT, "classPath": TEXT, "layersNumber": NUMBER,
    "epochsNumber": NUMBER, "optimizer": TEXT, "quantization": TEXT,
}  # fmt: skip
DATASET: Form = {
    "dataUsage!": ("input", "output"), "dataType!": ("tabular", "text", "token", "word", "other"),
    "dataFormat": ("csv", "json", "parquet", "text", "other"), "dataSize": NUMBER,
    "dataQuantity": NUMBER, "shape": TEXT, "source": ("public", "private", "other"),
    "sourceUri": TEXT, "owner": TEXT,
}  # fmt: skip
MEASURE: Form = {
    "measurementMethod!": TEXT, "manufacturer": TEXT, "version": TEXT, "cpuTrackingMode": TEXT,
    "gpuTrackingMode": TEXT, "averageUtilizationCpu": SHARE, "averageUtilizationGpu": SHARE,
    "powerCalibrationMeasurement": NUMBER, "durationCalibrationMeasurement": NUMBER,
    "powerConsumption!": NUMBER, "measurementDuration": NUMBER, "measurementDateTime": TEXT,
}  # fmt: skip
COMPONENT: Form = {
    "componentName": TEXT, "componentType!": TEXT, "nbComponent!": WHOLE, "memorySize": WHOLE,
    "manufacturer": TEXT, "family": TEXT, "series": TEXT, "share": SHARE,
}  # fmt: skip
REPORT: Form = {
    "header": {
        "licensing": TEXT, "formatVersion": TEXT, "formatVersionSpecificationUri": TEXT,
        "reportId": TEXT, "reportDatetime!": TEXT,
        "reportStatus": ("draft", "final", "corrective", "other"),
    },
    "task!": {
        "taskStage!": TEXT, "taskFamily!": TEXT, "nbRequest": NUMBER, "algorithms!": [ALGORITHM],
        "dataset!": [DATASET], "measuredAccuracy": SHARE, "taskDescription": TEXT,
    },
    "measures!": [MEASURE],
    "system": {"os!": TEXT, "distribution": TEXT, "distributionVersion": TEXT},
    "software": {"language!": TEXT, "version": TEXT},
    "infrastructure!": {
        "infraType!": ("publicCloud", "privateCloud", "onPremise", "other"), "cloudProvider": TEXT,
        "cloudInstance": TEXT, "cloudService": TEXT, "components!": [COMPONENT],
    },
    "environment": {
        "country!": TEXT, "latitude": NUMBER, "longitude": NUMBER, "location": TEXT,
        "powerSourceCarbonIntensity": NUMBER,
    },
    "quality": ("high", "medium", "low"),
}  # fmt: skip

START_S = 1_795_000_000.0  # 2026-11-18 11:06:40 UTC
GPU = Device(kind="cuda", name="Tesla T4", memory_gib=14.6)
METHODS = {
    "cpu": "measured: RAPL counter", "gpu": "measured: energy counter", "ram": "modelled: by size",
}  # fmt: skip
RECORD = EmissionsData(
    timestamp="2026-11-18T13:06:40", project_name="green-tune", run_id="abc", experiment_id="x",
    duration=99.0, emissions=9.9, emissions_rate=1e-07, cpu_power=42.5, gpu_power=0.0,
    ram_power=10.0, cpu_energy=3.0, gpu_energy=0.0, ram_energy=3.0, energy_consumed=6.0,
    water_consumed=0.0, country_name="Nowhere", country_iso_code="USA", region=None,  # type: ignore[arg-type]
    cloud_provider="", cloud_region="", os="Linux-6.1", python_version="3.11.7",
    codecarbon_version="3.3.2", cpu_count=8, cpu_model='A "fast", cool CPU', gpu_count=2,
    gpu_model="2 x Tesla T4", longitude=2.35, latitude=48.85, ram_total_size=15.63,
    tracking_mode="machine", cpu_utilization_percent=50.0,
)  # fmt: skip


def segment(phase: str, started_s: float, *, cpu: float = 0.01, gpu: float = 0.0) -> Segment:
    return Segment(
        phase=phase,
        started_s=started_s,
        runtime_h=0.5,
        energy_cpu_kwh=cpu,
        energy_gpu_kwh=gpu,
        energy_ram_kwh=0.002,
        gpu_counted_kwh=2 * gpu,
        gpu_busy_h=0.4 if gpu else 0.0,
    )


def measured(gpu: float = 0.0, **changes: Any) -> Measurement:
    segments = [segment("setup", START_S, gpu=gpu), segment("train", START_S + 1800, gpu=gpu)]
    basis = Basis(g_per_kwh=475.0, methods=METHODS)
    return replace(Measurement(segments=segments, basis=basis), **changes)


def how(**parts: str) -> Measurement:
    return measured(basis=Basis(g_per_kwh=475.0, methods=METHODS | parts))


def report(
    job: Job, measurement: Measurement | None = None, record: EmissionsData = RECORD
) -> dict[str, Any]:
    """A report that has been through JSON and fits the format."""
    text = json.dumps(exports.boamps(job, measurement or measured(), record, "0123"))
    made: dict[str, Any] = json.loads(text)
    check(made, REPORT)
    return made


def check(made: Any, form: Any, where: str = "report") -> None:
    if isinstance(form, dict):
        required = {name[:-1] for name in form if name.endswith("!")}
        known = {name.rstrip("!"): value for name, value in form.items()}
        assert required <= made.keys() <= known.keys(), where
        for name, value in made.items():
            check(value, known[name], f"{where}.{name}")
    elif isinstance(form, list):
        assert made, where
        for item in made:
            check(item, form[0], where)
    elif isinstance(form, tuple):
        assert made in form, where
    else:
        check_value(made, form, where)


def check_value(made: Any, form: Any, where: str) -> None:
    kinds = {TEXT: (str,), WHOLE: (int,)}.get(form, (int, float))
    assert type(made) in kinds, where
    assert form != TEXT or made, f"{where} is empty"
    assert form != SHARE or 0 <= made <= 1, where


def components(made: dict[str, Any]) -> dict[str, Any]:
    return {part["componentType"]: part for part in made["infrastructure"]["components"]}


def written_by_codecarbon(record: EmissionsData, folder: Path) -> str:
    FileOutput("emissions.csv", str(folder)).out(record, None)
    return (folder / "emissions.csv").read_text()


@pytest.fixture(scope="module")
def real() -> EmissionsData:
    """A record of a real measurement, with the none and the empty of an offline tracker."""
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",
        force_carbon_intensity_g_co2e_kwh=475.0,
        measure_power_secs=0.2,
        output_methods=[],
        log_level="critical",
        tracking_mode="machine",
        gpu_ids=None,
        allow_multiple_runs=True,
    )
    tracker.start()
    tracker.stop()
    assert tracker.final_emissions_data is not None
    return tracker.final_emissions_data


def test_the_csv_is_the_one_that_codecarbon_would_have_written(
    real: EmissionsData, tmp_path: Path
) -> None:
    text = exports.emissions_csv(real)
    assert text == written_by_codecarbon(real, tmp_path)
    (row,) = csv.DictReader(io.StringIO(text))
    assert list(row) == list(real.values)
    assert float(row["energy_consumed"]) == real.energy_consumed


def test_the_csv_quotes_and_leaves_empty_as_codecarbon_does(tmp_path: Path) -> None:
    assert exports.emissions_csv(RECORD) == written_by_codecarbon(RECORD, tmp_path)


def test_nothing_is_written_into_the_working_folder(make_job: MakeJob, tmp_path: Path) -> None:
    job, before = make_job(), set(tmp_path.rglob("*"))
    exports.emissions_csv(RECORD)
    exports.boamps(job, measured(), RECORD, "0123")
    assert set(tmp_path.rglob("*")) == before


def test_a_real_record_makes_a_report_that_fits_the_format(
    make_job: MakeJob, real: EmissionsData
) -> None:
    made = report(make_job(), record=real)
    assert made["software"] == {"language": "python", "version": real.python_version}
    assert "latitude" not in made["environment"]


def test_the_energy_and_the_times_are_ours_and_not_codecarbons(make_job: MakeJob) -> None:
    made = report(make_job())
    (measure,) = made["measures"]
    assert measure["powerConsumption"] == measured().total.energy_kwh == pytest.approx(0.024)
    assert measure["measurementDuration"] == pytest.approx(3600)
    assert measure["measurementDateTime"] == "2026-11-18 11:06:40"
    assert made["header"]["reportDatetime"] == "2026-11-18 12:06:40"
    assert made["header"]["reportId"] == "0123"
    assert made["header"]["reportStatus"] == "draft"


def test_the_method_names_green_tune_and_how_each_part_is_known(make_job: MakeJob) -> None:
    (measure,) = report(make_job())["measures"]
    assert measure["measurementMethod"].startswith("green-tune with codecarbon 3.3.2")
    assert all(f"{part} {how}" in measure["measurementMethod"] for part, how in METHODS.items())
    assert measure["cpuTrackingMode"] == METHODS["cpu"]
    assert measure["averageUtilizationCpu"] == 0.5
    assert "gpuTrackingMode" not in measure


def test_a_run_on_the_cpu_names_no_gpu_of_the_machine(make_job: MakeJob) -> None:
    parts = components(report(make_job()))
    assert sorted(parts) == ["cpu", "ram"]
    assert parts["cpu"]["componentName"] == RECORD.cpu_model
    assert parts["ram"]["memorySize"] == 16


def test_the_gpu_is_the_one_that_was_trained_on_with_our_share_of_it(make_job: MakeJob) -> None:
    made = report(replace(make_job(), devices=(GPU,)), measured(gpu=0.1))
    gpu = components(made)["gpu"]
    assert gpu["componentName"] == "Tesla T4"
    assert (gpu["nbComponent"], gpu["memorySize"], gpu["share"]) == (1, 15, 0.5)
    assert made["measures"][0]["averageUtilizationGpu"] == 0.8
    assert made["measures"][0]["gpuTrackingMode"] == METHODS["gpu"]


@pytest.mark.parametrize(
    ("asked", "country"), [("world", "unknown"), ("56", "unknown"), ("FRA", "France")]
)
def test_a_country_is_named_only_where_the_intensity_is_its_own(
    make_job: MakeJob, asked: str, country: str
) -> None:
    job = make_job(country=asked)
    basis = Basis(g_per_kwh=job.intensity.g_per_kwh, methods=METHODS)
    made = report(job, measured(basis=basis))
    assert made["environment"] == {
        "country": country,
        "powerSourceCarbonIntensity": job.intensity.g_per_kwh,
    }
    assert job.intensity.note in made["task"]["taskDescription"]


@pytest.mark.parametrize(
    ("measurement", "quality"),
    [
        (how(ram="measured: sensor"), "medium"),
        (how(), "medium"),
        (how(cpu="modelled: load"), "low"),
        (replace(how(ram="measured: sensor"), faults=["the counter ran backwards"]), "low"),
    ],
)
def test_quality_falls_with_what_is_modelled_and_with_every_fault(
    make_job: MakeJob, measurement: Measurement, quality: str
) -> None:
    assert report(make_job(), measurement)["quality"] == quality


def test_flags_and_faults_are_said_in_the_report(make_job: MakeJob) -> None:
    made = report(make_job(), measured(flags=["a shared GPU"], faults=["no energy of cpu"]))
    assert "; a shared GPU; not to be trusted: no energy of cpu" in made["task"]["taskDescription"]


def test_the_report_says_what_was_trained_and_how(make_job: MakeJob) -> None:
    job = make_job(learning_rate=3e-4, epochs=2, batch_size=4, accumulation_steps=3)
    task = report(job)["task"]
    (algorithm,), (dataset,) = task["algorithms"], task["dataset"]
    assert task["taskStage"] == "finetuning"
    assert algorithm["foundationModelName"] == "tiny"
    assert algorithm["epochsNumber"] == 2
    assert algorithm["quantization"] == "fp32"
    assert "foundationModelUri" not in algorithm
    assert algorithm["framework"] == "torch + transformers + peft"
    assert algorithm["frameworkVersion"].startswith("torch 2.")
    assert dataset["dataQuantity"] == 48
    assert "batch size 4 x 3 accumulation steps, learning rate 0.0003" in task["taskDescription"]


def test_a_model_of_the_hub_is_given_with_its_address_and_its_size(make_job: MakeJob) -> None:
    job = replace(make_job(), source=models.resolve("gemma-2b"), commit="a1b2")
    (algorithm,) = report(job)["task"]["algorithms"]
    assert algorithm["foundationModelName"] == "gemma-2b"
    assert algorithm["foundationModelUri"] == "https://huggingface.co/google/gemma-2b/tree/a1b2"
    assert algorithm["parametersNumber"] == pytest.approx(2.506, abs=5e-4)


def test_every_task_has_a_family() -> None:
    assert set(exports.FAMILIES) == set(tasks.TASKS)


def test_no_folder_and_no_place_of_the_user_is_in_the_report(
    make_job: MakeJob, tmp_path: Path
) -> None:
    folder = tmp_path / "secret-data"
    folder.mkdir()
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text('{"text": "good", "label": "positive"}\n')
    job = make_job(data=str(folder))
    job = replace(job, source=Source(kind="folder", place=str(tmp_path / "home"), name="my-model"))
    made = report(job)
    (dataset,) = made["task"]["dataset"]
    assert (dataset["source"], dataset["dataFormat"]) == ("other", "json")
    text = json.dumps(made)
    assert not [word for word in (str(tmp_path), "secret", "Nowhere", "48.85") if word in text]
