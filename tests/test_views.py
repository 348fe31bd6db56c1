"""The links open the UI on the right runs, and the view holds what the UI needs to draw them.

What the UI makes of it was looked at in a browser; here stands what that took. The filters run
against a real store, since its grammar is what decides about odd names.
"""

import json
import shlex
import sys
import zlib
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_EXPERIMENT_TAG_VAL_LENGTH

from green_tune import views

LOCAL = "sqlite:////somewhere/mlflow.db"
DIMENSIONS = ["batch_size", "learning_rate", "lora_rank"]
STUDIES = [
    "tiny-qa-cpu-261122-234552",
    "it's",
    'say "hi"',
    "50% off_x",
    "back\\slash",
    "tick`s",
    "a' OR 'b",
    "a = b AND c",
    "Müller 研究",
]
EACH_STUDY = pytest.mark.parametrize("study", STUDIES)


def shared_view(study: str) -> tuple[str, dict[str, Any]]:
    """Return the key and the content of the one view among the tags."""
    tags = views.study_view(study, DIMENSIONS)
    (tag,) = (tag for tag in tags if tag.startswith("mlflow.sharedViewState."))
    content: dict[str, Any] = json.loads(tags[tag])
    return tag.removeprefix("mlflow.sharedViewState."), content


def state_of(study: str) -> dict[str, Any]:
    """Unpack what the UI restores, as the UI does."""
    return unpacked(shared_view(study)[1])


def unpacked(content: Mapping[str, Any]) -> dict[str, Any]:
    packing, packed = content["state"].split(";")
    assert packing == "deflate"
    state: dict[str, Any] = json.loads(zlib.decompress(b64decode(packed, validate=True)))
    return state


def chart(kind: str) -> dict[str, Any]:
    """Return the one chart of a kind."""
    (found,) = (chart for chart in state_of("s")["compareRunCharts"] if chart["type"] == kind)
    return dict(found)


def asked_in(link: str) -> Mapping[str, list[str]]:
    """Return what a link asks for, behind the # of the single page."""
    return parse_qs(urlsplit(urlsplit(link).fragment).query, strict_parsing=True)


def command_in(text: str) -> list[str]:
    """Return the words of the command that starts the UI."""
    first = text.splitlines()[0]
    assert first.startswith("MLflow UI: ")
    return shlex.split(first.removeprefix("MLflow UI: "))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlflowClient, str]:
    """A store with a sweep and a trial of each study, and a plain run."""
    folder = tmp_path_factory.mktemp("store")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.create_experiment("odd names", artifact_location=str(folder))
    client.create_run(experiment, tags={"green_tune.kind": "train"})
    for study in STUDIES:
        for kind, status in (("sweep", "FINISHED"), ("trial", "FINISHED"), ("trial", "FAILED")):
            tags = {"green_tune.study": study, "green_tune.kind": kind}
            run = client.create_run(experiment, tags=tags)
            client.set_terminated(run.info.run_id, status)
    return client, experiment


@EACH_STUDY
def test_the_filter_selects_the_finished_trials_of_the_study_and_nothing_else(
    store: tuple[MlflowClient, str], study: str
) -> None:
    client, experiment = store
    found = client.search_runs([experiment], state_of(study)["searchFilter"])
    tags = [(run.data.tags["green_tune.study"], run.data.tags["green_tune.kind"]) for run in found]
    assert tags == [(study, "trial")]
    assert found[0].info.status == "FINISHED"


@EACH_STUDY
def test_a_store_keeps_the_view_under_the_key_of_the_link(
    store: tuple[MlflowClient, str], study: str
) -> None:
    client, experiment = store
    tags = views.study_view(study, DIMENSIONS)
    for key, text in tags.items():
        client.set_experiment_tag(experiment, key, text)
    (key,) = asked_in(views.study_link(LOCAL, experiment, study))["viewStateShareKey"]
    kept = client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{key}"]
    assert json.loads(kept)["name"] == study


def test_each_study_has_a_view_of_its_own() -> None:
    assert len({shared_view(study)[0] for study in STUDIES}) == len(STUDIES)


def test_a_view_fits_a_tag_when_all_is_searched_under_a_long_name() -> None:
    name = "".join(chr(33 + (7 * i * i) % 90) for i in range(250)).replace("'", "-")
    tags = views.study_view(name, [f"a_long_hyperparameter_{i}" for i in range(12)])
    assert max(map(len, tags.values())) < MAX_EXPERIMENT_TAG_VAL_LENGTH


def test_a_view_has_what_makes_the_ui_list_it_by_its_name() -> None:
    """The UI drops an envelope without these three, and shows the view as one without a name."""
    content = shared_view("mine")[1]
    assert content["name"] == "mine"
    assert content["createdAt"] == content["updatedAt"]
    assert 1e12 < content["createdAt"] < 1e13  # milliseconds; seconds would be in 1970


def test_the_scatter_chart_has_emissions_to_the_right_and_loss_upwards() -> None:
    scatter = chart("SCATTER")
    assert scatter["xaxis"] == {"key": "emissions_kg", "type": "METRIC"}
    assert scatter["yaxis"] == {"key": "val_loss", "type": "METRIC"}


def test_parallel_coordinates_lead_from_what_was_searched_to_both_objectives() -> None:
    parallel = chart("PARALLEL")
    assert parallel["selectedParams"] == DIMENSIONS
    assert parallel["selectedMetrics"] == ["val_loss", "emissions_kg"]


def test_all_trials_are_drawn_and_not_the_first_ten() -> None:
    assert state_of("s")["runsHiddenMode"] == "SHOW_ALL"
    assert chart("PARALLEL")["showAllRuns"] is True


