import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from green_tune import checkpoint, course, heartbeat, nvml, peers, stop, training
from green_tune.bill import measured
from green_tune.emissions import CrossCheck
from green_tune.errors import MeasurementError, RunFailed, Stopped, StoreError, Undelivered
from green_tune.evidence import Known
from green_tune.experiment import Judge, run_experiment
from green_tune.footprint import PHASES, from_csv
from green_tune.job import Job
from green_tune.meter import Meter
from green_tune.query import Query
from green_tune.ranks import Rank
from green_tune.run import Run
from green_tune.tracking import Tracker

MakeJob = Callable[..., Job]
ROOT = Path(__file__).parents[1]


def run(job: Job, uri: str) -> str:
    """One experiment in a run of its own, foretold by what the store holds; the run's id."""
    tracker = Tracker(uri)
    known = Known(records=tracker.newest(job.device.gpu_type))
    with Meter.of(job) as meter:
        meter.open()
        with tracker.run("train", "one") as current, measured(job, current, meter) as bill:
            current.set_tags({"id": current.id})
            run_experiment(job, current, bill, known=known)
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


def quoted(record: Any) -> tuple[bool, bool]:
    """Whether a run was quoted, and whether it says how far off that was."""
    said = {"quote.runtime_h", "quote.energy_kwh", "quote.emissions_kg"} <= record.metrics.keys()
    off = {"quote.runtime_error", "quote.energy_error"} & record.metrics.keys()
    assert said == ("quote.evidence" in record.tags)
    return said, bool(off)


def test_a_run_is_quoted_before_it_starts_and_says_how_far_off_that_was(
    make_job: MakeJob, store_uri: str
) -> None:
    job = make_job(country="FRA", pue=1.5, epochs=2)
    tracker = Tracker(store_uri)
    first, again = (tracker.get(run(job, store_uri)) for _ in range(2))
    assert first.tags["quote.evidence"] == "table"
    assert again.tags["quote.evidence"] == "same"
    assert again.tags["quote.note"] == (
        "this very config, measured here once before; interval assumed"
    )
    for name in ("runtime_h", "energy_kwh", "emissions_kg"):
        assert again.metrics[f"quote.{name}"] == pytest.approx(first.metrics[name], rel=1e-9)
    for record in (first, again):
        figures = record.metrics
        for name, unit in (("runtime", "h"), ("energy", "kwh")):
            ratio = figures[f"{name}_{unit}"] / figures[f"quote.{name}_{unit}"]
            assert figures[f"quote.{name}_error"] == pytest.approx(ratio - 1)
        for name, unit in (("runtime", "h"), ("energy", "kwh"), ("emissions", "kg")):
            ends = [figures[f"quote.{name}_{end}_{unit}"] for end in ("low", "high")]
            assert ends[0] < figures[f"quote.{name}_{unit}"] < ends[1]
        for name in ("train_steps", "useful_tokens", "processed_tokens"):
            came = {"train_steps": "steps", "useful_tokens": "train_tokens"}.get(name, name)
            assert figures[f"work.{name}"] == figures[came]
        assert record.tags["model_family"] == "llama"


def test_what_a_run_will_have_emitted_is_forecast_again_at_each_validation(
    make_job: MakeJob, store_uri: str
) -> None:
    job = make_job(epochs=8, evals=4, quality_examples=0)
    run(job, store_uri)
    client, run_id = MlflowClient(store_uri), run(job, store_uri)
    emitted_kg = client.get_run(run_id).data.metrics["emissions_kg"]
    names = ("emissions_so_far_kg", "emissions_expected_kg", "val_loss")
    spent, expected, losses = (client.get_metric_history(run_id, name) for name in names)
    assert [p.step for p in expected] == [p.step for p in spent] == [p.step for p in losses]
    assert len(expected) == 5
    assert all(end.value >= so_far.value for end, so_far in zip(expected, spent, strict=True))
    assert expected[-1].value == pytest.approx(emitted_kg, rel=0.1)
    assert spent[0].value < emitted_kg / 2


