import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from green_tune import training
from green_tune.emissions import Meter
from green_tune.errors import RunFailed, Stopped, StoreError
from green_tune.experiment import run_experiment
from green_tune.job import Job
from green_tune.tracking import Tracker

MakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[1]


def run(job: Job, uri: str) -> str:
    """One experiment in a run of its own; returns the run's id even when it failed."""
    tracker = Tracker(uri)
    with tracker.run("train", "one") as current:
        current.set_tags({"id": current.id})
        run_experiment(job, current, Meter(job.device, job.intensity))
    return current.id


def test_a_run_leaves_everything_that_is_needed_to_compare_and_repeat_it(
    make_job: MakeJob, store_uri: str
) -> None:
    job = make_job(country="FRA", learning_rate=2e-3)
    record = Tracker(store_uri).get(run(job, store_uri))
    assert record.params.items() >= (job.config.to_params() | job.plan.to_params()).items()
    assert record.metrics["val_loss"] < record.metrics["start_val_loss"]
    assert record.tags["data_digest"] == job.data.digest
    assert record.tags["intensity_source"].startswith("CodeCarbon")
    assert record.tags["energy_ram_method"].startswith("modelled")


@pytest.mark.parametrize("error", [RunFailed("the loss is nan"), Stopped(15), ValueError("a bug")])
def test_what_was_spent_is_logged_however_the_training_ends(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(training.FineTuner, "fit", fail)
    with pytest.raises(type(error)):
        run(make_job(), store_uri)
    (failed,) = MlflowClient(store_uri).search_runs(["0"])
    assert failed.data.metrics["energy_kwh"] > 0
    assert failed.data.metrics["emissions_kg"] > 0
    assert "val_loss" not in failed.data.metrics


def test_an_adapter_that_the_store_does_not_take_is_kept_and_its_place_named(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("the server is down")

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    with pytest.raises(StoreError, match="the adapter is kept in ") as caught:
        run(make_job(), store_uri)
    folder = Path(str(caught.value).rpartition(" ")[2])
    assert (folder / "adapter_model.safetensors").exists()
    shutil.rmtree(folder)


def test_examples_that_lose_text_are_counted_on_the_screen(
    make_job: MakeJob, store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    run(make_job(task="summarization", max_seq_len=96), store_uri)
    assert "train: 4" in caplog.text
    assert "of 48 examples are longer than max_seq_len=96 tokens: 4" in caplog.text


def test_every_key_in_the_store_is_documented_and_every_documented_one_is_written(
    make_job: MakeJob, store_uri: str
) -> None:
    record = Tracker(store_uri).get(run(make_job(), store_uri))
    text = (ROOT / "docs" / "schema.md").read_text()
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    config = set(make_job().config.to_params())
    written = (record.params.keys() - config) | record.metrics.keys() | record.tags.keys()
    written = {key for key in written if not key.startswith(("mlflow.", "version."))} - {"id"}
    sweeps_only = {"green_tune.study", "green_tune.trial", "green_tune.front", "trials",
                   "trials_failed"}  # fmt: skip
    on_failure = {"green_tune.error"}
    hub_only = {"base_model_commit"}
    assert documented - sweeps_only - on_failure - hub_only == written
    assert documented >= sweeps_only | on_failure | hub_only


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_a_gpu_is_trained_on_and_its_energy_counted(
    make_job: MakeJob, store_uri: str, precision: str
) -> None:
    job = make_job(gpu="auto", precision=precision, learning_rate=2e-3, epochs=20)
    record = Tracker(store_uri).get(run(job, store_uri))
    assert job.device.kind == "cuda"
    assert record.metrics["energy_gpu_kwh"] > 0
    assert record.metrics["memory_peak_gib"] > 0
    assert record.metrics["val_loss"] < record.metrics["start_val_loss"] - 1
    assert record.tags["energy_gpu_method"].startswith("measured")
