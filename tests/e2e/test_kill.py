"""kill -9 at random moments of a real sweep: no joule older than one heartbeat is lost, and the
next command leaves no run of the dead open.

Each start of the sweep is killed and so resumes what the one before it has left, in one store.
What is spent before a sweep's own run exists (imports, some seconds) can be in no store; from
there on, all that the meter has read is due, back to its first reading, which is before them.

GREEN_TUNE_KILLS says how often (5). The moments are drawn, from GREEN_TUNE_KILLS_SEED, after
signs of what the sweep is doing, so that its short phases are hit as well as its long ones.
"""

import csv
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from green_tune.footprint import PHASES
from green_tune.meter import INTERVAL_S
from green_tune.sweep import TAKEN
from green_tune.tracking import Tracker

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("GREEN_TUNE_KILLS", "5"))
SEED = int(os.environ.get("GREEN_TUNE_KILLS_SEED", "1"))
SWEEP = {
    "study": "s", "gpu": "cpu", "country": "FRA", "max_train_examples": "160", "evals": "6",
    "batch_size": "8", "accumulation_steps": "1", "epochs": "2",
}  # fmt: skip
KG_PER_KWH = 56.039e-3  # of that country
LATE_S = 1.0  # a thread that wants one of two busy cores, and a disk that is to write it down
FIRST_S = 0.5  # from making the run to its first heartbeat: two writes to the store
GAP_S = 0.05  # between two clocks that are not read at quite the same time
POLL_S = 0.005
BEFORE = "before its run"
FIGURES = {
    "runtime_h": ("runtime_h",),
    "energy_cpu_kwh": ("energy_cpu_kwh",),
    "energy_gpu_kwh": ("energy_gpu_kwh",),
    "energy_ram_kwh": ("energy_ram_kwh",),
    "energy_kwh": ("energy_cpu_kwh", "energy_gpu_kwh", "energy_ram_kwh"),
}  # metrics, and the columns of energy.csv that they are the sums of


class Moment(NamedTuple):
    """A sign of what the sweep is doing, and within how many seconds of it the signal falls."""

    sign: str
    within_s: float


MOMENTS = (
    Moment("a fit began", 3.0),
    Moment("an adapter is being saved", 0.03),
    Moment("an adapter was saved", 0.3),
    Moment("the store was written to", 1.5),
    Moment("it was started", 7.0),
)


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A start of the sweep that was killed.

    `open` are the runs that it left RUNNING, `beating` those of them with a heartbeat on disk;
    `run_s` is how long it had a run in the store.
    """

    pid: int
    at_s: float  # UTC, in seconds since 1970, right before the signal
    aim: str
    hit: str
    open: frozenset[str]
    beating: frozenset[str]
    run_s: float


class Segment(NamedTuple):
    """One line of energy.csv, and whose it is."""

    started_s: float
    ended_s: float
    run_id: str


@pytest.fixture
def house(tmp_path: Path, store_uri: str) -> "House":
    """A copy of the program, so that nobody edits it meanwhile, beside an empty store."""
    for package in ("green_tune", "entrypoints"):
        shutil.copytree(ROOT / package, tmp_path / package)
    return House(tmp_path, store_uri)


class House:
    """The folder that the sweep is started in, with all that it leaves on disk."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.client = MlflowClient(uri)
        self.study_url = f"sqlite:///{folder / 'optuna.db'}"
        self._hearts = folder / "state" / "green-tune" / "heartbeats"
        self._starts = count()

    def start(self, trials: int) -> "Start":
        """Starts the sweep as a user does who has no launcher."""
        return Start(self.folder, trials, next(self._starts))

    def runs(self, pid: int | None = None) -> list[Run]:
        """All runs, or those that one process has made, oldest first."""
        found = self.client.search_runs(["0"], max_results=10_000)
        mine = [run for run in found if pid in (None, worker_of(run))]
        return sorted(mine, key=lambda run: run.info.start_time)

    def running(self, pid: int | None = None) -> set[str]:
        return {run.info.run_id for run in self.runs(pid) if run.info.status == "RUNNING"}

    def hearts(self) -> set[str]:
        """The runs that have heartbeats on disk."""
        return {path.stem for path in self._hearts.glob("*.jsonl")}

    def last_phase(self, run: Run) -> str:
        """What was written down last, up to an interval ago."""
        path = self._hearts / f"{run.info.run_id}.jsonl"
        text = path.read_text() if path.exists() else ""
        phases: list[str] = re.findall(rf'"({"|".join(PHASES)})"', text)
        return phases[-1] if phases else "first second"

    def rows(self, run: Run) -> list[dict[str, str]]:
        """The lines of a run's energy.csv; none where it has no such file."""
        run_id = run.info.run_id
        if "energy.csv" not in {file.path for file in self.client.list_artifacts(run_id)}:
            return []
        path = self.client.download_artifacts(run_id, "energy.csv")
        return list(csv.DictReader(Path(path).read_text().splitlines()))

    def segments(self, pid: int) -> list[Segment]:
        """When which run of a process was spending, in order."""
        return sorted(
            Segment(start := float(row["started_s"]), start + float(row["runtime_h"]) * 3600,
                    run.info.run_id)
            for run in self.runs(pid)
            for row in self.rows(run)
        )  # fmt: skip

    def trials(self, *states: TrialState) -> int:
        """How many trials of the study are in one of these states."""
        study = optuna.load_study(storage=self.study_url, study_name=SWEEP["study"])
        return len(study.get_trials(states=states))


