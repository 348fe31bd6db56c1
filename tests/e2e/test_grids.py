"""Grids as a user starts them: launched, done again, reused, killed, and of sweeps."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import optuna
import program
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

pytestmark = pytest.mark.e2e

QUICK = {
    "gpu": "cpu", "country": "FRA", "max_train_examples": "24", "max_eval_examples": "8",
    "evals": "1", "quality_examples": "2",
}  # fmt: skip
LARGE = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000,
    "hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 128,
    "num_attention_heads": 128, "max_position_embeddings": 4096,
}  # fmt: skip
SPENT = ("emissions_kg", "energy_kwh", "runtime_h")
PATIENCE_S = 120.0


class House:
    """A copy of the program beside an empty store, and a base model that fits nowhere."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        program.copy_to(folder)
        (folder / "large").mkdir()
        (folder / "large" / "config.json").write_text(json.dumps(LARGE))
        (folder / "large" / "tokenizer.json").write_text("{}")
        self.client = MlflowClient(uri)
        self.study_url = f"sqlite:///{folder / 'optuna.db'}"

    def start(self, options: dict[str, str], *, launcher: bool = False) -> subprocess.Popen[str]:
        asked = QUICK | options
        command = [sys.executable, "-m", "entrypoints.grid"]
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        if launcher:
            command = ["mlflow", "run", ".", "-e", "grid", "--env-manager", "local"]
            words = [word for key, text in asked.items() for word in ("-P", f"{key}={text}")]
        own = {
            "GREEN_TUNE_STUDY_STORAGE": self.study_url,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.Popen(
            command + words, cwd=self.folder, env=os.environ | own, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run(self, options: dict[str, str], *, launcher: bool = False) -> str:
        """A whole command; what it said."""
        process = self.start(options, launcher=launcher)
        said, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, said
        return said

    def runs(self, *kinds: str, study: str = "") -> list[Run]:
        """The runs of some kinds, or all, oldest first."""
        found = self.client.search_runs(["0"], order_by=["attributes.start_time ASC"])
        return [
            run
            for run in found
            if (not kinds or run.data.tags["green_tune.kind"] in kinds)
            and (not study or run.data.tags["green_tune.study"].split("/")[0] == study)
        ]

    def parent(self, study: str) -> Run:
        (parent,) = self.runs("grid", study=study)
        return parent

    def trials(self, study: str, state: TrialState) -> int:
        found = optuna.load_study(storage=self.study_url, study_name=study)
        return len(found.get_trials(states=(state,)))

    def table(self, parent: Run) -> list[dict[str, object]]:
        path = self.client.download_artifacts(parent.info.run_id, "cells.json")
        table = json.loads(Path(path).read_text())
        return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


@pytest.fixture
def house(tmp_path: Path, store_uri: str) -> House:
    return House(tmp_path, store_uri)


def check_totals(house: House, study: str) -> None:
    """The grid's own run has what all have spent together, each joule once."""
    cells = [
        run
        for run in house.runs("cell", "trial", study=study)
        if "green_tune.reused" not in run.data.tags
    ]
    sessions = house.runs("grid", "worker", "sweep", study=study)
    for name in SPENT:
        spent = sum(run.data.metrics.get(name, 0.0) for run in cells)
        spent += sum(run.data.metrics[f"overhead/{name}"] for run in sessions)
        assert spent > 0
        assert house.parent(study).data.metrics[name] == pytest.approx(spent, rel=1e-9)


def check_report(house: House, measured: list[Run]) -> None:
    """The report of a real grid: two sizes, two tasks, two seeds, and cells that do not fit."""
    command = ["mlflow", "run", ".", "-e", "compare", "--env-manager", "local", "-P", "study=g"]
    own = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    made = subprocess.run(
        command, cwd=house.folder, env=os.environ | own, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (run,) = house.runs("compare")
    assert run.data.metrics["runs_compared"] == len(measured) == 8
    folder = Path(house.client.download_artifacts(run.info.run_id, "tables"))
    costs = json.loads((folder / "emissions.json").read_text())
    by_cell = {(row["model"], row["task"]): row for row in costs}
    assert by_cell.keys() == set(product(("tiny", "tiny-wide"), ("qa", "sentiment")))
    for (model, task), row in by_cell.items():
        alike = [r for r in measured if r.info.run_name.startswith(f"{model} {task} ")]
        for name in ("val_loss", "emissions_kg", "emissions_rate_kg_per_h"):
            figures = [r.data.metrics[name] for r in alike]
            assert row[name] == pytest.approx(sum(figures) / len(figures))
    unfit = json.loads((folder / "does_not_fit.json").read_text())
    assert {(row["model"], row["task"]) for row in unfit} == {
        ("large", "qa"),
        ("large", "sentiment"),
    }
    assert "T4" in made.stdout
    assert "not enough evidence" in made.stdout


def check_closed(house: House) -> None:
    assert [run.info.run_name for run in house.runs() if run.info.status == "RUNNING"] == []
    assert list((house.folder / "state" / "green-tune" / "heartbeats").glob("*")) == []


def test_a_grid_is_one_parent_with_a_run_for_each_cell_and_nothing_is_done_twice(
    house: House,
) -> None:
    asked = {"model": "tiny-wide,tiny,large", "task": "qa,sentiment", "seed": "0,1"}
    said = house.run(asked | {"study": "g"}, launcher=True)
    parent = house.parent("g")
    assert parent.data.tags["mlflow.project.entryPoint"] == "grid"
    assert parent.info.status == "FINISHED"
    cells = house.runs("cell")
    assert {run.data.tags["mlflow.parentRunId"] for run in cells} == {parent.info.run_id}
    *unfit, first = (run.info.run_name for run in cells[:3])
    assert unfit == ["large qa seed 0", "large sentiment seed 0"]
    assert first == "tiny sentiment seed 0"  # the cheapest
    measured = [run for run in cells if run.info.status == "FINISHED"]
    assert len(measured) == 8 == len({run.info.run_name for run in measured})
    assert all({"quality.f1", "start_quality.f1"} <= run.data.metrics.keys() for run in measured)
    assert all(run.data.tags["green_tune.study"] == "g" for run in cells)
    check_unfit(cells[0])
    check_table(house, said)
    check_totals(house, "g")
    check_closed(house)

    check_report(house, measured)

    before = {run.info.run_id: run for run in house.runs("cell")}
    again = house.run(asked | {"study": "g"})
    assert {run.info.run_id for run in house.runs("cell")} == before.keys()
    assert "Grid g: 12 cells, 8 done, 4 do not fit" in again
    check_totals(house, "g")

    other = house.run(asked | {"study": "other"})
    assert "8 taken over from earlier runs of the very same config" in other
    taken = [run for run in house.runs("cell", study="other") if run.info.status == "FINISHED"]
    assert {run.data.tags["green_tune.reused"] for run in taken} <= before.keys()
    for run in taken:
        original = before[run.data.tags["green_tune.reused"]]
        for name in ("val_loss", "quality.f1", "start_quality.f1"):
            assert run.data.metrics[name] == original.data.metrics[name]
        assert 0 < run.data.metrics["energy_kwh"] <= original.data.metrics["energy_kwh"]
    check_totals(house, "other")
    check_closed(house)


def check_unfit(cell: Run) -> None:
    tags, params = cell.data.tags, cell.data.params
    assert (cell.info.status, cell.data.metrics) == ("FAILED", {})
    assert tags["green_tune.does_not_fit"].startswith("large does not fit into ")
    assert (tags["base_model"], tags["gpu_type"]) == ("large", "cpu")
    assert tags["device"]
    assert params == {"model": "large", "task": "qa", "seed": "0"}


def check_table(house: House, said: str) -> None:
    assert "Grid g: 12 cells, 8 done, 4 do not fit" in said
    assert "Next: mlflow run . -e compare -P study=g" in said
    assert said.count("- large does not fit into ") == 1
    parent = house.parent("g")
    assert "does not fit" in parent.data.tags["mlflow.note.content"]
    rows = house.table(parent)
    states = [(row["model"], row["state"]) for row in rows]
    assert states.count(("large", "does not fit")) == 4
    assert states.count(("tiny", "done")) == states.count(("tiny-wide", "done")) == 4


def test_a_grid_that_is_killed_loses_nothing_and_the_same_command_goes_on(house: House) -> None:
    asked = {
        "study": "k", "model": "tiny", "task": "sentiment", "seed": "0,1,2",
        "max_train_examples": "0",
    }  # fmt: skip
    process = house.start(asked)
    deadline = time.monotonic() + PATIENCE_S
    while len([run for run in house.runs("cell") if run.data.params]) < 2:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    dead = [run for run in house.runs("cell") if run.info.status == "RUNNING"]
    done = {run.info.run_id for run in house.runs("cell") if run.info.status == "FINISHED"}
    assert (len(dead), len(done)) == (1, 1)
    said = house.run(asked)
    assert "Grid k: 3 cells, 3 done" in said
    cells = house.runs("cell")
    finished = [run for run in cells if run.info.status == "FINISHED"]
    assert sorted(run.data.params["seed"] for run in finished) == ["0", "1", "2"]
    assert done <= {run.info.run_id for run in finished}
    for run in dead:
        closed = house.client.get_run(run.info.run_id)
        assert (closed.info.status, closed.data.metrics["energy_kwh"] > 0) == ("FAILED", True)
    retried = [run.data.tags.get("green_tune.retry_of") for run in finished]
    assert {run.info.run_id for run in dead} == {run_id for run_id in retried if run_id}
    assert len(cells) == 3 + len(dead)
    assert house.trials("k", TrialState.COMPLETE) == 3
    check_totals(house, "k")
    check_closed(house)


def test_a_grid_of_sweeps_has_a_sweep_for_each_cell_and_counts_each_joule_once(
    house: House,
) -> None:
    asked = {
        "study": "s", "trials": "2", "model": "tiny", "task": "sentiment", "seed": "0,1",
        "batch_size": "4..8",
    }  # fmt: skip
    said = house.run(asked)
    parent = house.parent("s")
    sweeps = house.runs("sweep")
    assert [run.data.tags["green_tune.study"] for run in sweeps] == [
        "s/tiny-sentiment-0",
        "s/tiny-sentiment-1",
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in sweeps} == {parent.info.run_id}
    trials = house.runs("trial")
    assert len(trials) == 4
    parents = [run.data.tags["mlflow.parentRunId"] for run in trials]
    assert sorted(set(parents)) == sorted(run.info.run_id for run in sweeps)
    assert "quality.f1" in trials[0].data.metrics  # as it was asked for
    rows = house.table(parent)
    best = [min(r.data.metrics["val_loss"] for r in trials[i : i + 2]) for i in (0, 2)]
    assert [row["val_loss"] for row in rows] == pytest.approx(best)
    assert [row["state"] for row in rows] == ["done"] * 2
    assert sum(float(str(row["energy_kwh"])) for row in rows) < parent.data.metrics["energy_kwh"]
    assert "Grid s: 2 cells, 2 done" in said
    check_totals(house, "s")
    check_closed(house)
