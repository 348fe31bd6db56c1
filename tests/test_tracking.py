import gc
import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST

from green_tune import reading, spool, store, worker
from green_tune.errors import (
    ConfigError,
    RunFailed,
    Stopped,
    StoreAway,
    StoreError,
    Undelivered,
)
from green_tune.query import EVERY, EXPERIMENT, Query
from green_tune.results import KIND, STUDY, WORKER
from green_tune.run import ERROR, STATUS, Run
from green_tune.spool import About, Act, Spool
from green_tune.tracking import Tracker

DEAD = f"{worker.this().rsplit(':', 2)[0]}:1:0"  # process 1 lives, but did not start at tick 0


def status_of(uri: str, run_id: str) -> str:
    return str(MlflowClient(uri).get_run(run_id).info.status)


def test_a_run_that_ends_well_is_finished_and_reads_back_as_written(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("train", "one", tags={"base_model": "tiny"}) as run:
        run.log_params({"task": "qa", "learning_rate": "0.0002"})
        run.log_metrics({"val_loss": 3.0}, step=0)
        run.log_metrics({"val_loss": 2.0}, step=5)
        run.log_dataset("qa-sample", "sample", "abc", "training")
    record = tracker.get(run.id)
    assert (record.status, record.kind, record.name) == ("FINISHED", "train", "one")
    assert record.params == {"task": "qa", "learning_rate": "0.0002"}
    assert record.metrics == {"val_loss": 2.0}
    curve = MlflowClient(store_uri).get_metric_history(run.id, "val_loss")
    assert [(point.step, point.value) for point in curve] == [(0, 3.0), (5, 2.0)]
    inputs = MlflowClient(store_uri).get_run(run.id).inputs
    assert inputs is not None
    dataset = inputs.dataset_inputs[0].dataset
    assert (dataset.name, dataset.digest) == ("qa-sample", "abc")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RunFailed("the loss is nan"), "FAILED"),
        (ValueError("a bug"), "FAILED"),
        (Stopped(15), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_a_run_that_ends_badly_is_closed_with_its_reason_and_its_metrics(
    store_uri: str, error: BaseException, status: str
) -> None:
    tracker = Tracker(store_uri)
    with pytest.raises(type(error)), tracker.run("train", "one") as run:
        run.log_metrics({"emissions_kg": 1.5})
        raise error
    record = tracker.get(run.id)
    assert status_of(store_uri, run.id) == record.status == status
    assert record.metrics == {"emissions_kg": 1.5}
    assert str(error) in record.tags["green_tune.error"]


def test_the_launchers_run_is_adopted_once_and_its_params_are_left_alone(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store_uri)
    launched = client.create_run("0").info.run_id
    client.log_param(launched, "gpu", "'my t4'")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    tracker = Tracker(store_uri)
    with tracker.run("sweep", "parent", asked={"gpu": "my t4", "seed": "0"}) as parent:
        assert parent.id == launched
        assert "MLFLOW_RUN_ID" not in os.environ
        with tracker.run("trial", "child", parent=parent) as child:
            child.log_params({"gpu": "auto"})
    assert tracker.get(launched).params == {"gpu": "my t4", "seed": "0"}
    assert tracker.get(child.id).parent_id == launched
    assert tracker.get(child.id).params == {"gpu": "auto"}


def test_the_launchers_run_is_still_adopted_where_the_store_was_away_for_a_moment(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = MlflowClient(store_uri).create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    tracker, answers = Tracker(store_uri), iter([_refuse])
    ask = MlflowClient.get_run

    def get_run(client: MlflowClient, run_id: str) -> Any:
        return next(answers, ask)(client, run_id)

    monkeypatch.setattr(MlflowClient, "get_run", get_run)
    with tracker.run("train", "one") as run:
        assert run.id == launched
        assert "MLFLOW_RUN_ID" not in os.environ


def test_what_was_typed_is_stored_as_the_launcher_stores_it(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("train", "one", asked={"data": "my folder"}) as run:
        run.log_params({"data": "my folder", "plan.precision": "fp32"})
    assert MlflowClient(store_uri).get_run(run.id).data.params["data"] == "'my folder'"
    assert tracker.get(run.id).params == {"data": "my folder", "plan.precision": "fp32"}


def test_thousands_of_metrics_reach_the_store(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("train", "one") as run:
        for step in range(2500):
            run.log_metrics({"train_loss": float(step)}, step)
    history = MlflowClient(store_uri).get_metric_history(run.id, "train_loss")
    assert sorted(point.step for point in history) == list(range(2500))


def test_a_store_that_is_away_for_a_while_costs_no_training_and_no_metric(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("train", "one") as run, monkeypatch.context() as away:
        away.setattr(MlflowClient, "log_batch", _refuse)
        for step in range(600):
            run.log_metrics({"train_loss": 1.0}, step)
        deadline = time.monotonic() + 30
        while "what is written of one waits in" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert len(MlflowClient(store_uri).get_metric_history(run.id, "train_loss")) == 600
    assert spool.waiting() == []


WRITES = ("log_batch", "log_inputs", "log_artifacts", "set_tag", "set_terminated")


def test_what_a_store_missed_is_delivered_by_the_next_command(
    store_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that can be written of a run, in a run that went well while the store was away."""
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("1 2 3")
    tracker = Tracker(store_uri)
    with (
        monkeypatch.context() as away,
        pytest.raises(Undelivered, match="the next command delivers it"),
        tracker.run("train", "one") as run,
    ):
        for name in WRITES:
            away.setattr(MlflowClient, name, _refuse)
        run.log_params({"lora_rank": "8"})
        run.log_metrics({"val_loss": 2.0}, step=4)
        run.log_dataset("qa", "here", "abc", "training")
        run.log_folder(tmp_path / "adapter", "adapter")
        run.log_table([{"a": 1}], "rows.json")
        run.log_metrics({"val_loss": 1.5}, step=8)
    ((about, folder),) = spool.waiting()
    assert (about.run_id, about.name) == (run.id, "one")
    assert tracker.get(run.id).status == "RUNNING"

    delivered_ms = int(time.time() * 1000)
    there = Tracker(store_uri)
    assert not folder.exists()
    record = there.get(run.id)
    assert (record.status, record.params["lora_rank"]) == ("FINISHED", "8")
    assert record.tags[STATUS] == "FINISHED"
    client = MlflowClient(store_uri)
    history = client.get_metric_history(run.id, "val_loss")
    assert [(point.step, point.value) for point in history] == [(4, 2.0), (8, 1.5)]
    assert there.read_text(run.id, "adapter/weights") == "1 2 3"
    assert json.loads(str(there.read_text(run.id, "rows.json")))["data"] == [[1]]
    found = client.get_run(run.id)
    assert found.inputs
    assert [each.dataset.name for each in found.inputs.dataset_inputs] == ["qa"]
    assert "rows.json" in found.data.tags["mlflow.loggedArtifacts"]
    assert found.info.end_time <= delivered_ms  # when it ended, not when that was written
    assert spool.waiting() == []


def test_a_run_that_died_while_its_store_was_away_has_what_it_wrote_until_then(
    store_uri: str,
) -> None:
    """The spool first, then the heartbeat's figures, and the end that nobody wrote."""
    client = MlflowClient(store_uri)
    run_id = client.create_run("0", tags={WORKER: DEAD}).info.run_id
    about = About(run_id=run_id, name="one", address=store.address(store_uri), sessions=1)
    kept = Spool(about)
    kept.put(Act(kind="metrics", what=[["val_loss", 2.0, 1, 4]]))
    kept.close()
    record = Tracker(store_uri).get(run_id)
    assert (record.status, record.metrics["val_loss"]) == ("FAILED", 2.0)


def test_what_is_wrong_with_a_request_is_said_at_once_and_waits_for_nothing(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(store_uri)
    with pytest.raises(StoreError) as caught, tracker.run("train", "one") as run:
        run.log_params({"no/such//name\n!": "x"})
    assert not isinstance(caught.value, StoreAway)
    assert spool.waiting() == []


def _refuse(*_: object, **__: object) -> None:
    raise MlflowException("the server is down")


def test_runs_are_found_by_model_task_gpu_study_time_and_kind(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for number, (model, task, gpu) in enumerate(
        [("tiny", "qa", "t4"), ("tiny", "sentiment", "a100-80"), ("gemma-2b", "qa", "l4")]
    ):
        tags = {"base_model": model, "gpu_type": gpu, STUDY: f"s{number}"}
        with tracker.run("trial" if number else "train", str(number), tags=tags) as run:
            run.log_params({"task": task})
    with tracker.run("sweep", "a parent is never compared"):
        pass

    def found(query: Query) -> list[str]:
        return [record.name for record in tracker.find(query)]

    now = datetime.now(UTC)
    assert found(Query()) == ["0", "1", "2"]
    assert found(Query(model="tiny")) == ["0", "1"]
    assert found(Query(task="qa", model="gemma-2b")) == ["2"]
    assert found(Query(gpu="a100")) == ["1"]
    assert found(Query(gpu="A100-80")) == ["1"]
    assert found(Query(study="s2")) == ["2"]
    assert found(Query(kinds=("train",))) == ["0"]
    assert found(Query(since=now - timedelta(hours=1))) == ["0", "1", "2"]
    assert found(Query(since=now + timedelta(hours=1))) == []
    assert found(Query(until=now - timedelta(hours=1))) == []


def test_a_family_of_gpus_is_not_a_prefix(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for gpu in ("l4", "l40", "a10", "a100-40"):
        with tracker.run("train", gpu, tags={"gpu_type": gpu}):
            pass
    assert [record.name for record in tracker.find(Query(gpu="l4"))] == ["l4"]
    assert [record.name for record in tracker.find(Query(gpu="a10"))] == ["a10"]


@pytest.mark.parametrize("name", ["it's", 'the "best"', "50% of it"])
def test_odd_names_are_found(store_uri: str, name: str) -> None:
    tracker = Tracker(store_uri)
    for study in (name, "another"):
        with tracker.run("trial", study, tags={STUDY: study}):
            pass
    assert [record.name for record in tracker.find(Query(study=name))] == [name]


def test_a_name_that_no_filter_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="both kinds of quotation marks"):
        Query(study='it\'s "it"').filters()


def test_runs_of_all_experiments_are_found(store_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    elsewhere = Tracker(store_uri)
    with elsewhere.run("train", "one"):
        pass
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    default = Tracker(store_uri)
    assert default.experiment_id != elsewhere.experiment_id
    assert [record.name for record in default.find(Query())] == ["one"]


def test_a_study_is_found_alone_or_with_its_parts(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for study in ("a_b", "a_b/qa", "axb/qa", "a_bc", "A_B/qa"):
        with tracker.run("trial", study, tags={STUDY: study}):
            pass
    assert [record.name for record in tracker.find(Query(study="a_b"))] == ["a_b"]
    parts = tracker.find(Query(study="a_b", parts=True))
    assert [record.name for record in parts] == ["a_b", "a_b/qa"]


def test_runs_of_other_tools_are_found_where_every_run_is_asked_for(store_uri: str) -> None:
    client = MlflowClient(store_uri)
    client.create_run("0", run_name="theirs")
    deleted = client.create_run("0", run_name="deleted")
    client.delete_run(deleted.info.run_id)
    tracker = Tracker(store_uri)
    with tracker.run("train", "ours"), tracker.run("sweep", "sums"):
        pass
    found = tracker.find(Query(kinds=EVERY))
    assert {(record.name, record.kind) for record in found} == {
        ("theirs", ""),
        ("ours", "train"),
        ("sums", "sweep"),
    }
    assert [record.name for record in tracker.find(Query())] == ["ours"]


def test_a_users_own_filter_narrows_what_is_found(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for name, loss in (("good", 1.0), ("bad", 3.0)):
        with tracker.run("train", name, tags={"base_model": "tiny"}) as run:
            run.log_metrics({"val_loss": loss})
    asked = Query(model="tiny", filter="metrics.val_loss < 2")
    assert [record.name for record in tracker.find(asked)] == ["good"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("metrics.val_loss < ", "Invalid clause"),
        ("params.task = qa", "not quoted"),
        ("a = 1 OR b = 2", "Invalid clause"),
        ("foo.bar = 'a'", "Invalid entity type 'foo'"),
    ],
)
def test_a_filter_that_mlflow_cannot_read_is_one_clear_line(
    store_uri: str, text: str, reason: str
) -> None:
    tracker = Tracker(store_uri)
    with pytest.raises(ConfigError, match=reason) as caught:
        tracker.find(Query(filter=text))
    assert str(caught.value).startswith(f"filter={text} cannot be read by MLflow: ")
    assert "\n" not in str(caught.value)


def test_pages_of_runs_and_of_experiments_are_read_to_the_last(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient(store_uri)
    for experiment in ("0", client.create_experiment("one"), client.create_experiment("two")):
        for _ in range(3):
            client.create_run(experiment)
    tracker = Tracker(store_uri)
    every = partialmethod(MlflowClient.search_experiments, max_results=2)
    monkeypatch.setattr(MlflowClient, "search_experiments", every)
    monkeypatch.setattr(reading, "PAGE", 2)
    found = tracker.find(Query(kinds=EVERY))
    assert len({record.run_id for record in found}) == 9
    assert {record.tags[EXPERIMENT] for record in found} == {"0", "1", "2"}


def test_what_many_runs_say_is_kept_once_and_mlflows_own_tags_not_at_all(store_uri: str) -> None:
    tracker = Tracker(store_uri)
    for name in ("one", "two"):
        with tracker.run("train", name, tags={"mlflow.note.content": "long"}) as run:
            run.log_params({"plan.reasons": "a long text of several words"})
    one, two = tracker.find(Query())
    assert one.params["plan.reasons"] is two.params["plan.reasons"]
    assert {key for key in one.tags if key.startswith("mlflow.")} == {EXPERIMENT}


@pytest.mark.parametrize("is_on", [True, False])
def test_the_garbage_collector_is_as_it_was_after_reading(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, is_on: bool
) -> None:
    tracker = Tracker(store_uri)
    seen = []
    search = MlflowClient.search_runs

    def looked(*at: Any, **how: Any) -> Any:
        seen.append(gc.isenabled())
        return search(*at, **how)

    monkeypatch.setattr(MlflowClient, "search_runs", looked)
    (gc.enable if is_on else gc.disable)()
    try:
        tracker.find(Query())
        with pytest.raises(ConfigError):
            tracker.find(Query(filter="?"))
        assert gc.isenabled() is is_on
    finally:
        gc.enable()
    assert seen == [False, False]


def test_what_a_killed_process_left_open_is_closed_by_the_next_command(
    store_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(store_uri)
    dead = client.create_run("0", tags={KIND: "trial", "green_tune.worker": DEAD}, run_name="dead")
    foreign = client.create_run("0", tags={KIND: "trial"}, run_name="not ours")
    with caplog.at_level(logging.WARNING), Tracker(store_uri).run("train", "alive") as alive:
        Tracker(store_uri)
        assert status_of(store_uri, alive.id) == "RUNNING"
    assert status_of(store_uri, dead.info.run_id) == "FAILED"
    assert status_of(store_uri, foreign.info.run_id) == "RUNNING"
    assert "run dead was left open by a process that died" in caplog.text


def test_a_reason_that_two_workers_take_off_a_study_at_once_is_gone_and_that_is_all(
    store_uri: str,
) -> None:
    tracker, meanwhile = Tracker(store_uri), MlflowClient(store_uri)
    with tracker.run("sweep", "s") as run:
        run.set_tags({"green_tune.error": "stopped by SIGTERM"})
    reason = "green_tune.error"
    meanwhile.delete_tag(run.id, reason)
    tracker._untag(run.id, [reason])
    assert reason not in tracker.get(run.id).tags


def test_runs_of_others_do_not_disturb(store_uri: str) -> None:
    client = MlflowClient(store_uri)
    foreign = client.create_run("0", tags={"green_tune.worker": "odd:x:y"}).info.run_id
    client.log_param(foreign, "mark", "'")
    assert Tracker(store_uri).get(foreign).params == {"mark": "'"}
    assert status_of(store_uri, foreign) == "RUNNING"


@pytest.mark.parametrize(
    ("given", "kept"), [("mine", "mine"), ("dapper-shark-123", "tiny-qa"), ("a-b-c", "a-b-c")]
)
def test_a_name_that_the_user_gave_the_run_is_kept(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, given: str, kept: str
) -> None:
    launched = MlflowClient(store_uri).create_run("0", run_name=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", launched)
    with Tracker(store_uri).run("train", "tiny-qa"):
        pass
    assert Tracker(store_uri).get(launched).name == kept


def test_a_store_that_is_gone_at_the_end_does_not_hide_why_a_run_failed(
    store_uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(store_uri)
    with (
        monkeypatch.context() as away,
        pytest.raises(RunFailed, match="the loss is nan"),
        tracker.run("train", "one") as run,
    ):
        away.setattr(MlflowClient, "log_batch", _refuse)
        run.log_metrics({"train_loss": 1.0})
        raise RunFailed("the loss is nan")
    assert "one has ended, and what it came to is kept in" in caplog.text
    record = Tracker(store_uri).get(run.id)
    assert (record.status, record.metrics) == ("FAILED", {"train_loss": 1.0})
    assert "the loss is nan" in record.tags[ERROR]


def test_a_run_is_closed_even_when_what_was_typed_cannot_be_written(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Tracker(store_uri)
    with (
        monkeypatch.context() as stopped,
        pytest.raises(Stopped),
    ):
        stopped.setattr(Run, "log_params", _stop)
        with tracker.run("train", "one", asked={"gpu": "auto"}):
            pass
    (run,) = MlflowClient(store_uri).search_runs(["0"])
    assert run.info.status == "KILLED"


def _stop(*_: object) -> None:
    raise Stopped(15)


@pytest.mark.parametrize(
    ("broken", "call"),
    [
        ("get_run", lambda tracker: tracker.get("0" * 32)),
        ("search_runs", lambda tracker: tracker.find(Query())),
        ("set_experiment_tag", lambda tracker: tracker.set_experiment_tags({"a": "b"})),
        ("set_tag", lambda tracker: tracker.mark_front(tracker.find(Query()), [])),
    ],
)
def test_every_reading_of_a_store_that_is_gone_is_one_clear_line(
    store_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    call: Callable[[Tracker], object],
) -> None:
    tracker = Tracker(store_uri)
    with tracker.run("train", "one"):
        pass
    monkeypatch.setattr(MlflowClient, broken, _refuse)
    monkeypatch.setenv("GREEN_TUNE_PATIENCE_S", "0")
    with pytest.raises(StoreError, match="the tracking store cannot be used: the server is down"):
        call(tracker)


def test_an_experiment_that_does_not_exist_is_one_clear_line(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "77")
    with pytest.raises(StoreError, match="77"), Tracker(store_uri).run("train", "one"):
        pass


def test_a_file_that_is_no_database_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "garbage.db").write_bytes(b"no database" * 100)
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Tracker(f"sqlite:///{tmp_path / 'garbage.db'}")
    assert "\n" not in str(caught.value)


def test_a_store_that_mlflow_refuses_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used") as caught:
        Tracker(f"file://{tmp_path / 'mlruns'}")
    assert "\n" not in str(caught.value)


def test_two_workers_may_write_a_tag_of_their_experiment_at_once(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one was faster by a moment, as the database says in its way."""
    write, refusals = MlflowClient.set_experiment_tag, [MlflowException("Unique", BAD_REQUEST)]

    def set_tag(self: MlflowClient, *given: str) -> None:
        write(self, *given)
        if refusals:
            raise refusals.pop()

    tracker = Tracker(store_uri)
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", set_tag)
    tracker.set_experiment_tags({"a": "b"})
    assert refusals == []
    assert MlflowClient(store_uri).get_experiment("0").tags["a"] == "b"