class Start:
    """A sweep under way, with a folder of its own for temporary files, which show its phase."""

    def __init__(self, folder: Path, trials: int, number: int) -> None:
        self._temporary = folder / f"temporary-{number}"
        self._temporary.mkdir()
        self._errors = folder / f"stderr-{number}.txt"
        self._store = folder / "mlflow.db"
        self._store_before = self._changed()
        options = {**SWEEP, "trials": str(trials)}
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "entrypoints.sweep",
                 *(word for name, text in options.items() for word in (f"--{name}", text))],
                cwd=folder, env=os.environ | {"TMPDIR": str(self._temporary)},
                stdout=errors, stderr=errors, start_new_session=True,
            )  # fmt: skip
        self.pid = self.process.pid

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self._errors.read_text()

    def kill(self, moment: Moment, rng: random.Random) -> float:
        """Kills its process group at a random moment after the sign; when, in UTC."""
        self._wait_for(moment.sign)
        time.sleep(rng.uniform(0, moment.within_s))
        assert self.process.poll() is None, self.said
        at_s = time.time()
        os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        return at_s

    def is_saving(self) -> bool:
        return any(self._temporary.glob("green-tune-adapter-*"))

    def is_fitting(self) -> bool:
        return any(self._temporary.glob("tmp*"))

    def _wait_for(self, sign: str) -> None:
        signs: dict[str, list[Callable[[], bool]]] = {
            "it was started": [],
            "the store was written to": [lambda: self._changed() != self._store_before],
            "a fit began": [lambda: "MLflow UI" in self.said, self.is_fitting],
            "an adapter is being saved": [self.is_saving],
            "an adapter was saved": [self.is_saving, lambda: not self.is_saving()],
        }
        for seen in signs[sign]:
            deadline = time.monotonic() + 120
            while not seen():
                assert self.process.poll() is None, self.said
                assert time.monotonic() < deadline, f"{sign}: never seen\n{self.said}"
                time.sleep(POLL_S)

    def _changed(self) -> int:
        return self._store.stat().st_mtime_ns


def worker_of(run: Run) -> int:
    return int(run.data.tags["green_tune.worker"].split(":")[-2])


