"""The whole program as a user starts it: `mlflow run` in a copy of the project, on a real store."""

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import optuna
import program
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
QUICK = {"max_train_examples": "32", "max_eval_examples": "8", "evals": "1", "gpu": "cpu"}
ENVIRONMENT = {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONWARNINGS": "default",
    "OMP_NUM_THREADS": "1",  # half the time of two: other tests have the other core
}


@pytest.fixture
def project(tmp_path: Path, store_uri: str) -> Path:
    """A copy of the project with an empty store in it, as a user has one."""
    folder = tmp_path / "project"
    folder.mkdir()
    program.copy_to(folder)
    shutil.move(tmp_path / "mlflow.db", folder / "mlflow.db")
    return folder


def environment(project: Path) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return inherited | ENVIRONMENT


def flags(sign: str, options: dict[str, str]) -> list[str]:
    if sign == "-P":
        return [word for key, text in options.items() for word in ("-P", f"{key}={text}")]
    return [word for key, text in options.items() for word in (f"--{key}", text)]


def launch(project: Path, entry: str, **options: str) -> subprocess.Popen[str]:
    command = ["mlflow", "run", ".", "-e", entry, "--env-manager", "local", *flags("-P", options)]
    return subprocess.Popen(
        command,
        cwd=project,
        env=environment(project),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A job that a script has put into the background hands on that it ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def mlflow_run(project: Path, entry: str, **options: str) -> subprocess.CompletedProcess[str]:
    process = launch(project, entry, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def directly(project: Path, entry: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"entrypoints.{entry}", *flags("--", options)],
        cwd=project,
        env=environment(project),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def client(project: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project / 'mlflow.db'}")


def runs(project: Path, kind: str) -> list[Run]:
    found = client(project).search_runs(
        ["0"], f"tags.`green_tune.kind` = '{kind}'", order_by=["attributes.start_time ASC"]
    )
    return list(found)


def still_running(project: Path) -> list[str]:
    return [
        run.info.run_name
        for run in client(project).search_runs(["0"])
        if run.info.status == "RUNNING"
    ]


def wait_for_metric(project: Path, name: str) -> None:
    """Until some run has logged `name`: then a training is under way."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(name in run.data.metrics for run in client(project).search_runs(["0"])):
            return
        time.sleep(0.1)
    raise AssertionError(f"{name} was never logged")


def test_a_sweep_is_a_study_of_nested_measured_runs_that_compare_reads_back(
    project: Path,
) -> None:
    done = mlflow_run(project, "sweep", trials="3", study="s", country="FRA", **QUICK)
    assert done.returncode == 0, done.stderr
    (parent,) = runs(project, "sweep")
    trials = runs(project, "trial")
    assert parent.info.status == "FINISHED"
    assert [run.data.tags["mlflow.parentRunId"] for run in trials] == [parent.info.run_id] * 3
    for run in trials:
        check_trial(project, run)
    assert parent.data.metrics["emissions_kg"] == pytest.approx(spent_kg(trials, [parent]))
    assert parent.data.params["learning_rate"] == "5e-05..0.002"
    check_parent_artifacts(project, parent, trials)
    for said in ("3 trials, 0 of them failed", "Pareto", "kWh", "kg CO2e", "France", " h\n",
                 "mlflow ui", "workflowType=machine_learning"):  # fmt: skip
        assert said in done.stdout, done.stdout
    check_compare(project, trials)


def check_trial(project: Path, run: Run) -> None:
    metrics, tags, params = run.data.metrics, run.data.tags, run.data.params
    assert run.info.status == "FINISHED"
    parts = [metrics[f"energy_{part}_kwh"] for part in ("cpu", "gpu", "ram")]
    assert metrics["energy_kwh"] == pytest.approx(sum(parts), rel=1e-9)
    assert metrics["energy_kwh"] > 0
    assert metrics["emissions_kg"] == pytest.approx(metrics["energy_kwh"] * 56.039e-3, rel=1e-9)
    rate = metrics["emissions_kg"] / metrics["runtime_h"]
    assert metrics["emissions_rate_kg_per_h"] == pytest.approx(rate, rel=1e-9)
    assert math.isfinite(metrics["val_loss"])
    assert tags["gpu_type"] == "cpu"
    assert tags["intensity_assumed"] == "false"
    assert tags["version.torch"]
    assert params["plan.precision"] == "fp32"
    assert int(params["batch_size"]) in (2, 4, 8, 16, 32)
    assert run.inputs is not None
    assert run.inputs.dataset_inputs[0].dataset.name == "sentiment-sample"
    losses = client(project).get_metric_history(run.info.run_id, "val_loss")
    assert len({point.step for point in losses}) == 2
    adapter = {file.path for file in client(project).list_artifacts(run.info.run_id, "adapter")}
    names = ("adapter_model.safetensors", "adapter_config.json", "recipe.json")
    assert adapter == {f"adapter/{name}" for name in names}


def check_parent_artifacts(project: Path, parent: Run, trials: list[Run]) -> None:
    folder = Path(client(project).download_artifacts(parent.info.run_id, "", str(project)))
    assert [row["run_id"] for row in rows_of(folder / "trials.json")] == [
        run.info.run_id for run in trials
    ]
    on_front = {row["run_id"] for row in rows_of(folder / "front.json")}
    assert on_front == ids([r for r in trials if r.data.tags["green_tune.front"] == "true"])
    best = min(trials, key=lambda run: run.data.metrics["val_loss"])
    assert best.info.run_id in on_front
    for figure in ("front", "hypervolume", "parallel", "timeline"):
        assert (folder / f"{figure}.png").stat().st_size > 10_000
    assert study_invoice(folder)


def study_invoice(folder: Path) -> str:
    """The text of the invoice, with the country that the kilograms are of."""
    text = (folder / "invoice.md").read_text(encoding="utf-8")
    assert "France" in text
    return text


def test_the_best_of_a_random_search_with_a_budget_are_run_again_on_another_seed(
    project: Path,
) -> None:
    asked = {"repeats": "2", "emissions_budget_kg": "1", "early_stop": "true", "sampler": "random"}
    few = QUICK | {"evals": "3", "trials": "3", "study": "s", "country": "FRA"}
    done = mlflow_run(project, "sweep", **few, **asked)
    assert done.returncode == 0, done.stderr
    assert "3 trials, 0 of them failed" in done.stdout
    assert "Stopped" not in done.stdout
    (parent,), trials, again = (runs(project, kind) for kind in ("sweep", "trial", "repeat"))
    assert asked.items() <= parent.data.params.items()
    assert {run.data.tags["mlflow.parentRunId"] for run in again} == {parent.info.run_id}
    assert {run.info.status for run in [*trials, *again]} == {"FINISHED"}
    total = spent_kg([*trials, *again], [parent])
    assert parent.data.metrics["emissions_kg"] == pytest.approx(total)
    folder = Path(client(project).download_artifacts(parent.info.run_id, "", str(project)))
    check_repeats(folder, trials, again)
    for figure in ("front", "hypervolume", "parallel", "timeline"):
        assert (folder / f"{figure}.png").stat().st_size > 10_000
    assert {row["run_id"] for row in rows_of(folder / "front.json")} <= ids(trials)
    assert {row["run_id"] for row in rows_of(folder / "trials.json")} == ids(trials)
    assert study_invoice(folder)


def check_repeats(folder: Path, trials: list[Run], again: list[Run]) -> None:
    """The same configs on seed 1, whose means are in the table."""
    first = {run.data.tags["green_tune.trial"]: run for run in trials}
    table = {str(row["trial"]): row for row in rows_of(folder / "repeats.json")}
    assert sorted(table) == sorted(run.data.tags["green_tune.trial"] for run in again)
    best = min(trials, key=lambda run: run.data.metrics["val_loss"])
    assert best.data.tags["green_tune.trial"] in table
    for run in again:
        number = run.data.tags["green_tune.trial"]
        pair = (first[number], run)
        params = [run.data.params | {"seed": "", "plan.reasons": ""} for run in pair]
        assert params[0] == params[1]
        assert [run.data.params["seed"] for run in pair] == ["0", "1"]
        assert table[number]["seeds"] == 2
        losses = [run.data.metrics["val_loss"] for run in pair]
        assert table[number]["val_loss_mean"] == pytest.approx(sum(losses) / 2)
        assert losses[0] != losses[1]


def rows_of(table: Path) -> list[dict[str, Any]]:
    """The rows of an artifact that MLflow shows as a table."""
    held = json.loads(table.read_text(encoding="utf-8"))
    return [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]


def ids(found: Sequence[Run]) -> set[str]:
    return {run.info.run_id for run in found}


def check_compare(project: Path, trials: list[Run]) -> None:
    shown = directly(project, "compare", study="s", format="table")
    assert shown.returncode == 0, shown.stderr
    assert all(run.info.run_id[:8] in shown.stdout for run in trials)
    as_csv = directly(project, "compare", study="s", format="csv").stdout
    assert len(list(csv.DictReader(io.StringIO(as_csv)))) == 3
    as_json = directly(project, "compare", study="s", format="json").stdout
    assert len(json.loads(as_json)) == 3
    nothing = directly(project, "compare", gpu="t4")
    assert nothing.returncode == 2
    assert "gpu=t4" in nothing.stderr
    check_report(project, trials)


def check_report(project: Path, trials: list[Run]) -> None:
    """The report is a run of its own, whose page holds all of it and needs no network."""
    made = directly(project, "compare", study="s")
    assert made.returncode == 0, made.stderr
    (run,) = runs(project, "compare")
    assert run.info.status == "FINISHED"
    assert run.data.tags["finding.epochs"] == "not enough evidence"
    folder = Path(unquote(urlsplit(run.info.artifact_uri).path))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(trial.info.run_id[:8] in page for trial in trials)
    assert "<svg" in page
    assert not re.search(r'(?:src|href)="(?!data:|#|http://127)', page)
    assert {file.suffix for file in (folder / "figures").iterdir()} == {".png", ".svg"}
    assert {file.suffix for file in (folder / "tables").iterdir()} == {".csv", ".json"}
    assert str(folder / "report.html") in made.stdout


def test_a_run_is_the_same_with_and_without_mlflow_run(project: Path) -> None:
    launched = mlflow_run(project, "train", learning_rate="1e-3", **QUICK)
    assert launched.returncode == 0, launched.stderr
    alone = directly(project, "train", learning_rate="1e-3", **QUICK)
    assert alone.returncode == 0, alone.stderr
    one, other = runs(project, "train")
    assert one.data.params == other.data.params
    assert one.data.metrics.keys() == other.data.metrics.keys()
    assert one.data.metrics["val_loss"] == other.data.metrics["val_loss"]
    of_launcher = {"mlflow.project.entryPoint", "mlflow.project.env", "mlflow.project.backend"}
    assert one.data.tags.keys() - other.data.tags.keys() <= of_launcher | {
        "mlflow.gitRepoURL", "mlflow.source.git.repoURL", "mlflow.source.git.commit"
    }  # fmt: skip
    assert "runs:/" in alone.stdout


def test_a_gpu_that_is_not_here_ends_the_command_with_one_line(project: Path) -> None:
    done = mlflow_run(project, "sweep", gpu="t4")
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "gpu=t4 is not in this machine" in lines[0]
    assert "Traceback" not in done.stderr
    assert still_running(project) == []
    assert runs(project, "trial") == []
    (refused,) = runs(project, "refused")
    assert refused.info.status == "FAILED"
    assert "gpu=t4 is not in this machine" in refused.data.tags["green_tune.error"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_closes_every_run_with_what_was_spent(
    project: Path, number: signal.Signals
) -> None:
    process = launch(
        project, "sweep", trials="3", study="s", gpu="cpu", epochs="400", quality_examples="2"
    )
    wait_for_metric(project, "train_loss")
    os.killpg(process.pid, number)
    out, _ = process.communicate(timeout=60)
    wait_until_closed(project)
    (parent,), (trial,) = runs(project, "sweep"), runs(project, "trial")
    assert trial.info.status == "KILLED"
    assert trial.data.metrics["emissions_kg"] > 0
    assert parent.data.metrics["emissions_kg"] == pytest.approx(spent_kg([trial], [parent]))
    assert parent.data.tags["green_tune.status"] == "KILLED"
    assert number.name in parent.data.tags["green_tune.error"]
    assert "go on with -P study=s" in out
    url = f"sqlite:///{project / 'optuna.db'}"
    stopped, queued = optuna.load_study(storage=url, study_name="s").trials
    assert (stopped.state, queued.state) == (TrialState.FAIL, TrialState.WAITING)
    assert queued.user_attrs["retry_of"] == trial.info.run_id


def spent_kg(trials: Sequence[Run], sweeps: Sequence[Run]) -> float:
    """By the trials, and by the sweep's sessions beside them, each of which has spent something."""
    beside = [sweep.data.metrics["overhead/emissions_kg"] for sweep in sweeps]
    assert all(kg > 0 for kg in beside)
    return float(sum(beside) + sum(trial.data.metrics["emissions_kg"] for trial in trials))


def wait_until_closed(project: Path) -> None:
    """The launcher may be gone before its child has closed the runs."""
    deadline = time.monotonic() + 30
    while still_running(project) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert still_running(project) == []


def test_a_sweep_that_was_killed_is_closed_and_finished_by_the_next(project: Path) -> None:
    options = {"trials": "2", "study": "s", "gpu": "cpu", "task": "qa", "epochs": "3",
               "max_train_examples": "160", "quality_examples": "2"}  # fmt: skip
    process = launch(project, "sweep", batch_size="2", **options)
    wait_for_metric(project, "train_loss")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert len(still_running(project)) == 2
    resumed = mlflow_run(project, "sweep", batch_size="2", **options)
    assert resumed.returncode == 0, resumed.stderr
    assert still_running(project) == []
    killed, again, other = trials = runs(project, "trial")
    assert killed.data.tags["green_tune.error"] == "its process died"
    assert killed.data.metrics["energy_kwh"] > 0
    assert killed.data.metrics["emissions_kg"] > 0
    assert again.data.tags["green_tune.retry_of"] == killed.info.run_id
    assert again.data.params == killed.data.params
    assert "green_tune.retry_of" not in other.data.tags
    (parent,), (late,) = runs(project, "sweep"), runs(project, "worker")
    for run in (*trials, late):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.info.status == parent.data.tags["green_tune.status"] == "FINISHED"
    assert "green_tune.error" not in parent.data.tags
    total = spent_kg(trials, [parent, late])
    assert parent.data.metrics["emissions_kg"] == pytest.approx(total)
    assert [run.info.status for run in trials] == ["FAILED", "FINISHED", "FINISHED"]
    assert "3 trials, 1 of them failed" in resumed.stdout


def test_a_diverging_trial_fails_alone_with_its_energy_and_all_failing_is_an_error(
    project: Path,
) -> None:
    broken = project / "broken"
    code = (
        "import math, torch; from green_tune import tiny;"
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T;"
        "m = M.from_pretrained(tiny.folder()); torch.nn.init.constant_(m.lm_head.weight, math.nan);"
        f"m.save_pretrained('{broken}');"
        f"T.from_pretrained(tiny.folder()).save_pretrained('{broken}')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=project, env=environment(project), check=True)
    done = directly(project, "sweep", model=str(broken), trials="2", **QUICK)
    assert done.returncode == 1
    assert "no trial of broken-sentiment" in done.stderr
    trials = runs(project, "trial")
    assert [run.info.status for run in trials] == ["FAILED", "FAILED"]
    assert all(run.data.metrics["energy_kwh"] > 0 for run in trials)
    assert all("nan" in run.data.tags["green_tune.error"] for run in trials)
    (parent,) = runs(project, "sweep")
    assert parent.data.metrics["trials_failed"] == 2
    assert parent.data.metrics["energy_kwh"] > 0


@pytest.mark.parametrize("task", ["qa", "summarization", "sentiment"])
def test_tiny_learns_each_real_task(project: Path, shared: Path, task: str) -> None:
    few = QUICK | {"max_train_examples": "160", "max_seq_len": "256", "learning_rate": "2e-3"}
    few |= {"quality_examples": "2"}
    done = directly(project, "train", task=task, data=str(shared / task), **few)
    assert done.returncode == 0, done.stderr
    (run,) = runs(project, "train")
    assert run.data.metrics["val_loss"] < run.data.metrics["start_val_loss"] - 0.3
    if task != "sentiment":
        assert "examples are longer than max_seq_len=256" in done.stderr


def test_the_pins_of_conda_yaml_fit_together_in_an_empty_environment(tmp_path: Path) -> None:
    """Resolved by uv as `--env-manager uv` would, but not installed: that may be gigabytes."""
    conda = yaml.safe_load((ROOT / "conda.yaml").read_text())["dependencies"]
    (tmp_path / "pins.txt").write_text("\n".join(conda[-1]["pip"]))
    links = (
        {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
    )
    solved = subprocess.run(
        ["uv", "pip", "compile", "--quiet", "--python-version", "3.11", "pins.txt"],
        cwd=tmp_path, env=os.environ | ENVIRONMENT | links, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert solved.returncode == 0, solved.stderr
    assert "mlflow-skinny==" in solved.stdout
