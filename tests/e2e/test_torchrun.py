"""Several processes train one adapter: one run, each node measured once, nothing counted twice.

And what they learn is what one process learns: the same losses at each step, the same adapter.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file
from together import trained

from green_tune.footprint import Segment, from_csv

ROOT = Path(__file__).parents[2]
SMALL = ["--gpu", "cpu", "--max_train_examples", "96", "--max_eval_examples", "24", "--evals", "2",
         "--quality_examples", "8"]  # fmt: skip
LONG = [*SMALL, "--epochs", "1000"]
CURVES = ("train_loss", "val_loss", "grad_norm", "learning_rate")
WEIGHTS = "adapter/adapter_model.safetensors"
pytestmark = pytest.mark.e2e

Program = subprocess.Popen[str]


@pytest.fixture(autouse=True)
def _store(store_uri: str) -> None:
    """An empty one for each test; making it takes each program seconds."""


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def start(*launcher: str, asked: list[str] = SMALL) -> Program:
    return launch(*launcher, *["-m"][: len(launcher)], "entrypoints.train", *asked)


def launch(*arguments: str) -> Program:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def the_run(*processes: Program) -> Run:
    (run,) = the_runs(*processes)
    return run


def the_runs(*processes: Program) -> list[Run]:
    went_well(*processes)
    return list(client().search_runs(["0"]))


def went_well(*processes: Program) -> None:
    with ThreadPoolExecutor(len(processes)) as readers:
        outputs = list(readers.map(ended, processes))
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)


def ended(process: Program) -> str:
    """What it printed; one that hangs also prints where each of its processes is."""
    try:
        return process.communicate(timeout=240)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGABRT)
        return process.communicate()[0]


def curves(run: Run) -> dict[str, list[float]]:
    """Each metric that is logged on the way, step by step."""
    histories = {name: client().get_metric_history(run.info.run_id, name) for name in CURVES}
    return {
        name: [point.value for point in sorted(history, key=lambda point: point.step)]
        for name, history in histories.items()
    }


def weights(run: Run) -> dict[str, Any]:
    return load_file(client().download_artifacts(run.info.run_id, WEIGHTS))


def series(run: Run) -> list[Segment]:
    return from_csv(Path(client().download_artifacts(run.info.run_id, "energy.csv")).read_text())


def wall_h(segments: list[Segment]) -> float:
    ends_s = [segment.started_s + segment.runtime_h * 3600 for segment in segments]
    return (max(ends_s) - min(segment.started_s for segment in segments)) / 3600


def ram_w(metrics: dict[str, float], phase: str) -> float:
    return metrics[f"{phase}/energy_ram_kwh"] * 1000 / metrics[f"{phase}/runtime_h"]


class Alone(NamedTuple):
    """What one process has made of the same training."""

    run: Run
    curves: dict[str, list[float]]
    weights: dict[str, Any]


@pytest.fixture(scope="module")
def alone(_migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("alone"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shutil.copy(_migrated, Path.cwd())}")
        run = the_run(start())
        return Alone(run, curves(run), weights(run))


def check_same(run: Run, alone: Alone) -> None:
    """The same losses at each step, the same adapter, the same task metrics."""
    one, several = alone.run.data.metrics, run.data.metrics
    for name, points in curves(run).items():
        assert points == pytest.approx(alone.curves[name], rel=1e-5), name
    assert len(alone.curves["train_loss"]) == 12
    same = ("train_tokens", "steps", "base_parameters", "trainable_parameters")
    for name in (*same, *(name for name in one if name.startswith(("quality.", "start_quality.")))):
        assert several[name] == one[name], name
    check_same_weights(weights(run), alone.weights)


def check_same_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {name: weight.shape for name, weight in found.items()} == {
        name: weight.shape for name, weight in expected.items()
    }
    for name, weight in found.items():
        assert float((weight - expected[name]).norm() / expected[name].norm()) < 1e-5, name


def test_a_divided_base_trains_the_same_adapter_in_one_run_that_is_measured_once(
    alone: Alone,
) -> None:
    launcher = ("accelerate.commands.launch", "--use_fsdp", "--num_processes", "2",
                "--main_process_port", "29612")  # fmt: skip
    run = the_run(start(*launcher))
    assert run.data.params["plan.shards"] == "2"
    assert "2 processes" in run.data.params["plan.reasons"]
    assert run.data.tags["energy_valid"] == "true"
    assert "other programs" not in run.data.tags.get("energy_flags", "")  # the other rank is ours
    check_same(run, alone)
    for phase in ("setup", "train"):  # memory's power is constant: twice would show
        one, two = alone.run.data.metrics, run.data.metrics
        assert ram_w(two, phase) == pytest.approx(ram_w(one, phase), rel=1e-6)


def test_two_nodes_are_one_run_with_the_energy_of_both(alone: Alone) -> None:
    """Two nodes on one machine, which each takes for its own: together they count it once."""
    launcher = ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
                "--master_addr", "127.0.0.1", "--master_port", "29613")  # fmt: skip
    run = the_run(*(start(*launcher, "--node_rank", rank) for rank in ("0", "1")))
    check_same(run, alone)
    segments = series(run)
    assert {segment.node for segment in segments} == {0, 1}
    assert "shared with other measured runs" in run.data.tags["energy_flags"]
    memory_w = run.data.metrics["energy_ram_kwh"] * 1000 / wall_h(segments)
    assert memory_w == pytest.approx(ram_w(alone.run.data.metrics, "train"), rel=0.02)
    hours = run.data.metrics["runtime_h"]
    assert hours == pytest.approx(sum(s.runtime_h for s in segments if s.node == 0), rel=1e-9)


def test_two_nodes_with_other_options_train_nothing_and_say_which_differ() -> None:
    launcher = ("torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
                "--master_addr", "127.0.0.1", "--master_port", "29617")  # fmt: skip
    rates = ("2e-4", "2e-2")
    nodes = [
        start(*launcher, "--node_rank", str(rank), asked=[*SMALL, "--learning_rate", rate])
        for rank, rate in enumerate(rates)
    ]
    with ThreadPoolExecutor(2) as readers:
        for printed in readers.map(ended, nodes):
            assert "error: the processes that train together differ in learning_rate: " in printed
    assert [node.returncode for node in nodes] == [1, 1]  # the launchers'
    (run,) = client().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert "train_loss" not in run.data.metrics


def test_when_one_process_dies_the_others_end_with_that_and_what_was_spent() -> None:
    launcher = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
                "--main_process_port", "29614")  # fmt: skip
    program = start(*launcher, asked=LONG)
    while not any("train_loss" in run.data.metrics for run in client().search_runs(["0"])):
        assert program.poll() is None, ended(program)
        time.sleep(0.5)
    os.kill(process_of(program, rank="1"), signal.SIGKILL)
    printed = ended(program)
    assert program.returncode == 1, printed
    assert "error: another of the processes that train together has ended" in printed
    (run,) = client().search_runs(["0"])
    assert run.info.status == "FAILED"
    assert "another of the processes" in run.data.tags["green_tune.error"]
    assert run.data.tags["energy_valid"] == "true"
    assert sum(segment.runtime_h for segment in series(run)) > 0
    assert run.data.metrics["energy_kwh"] > run.data.metrics["train/energy_kwh"] > 0


def process_of(launcher: Program, rank: str) -> int:
    """The process that a launcher has started as that rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (found,) = (
        int(child)
        for child in children
        if f"RANK={rank}" in Path(f"/proc/{child}/environ").read_text().split("\0")
    )
    return found