@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_sweep_that_is_killed_again_and_again_loses_no_joule_older_than_a_heartbeat(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(SEED)
    dead: list[Killed] = []
    unclosed: list[Killed] = []  # by a command that came further than to close them
    said = ""  # since the first of them was killed; one command may close, the next be checked
    for moment in islice(cycle(MOMENTS), KILLS):
        start = house.start(trials=1000)
        killed = kill(house, start, moment, rng)
        said += start.said
        if house.runs(start.pid):  # so it has closed what was open before
            check_closed(house, unclosed, said)
            unclosed, said = [], ""
            assert house.hearts() <= killed.open
        dead.append(killed)
        unclosed.append(killed)
    check_end(house, unclosed, said)
    for run in house.runs():
        check_figures(house, run)
    lost = [lost_s(house, killed) for killed in dead]
    with capsys.disabled():
        sys.stdout.write(summary(dead, lost))


def test_a_launchers_run_has_its_energy_from_before_mlflow_is_imported(
    tmp_path: Path, store_uri: str
) -> None:
    client = MlflowClient(store_uri)
    run_id = client.create_run("0").info.run_id
    beats = tmp_path / "state" / "green-tune" / "heartbeats" / f"{run_id}.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "entrypoints.train", "--gpu", "cpu"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_RUN_ID": run_id},
    )
    until = time.monotonic() + 60
    while not beats.exists() and time.monotonic() < until:
        time.sleep(POLL_S)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert "green_tune.worker" not in client.get_run(run_id).data.tags  # nobody had taken it yet
    Tracker(store_uri)
    dead = client.get_run(run_id)
    assert dead.info.status == "KILLED"
    assert dead.data.metrics["energy_kwh"] > 0


def kill(house: House, start: Start, moment: Moment, rng: random.Random) -> Killed:
    at_s = start.kill(moment, rng)
    runs = house.runs(start.pid)
    left_open = {run.info.run_id for run in runs if run.info.status == "RUNNING"}
    return Killed(
        pid=start.pid,
        at_s=at_s,
        aim=moment.sign,
        hit=phase_at_death(house, start),
        open=frozenset(left_open),
        beating=frozenset(left_open & house.hearts()),
        run_s=at_s - min([run.info.start_time / 1000 for run in runs], default=at_s),
    )


def phase_at_death(house: House, start: Start) -> str:
    """What it was doing when it was killed, by what it has left lying around."""
    runs = house.runs(start.pid)
    if not runs:
        return BEFORE
    if len(runs) == 1 or runs[-1].info.status != "RUNNING":
        return "between trials"
    if start.is_saving():
        return "save"
    if house.client.list_artifacts(runs[-1].info.run_id):
        return "close"
    return f"fit ({house.last_phase(runs[-1])})" if start.is_fitting() else "setup"


def check_closed(house: House, dead: Sequence[Killed], said: str) -> None:
    """Nothing of the dead is RUNNING; who closed it said what each had spent.

    Of the dead themselves, who may have died over it, each owes no more than one line.
    """
    unsaid = []
    for killed in dead:
        assert not house.running(killed.pid)
        for run_id in killed.open:
            run = house.client.get_run(run_id)
            assert run.info.status == "KILLED"
            assert run.data.tags["green_tune.status"] == "KILLED"
            assert run.data.tags["green_tune.error"] == "its process died"
            line = f"run {run.info.run_name} was left open by a process that died: closed"
            if run_id in killed.beating and (rows := house.rows(run)):
                line += f"; it had spent {kwh(rows):.3g} kWh"
            unsaid += [] if line in said else [line]
    assert len(unsaid) <= sum(killed.hit == BEFORE for killed in dead), (unsaid, said)