def test_a_run_that_went_on_in_a_second_session_says_nothing_of_its_quote(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise Stopped(15)

    job, tracker = make_job(quality_examples=0), Tracker(store_uri)

    def session() -> None:
        kept = checkpoint.claim(job)
        opened = tracker.resumed(kept.run_id) if kept.run_id else tracker.run("train", "one")
        with Meter.of(job) as meter, kept.until_the_end():
            meter.open()
            with opened as current, measured(job, current, meter) as bill:
                run_experiment(job, current, bill, kept)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr("green_tune.experiment._save_adapter", stopped)
        session()
    before = tracker.newest("cpu")
    session()
    (after,) = tracker.newest("cpu")
    assert [record.run_id for record in before] == [after.run_id]
    assert (before[0].status, after.status) == ("KILLED", "FINISHED")
    assert quoted(before[0]) == quoted(after) == (True, False)
    assert after.metrics["quote.energy_kwh"] == before[0].metrics["quote.energy_kwh"]


def test_the_task_is_measured_before_and_after_in_a_phase_of_its_own_or_not_at_all(
    make_job: MakeJob, store_uri: str
) -> None:
    asked = {"epochs": 4, "learning_rate": 5e-3, "quality_examples": 8}
    metrics = Tracker(store_uri).get(run(make_job(**asked), store_uri)).metrics
    assert metrics["start_quality.examples"] == metrics["quality.examples"] == 8
    assert 0 <= metrics["start_quality.accuracy"] <= 1
    assert metrics["quality/energy_kwh"] > 0
    without = Tracker(store_uri).get(run(make_job(quality_examples=0), store_uri)).metrics
    assert [name for name in without if "quality" in name] == ["work.quality_examples"]
    assert without["work.quality_examples"] == 0
    assert metrics["work.quality_examples"] == 16


def test_the_loss_of_a_run_that_stopped_early_is_that_of_its_adapter(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([5.0, 4.0, 3.9, 3.95, 3.94])
    monkeypatch.setattr(
        training.FineTuner,
        "validate",
        lambda self: course.Validation(loss=next(given), bits_per_byte=1.0),
    )
    job = make_job(evals=6, min_gain_per_g=1e6, quality_examples=0)
    monkeypatch.setattr("green_tune.patience.IN_A_ROW", 4)
    record = Tracker(store_uri).get(run(job, store_uri))
    assert record.metrics["val_loss"] == 3.9
    assert record.tags["adapter_step"] == "2"
    assert record.tags["stopped_early"] == "after step 4 of 6"
    assert quoted(record) == (True, False)


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
    assert quoted(failed.data) == (True, False)


@pytest.mark.parametrize("where", ["CrossCheck.stop", "Run.log_measurement", "Meter.keep"])
def test_a_signal_while_the_bill_is_written_is_answered_after_it(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    owner, _, method = where.partition(".")
    owners = {"CrossCheck": CrossCheck, "Run": Run, "Meter": Meter}
    real = getattr(owners[owner], method)

    def interrupted(*given: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    monkeypatch.setattr(owners[owner], method, interrupted)
    monkeypatch.setattr(stop, "_asked", [])
    before = signal.getsignal(signal.SIGTERM)
    stop.listen()
    try:
        with pytest.raises(Stopped):
            run(make_job(), store_uri)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    (stopped,) = MlflowClient(store_uri).search_runs(["0"])
    assert stopped.info.status == "KILLED"
    assert stopped.data.metrics["energy_kwh"] > 0
    assert heartbeat.last(stopped.info.run_id) is None


def test_a_bill_that_the_store_did_not_take_is_written_by_the_next_command(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise StoreError("the server is down")

        patch.setattr(Run, "log_measurement", refuse)
        with pytest.raises(StoreError):
            run(make_job(), store_uri)
    (failed,) = MlflowClient(store_uri).search_runs(["0"])
    assert failed.info.status == "FAILED"
    assert "energy_kwh" not in failed.data.metrics
    monkeypatch.setattr("green_tune.worker.is_dead", lambda identity: True)
    Tracker(store_uri)
    billed = MlflowClient(store_uri).get_run(failed.info.run_id)
    assert billed.info.status == "FAILED"
    assert billed.data.metrics["energy_kwh"] > 0
    assert heartbeat.of_the_dead() == []


def test_a_run_of_several_nodes_that_fails_says_that_its_figures_are_one_nodes(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RunFailed("the loss is nan")

    monkeypatch.setattr(training.FineTuner, "fit", fail)
    monkeypatch.setattr(peers, "meet", lambda rank, device: None)  # nobody else is started
    job = replace(make_job(), rank=Rank(world=2, here=1))
    with pytest.raises(RunFailed):
        run(job, store_uri)
    (failed,) = MlflowClient(store_uri).search_runs(["0"])
    assert failed.data.tags["energy_faults"] == "the energy of the other nodes is missing"


def test_an_adapter_that_the_store_of_artifacts_does_not_take_waits_for_the_next_command(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("the server is down")

    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    with monkeypatch.context() as away, pytest.raises(Undelivered):
        away.setattr(MlflowClient, "log_artifacts", refuse)
        run(make_job(), store_uri)
    (there,) = Tracker(store_uri).find(Query())
    assert there.status == "FINISHED"
    assert there.metrics["energy_kwh"] > 0
    names = {f.path for f in MlflowClient(store_uri).list_artifacts(there.run_id, "adapter")}
    assert "adapter/adapter_model.safetensors" in names


def test_an_adapter_that_the_store_refuses_is_kept_and_its_place_named(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = MlflowClient.log_artifacts

    def refuse(self: MlflowClient, run_id: str, folder: str, name: str | None = None) -> None:
        if name == "adapter":
            raise MlflowException("not so", error_code=INVALID_PARAMETER_VALUE)
        take(self, run_id, folder, name)

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
    text = (ROOT / "docs" / "schema.md").read_text().partition("## The model registry")[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    keys = {key for cell in cells for key in cell.split("`")[1::2]} - ARTIFACTS
    each_phase = {key for key in keys if key.startswith("<phase>")}
    documented = keys - each_phase
    documented |= {key.replace("<phase>", name) for key in each_phase for name in PHASES}
    config = set(make_job().config.to_params())
    written = (record.params.keys() - config) | record.metrics.keys() | record.tags.keys()
    written = {key for key in written if not key.startswith(("mlflow.", "version."))} - {"id"}
    assert written <= documented
    assert {key for key in documented - written if not NOT_HERE.match(key)} == set()


# What is written by sweeps, reports, evaluations, probes, failures, hub models, GPUs, pauses and
# other tasks alone.
NOT_HERE = re.compile(
    r"overhead/|trials|hypervolume|base_model_commit|finding\.|runs_(compared|left_out)|"
    r"green_tune\.(study|trial|front|error|sessions|stopped|saved_kg|reused|retry_of|does_not_fit|adapter)|"
    r"gpu_(power|idle|count)|processes|paused/|energy_f(aults|lags)|stopped_early|adapter_step|"
    r"(start_)?quality\.(exact_match|rouge)|baseline_quality|(base_)?predictions|quality_on|pace\.|quote\.sounded"
)
ARTIFACTS = {"energy.csv", "emissions.csv", "boamps.json", "adapter/", "checkpoints/step-N/",
             "trials.json", "front.json", "repeats.json", "invoice.md", "front.png",
             "hypervolume.png", "parallel.png", "importance.png", "timeline.png"}  # fmt: skip


def test_a_run_leaves_files_from_which_its_figures_can_be_derived_again(
    make_job: MakeJob, store_uri: str, tmp_path: Path
) -> None:
    job = make_job(country="FRA", pue=1.5)
    run_id = run(job, store_uri)
    metrics = Tracker(store_uri).get(run_id).metrics
    client = MlflowClient(store_uri)
    segments = from_csv(
        Path(client.download_artifacts(run_id, "energy.csv", str(tmp_path))).read_text()
    )
    for part in ("cpu", "gpu", "ram"):
        series = sum(getattr(segment, f"energy_{part}_kwh") for segment in segments)
        assert series == pytest.approx(metrics[f"energy_{part}_kwh"], rel=1e-9)
    assert metrics["emissions_kg"] == pytest.approx(
        metrics["energy_kwh"] * 1.5 * job.intensity.g_per_kwh / 1000, rel=1e-12
    )
    for name in ("runtime_h", "energy_kwh", "energy_cpu_kwh", "energy_ram_kwh", "emissions_kg"):
        phases = [metrics[f"{phase}/{name}"] for phase in PHASES if f"{phase}/{name}" in metrics]
        assert len(phases) >= 5
        assert sum(phases) == metrics[name]
    for name in ("emissions.csv", "boamps.json"):
        text = Path(client.download_artifacts(run_id, name, str(tmp_path))).read_text()
        assert not re.search("Qu[eé]bec|Canada|United States", text)


def test_a_run_whose_figures_cannot_be_trusted_fails_and_keeps_its_result_and_adapter(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CrossCheck, "stop", lambda self: None)
    with pytest.raises(MeasurementError, match="CodeCarbon gave no figure"):
        run(make_job(), store_uri)
    (failed,) = MlflowClient(store_uri).search_runs(["0"])
    assert failed.info.status == "FAILED"
    assert failed.data.tags["energy_valid"] == "false"
    assert "CodeCarbon" in failed.data.tags["energy_faults"]
    assert failed.data.metrics["val_loss"] > 0
    assert quoted(failed.data) == (True, False)
    assert MlflowClient(store_uri).list_artifacts(failed.info.run_id, "adapter")


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
    assert record.tags["energy_gpu_method"] == nvml.COUNTER
    assert record.tags["energy_valid"] == "true"
    assert record.metrics["train/energy_gpu_kwh"] > record.metrics["save/energy_gpu_kwh"]
    assert record.metrics["codecarbon.energy_gpu_kwh"] == pytest.approx(
        record.metrics["energy_gpu_kwh"], rel=0.05
    )
    watts = record.metrics["train/energy_gpu_kwh"] * 1000 / record.metrics["train/runtime_h"]
    assert 0 < watts < 1.1 * record.metrics["gpu_power_limit_w"]


def test_adapters_on_the_way_are_kept_where_they_are_wanted_and_leave_nothing_behind(
    make_job: MakeJob, store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    job = make_job(evals=3, quality_examples=0)
    tracker, judge = Tracker(store_uri), Judge(keeps=lambda course: course[-1].step == 2)
    with Meter.of(job) as meter:
        meter.open()
        with tracker.run("trial", "one") as kept, measured(job, kept, meter) as bill:
            run_experiment(job, kept, bill, judge=judge)
        meter.open()
        monkeypatch.setattr("green_tune.experiment._save_adapter", lambda *_: 1 / 0)
        with (
            pytest.raises(ZeroDivisionError),
            tracker.run("trial", "two") as lost,
            measured(job, lost, meter) as bill,
        ):
            run_experiment(job, lost, bill, judge=judge)
    client = MlflowClient(store_uri)
    files = {file.path for file in client.list_artifacts(kept.id, "checkpoints")}
    assert files == {"checkpoints/step-2"}
    assert not list(tmp_path.glob("green-tune-shelf-*"))