def test_each_chart_stands_in_the_section_in_full_width() -> None:
    state = state_of("s")
    (section,) = state["compareRunSections"]
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {section["uuid"]}
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == 2
    assert section["columns"] == 1
    assert state["isAccordionReordered"] is True  # or it would be sorted among those of metrics


def test_the_table_has_the_objectives_the_hyperparameters_and_the_front() -> None:
    columns = state_of("s")["selectedColumns"]
    assert columns[:2] == ["metrics.`val_loss`", "metrics.`emissions_kg`"]
    assert columns[-4:] == [f"params.`{name}`" for name in DIMENSIONS] + ["tags.`green_tune.front`"]


def test_the_best_loss_comes_first() -> None:
    """By a metric: sorted by time, the UI would fold trials into their sweep and chart none."""
    state = state_of("s")
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`val_loss`", True)


def test_the_study_link_asks_for_charts_of_training_runs() -> None:
    asked = asked_in(views.study_link(LOCAL, "7", "s"))
    assert asked["workflowType"] == ["machine_learning"]
    assert asked["compareRunsMode"] == ["CHART"]


def test_the_study_link_has_no_filter_since_one_would_switch_the_view_off() -> None:
    asked = asked_in(views.study_link(LOCAL, "7", "s"))
    assert asked.keys() == {"workflowType", "compareRunsMode", "viewStateShareKey"}


def test_the_run_link_opens_among_training_runs() -> None:
    link = views.run_link(LOCAL, "7", "abc")
    assert link == "http://127.0.0.1:5000/#/experiments/7/runs/abc?workflowType=machine_learning"


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (LOCAL, "http://127.0.0.1:5000"),
        ("postgresql://user:secret@db/mlflow", "http://127.0.0.1:5000"),
        ("http://mlflow:5001", "http://mlflow:5001"),
        ("http://mlflow:5001/", "http://mlflow:5001"),
        ("https://team.example/mlflow/", "https://team.example/mlflow"),
        ("https://user:secret@team.example", "https://team.example"),
    ],
)
def test_links_lead_to_the_server_or_to_a_local_ui(uri: str, root: str) -> None:
    assert views.study_link(uri, "7", "s").startswith(f"{root}/#/experiments/7/runs?")
    assert views.run_link(uri, "7", "abc").startswith(f"{root}/#/experiments/7/runs/abc?")


def test_a_server_needs_no_command() -> None:
    assert views.where("http://mlflow:5001", "LINK") == "MLflow UI: LINK"


def test_a_local_store_is_named_as_it_can_be_typed_here(tmp_path: Path) -> None:
    text = views.where(f"sqlite:///{tmp_path}/mlflow.db", "LINK")
    assert command_in(text)[1:] == ["ui", "--backend-store-uri", "sqlite:///mlflow.db"]
    assert text.splitlines()[1:] == ["     then LINK"]


@pytest.mark.parametrize("here", ["/", "/somewhere/else"])
def test_a_local_store_elsewhere_is_named_in_full(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path(here))
    assert command_in(views.where(LOCAL, "LINK"))[-1] == LOCAL


def test_a_blank_in_a_path_stays_one_word() -> None:
    uri = "sqlite:////some where/mlflow.db"
    assert command_in(views.where(uri, "LINK"))[-1] == uri


def test_the_password_of_a_database_is_not_printed() -> None:
    text = views.where("postgresql://user:secret@db/mlflow", "LINK")
    assert "secret" not in text
    assert command_in(text)[-1] == "$MLFLOW_TRACKING_URI"


@pytest.mark.parametrize(
    ("environment", "here", "active", "typed"),
    [
        ("my env", ".", False, "my env/bin/mlflow"),
        ("my env", ".", True, "mlflow"),
        ("my env", "elsewhere", False, "{tmp_path}/my env/bin/mlflow"),
        ("without", ".", False, "mlflow"),
    ],
)
def test_mlflow_is_named_by_its_path_where_its_environment_is_not_active(
    environment: str,
    here: str,
    active: bool,
    typed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for folder in ("my env/bin", "without/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    mlflow = tmp_path / "my env" / "bin" / "mlflow"
    mlflow.touch(mode=0o755)
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.setenv("PATH", str(mlflow.parent) if active else "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / environment / "bin" / "python"))
    assert command_in(views.where(LOCAL, "LINK"))[0] == typed.format(tmp_path=tmp_path)


def usual(name: str) -> dict[str, Any]:
    (key,) = asked_in(views.usual_link(LOCAL, "0", name))["viewStateShareKey"]
    return unpacked(json.loads(views.usual_views()[f"mlflow.sharedViewState.{key}"]))


def test_the_usual_views_select_results_and_no_sums(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    kinds = {"sweep": {"emissions_kg": 2.0}, "trial": {"emissions_kg": 1.0, "val_loss": 3.0}}
    for kind, metrics in kinds.items():
        run_id = client.create_run("0", tags={"green_tune.kind": kind}).info.run_id
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
        client.set_terminated(run_id)
    for name in ("Cost by model and GPU", "Loss against emissions", "Hyperparameters"):
        (found,) = client.search_runs(["0"], usual(name)["searchFilter"])
        assert found.data.tags["green_tune.kind"] == "trial"


def test_costs_are_grouped_by_what_the_runs_are_of_and_ran_on() -> None:
    state = usual("Cost by model and GPU")
    keys = [each["groupByData"] for each in state["groupBy"]["groupByKeys"]]
    assert keys == ["base_model", "gpu_type"]
    shown = [each["metricKey"] for each in state["compareRunCharts"]]
    assert shown == ["emissions_kg", "emissions_rate_kg_per_h", "runtime_h"]
