"""An evaluation as a run of its own: its scores are the training's, its spending is its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import a_cpu, a_gpu
from mlflow import MlflowClient
from test_experiment import run as trained

from green_tune import adapters, data, evaluation, parcel, tasks
from green_tune.errors import DataError, ModelError, Stopped
from green_tune.evaluation import Case
from green_tune.job import Job
from green_tune.predictor import Predictor
from green_tune.query import Query
from green_tune.registry import Registry
from green_tune.tracking import Tracker
from green_tune.versions import ADDRESS, QUALITY_ON

MakeJob = Callable[..., Job]
TASKS = [("sentiment", 12), ("qa", 3), ("summarization", 3)]  # epochs until answers change
ASKED = {"adapter": "made up", "data": "sample", "split": "validation", "examples": "8"}


def examples(recipe: dict[str, Any], where: str, split: str, most: int) -> Any:
    task = tasks.resolve(recipe["task"])
    return data.to_evaluate(task, where, split, most=most, labels=recipe["labels"])


def case_of(job: Job, run_id: str, uri: str, to: Path) -> Case:
    """The adapter of a run, on the first validation examples."""
    registry = Registry(uri)
    named = adapters.find(run_id, registry)
    folder = adapters.bring(named, registry, to)
    split, train = examples(parcel.check_recipe(folder), "sample", "validation", 8)
    return Case(
        name="it", folder=folder, address=named.address, split=split, train=train,
        zone=job.intensity, pue=1.5, device=job.device,
    )  # fmt: skip


@pytest.fixture
def trained_case(make_job: MakeJob, store_uri: str, tmp_path: Path) -> Case:
    """The adapter of a short training, beside its run in the store."""
    job = make_job(quality_examples=0, evals=1)
    (tmp_path / "adapter").mkdir()
    return case_of(job, trained(job, store_uri), store_uri, tmp_path / "adapter")


@pytest.mark.parametrize(("task", "epochs"), TASKS)
def test_scores_with_and_without_the_adapter_are_those_that_its_training_measured(
    make_job: MakeJob, store_uri: str, tmp_path: Path, task: str, epochs: int
) -> None:
    job = make_job(task=task, quality_examples=8, evals=1, epochs=epochs, learning_rate=1e-2)
    run_id = trained(job, store_uri)
    (tmp_path / "adapter").mkdir()
    case = case_of(job, run_id, store_uri, tmp_path / "adapter")
    found, record = evaluation.run(case, ASKED, Tracker(store_uri))
    training = Tracker(store_uri).get(run_id).metrics
    for prefix, scores in (("", found.adapter.scores), ("start_", found.base.scores)):
        measured = {name: training[f"{prefix}quality.{name}"] for name in scores}
        assert measured == pytest.approx(scores)
    assert record.metrics["quality.examples"] == training["quality.examples"] == 8
    assert found.adapter.texts != found.base.texts


def test_its_run_has_what_it_took_and_says_which_adapter_on_which_examples(
    trained_case: Case, store_uri: str
) -> None:
    found, record = evaluation.run(trained_case, ASKED, Tracker(store_uri))
    metrics = record.metrics
    assert record.kind == evaluation.KIND
    assert record.params.items() >= ASKED.items()
    assert record.tags[ADDRESS] == trained_case.address
    assert record.tags[QUALITY_ON] == "sample validation"
    assert record.tags["pue"] == "1.5"
    assert metrics.items() >= found.to_metrics().items()
    parts = metrics["predictions/energy_kwh"] + metrics["base_predictions/energy_kwh"]
    assert metrics["quality/energy_kwh"] == pytest.approx(parts, rel=1e-9)
    assert 0 < parts < metrics["energy_kwh"]
    emitted = metrics["energy_kwh"] * 1.5 * trained_case.zone.g_per_kwh / 1000
    assert metrics["emissions_kg"] == pytest.approx(emitted, rel=1e-9)


def test_it_is_in_no_comparison_and_changes_no_run(trained_case: Case, store_uri: str) -> None:
    tracker = Tracker(store_uri)
    before = tracker.find(Query(parts=True))
    evaluation.run(trained_case, ASKED, tracker)
    assert tracker.find(Query(parts=True)) == before
    assert len(tracker.find(Query(kinds=(evaluation.KIND,)))) == 1


def test_one_that_is_stopped_has_what_it_had_spent_and_no_scores(
    trained_case: Case, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped() -> None:
        raise Stopped(15)

    monkeypatch.setattr("green_tune.stop.check", stopped)
    with pytest.raises(Stopped):
        evaluation.run(trained_case, ASKED, Tracker(store_uri))
    (found, _) = MlflowClient(store_uri).search_runs(["0"])
    assert found.info.status == "KILLED"
    assert found.data.tags["green_tune.kind"] == evaluation.KIND
    assert found.data.metrics["quality/energy_kwh"] > 0
    assert not [name for name in found.data.metrics if name.startswith("quality.")]


def test_a_base_model_that_is_gone_is_one_line_and_a_failed_run(
    trained_case: Case, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREEN_TUNE_BASE", "/nowhere/tiny")
    with pytest.raises(ModelError, match="the base model tiny is not in /nowhere/tiny"):
        evaluation.run(trained_case, ASKED, Tracker(store_uri))
    (found, _) = MlflowClient(store_uri).search_runs(["0"])
    assert found.info.status == "FAILED"


def test_a_row_that_does_not_fit_is_one_line(trained_case: Case, store_uri: str) -> None:
    recipe = trained_case.folder / parcel.RECIPE
    recipe.write_text(recipe.read_text().replace('"max_seq_len": 512', '"max_seq_len": 6'))
    with pytest.raises(DataError, match="row 1 does not fit into 6 tokens"):
        evaluation.run(trained_case, ASKED, Tracker(store_uri))


RECIPE: dict[str, Any] = {"task": "sentiment", "labels": ["bad", "good"]}
GOOD, BAD = '{"text": "x", "label": "good"}\n', '{"text": "x", "label": "bad"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no example"),
        (GOOD + '{"text": "x", "label": "fair"}\n', ":2: label 'fair' is not among"),
        ('{"context": "x", "question": "y", "answers": ["z"]}\n', "sentiment needs text, label"),
        ("{", "not a JSON line"),
    ],
)
def test_examples_that_this_adapter_cannot_be_scored_on_are_refused(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "mine.jsonl").write_text(text)
    with pytest.raises(DataError, match=says):
        examples(RECIPE, str(tmp_path / "mine.jsonl"), "test", 0)


def test_the_first_examples_are_taken_or_all_and_a_file_alone_has_no_training_data(
    tmp_path: Path,
) -> None:
    (tmp_path / "test.jsonl").write_text(GOOD + BAD + GOOD)
    (tmp_path / "train.jsonl").write_text(BAD)
    for most, count in ((0, 3), (2, 2), (9, 3)):
        split, train = examples(RECIPE, str(tmp_path), "test", most)
        assert [example.completion for example in train] == ["bad"]
        assert len(split.rows) == len(split.examples) == count
    assert examples(RECIPE, str(tmp_path / "test.jsonl"), "test", 0)[1] == ()


def test_no_more_training_data_is_read_than_shows_what_is_usual(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "TYPICAL", 2)
    (tmp_path / "test.jsonl").write_text(GOOD)
    (tmp_path / "train.jsonl").write_text("\ufeff" + BAD + GOOD + "not read")  # with Windows' mark
    _, train = examples(RECIPE, str(tmp_path), "test", 0)
    assert [example.completion for example in train] == ["bad", "good"]


@pytest.mark.parametrize(("where", "split"), [("sample", "typo"), ("hub", "test"), (".", "dev")])
def test_a_split_that_is_not_there_is_one_line(where: str, split: str) -> None:
    with pytest.raises(DataError, match=split):
        examples(RECIPE, where, split, 4)


def test_what_would_have_to_be_downloaded_or_does_not_fit_is_an_obstacle(tmp_path: Path) -> None:
    base = {"name": "small", "kind": "folder", "place": str(tmp_path), "revision": ""}
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(12 * evaluation.GIB)  # of holes
    assert evaluation.obstacle({"base": base}, a_cpu(memory_gib=24)) == ""
    small = replace(a_gpu("Tesla T4", (7, 5)), memory_gib=15.0)
    assert "has 12 GiB, too much for" in evaluation.obstacle({"base": base}, small)
    gone = base | {"place": str(tmp_path / "gone")}
    assert "small is not on this machine" in evaluation.obstacle({"base": gone}, small)


def test_the_trainers_device_is_the_one_that_predicts(
    trained_case: Case, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Noting(Predictor):
        def __init__(self, adapter: Path, *, base: str = "", device: str = "auto") -> None:
            asked.append(device)
            super().__init__(adapter, base=base, device=device)

    monkeypatch.setattr(evaluation, "Predictor", Noting)
    evaluation.run(trained_case, ASKED, Tracker(store_uri))
    assert asked == [trained_case.device.kind]
