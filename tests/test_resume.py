"""A training that goes on from what was kept is the one that was never stopped."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from green_tune import checkpoint, course, heartbeat, stop, training, worker
from green_tune.bill import measured
from green_tune.course import Progress, Watch
from green_tune.errors import Stopped, StoreError
from green_tune.experiment import run_experiment
from green_tune.footprint import Basis, Measurement, Segment
from green_tune.job import Job
from green_tune.meter import Meter
from green_tune.query import Query
from green_tune.run import SESSIONS
from green_tune.stepper import Stepper
from green_tune.tracking import Tracker

MakeJob = Callable[..., Job]
DEAD = f"{worker.this().rsplit(':', 2)[0]}:1:0"  # process 1 lives, but did not start at tick 0
UNTIMED = ("train_loss", "learning_rate", "grad_norm", "val_loss", "val_bits_per_byte")
BASIS = Basis(g_per_kwh=100.0, methods={"cpu": "measured", "gpu": "none", "ram": "modelled"})


class Session:
    """One process' part of a training; it is asked to stop at a step, or at a metric of it."""

    def __init__(self, job: Job, kept: bytes = b"", until: int = -1, metric: str = "") -> None:
        self.points: list[tuple[str, int, float]] = []
        self.state = b""
        self._until, self._metric = until, metric
        self.tuner = training.load(job)
        earlier = training.from_bytes(kept) if kept else None
        watch = Watch(on_progress=self._look, kept=earlier, keep=self._keep)
        try:
            self.result = self.tuner.fit(watch)
        except Stopped:
            stop._asked.clear()

    def _look(self, progress: Progress) -> None:
        self.points += [
            (name, progress.step, progress.metrics[name])
            for name in UNTIMED
            if name in progress.metrics
        ]
        if progress.step == self._until and (self._metric in ("", *progress.metrics)):
            stop._ask(15, None)

    def _keep(self, make_state: Callable[[], dict[str, Any]]) -> None:
        self.state = training.to_bytes(make_state())


