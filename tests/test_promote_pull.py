"""The commands `promote` and `pull`: what they do, and what a user can get wrong, in one line."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
import trained
from botocore.exceptions import EndpointConnectionError
from click.testing import CliRunner, Result
from conftest import ROOT
from mlflow import MlflowClient
from test_registry import TABLES

from entrypoints.promote import promote
from entrypoints.pull import pull
from green_tune import adapters, predictor
from green_tune.parcel import ADAPTER
from green_tune.registry import Registry
from green_tune.versions import Version

# MLflow says it of its own classes, once, whenever its models are imported first.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")

NAME = "tiny-sentiment"
PLAIN = ("--examples", "0")
RUN_ID = "0123456789abcdef" * 2


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the trained store."""
    uri = trained.copied(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


@pytest.fixture
def promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same with its best, greenest and balanced adapters promoted."""
    uri = trained.copied(tmp_path, promoted=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def asked(command: click.Command, *options: str) -> Result:
    return CliRunner().invoke(command, options)


def error(done: Result) -> str:
    """The one line on the screen of a command that was refused."""
    assert done.exit_code == 2, (done.output, done.exception)
    assert "Traceback" not in done.output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING: ")]
    (line,) = lines
    assert not done.stdout
    return line


def rows(uri: str) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as db:
        return {name: sorted(db.execute(f"SELECT * FROM {name}"), key=str) for name in TABLES}


def here() -> set[str]:
    return {str(path) for path in Path().rglob("*") if not path.name.startswith("mlflow.db")}


def test_the_adapters_of_a_study_are_promoted_under_the_names_of_the_rules(store: str) -> None:
    done = asked(promote, "--study", trained.STUDY, *PLAIN)
    assert done.exit_code == 0, done.output
    versions = Registry(store).versions(NAME)
    assert sorted(alias for version in versions for alias in version.aliases) == [
        "balanced",
        "best",
        "greenest",
    ]
    best = next(version for version in versions if "best" in version.aliases)
    assert best.pair[0] == min(version.pair[0] for version in versions)
    assert f"mlflow run . -e pull -P adapter={NAME}@" in done.stdout


def test_promoting_twice_changes_nothing(promoted: str) -> None:
    before = rows(promoted)
    assert before["model_versions"]
    assert asked(promote, *PLAIN).exit_code == 0
    assert rows(promoted) == before


def test_a_version_carries_what_its_run_came_to(promoted: str) -> None:
    version = Registry(promoted).version(NAME, "best")
    run = MlflowClient(promoted).get_run(version.run_id)
    assert version.figure("val_loss") <= run.data.metrics["val_loss"]
    assert version.tags["data_digest"] == run.data.tags["data_digest"]
    assert version.tags["task"] == "sentiment"
    assert run.info.run_id in version.tags["run_link"]


def test_a_run_is_promoted_by_its_id_with_an_alias_or_without(store: str) -> None:
    runs = trained.trials(store)
    assert asked(promote, "--rule", runs["0"], *PLAIN).exit_code == 0
    (version,) = Registry(store).versions(NAME)
    assert (version.run_id, version.aliases) == (runs["0"], ())
    assert asked(promote, "--rule", runs["0"], "--alias", "prod", *PLAIN).exit_code == 0
    (version,) = Registry(store).versions(NAME)
    assert version.aliases == ("prod",)
    done = asked(promote, "--rule", runs["1"], "--alias", "prod", *PLAIN)
    assert "prod stays at version 1" in done.stdout
    assert "no worse" not in done.stdout
    asked(promote, "--rule", runs["1"], "--alias", "prod", "--force", "true", *PLAIN)
    assert Registry(store).version(NAME, "prod").number == 2


def test_a_rules_alias_may_be_asked_for_a_run_of_another_choice(store: str) -> None:
    runs = trained.trials(store)
    kg = {n: MlflowClient(store).get_run(runs[n]).data.metrics["emissions_kg"] for n in "012"}
    worst = max(kg, key=lambda n: kg[n])
    done = asked(promote, "--rule", runs[worst], "--alias", "greenest", *PLAIN)
    assert done.exit_code == 0, done.output
    held = Registry(store).version(NAME, "greenest")
    assert (held.run_id, held.rules) == (runs[worst], ("greenest",))
    done = asked(promote, "--rule", "best", "--alias", "greenest", "--name", "other", *PLAIN)
    assert done.exit_code == 0, done.output
    assert Registry(store).version("other", "greenest").rules == ("best", "greenest")


def test_an_alias_is_of_one_adapter_and_none_gives_none(store: str) -> None:
    line = error(asked(promote, "--alias", "prod", *PLAIN))
    assert line == "error: alias=prod is for one adapter: give one rule=, or a run id"
    assert asked(promote, "--alias", "none", *PLAIN).exit_code == 0
    assert all(not version.aliases for version in Registry(store).versions())


def test_an_adapter_is_scored_when_it_is_promoted_and_never_again(store: str) -> None:
    done = asked(promote, "--rule", "best", "--examples", "4")
    assert done.exit_code == 0, done.output
    (version,) = Registry(store).versions()
    assert 0 <= version.figure("quality.accuracy") <= 1
    assert 0 <= version.figure("start_quality.accuracy") <= 1
    evaluations = "tags.`green_tune.kind` = 'evaluate'"
    assert len(MlflowClient(store).search_runs(["0"], evaluations)) == 1
    assert asked(promote, "--rule", "best", "--name", "again").exit_code == 0
    assert len(MlflowClient(store).search_runs(["0"], evaluations)) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--study", "demmo"),
            "no run has study=demmo: the store has demo (3); did you mean demo?",
        ),
        (("--task", "qa"), "no run has task=qa: the store has sentiment (3)"),
        (
            ("--model", "tinny"),
            "no run has model=tinny: the store has tiny (3); did you mean tiny?",
        ),
        (("--gpu", "t4"), "no run has gpu=t4: the store has cpu (3)"),
        (("--filter", "params.epochs ="), "filter=params.epochs = cannot be read by MLflow"),
        (("--filter", "params.none = '1'"), "no run matches filter=params.none = '1'"),
        (("--rule", "bestest"), "rule=bestest is unknown; known: best, greenest, balanced"),
        (("--rule", "best,"), "rule= is unknown; known: best, greenest, balanced"),
        (("--rule", RUN_ID), f"rule={RUN_ID}: there is no such run, or it was deleted"),
        (("--name", "a/b"), "name='a/b' cannot be: "),
        (("--name", "a@b"), "name='a@b' cannot be: "),
        (("--name", "a:b"), "name='a:b' cannot be: "),
        (("--name", ".."), "name='..' cannot be: "),
        (("--name", "a\nb"), r"name='a\nb' cannot be: "),
        (("--name", "x" * 300), "name='xxx"),
        (("--name", RUN_ID), f"name='{RUN_ID}' cannot be: "),
        (("--rule", "best", "--alias", "latest"), "alias='latest' cannot be: "),
        (("--rule", "best", "--alias", "v1"), "alias='v1' cannot be: "),
        (("--rule", "best", "--alias", "1"), "alias='1' cannot be: "),
        (("--rule", "best", "--alias", "a b"), "alias='a b' cannot be: "),
        (("--rule", "best", "--alias", "best@"), "alias='best@' cannot be: "),
        (("--within_percent", "nan"), "within_percent=nan is not a finite number"),
        (("--within_percent", "-1"), "within_percent=-1.0 is too small"),
    ],
)
def test_what_cannot_be_promoted_is_refused_before_anything_is_written(
    store: str, options: tuple[str, ...], line: str
) -> None:
    before, files = rows(store), here()
    assert error(asked(promote, *options)).startswith(f"error: {line}")
    assert rows(store) == before
    assert here() == files


def test_a_run_without_an_adapter_is_refused_with_why(store: str) -> None:
    client = MlflowClient(store)
    runs = trained.trials(store)
    made = [client.create_run("0", tags=tags).info.run_id for tags in (
        {"green_tune.kind": "train", "base_model": "tiny"}, {},
    )]  # fmt: skip
    client.set_terminated(made[0], "FAILED")
    client.set_terminated(made[1])
    client.delete_run(runs["2"])
    lines = {
        runs["sweep"]: f"rule={runs['sweep']} is a run of sweep, without an adapter: "
        "give study=demo",
        runs["2"]: f"rule={runs['2']}: there is no such run, or it was deleted",
        made[0]: "no run has an adapter to promote: 1 failed",
        made[1]: "no run has an adapter to promote: 1 another tool's, without energy",
    }
    for run_id, line in lines.items():
        assert error(asked(promote, "--rule", run_id, *PLAIN)) == f"error: {line}"
    assert rows(store)["registered_models"] == []


def test_a_run_of_another_tool_that_has_energy_has_no_adapter_of_ours(store: str) -> None:
    client = MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    for name, value in {"energy_consumed": 1.0, "emissions": 0.5, "duration": 60.0,
                        "eval_loss": 0.1, "val_loss": 0.1}.items():  # fmt: skip
        client.log_metric(run_id, name, value)
    client.set_terminated(run_id)
    line = error(asked(promote, "--rule", run_id, *PLAIN))
    assert "no run has an adapter" in line or "there is no adapter at" in line
    assert rows(store)["registered_models"] == []


def test_runs_whose_adapters_are_gone_are_said_to_have_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = trained.own(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    runs = trained.trials(uri)
    for path in list((tmp_path / "mlruns").rglob("adapter_*")):
        path.unlink()  # and not what lies beside them, as after half an upload
    line = error(asked(promote, *PLAIN))
    assert line == "error: none of these runs has an adapter to promote"
    line = error(asked(promote, "--rule", runs["0"], *PLAIN))
    assert line.startswith("error: the adapter is incomplete, it lacks adapter_config.json")
    assert rows(uri)["registered_models"] == []


def test_a_trial_without_its_adapter_leaves_its_place_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = trained.own(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert asked(promote, "--rule", "best", "--name", "all", *PLAIN).exit_code == 0
    (best,) = Registry(uri).versions("all")
    for path in list((tmp_path / "mlruns" / "0" / best.run_id).rglob("adapter_model.safetensors")):
        shutil.rmtree(path.parent)
    assert asked(promote, "--rule", "best", "--name", "left", *PLAIN).exit_code == 0
    (next_best,) = Registry(uri).versions("left")
    assert next_best.run_id != best.run_id


def test_an_adapter_is_pulled_by_name_alias_or_version(promoted: str) -> None:
    registry = Registry(promoted)
    best = registry.version(NAME, "best")
    for number, text in enumerate((NAME, f"{NAME}@best", f"{NAME}/{best.number}")):
        done = asked(pull, "--adapter", text, "--output", f"o{number}")
        assert done.exit_code == 0, done.output
        assert f"{best} (" in done.stdout
        assert "checksums verified" in done.stdout
        assert f"mlflow.pyfunc.load_model('o{number}')" in done.stdout
        assert predictor.Predictor(Path(f"o{number}") / ADAPTER).predict(["fine"])
    assert not [name for name in here() if name.startswith(".")]


def test_an_adapter_is_pulled_by_what_is_wished_for(promoted: str) -> None:
    versions = Registry(promoted).versions(NAME)
    cheapest = min(versions, key=lambda version: version.pair[1])
    grams = cheapest.pair[1] * 1000
    done = asked(pull, "--task", "sentiment", "--max_g", repr(grams * 1.0001), "--base", "tiny")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith(f"{cheapest} ")
    assert Path(f"adapters/{NAME}-v{cheapest.number}").is_dir()


def test_pulling_twice_leaves_what_is_there(promoted: str) -> None:
    assert asked(pull, "--output", "o").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in Path("o").rglob("*")}
    again = asked(pull, "--output", "o")
    assert again.exit_code == 0, again.output
    assert again.stderr == "o is there already, whole\n"
    assert {path: path.stat().st_mtime_ns for path in Path("o").rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--adapter", f"{NAME}x"), f"no registered model is called {NAME}x; did you mean {NAME}?"),
        (("--adapter", f"{NAME}@bst"), f"{NAME} has no version or alias bst; it has the aliases "),
        (("--adapter", f"{NAME}/99"), f"{NAME} has no version or alias 99; it has the aliases "),
        (("--adapter", NAME, "--task", "qa"), "either adapter=, or a wish by task=, base= and "),
        (("--adapter", NAME, "--max_g", "1"), "either adapter=, or a wish by task=, base= and "),
        (("--adapter", RUN_ID), f"adapter={RUN_ID} is no name in the registry; promote it first"),
        (("--task", "sentimen"), "no adapter is registered for task=sentimen; there is sentiment"),
        (("--base", "tinny"), "no adapter is registered for base=tinny; there is tiny"),
        (("--max_g", "1e-9"), "none of "),
        (("--max_g", "nan"), "max_g=nan is not a finite number"),
        (("--output", "file"), f"file is there and is not {NAME}/"),
        (("--output", "mine"), f"mine is there and is not {NAME}/"),
        (("--output", "."), f". is there and is not {NAME}/"),
        (("--output", "file/below"), "output=file/below cannot be made: "),
        (("--output", "/proc/adapter"), "/proc/adapter cannot be made: "),
        (("--output", "dangling"), "dangling cannot be made: "),
        (("--output", "~nobody-of-this-name/x"), "output=~nobody-of-this-name/x cannot be made: "),
        (("--output", "y" * 300), "output=yyy"),
    ],
)
def test_what_cannot_be_pulled_is_refused_and_leaves_nothing(
    promoted: str, options: tuple[str, ...], line: str
) -> None:
    Path("file").write_text("mine")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    Path("dangling").symlink_to("nowhere")
    before = here()
    assert error(asked(pull, *options)).startswith(f"error: {line}")
    assert here() == before
    assert Path("file").read_text() == Path("mine/notes.txt").read_text() == "mine"


def test_without_a_registered_adapter_it_is_said_how_to_get_one(store: str) -> None:
    assert error(asked(pull)) == (
        "error: no adapter is registered yet: mlflow run . -e promote -P study=..."
    )


def test_a_version_whose_files_are_gone_or_spoilt_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = trained.own(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert asked(promote, "--rule", "best", *PLAIN).exit_code == 0
    before = {name for name in here() if not name.startswith("mlruns")}
    (weights,) = (tmp_path / "mlruns" / "0" / "models").rglob("adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert "is incomplete, with " in error(asked(pull))
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "is not as it was sealed" in error(asked(pull))
    weights.unlink()
    assert "the adapter is incomplete, it lacks adapter/adapter_model" in error(asked(pull))
    model = weights.parents[1]
    model.rename(tmp_path / "gone")
    assert "there is no adapter at " in error(asked(pull))
    (tmp_path / "gone").rename(model)
    assert {name for name in here() if not name.startswith("mlruns")} <= before | {"adapters"}
    weights.write_bytes(whole)
    assert asked(pull).exit_code == 0


def test_what_others_have_registered_is_not_pulled(promoted: str) -> None:
    client = MlflowClient(promoted)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://somewhere/else")
    assert error(asked(pull, "--adapter", "theirs")) == (
        "error: theirs/1 was not promoted by green-tune: its content is not known"
    )


def test_a_name_from_a_store_leads_nowhere_else(
    promoted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fetch = Registry(promoted).version(NAME, "best"), adapters.fetch_version
    hostile = Version(name="../../x", number=1, run_id="", source="", tags=real.tags)
    monkeypatch.setattr(adapters, "wished", lambda *_, **__: hostile)
    monkeypatch.setattr(
        adapters, "fetch_version", lambda _, registry, to: fetch(real, registry, to)
    )
    done = asked(pull)
    assert done.exit_code == 0, done.output
    assert [path.name for path in Path("adapters").iterdir()] == ["..-..-x-v1"]


@pytest.mark.parametrize("call", ["list_artifacts", "download_artifacts"])
def test_a_bucket_that_does_not_answer_is_one_line(
    promoted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, call: str
) -> None:
    def away(*_: object, **__: object) -> None:
        raise EndpointConnectionError(endpoint_url="http://s3:9000")

    monkeypatch.setattr(f"mlflow.artifacts.{call}", away)
    done = asked(pull, "--adapter", "tiny-sentiment/1", "--output", str(tmp_path / "there"))
    assert done.exit_code == 2
    assert error(done).startswith("error: the store of artifacts cannot be used: Could not connect")


def test_a_store_without_a_registry_is_one_line_for_both_commands(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for uri, line in {
        "http://127.0.0.1:1": "error: nobody answers at 127.0.0.1:1",
        "ftp://somewhere/else": "error: this store has no model registry; use ",
    }.items():
        monkeypatch.setenv("MLFLOW_REGISTRY_URI", uri)
        assert error(asked(pull)).startswith(line)
        assert error(asked(promote, *PLAIN)).startswith(line)


def test_a_pull_that_is_stopped_leaves_nothing(promoted: str) -> None:
    """Killed by a signal while it downloads."""
    script = """
import os, signal, sys
from green_tune.registry import Registry
fetch = Registry.fetch
def slow(self, place, path, to):
    fetch(self, place, path, to)
    os.kill(os.getpid(), signal.SIGTERM)
Registry.fetch = slow
from entrypoints.pull import pull
pull(["--output", "o"])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 143, done.stderr
    assert done.stderr == "stopped by SIGTERM\n"
    assert not [name for name in here() if name == "o" or name.startswith(".")]
