"""Several processes train one adapter: one run, each node measured once, nothing counted twice."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from green_tune.footprint import Segment, from_csv

ROOT = Path(__file__).parents[2]
SMALL = ["--max_train_examples", "96", "--max_eval_examples", "24", "--evals", "2"]
pytestmark = pytest.mark.e2e


def client() -> MlflowClient:
    """The store in this folder; MLflow keeps one open for each address, so it has its full name."""
    return MlflowClient(f"sqlite:///{Path.cwd() / 'mlflow.db'}")


def start(*launcher: str) -> "subprocess.Popen[str]":
    started_by = ("-m", *launcher) if launcher else ()
    return subprocess.Popen(
        [sys.executable, *started_by, "-m", "entrypoints.train", *SMALL],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def the_run(*processes: "subprocess.Popen[str]") -> Run:
    (run,) = the_runs(*processes)
    return run


def the_runs(*processes: "subprocess.Popen[str]") -> list[Run]:
    for process in processes:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output
    return list(client().search_runs(["0"]))


def series(run: Run) -> list[Segment]:
    return from_csv(Path(client().download_artifacts(run.info.run_id, "energy.csv")).read_text())


def wall_h(segments: list[Segment]) -> float:
    ends_s = [segment.started_s + segment.runtime_h * 3600 for segment in segments]
    return (max(ends_s) - min(segment.started_s for segment in segments)) / 3600


def ram_w(metrics: dict[str, float], phase: str) -> float:
    return metrics[f"{phase}/energy_ram_kwh"] * 1000 / metrics[f"{phase}/runtime_h"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return the_run(start())


@pytest.mark.parametrize(
    "launcher",
    [
        ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29611"),
        ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port",
         "29612"),
    ],
)  # fmt: skip
def test_two_processes_of_a_node_are_one_run_that_is_measured_once(
    alone: Run, launcher: tuple[str, ...]
) -> None:
    run = the_run(start(*launcher))
    one, two = alone.data.metrics, run.data.metrics
    assert run.data.tags["energy_valid"] == "true"
    assert "other programs" not in run.data.tags.get("energy_flags", "")  # the other rank is ours
    assert "2 processes" in run.data.params["plan.reasons"]
    assert two["train_tokens"] == one["train_tokens"]
    assert two["steps"] == one["steps"]
    assert two["start_val_loss"] == pytest.approx(one["start_val_loss"], rel=1e-6)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=0.05)
    for phase in ("setup", "train"):  # memory's power is constant: twice would show
        assert ram_w(two, phase) == pytest.approx(ram_w(one, phase), rel=1e-6)


def test_two_nodes_are_one_run_with_the_energy_of_both(alone: Run) -> None:
    """Two nodes on one machine, which each takes for its own: together they count it once."""
    launcher = ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
                "--master_addr", "127.0.0.1", "--master_port", "29613")  # fmt: skip
    run = the_run(*(start(*launcher, "--node_rank", rank) for rank in ("0", "1")))
    segments = series(run)
    assert {segment.node for segment in segments} == {0, 1}
    assert "shared with other measured runs" in run.data.tags["energy_flags"]
    memory_w = run.data.metrics["energy_ram_kwh"] * 1000 / wall_h(segments)
    assert memory_w == pytest.approx(ram_w(alone.data.metrics, "train"), rel=0.02)
    hours = run.data.metrics["runtime_h"]
    assert hours == pytest.approx(sum(s.runtime_h for s in segments if s.node == 0), rel=1e-9)


def test_two_runs_at_once_share_the_machine_and_say_so(alone: Run) -> None:
    runs = the_runs(start(), start())
    spent_kwh = sum(run.data.metrics["energy_ram_kwh"] for run in runs)
    memory_w = spent_kwh * 1000 / wall_h([segment for run in runs for segment in series(run)])
    assert memory_w == pytest.approx(ram_w(alone.data.metrics, "train"), rel=0.05)
    for run in runs:
        assert "shared with other measured runs, split equally" in run.data.tags["energy_flags"]
        assert run.data.tags["energy_valid"] == "true"
