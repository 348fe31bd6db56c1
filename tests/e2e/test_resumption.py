"""A training that is stopped or killed, and started again: one run, as if nothing had happened.

The real command, as a process of its own each time, on a real store.
"""

import csv
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import program
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from green_tune import checkpoint, training, worker

pytestmark = pytest.mark.e2e

OPTIONS = {
    "gpu": "cpu", "country": "FRA", "max_train_examples": "48", "max_eval_examples": "8",
    "epochs": "40", "evals": "8", "lora_dropout": "0.1", "learning_rate": "1e-3",
    "quality_examples": "0", "checkpoint_minutes": "0.001",
}  # fmt: skip
CURVES = ("train_loss", "val_loss", "learning_rate", "grad_norm", "val_bits_per_byte")
STEPS = 240
POLL_S = 0.02


class House:
    """A folder with a copy of the program and a store, in which one command is given again."""

    def __init__(self, folder: Path, migrated: Path) -> None:
        self.folder = folder
        folder.mkdir()
        program.copy_to(folder)
        shutil.copy(migrated, folder / "mlflow.db")
        self.client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
        self.checkpoints = folder / "state" / "green-tune" / "checkpoints"
        self.said = ""

    def start(self, *, launcher: bool = False, **options: str) -> subprocess.Popen[str]:
        asked = OPTIONS | options
        command = [sys.executable, "-m", "entrypoints.train"]
        words = [word for key, text in asked.items() for word in (f"--{key}", text)]
        if launcher:
            command = ["mlflow", "run", ".", "-e", "train", "--env-manager", "local"]
            words = [word for key, text in asked.items() for word in ("-P", f"{key}={text}")]
        own = {
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}",
            "XDG_STATE_HOME": str(self.folder / "state"),
            "OMP_NUM_THREADS": "1",  # half the time of two: other tests have the other core
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        return subprocess.Popen(
            command + words, cwd=self.folder, env=os.environ | own, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def finish(self, *, launcher: bool = False, **options: str) -> str:
        """Gives the command, and waits for a good end; what it said."""
        process = self.start(launcher=launcher, **options)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said

    def interrupt(self, number: signal.Signals, after: int, *, launcher: bool = False) -> int:
        """Gives the command, and signals its process group once it has trained some steps more."""
        wanted = self._kept() + after
        process = self.start(launcher=launcher)
        try:
            self._wait_for(wanted, process)
        finally:
            os.killpg(process.pid, number)
            self.said, _ = process.communicate(timeout=60)
        return process.returncode

    def _wait_for(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until a point of the curve is in the store, and a checkpoint of the step on disk."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            assert process.poll() is None
            if self._kept() >= step and self._reached():
                return
            time.sleep(POLL_S)
        raise AssertionError(f"step {step} was never reached")

    def _kept(self) -> int:
        """The checkpoint's step, as the store hears of a step up to two seconds later."""
        found = [checkpoint._state(path.parent) for path in self.checkpoints.glob("*/state.pt")]
        return max((int(training.from_bytes(data)["step"]) for data in found if data), default=0)

    def _reached(self) -> int:
        open_runs = [
            run
            for run in self.runs("train")
            if run.info.status == "RUNNING"
            and not worker.is_dead(run.data.tags["green_tune.worker"])  # killed a moment ago
        ]
        points = [self.client.get_metric_history(r.info.run_id, "train_loss") for r in open_runs]
        return max((point.step for history in points for point in history), default=0)

    def runs(self, kind: str) -> list[Run]:
        return list(self.client.search_runs(["0"], f"tags.`green_tune.kind` = '{kind}'"))

    def curves(self, run: Run) -> dict[str, list[tuple[int, float]]]:
        """All points by step, twice where they are in the store twice."""
        history = {key: self.client.get_metric_history(run.info.run_id, key) for key in CURVES}
        return {key: sorted((p.step, p.value) for p in points) for key, points in history.items()}

    def adapter(self, run: Run) -> str:
        path = self.client.download_artifacts(run.info.run_id, "adapter/adapter_model.safetensors")
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    def spent(self, run: Run) -> list[tuple[float, float]]:
        """When each segment began, and its energy in kWh."""
        path = self.client.download_artifacts(run.info.run_id, "energy.csv")
        rows = csv.DictReader(Path(path).read_text().splitlines())
        parts = ("energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh")
        return [(float(row["started_s"]), sum(float(row[p]) for p in parts)) for row in rows]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, _migrated: Path) -> tuple[House, Run]:
    """The same command, uninterrupted."""
    house = House(tmp_path_factory.mktemp("reference") / "house", _migrated)
    house.finish()
    (run,) = house.runs("train")
    return house, run


@pytest.fixture
def house(tmp_path: Path, _migrated: Path) -> House:
    return House(tmp_path / "house", _migrated)


def check_same(house: House, reference: tuple[House, Run], sessions: int) -> Run:
    """One run, finished, equal to the bit to the uninterrupted one; all its sessions are paid."""
    (run,) = house.runs("train")
    whole, undisturbed = reference
    assert run.info.status == run.data.tags["green_tune.status"] == "FINISHED"
    assert "green_tune.error" not in run.data.tags
    assert run.data.tags["green_tune.sessions"] == str(sessions)
    assert run.data.params == undisturbed.data.params
    assert house.curves(run) == whole.curves(undisturbed)
    assert [step for step, _ in house.curves(run)["train_loss"]] == list(range(1, STEPS + 1))
    for name in ("train_tokens", "processed_tokens", "steps", "start_val_loss"):
        assert run.data.metrics[name] == undisturbed.data.metrics[name]
    assert house.adapter(run) == whole.adapter(undisturbed)
    assert not list(house.checkpoints.glob("*"))
    assert not list((house.folder / "state" / "green-tune" / "heartbeats").glob("*"))
    spent = house.spent(run)
    assert [at for at, _ in spent] == sorted({at for at, _ in spent})
    assert run.data.metrics["energy_kwh"] == pytest.approx(sum(kwh for _, kwh in spent), rel=1e-9)
    assert run.data.tags["energy_valid"] == "true"
    return run


def check_stopped(house: House) -> tuple[float, int]:
    """What one session has spent, by its run's own figures, and how far its curve goes."""
    (run,) = house.runs("train")
    assert run.info.status == "KILLED"
    last = max(step for step, _ in house.curves(run)["train_loss"])
    assert last < STEPS
    return run.data.metrics["energy_kwh"], last


def test_after_sigterm_the_same_command_goes_on_in_the_same_run(
    house: House, reference: tuple[House, Run]
) -> None:
    assert house.interrupt(signal.SIGTERM, after=40) == 128 + signal.SIGTERM
    first_kwh, last = check_stopped(house)
    assert "Traceback" not in house.said
    said = house.finish()
    run = check_same(house, reference, sessions=2)
    assert (
        f"goes on with run {run.info.run_name} ({run.info.run_id}) at step {last} of {STEPS}"
        in said
    )
    assert run.data.metrics["energy_kwh"] > first_kwh > 0
    assert run.data.tags["energy_flags"].startswith("resumed once, what lies between sessions")
    spent = house.spent(run)
    assert sum(kwh for at, kwh in spent if at * 1000 < run.info.end_time) > first_kwh


def test_after_kill_9_a_stop_and_another_kill_9_the_same_command_goes_on_in_the_same_run(
    house: House, reference: tuple[House, Run]
) -> None:
    assert house.interrupt(signal.SIGKILL, after=30) == -signal.SIGKILL
    (dead,) = house.runs("train")
    assert dead.info.status == "RUNNING"
    assert "energy_kwh" not in dead.data.metrics
    assert house.interrupt(signal.SIGTERM, after=40) == 128 + signal.SIGTERM
    assert "was left open by a process that died: closed; it had spent" in house.said
    assert "goes on with run" in house.said
    both_kwh, _ = check_stopped(house)
    assert house.interrupt(signal.SIGKILL, after=40) == -signal.SIGKILL
    said = house.finish()
    assert "was left open by a process that died: closed; it had spent" in said
    assert "goes on with run" in said
    run = check_same(house, reference, sessions=4)
    gaps = house.spent(run)
    assert gaps[0][0] < dead.info.start_time / 1000  # its imports are there as well
    assert run.data.metrics["energy_kwh"] > both_kwh
    assert "resumed 3 times" in run.data.tags["energy_flags"]
    assert run.data.tags["energy_flags"].count("resumed") == 1


def test_under_the_launcher_its_own_run_says_where_the_training_goes_on(
    house: House, reference: tuple[House, Run]
) -> None:
    house.interrupt(signal.SIGKILL, after=40, launcher=True)
    house.finish(launcher=True)
    run = check_same(house, reference, sessions=2)
    (other,) = house.runs("resumption")
    assert other.info.status == "FINISHED"
    assert other.data.tags["mlflow.note.content"] == f"goes on in run {run.info.run_id}"
    assert not other.data.metrics


def test_another_config_starts_anew_and_by_id_is_refused(house: House) -> None:
    house.interrupt(signal.SIGTERM, after=5)
    (run,) = house.runs("train")
    process = house.start(resume=run.info.run_id, learning_rate="2e-3")
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.splitlines()[-1] == (
        f"error: run {run.info.run_id} was trained with learning_rate=0.001, now it is 0.002; "
        "give the same, or resume=never"
    )
    house.finish(learning_rate="2e-3", epochs="1")
    assert len(house.runs("train")) == 2
    house.finish(resume=run.info.run_id)
    assert {one.info.status for one in house.runs("train")} == {"FINISHED"}


def test_a_run_that_was_deleted_starts_anew(house: House) -> None:
    house.interrupt(signal.SIGKILL, after=5)
    (dead,) = house.runs("train")
    house.client.delete_run(dead.info.run_id)
    said = house.finish(checkpoint_minutes="10")
    assert f"run {dead.info.run_id} is no longer in the store: the training starts anew" in said
    (run,) = house.runs("train")
    assert run.info.run_id != dead.info.run_id
    assert run.info.status == "FINISHED"
    assert not list(house.checkpoints.glob("*"))
    assert not list((house.folder / "state" / "green-tune" / "heartbeats").glob("*"))