def check_end(house: House, unclosed: Sequence[Killed], said: str) -> None:
    """Two more trials, to a normal end; the sweep's totals are those of all that ever ran."""
    last = house.start(trials=house.trials(*TAKEN) + 2)
    assert last.process.wait(timeout=300) == 0, last.said
    check_closed(house, unclosed, said + last.said)
    assert not house.running()
    assert not house.hearts()
    assert house.trials(TrialState.RUNNING) == 0
    segments = house.segments(last.pid)
    assert covered_until_s(segments) == segments[-1].ended_s
    trials = [run for run in house.runs() if run.data.tags["green_tune.kind"] == "trial"]
    sweeps = [run for run in house.runs() if run.data.tags["green_tune.kind"] == "sweep"]
    totals = sweeps[-1].data.metrics
    for name in ("energy_kwh", "emissions_kg", "runtime_h"):
        parts = [run.data.metrics.get(name, 0.0) for run in trials]
        parts += [run.data.metrics.get(f"overhead/{name}", 0.0) for run in sweeps]
        assert totals[name] == pytest.approx(math.fsum(parts), rel=1e-9)
    assert totals["trials"] == len(trials)
    assert totals["trials_failed"] == sum(run.info.status != "FINISHED" for run in trials)


def lost_s(house: House, killed: Killed) -> float | None:
    """How old the oldest joule is that a killed process has lost, checked to be no more than due.

    None where it had no run yet, or was about to write its first heartbeat, which has its imports.
    """
    runs, segments = house.runs(killed.pid), house.segments(killed.pid)
    if not runs:
        return None
    if not segments:
        assert killed.run_s < FIRST_S, killed
        return None
    assert segments[0].run_id == runs[0].info.run_id
    assert segments[0].started_s < runs[0].info.start_time / 1000
    lost = killed.at_s - covered_until_s(segments)
    assert -GAP_S < lost < INTERVAL_S + LATE_S, killed
    return lost


def covered_until_s(segments: Sequence[Segment]) -> float:
    """Until when no time is missing since the first segment; nowhere may it be there twice."""
    gaps = [(after.started_s - before.ended_s, before) for before, after in pairwise(segments)]
    assert all(gap_s > -GAP_S for gap_s, _ in gaps), gaps
    holes = [before.ended_s for gap_s, before in gaps if gap_s > GAP_S]
    return min([*holes, segments[-1].ended_s])


def check_figures(house: House, run: Run) -> None:
    """A run's metrics are the sums of its energy.csv; without one it has spent nothing."""
    rows, metrics, tags = house.rows(run), run.data.metrics, run.data.tags
    prefix = "overhead/" if tags["green_tune.kind"] == "sweep" else ""
    if not rows:
        assert run.info.status == "KILLED"
        assert f"{prefix}energy_kwh" not in metrics
        return
    for name, columns in FIGURES.items():
        assert metrics[prefix + name] == pytest.approx(total(rows, *columns), rel=1e-9)
    emissions_kg = metrics[f"{prefix}emissions_kg"]
    assert emissions_kg == pytest.approx(kwh(rows) * KG_PER_KWH, rel=1e-9)
    assert kwh(rows) > 0
    assert tags["energy_valid"] in ("true", "false")


def total(rows: list[dict[str, str]], *columns: str) -> float:
    return math.fsum(float(row[column]) for row in rows for column in columns)


def kwh(rows: list[dict[str, str]]) -> float:
    return total(rows, *FIGURES["energy_kwh"])


def summary(dead: Sequence[Killed], lost: Sequence[float | None]) -> str:
    """What was hit and what it cost, to be read by people."""
    lines = [
        f"{killed.hit:27} {killed.run_s:5.2f} s after its run was made, "
        f"{'no heartbeat' if age is None else f'{age:.2f} s lost'} (drawn after: {killed.aim})"
        for killed, age in zip(dead, lost, strict=True)
    ]
    hits = Counter(killed.hit for killed in dead).most_common()
    ages = sorted(age for age in lost if age is not None)
    worst = f"median {statistics.median(ages):.2f} s, worst {ages[-1]:.2f} s" if ages else "nothing"
    hit = ", ".join(f"{number} {what}" for what, number in hits)
    return "\n".join(["", *lines, f"{len(dead)} kills hit: {hit}", f"lost: {worst}", ""])