# Steps of fewer examples than processes, unlike numbers of passes, accumulation; all batchings.
CASES: dict[str, dict[str, Any]] = {
    "sentiment": {"task": "sentiment", "max_train_examples": 41, "batch_size": 2,
                  "accumulation_steps": 4, "batching": "flat", "epochs": 2,
                  "quality_examples": 4},
    "qa": {"task": "qa", "max_train_examples": 41, "batching": "tree", "micro_batch_tokens": 300,
           "gradient_checkpointing": "true", "quality_examples": 3},
    "summarization": {"task": "summarization", "max_train_examples": 25, "batching": "padded",
                      "batch_size": 2, "accumulation_steps": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, trained by two processes with the base in each of them, and divided."""
    folder = tmp_path_factory.mktemp("together")
    cases = {
        f"{name}-{shards}": [options, shards > 1]
        for name, options in CASES.items()
        for shards in (1, 2)
    }
    (folder / "cases.json").write_text(json.dumps(cases))
    went_well(
        launch("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29615",
               str(ROOT / "tests" / "together.py"), str(folder / "cases.json"))
    )  # fmt: skip
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(case: str, together: Path, tmp_path: Path) -> None:
    """To rounding: a step's loss is divided by all labels of all processes."""
    expected = trained(CASES[case], tmp_path)
    for shards in (1, 2):
        folder = together / f"{case}-{shards}"
        for rank in (0, 1):
            found = json.loads((folder / f"rank-{rank}.json").read_text())
            assert found["shards"] == shards
            for name, points in expected["curves"].items():
                assert found["curves"][name] == pytest.approx(points, rel=1e-5), name
            for name in ("tokens", "parameters", "scores"):
                assert found[name] == expected[name]
            held = expected["here"] - found["divided"] * (shards - 1) / shards
            assert found["here"] == held
            assert found["divided"] == (0 if shards == 1 else 73984)
        check_same_weights(load_file(folder / WEIGHTS), load_file(tmp_path / WEIGHTS))


def test_two_runs_at_once_share_the_machine_and_say_so(alone: Alone) -> None:
    runs = the_runs(start(), start())
    spent_kwh = sum(run.data.metrics["energy_ram_kwh"] for run in runs)
    memory_w = spent_kwh * 1000 / wall_h([segment for run in runs for segment in series(run)])
    assert memory_w == pytest.approx(ram_w(alone.run.data.metrics, "train"), rel=0.05)
    for run in runs:
        assert "shared with other measured runs, split equally" in run.data.tags["energy_flags"]
        assert run.data.tags["energy_valid"] == "true"
