"""kill -9 at random moments of a real sweep: no joule older than one heartbeat is lost, no finished
trial either; the next command leaves no run of the dead open, and tries again what was cut off.

Each start of the sweep is killed and so resumes what the one before it has left, in one store.
What is spent before a sweep's own run exists (imports, some seconds) can be in no store; from
there on, all that the meter has read is due, back to its first reading, which is before them.

GREEN_TUNE_KILLS says how often (4). The moments are drawn, from GREEN_TUNE_KILLS_SEED, after
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, cycle, islice, pairwise
from pathlib import Path
from typing import NamedTuple

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from green_tune.footprint import PHASES
from green_tune.meter import INTERVAL_S
from green_tune.study import ATTEMPTS
from green_tune.tracking import Tracker

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("GREEN_TUNE_KILLS", "4"))
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
    Moment("a trial began", 3.0),
    Moment("an adapter is being saved", 0.03),
    Moment("an adapter on the way is kept", 0.3),
    Moment("an adapter was saved", 0.3),
    Moment("the store was written to", 1.5),
    Moment("it was started", 7.0),
)


@dataclass(frozen=True, kw_only=True)
class Killed:
    """A start of the sweep that was killed.

    `made` are the runs that it has made, its session's first; `open` those that it left RUNNING,
    the study's own among them, `beating` those of them with a heartbeat on disk. `run_s` is how
    long it had a run in the store; `finished` is what stands in the study and in the store of
    each trial that had its result by then.
    """

    pid: int
    at_s: float  # UTC, in seconds since 1970, right before the signal
    aim: str
    hit: str
    made: tuple[str, ...]
    open: frozenset[str]
    beating: frozenset[str]
    run_s: float
    finished: dict[int, object]


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
        return Start(self, trials, next(self._starts))

    def runs(self, *kinds: str) -> list[Run]:
        """The runs of some kinds, or all, oldest first."""
        found = self.client.search_runs(["0"], max_results=10_000)
        mine = [run for run in found if not kinds or kind_of(run) in kinds]
        return sorted(mine, key=lambda run: run.info.start_time)

    def running(self, pid: int | None = None) -> set[str]:
        """The runs that are open, or those of them that one process is at."""
        runs = [run for run in self.runs() if pid in (None, worker_of(run))]
        return {run.info.run_id for run in runs if run.info.status == "RUNNING"}

    def hearts(self) -> set[str]:
        """The runs that have heartbeats on disk."""
        return {path.stem for path in self._hearts.glob("*.jsonl")}

    def last_phase(self, run: Run) -> str:
        """What was written down last, up to an interval ago."""
        path = self._hearts / f"{run.info.run_id}.jsonl"
        text = path.read_text() if path.exists() else ""
        phases: list[str] = re.findall(rf'"({"|".join(PHASES)})"', text)
        return phases[-1] if phases else "first moment"

    def rows(self, run_id: str) -> list[dict[str, str]]:
        """The lines of a run's energy.csv; none where it has no such file."""
        if "energy.csv" not in {file.path for file in self.client.list_artifacts(run_id)}:
            return []
        path = self.client.download_artifacts(run_id, "energy.csv")
        return list(csv.DictReader(Path(path).read_text().splitlines()))

    def segments(self, run_ids: Iterable[str]) -> list[Segment]:
        """When which of these runs was spending, in order."""
        return sorted(
            Segment(start := float(row["started_s"]), start + float(row["runtime_h"]) * 3600,
                    run_id)
            for run_id in run_ids
            for row in self.rows(run_id)
        )  # fmt: skip

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials of the study in some states, or all; none before there is a study."""
        names = optuna.get_all_study_names(self.study_url)
        if SWEEP["study"] not in names:
            return []
        study = optuna.load_study(storage=self.study_url, study_name=SWEEP["study"])
        return study.get_trials(states=states or None)

    def finished(self) -> dict[int, object]:
        """By number, all that is to stay as it is of a trial that has its result."""
        found = {t.number: t for t in self.trials(TrialState.COMPLETE)}
        runs = {n: self.client.get_run(t.user_attrs["run_id"]) for n, t in found.items()}
        return {
            number: (trial.values, trial.params, trial.user_attrs["run_id"],
                     runs[number].info.status, runs[number].data.metrics)
            for number, trial in found.items()
        }  # fmt: skip


class Start:
    """A sweep under way, with a folder of its own for temporary files, which show its phase."""

    def __init__(self, house: House, trials: int, number: int) -> None:
        folder = house.folder
        self._house = house
        self._runs_before = {run.info.run_id for run in house.runs()}
        self._hearts_before = house.hearts()
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

    def made(self) -> list[Run]:
        """The runs that it has made, its session's first."""
        return [run for run in self._house.runs() if run.info.run_id not in self._runs_before]

    def is_in_a_trial(self) -> bool:
        """A trial's heartbeats are there beside the session's."""
        return len(self._house.hearts() - self._hearts_before) > 1

    def is_saving(self) -> bool:
        return any(self._temporary.glob("green-tune-adapter-*"))

    def is_keeping(self) -> bool:
        return any(self._temporary.glob("green-tune-shelf-*"))

    def _wait_for(self, sign: str) -> None:
        signs: dict[str, list[Callable[[], bool]]] = {
            "it was started": [],
            "the store was written to": [lambda: self._changed() != self._store_before],
            "a trial began": [self.is_in_a_trial],
            "an adapter on the way is kept": [self.is_keeping],
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


def kind_of(run: Run) -> str:
    return str(run.data.tags["green_tune.kind"])


def worker_of(run: Run) -> int:
    return int(run.data.tags["green_tune.worker"].split(":")[-2])


@pytest.mark.timeout(300 + 60 * KILLS)
def test_a_sweep_that_is_killed_again_and_again_loses_no_trial_and_no_joule_older_than_a_heartbeat(
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
        if killed.made:  # so it has closed what was open before
            check_closed(house, unclosed, said)
            unclosed, said = [], ""
            assert house.hearts() <= killed.open
        dead.append(killed)
        unclosed.append(killed)
    check_end(house, unclosed, said)
    check_tried_again(house)
    check_kept(house, dead)
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
    assert dead.info.status == "FAILED"
    assert dead.data.metrics["energy_kwh"] > 0


def kill(house: House, start: Start, moment: Moment, rng: random.Random) -> Killed:
    at_s = start.kill(moment, rng)
    made, left_open = start.made(), house.running(start.pid)
    return Killed(
        pid=start.pid,
        at_s=at_s,
        aim=moment.sign,
        hit=phase_at_death(house, start),
        made=tuple(run.info.run_id for run in made),
        open=frozenset(left_open),
        beating=frozenset(left_open & house.hearts()),
        run_s=at_s - min([run.info.start_time / 1000 for run in made], default=at_s),
        finished=house.finished(),
    )


def phase_at_death(house: House, start: Start) -> str:
    """What it was doing when it was killed, by what it has left lying around."""
    runs = start.made()
    if not runs:
        return BEFORE
    if len(runs) == 1 or runs[-1].info.status != "RUNNING":
        return "between trials"
    if start.is_saving():
        return "save"
    if house.client.list_artifacts(runs[-1].info.run_id):
        return "close"
    return f"trial ({house.last_phase(runs[-1])})"


def check_closed(house: House, dead: Sequence[Killed], said: str) -> None:
    """Nothing of the dead is RUNNING; who closed it said what each had spent.

    Of the dead themselves, who may have died over it, each owes no more than one line. The study's
    own run is open again by then, for those who have come after.
    """
    unsaid = []
    for killed in dead:
        assert not house.running(killed.pid)
        for run_id in killed.open:
            run = house.client.get_run(run_id)
            tags = run.data.tags
            if kind_of(run) != "sweep":
                assert run.info.status == tags["green_tune.status"]
                if run_id in killed.beating or run.info.status != "FINISHED":  # else at its end
                    assert run.info.status == "FAILED"
                    assert tags["green_tune.error"] == "its process died"
            line = f"run {run.info.run_name} was left open by a process that died: closed"
            if run_id in killed.beating and (rows := house.rows(run_id)):
                line += f"; it had spent {kwh(rows):.3g} kWh"
            unsaid += [] if line in said else [line]
    assert len(unsaid) <= sum(killed.hit == BEFORE for killed in dead), (unsaid, said)


def check_end(house: House, unclosed: Sequence[Killed], said: str) -> None:
    """Two more trials, to a normal end; the study's totals are those of all that ever ran."""
    ended = house.trials(TrialState.COMPLETE, TrialState.FAIL)
    counted = sum(not trial.user_attrs.get("tried_again") for trial in ended)
    last = house.start(trials=counted + 2)
    assert last.process.wait(timeout=300) == 0, last.said
    check_closed(house, unclosed, said + last.said)
    assert not house.running()
    assert not house.hearts()
    segments = house.segments(run.info.run_id for run in last.made())
    assert covered_until_s(segments) == segments[-1].ended_s
    everything = house.segments(run.info.run_id for run in house.runs())
    covered_until_s(everything)  # no session has what another one has spent
    check_parent(house, counted + 2)


def check_parent(house: House, counted: int) -> None:
    """One run is the parent of all others, ended well, and holds the sums over them and itself."""
    (parent,) = house.runs("sweep")
    trials, workers = house.runs("trial"), house.runs("worker")
    assert parent.info.status == parent.data.tags["green_tune.status"] == "FINISHED"
    for run in (*trials, *workers):
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    totals = parent.data.metrics
    for name in ("energy_kwh", "emissions_kg", "runtime_h"):
        parts = [run.data.metrics.get(name, 0.0) for run in trials]
        parts += [run.data.metrics.get(f"overhead/{name}", 0.0) for run in (parent, *workers)]
        assert totals[name] == pytest.approx(math.fsum(parts), rel=1e-9)
    assert totals["trials"] == len(trials)
    assert totals["trials_failed"] == sum(run.info.status != "FINISHED" for run in trials)
    complete = house.trials(TrialState.COMPLETE)
    given_up = [t for t in house.trials(TrialState.FAIL) if not t.user_attrs["tried_again"]]
    assert len(complete) + len(given_up) == counted
    finished = [run.info.run_id for run in trials if run.info.status == "FINISHED"]
    assert sorted(trial.user_attrs["run_id"] for trial in complete) == sorted(finished)


def check_tried_again(house: House) -> None:
    """What was cut off has one successor, of the same values and linked to it; nothing is stuck.

    A trial that was cut off for the last time has none: it may be what its process died of.
    """
    assert house.trials(TrialState.RUNNING, TrialState.WAITING) == []
    everything = house.trials()
    for lost in house.trials(TrialState.FAIL):
        attrs = lost.user_attrs
        assert attrs["reason"] == "its worker died"
        later = [t for t in everything if t.user_attrs.get("retry_of_trial") == lost.number]
        assert attrs["tried_again"] == (attrs.get("attempt", 1) < ATTEMPTS)
        if not lost.params:  # killed before it had values: the sampler proposes another
            assert not later
            continue
        assert len(later) == attrs["tried_again"]
        last_run = attrs.get("run_id") or attrs.get("retry_of", "")  # killed before it had one
        for again in later:
            assert lost.params.items() <= again.params.items()
            assert again.user_attrs["retry_of"] == last_run
            if "run_id" in again.user_attrs:
                run = house.client.get_run(again.user_attrs["run_id"])
                assert run.data.tags.get("green_tune.retry_of", "") == last_run
    known = {t.user_attrs.get("run_id") for t in house.trials(TrialState.FAIL)}
    for run in house.runs("trial"):
        if run.info.status != "FINISHED" and run.info.run_id not in known:
            assert not run.data.params  # killed before the study could know of the run


def check_kept(house: House, dead: Sequence[Killed]) -> None:
    """Whatever a trial had come to before a kill, it has in the end."""
    finished = house.finished()
    for killed in dead:
        assert killed.finished.items() <= finished.items()


def lost_s(house: House, killed: Killed) -> float | None:
    """How old the oldest joule is that a killed process has lost, checked to be no more than due.

    None where it had no run yet, or was about to write its first heartbeat, which has its imports.
    """
    if not killed.made:
        return None
    session, segments = house.client.get_run(killed.made[0]), house.segments(killed.made)
    if not segments:
        assert killed.run_s < FIRST_S, killed
        return None
    assert segments[0].run_id == session.info.run_id
    assert segments[0].started_s < session.info.start_time / 1000
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
    rows, metrics, tags = house.rows(run.info.run_id), run.data.metrics, run.data.tags
    prefix = "overhead/" if kind_of(run) in ("sweep", "worker") else ""
    if not rows:
        assert run.info.status == "FAILED" or kind_of(run) == "sweep"
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
