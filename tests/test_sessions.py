"""Sessions of a study in the store: whose run is the study's, and what the dead have left."""

import os

import pytest
from mlflow import MlflowClient

from green_tune import heartbeat, worker
from green_tune.errors import RunFailed, Stopped
from green_tune.footprint import Basis, Segment
from green_tune.query import Query
from green_tune.results import FINGERPRINT, KIND, STUDY
from green_tune.tracking import Tracker

DEAD = f"{worker.this().rsplit(':', 2)[0]}:1:0"  # process 1 lives, but did not start at tick 0


def status_of(uri: str, run_id: str) -> str:
    return str(MlflowClient(uri).get_run(run_id).info.status)


ELSEWHERE = "another machine:7:7"


def alone() -> list[str]:
    return []


def test_the_first_session_of_a_study_is_the_studys_own_run(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.session("worker of s", "s", "", {"gpu": "cpu"}, alone) as (parent, mine):
        assert parent is mine
        assert status_of(store_uri, parent.id) == "RUNNING"
    record = tracker.get(parent.id)
    assert (record.kind, record.name, record.status) == ("sweep", "s", "FINISHED")
    assert (record.tags[STUDY], record.params, record.parent_id) == ("s", {"gpu": "cpu"}, "")
    assert status_of(store_uri, parent.id) == "FINISHED"


def first_session(tracker: Tracker) -> str:
    with tracker.session("worker of s", "s", "", {}, alone) as (parent, _):
        return parent.id


@pytest.mark.parametrize("launched", [True, False])
def test_a_later_session_is_a_run_below_the_first_ones_which_is_open_meanwhile(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, launched: bool
) -> None:
    tracker = Tracker(store_uri)
    first = first_session(tracker)
    if launched:
        monkeypatch.setenv("MLFLOW_RUN_ID", MlflowClient(store_uri).create_run("0").info.run_id)
    asked = os.environ.get("MLFLOW_RUN_ID")
    with tracker.session("worker of s", "s", first, {"gpu": "cpu"}, alone) as (parent, mine):
        assert parent.id == first
        assert mine.id == asked or (mine.id != first and not asked)
        assert status_of(store_uri, first) == status_of(store_uri, mine.id) == "RUNNING"
        assert "MLFLOW_RUN_ID" not in os.environ
    record = tracker.get(mine.id)
    assert (record.kind, record.parent_id, record.tags[STUDY]) == ("worker", first, "s")
    assert record.params == {"gpu": "cpu"}
    assert tracker.get(first).params == {}
    assert {status_of(store_uri, run_id) for run_id in (first, mine.id)} == {"FINISHED"}


def test_a_study_whose_run_was_deleted_gets_another_one(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    first = first_session(tracker)
    MlflowClient(store_uri).delete_run(first)
    with tracker.session("worker of s", "s", first, {}, alone) as (parent, mine):
        assert parent is mine
        assert parent.id != first
    assert tracker.get(parent.id).kind == "sweep"


@pytest.mark.parametrize("error", [Stopped(15), RunFailed("no trial finished"), ValueError("bug")])
def test_a_study_ends_as_its_last_session_does(store_uri: str, error: BaseException) -> None:
    tracker = Tracker(store_uri)
    first = first_session(tracker)
    with (
        pytest.raises(type(error)),
        tracker.session("worker of s", "s", first, {}, alone) as (_, mine),
    ):
        raise error
    status = "KILLED" if isinstance(error, Stopped) else "FAILED"
    for run_id in (first, mine.id):
        assert status_of(store_uri, run_id) == tracker.get(run_id).status == status
        assert str(error) in tracker.get(run_id).tags["green_tune.error"]
    with tracker.session("worker of s", "s", first, {}, alone):
        pass
    assert tracker.get(first).status == "FINISHED"
    assert "green_tune.error" not in tracker.get(first).tags


@pytest.mark.parametrize("sessions", [1, 2])
def test_a_studys_run_stays_open_while_another_worker_is_at_it_and_is_then_that_ones(
    store_uri: str, sessions: int
) -> None:
    tracker = Tracker(store_uri)
    first = "" if sessions == 1 else first_session(tracker)
    with tracker.session("worker of s", "s", first, {}, lambda: [ELSEWHERE, "third"]) as (run, _):
        pass
    assert status_of(store_uri, run.id) == "RUNNING"
    assert tracker.get(run.id).tags["green_tune.worker"] == ELSEWHERE
    with tracker.session("worker of s", "s", run.id, {}, alone):
        pass
    assert status_of(store_uri, run.id) == "FINISHED"


def test_a_studys_run_that_another_living_worker_has_open_is_not_taken_from_it(
    store_uri: str,
) -> None:
    tracker = Tracker(store_uri)
    tags = {KIND: "sweep", "green_tune.worker": ELSEWHERE}
    first = MlflowClient(store_uri).create_run("0", tags=tags).info.run_id
    with tracker.session("worker of s", "s", first, {}, lambda: [ELSEWHERE]) as (parent, _):
        assert parent.id == first
        assert tracker.get(first).tags["green_tune.worker"] == ELSEWHERE
        assert "green_tune.sessions" not in tracker.get(first).tags
    assert status_of(store_uri, first) == "RUNNING"


def a_trial(uri: str, who: str, **more: str) -> str:
    tags = {KIND: "trial", "green_tune.worker": who, "intensity_g_per_kwh": "200.0"} | more
    run_id = str(MlflowClient(uri).create_run("0", tags=tags, run_name="one").info.run_id)
    MlflowClient(uri).log_param(run_id, "pue", "1.25")
    return run_id


def test_a_run_that_died_on_this_machine_is_buried_with_what_its_heartbeats_say(
    store_uri: str,
) -> None:
    tracker = Tracker(store_uri)
    run_id = a_trial(store_uri, DEAD)
    MlflowClient(store_uri).log_metric(run_id, "emissions_so_far_kg", 99.0)
    basis = Basis(g_per_kwh=200.0, pue=1.25, methods=dict.fromkeys(("cpu", "gpu", "ram"), "none"))
    segment = Segment(phase="train", started_s=1.8e9, runtime_h=0.5, energy_cpu_kwh=2.0,
                      energy_gpu_kwh=0.0, energy_ram_kwh=1.0)  # fmt: skip
    heartbeat.beat(run_id, basis, [segment])
    buried = tracker.bury(run_id)
    assert buried is not None
    assert buried.metrics["energy_kwh"] == pytest.approx(3.0)
    assert buried.metrics["emissions_kg"] == pytest.approx(0.75)
    assert status_of(store_uri, run_id) == buried.status != "RUNNING"
    assert buried.tags["green_tune.error"] == "its process died"
    assert heartbeat.last(run_id) is None
    assert tracker.read_text(run_id, "energy.csv")


def test_a_run_that_died_elsewhere_is_buried_with_what_its_last_validation_says(
    store_uri: str,
) -> None:
    tracker = Tracker(store_uri)
    run_id = a_trial(store_uri, ELSEWHERE)
    for step, kg in enumerate((0.1, 0.5)):
        MlflowClient(store_uri).log_metric(run_id, "emissions_so_far_kg", kg, step=step)
    buried = tracker.bury(run_id)
    assert buried is not None
    assert buried.metrics["emissions_kg"] == pytest.approx(0.5)
    assert buried.metrics["energy_kwh"] == pytest.approx(2.0)  # at 200 g/kWh and a PUE of 1.25
    assert buried.tags["energy_flags"].startswith("as of its last validation")
    assert status_of(store_uri, run_id) == buried.status != "RUNNING"


def test_a_run_that_died_elsewhere_before_it_said_anything_is_closed_without_figures(
    store_uri: str,
) -> None:
    run_id = a_trial(store_uri, ELSEWHERE)
    buried = Tracker(store_uri).bury(run_id)
    assert buried is not None
    assert buried.metrics == {}
    assert status_of(store_uri, run_id) == buried.status != "RUNNING"


def test_a_run_that_had_ended_is_left_as_it_is_by_a_burial(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("trial", "one") as run:
        run.log_metrics({"energy_kwh": 1.0, "emissions_so_far_kg": 0.1})
    before = tracker.get(run.id)
    assert tracker.bury(run.id) == before == tracker.get(run.id)


@pytest.mark.parametrize("run_id", ["", "0" * 32])
def test_nothing_is_buried_where_there_is_no_such_run(store_uri: str, run_id: str) -> None:
    assert Tracker(store_uri).bury(run_id) is None


def test_a_run_that_somebody_has_deleted_is_not_buried(store_uri: str) -> None:
    run_id = a_trial(store_uri, DEAD)
    MlflowClient(store_uri).delete_run(run_id)
    assert Tracker(store_uri).bury(run_id) is None
    assert status_of(store_uri, run_id) == "RUNNING"


def test_runs_are_found_by_fingerprint_and_by_whether_they_were_on_a_front(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for name in ("a", "b", "c"):
        with tracker.run("trial", name, tags={FINGERPRINT: name}):
            pass
    records = tracker.find(Query())
    tracker.mark_front(records, records[1:])
    assert [record.name for record in tracker.find(Query(fingerprint="b"))] == ["b"]
    assert [record.name for record in tracker.find(Query(front=True))] == ["b", "c"]
    tracker.mark_front(tracker.find(Query()), records[:1])
    assert [record.name for record in tracker.find(Query(front=True))] == ["a"]
    assert [record.name for record in tracker.find(Query(front=True, fingerprint="b"))] == []


def test_a_studys_run_is_closed_when_the_worker_it_was_left_to_dies(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.session("w", "s", "", {}, lambda: [DEAD]) as (run, _):
        pass
    assert status_of(store_uri, run.id) == "RUNNING"
    Tracker(store_uri)
    assert status_of(store_uri, run.id) == "FAILED"


def test_a_third_worker_does_not_take_the_studys_run_from_its_living_owner(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.session("w", "s", "", {}, lambda: [ELSEWHERE]) as (run, _):
        pass
    assert tracker.get(run.id).status == "RUNNING"
    with tracker.session("w", "s", run.id, {}, lambda: [ELSEWHERE]):
        assert tracker.get(run.id).tags["green_tune.worker"] == ELSEWHERE


def test_a_living_process_of_this_machine_is_not_buried(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("trial", "one") as run:
        basis = Basis(g_per_kwh=1.0, methods=dict.fromkeys(("cpu", "gpu", "ram"), "none"))
        segment = Segment(
            phase="train",
            started_s=1.8e9,
            runtime_h=0.5,
            energy_cpu_kwh=2.0,
            energy_gpu_kwh=0.0,
            energy_ram_kwh=1.0,
        )
        heartbeat.beat(run.id, basis, [segment])
        tracker.bury(run.id)
        assert heartbeat.last(run.id) is not None
        assert status_of(store_uri, run.id) == "RUNNING"


def test_an_error_of_a_session_is_gone_when_the_study_goes_on_and_ends_well(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with (
        tracker.session("w", "s", "", {}, alone) as (parent, _),
        pytest.raises(ValueError, match="a bug"),
        tracker.session("w", "s", parent.id, {}, lambda: [worker.this()]),
    ):
        raise ValueError("a bug of the other")
    assert tracker.get(parent.id).status == "FINISHED"
    assert "green_tune.error" not in tracker.get(parent.id).tags


def test_of_two_sessions_that_begin_at_once_one_is_below_the_other(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with (
        tracker.session("worker of s", "s", "", {}, alone) as (first, _),
        tracker.session("worker of s", "s", "", {}, alone, lambda mine: first.id) as (seen, own),
    ):
        assert seen.id == first.id != own.id
    record = tracker.get(own.id)
    assert (record.kind, record.parent_id, record.name) == ("worker", first.id, "worker of s")
    assert tracker.get(first.id).status == record.status == "FINISHED"


def test_a_run_whose_process_died_between_writing_its_end_and_closing_it_is_closed(
    store_uri: str,
) -> None:
    tracker, ended = Tracker(store_uri), {"green_tune.status": "FINISHED"}
    here, there = (
        MlflowClient(store_uri).create_run(
            "0", tags={KIND: "trial", "green_tune.worker": who} | ended, run_name="dead"
        )
        for who in (DEAD, ELSEWHERE)
    )
    tracker.bury(there.info.run_id)
    tracker.close_dead()
    for run in (here, there):
        assert status_of(store_uri, run.info.run_id) == "FINISHED"