def adapter(session: Session, folder: Path) -> bytes:
    session.tuner.save(folder)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_stop_while_a_state_is_put_back_leaves_the_kept_one_alone(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(epochs=2)
    first = Session(job, until=5)
    real = Stepper.restore

    def restore(self: Stepper, state: dict[str, Any]) -> None:
        real(self, state)
        stop._ask(15, None)

    monkeypatch.setattr(Stepper, "restore", restore)
    assert Session(job, first.state).state == b""


def test_a_stop_after_the_last_step_keeps_the_whole_training(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(quality_examples=0)

    def stopped(*_: object) -> None:
        raise Stopped(15)

    monkeypatch.setattr("green_tune.experiment._save_adapter", stopped)
    kept = checkpoint.claim(job)
    with pytest.raises(Stopped), Meter.of(job) as meter, kept.until_the_end():
        meter.open()
        with Tracker(store_uri).run("train", "one") as run, measured(job, run, meter) as bill:
            run_experiment(job, run, bill, kept)
    again = checkpoint.claim(job).read()
    assert again is not None
    assert training.from_bytes(again)["step"] == training.load(job).steps


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(("until", "metric"), [(7, ""), (0, "val_loss"), (12, "val_loss")])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(
    make_job: MakeJob, tmp_path: Path, dropout: float, until: int, metric: str
) -> None:
    job = make_job(epochs=4, lora_dropout=dropout, learning_rate=2e-3, evals=4)
    whole = Session(job)
    first = Session(job, until=until, metric=metric)
    assert not hasattr(first, "result")
    second = Session(job, first.state)
    assert first.points + second.points == whole.points
    assert adapter(second, tmp_path / "two") == adapter(whole, tmp_path / "one")
    assert second.result == whole.result


def test_what_fell_due_is_kept_and_goes_on_to_the_same_bits(make_job: MakeJob) -> None:
    job = make_job(epochs=4, lora_dropout=0.1, loraplus_ratio=4.0, batch_size=5)
    whole, kept = Session(job), []
    watch = Watch(
        keep=lambda make_state: kept.append(training.to_bytes(make_state())), due=lambda: True
    )
    steps = training.load(job).fit(watch).steps
    assert len(kept) == steps
    for number in (0, steps // 2, steps - 1):
        later = Session(job, kept[number])
        assert later.points == [point for point in whole.points if point[1] > number + 1]
        assert later.result == whole.result


def test_what_is_kept_holds_no_code(tmp_path: Path) -> None:
    state = training.to_bytes({"path": tmp_path})
    with pytest.raises(Exception, match="weights_only"):
        training.from_bytes(state)


def experiment(job: Job, uri: str) -> str:
    """The train command without its screen; the run's id."""
    kept = checkpoint.claim(job)
    tracker = Tracker(uri)
    opened = tracker.resumed(kept.run_id) if kept.run_id else tracker.run("train", "one")
    with Meter.of(job) as meter:
        meter.open()
        with (
            kept.until_the_end(),
            opened as current,
            measured(job, current, meter) as bill,
        ):
            run_experiment(job, current, bill, kept)
    return current.id


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    real = course.Course.count

    def count(self: Any) -> None:
        real(self)
        if self.done == step:
            stop._ask(15, None)

    monkeypatch.setattr(course.Course, "count", count)


def test_a_run_that_was_stopped_goes_on_and_its_energy_is_that_of_both_sessions(
    make_job: MakeJob, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(epochs=2, quality_examples=0, country="FRA")
    with monkeypatch.context() as patch:
        patch.setattr(stop, "_asked", [])
        stop_at(patch, 5)
        with pytest.raises(Stopped):
            experiment(job, store_uri)
    tracker = Tracker(store_uri)
    (stopped,) = tracker.find(Query())
    assert stopped.status == "KILLED"
    experiment(job, store_uri)
    (record,) = tracker.find(Query())
    assert (record.run_id, record.status) == (stopped.run_id, "FINISHED")
    assert record.metrics["energy_kwh"] > stopped.metrics["energy_kwh"]
    assert record.metrics["emissions_kg"] == pytest.approx(
        record.metrics["energy_kwh"] * job.intensity.g_per_kwh / 1000, rel=1e-9
    )
    points = MlflowClient(store_uri).get_metric_history(record.run_id, "train_loss")
    assert sorted(point.step for point in points) == list(range(1, 13))


def segments(start: int, count: int, kwh: float = 1e-3) -> list[Segment]:
    return [
        Segment(
            phase="train", started_s=1.8e9 + start + 100 * number, runtime_h=100 / 3600,
            energy_cpu_kwh=kwh, energy_gpu_kwh=0.0, energy_ram_kwh=kwh,
        )
        for number in range(count)
    ]  # fmt: skip


def spent(*parts: Segment, **known: Any) -> Measurement:
    return Measurement(segments=parts, basis=BASIS, **known)


def test_what_sessions_spent_adds_up_and_what_is_there_twice_counts_once() -> None:
    before = spent(*segments(0, 3), flags=["paused for 1.0 s"], faults=["a reading failed"])
    mine = spent(*segments(200, 2), facts={"codecarbon.energy_kwh": 1.0})
    both = mine.after(before)
    assert both.segments == [*segments(0, 2), *mine.segments]
    assert both.total.energy_kwh == pytest.approx(8e-3)
    assert both.flags == [
        "resumed once, what lies between sessions is not counted",
        "paused for 1.0 s",
    ]
    assert both.faults == ["a reading failed"]
    assert both.facts == mine.facts
    third = spent(*segments(1000, 1)).after(both, 2)
    assert third.total.energy_kwh == pytest.approx(10e-3)
    assert third.flags[0].startswith("resumed 2 times")
    assert sum(flag.startswith("resumed") for flag in third.flags) == 1
    assert mine.after(spent()) is mine


def test_sessions_that_were_measured_in_other_ways_say_so() -> None:
    other = Measurement(
        segments=segments(0, 1),
        basis=Basis(g_per_kwh=100.0, methods={**BASIS.methods, "cpu": "modelled"}),
    )
    assert "measured in another way" in spent(*segments(500, 1)).after(other).flags[1]


def dead_run(uri: str, start: int) -> str:
    """A run whose process was killed after its second heartbeat."""
    client = MlflowClient(uri)
    tags = {"green_tune.kind": "train", "green_tune.worker": DEAD}
    run_id = str(client.create_run("0", tags=tags, run_name="one").info.run_id)
    beat(run_id, start)
    return run_id


def beat(run_id: str, start: int) -> None:
    for part in segments(start, 2):
        heartbeat.beat(run_id, BASIS, [part])


def test_a_killed_run_is_reopened_clean_and_paid_for_by_each_of_its_sessions(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = dead_run(store_uri, 0)
    heartbeat.set_aside(run_id)
    beat(run_id, 1000)  # a second session, killed before it had opened the run
    heartbeat.set_aside(run_id)
    beat(run_id, 2000)  # the third is under way
    tracker = Tracker(store_uri)
    assert tracker.get(run_id).metrics["energy_kwh"] == pytest.approx(8e-3)
    assert tracker.get(run_id).status == "FAILED"
    with tracker.resumed(run_id) as run:
        record = tracker.get(run_id)
        assert record.status == "RUNNING"
        assert "green_tune.error" not in record.tags
        assert record.tags[SESSIONS] == "2"
        assert run.spent_kg == pytest.approx(8e-4)
        Tracker(store_uri)  # another command buries nobody who lives
        assert tracker.get(run_id).status == "RUNNING"
        run.log_measurement(run.with_earlier(spent(*segments(2000, 5))))
    assert tracker.get(run_id).metrics["energy_kwh"] == pytest.approx(18e-3)
    assert tracker.get(run_id).status == "FINISHED"
    monkeypatch.setattr(worker, "is_dead", lambda identity: True)
    Tracker(store_uri)  # its heartbeats were still there: they are in its figures
    assert tracker.get(run_id).metrics["energy_kwh"] == pytest.approx(12e-3)
    assert heartbeat.of_the_dead() == []


@pytest.mark.parametrize("kept", [4, 8])  # a state older than what is in the store, and younger
def test_steps_that_are_done_again_are_in_the_store_once(store_uri: str, kept: int) -> None:
    tracker = Tracker(store_uri)
    with pytest.raises(Stopped), tracker.run("train", "one") as run:
        run.log_metrics({"start_f1": 0.5}, 0)
        for step in range(1, 8):
            run.log_metrics({"train_loss": step / 3}, step)
        points = run.unwritten
        run.log_metrics({"energy_kwh": 1.0})
        raise Stopped(15)
    with tracker.resumed(run.id) as again:
        points += [("train_loss", 8 / 3, points[-1][2], 8)]
        again.write_again(points[: kept + 1])
        for step in range(kept + 1, 12):
            again.log_metrics({"train_loss": step / 3, "val_loss": 1.0}, step)
        again.log_metrics({"energy_kwh": 2.0})
    client = MlflowClient(store_uri)
    curve = client.get_metric_history(run.id, "train_loss")
    assert [(point.step, point.value) for point in curve] == [(s, s / 3) for s in range(1, 12)]
    assert len(client.get_metric_history(run.id, "val_loss")) == 11 - kept
    assert len(client.get_metric_history(run.id, "start_f1")) == 1
    assert tracker.get(run.id).metrics["energy_kwh"] == 2.0


def test_the_launchers_run_of_a_resumption_is_in_no_table(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(store_uri)
    with pytest.raises(Stopped), tracker.run("train", "one") as run:
        raise Stopped(15)
    launched = MlflowClient(store_uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    with tracker.resumed(run.id) as again:
        again.log_metrics({"energy_kwh": 2.0})
    assert [record.run_id for record in tracker.find(Query())] == [run.id]
    other = tracker.get(launched)
    assert (other.kind, other.status, other.metrics) == ("resumption", "FINISHED", {})
    assert other.tags["mlflow.note.content"] == f"goes on in run {run.id}"


def test_a_deleted_run_disturbs_no_command(store_uri: str) -> None:
    run_id = dead_run(store_uri, 0)
    heartbeat.set_aside(run_id)
    assert Tracker(store_uri).has(run_id)
    MlflowClient(store_uri).delete_run(run_id)
    assert not Tracker(store_uri).has(run_id)
    assert not Tracker(store_uri).has("0" * 32)


def test_a_store_that_is_away_is_no_run_that_is_gone(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_: object) -> None:
        raise MlflowException("the server is down")

    tracker = Tracker(store_uri)
    monkeypatch.setattr(MlflowClient, "get_run", refuse)
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    with pytest.raises(StoreError, match="the server is down"):
        tracker.has("0" * 32)
