"""What workers of one study cost the team's servers: real PostgreSQL, S3 and MLflow, with a login.

    python -m benchmarks.workers                      # five minutes; wants a quiet machine
    python -m benchmarks.workers --quick --discard    # does it run? Its figures say little

Studies alone: processes that claim and tell trials of one study and train nothing, which is the
most that a study can hand out. Then whole `sweep` commands on one study and one MLflow server.
Baseline of either: one worker, in the same run. On one machine the workers share its cores, so
their own pace says nothing about a cluster's; what the servers did for each trial does.
The benchmark fails where a trial is lost or run twice.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from benchmarks.record import facts, say, write
from benchmarks.workers_page import SLOW_MS, SMALLEST, Found, page
from green_tune import job

sys.path.append(str(Path(__file__).parents[1] / "docker"))  # a script's folder, as when it runs

import native
import processes
import team

HERE = "benchmarks.workers"
ALONE_TRIALS, GREEN_TRIALS = 100, 24
EXIT_S = 1.0  # a connection that has ended has reported its statistics
FLUSH_S = 11.0  # a connection that is idle reports its statistics after ten seconds at the latest
PATIENCE_S = 400.0
S_PER_H = 3600.0
WORK = ("train", "eval")  # the phases of a trial that its GPU is rented for
JOINED = "ix_studies_study_name"  # not an error: how Optuna finds that a study is there already
COUNTERS = """SELECT datname, active_time, xact_commit FROM pg_stat_database
WHERE datname IN ('studies', 'tracking')"""

Figures = dict[str, float]


class Team:
    """The three servers, and what they have spent so far."""

    def __init__(self, folder: Path, closing: ExitStack) -> None:
        self._stack = native.Stack(folder, native.three_ports())
        self._stack.start(closing)
        database = f"{processes.HOST}:{self._stack.postgres.port}"
        self.told = dict(team.needed(self._stack.mlflow.url, database, self._stack.secrets))
        self.ask(f"ALTER SYSTEM SET log_min_duration_statement = {SLOW_MS}")
        self.ask("SELECT pg_reload_conf()")

    def ask(self, statement: str) -> list[Any]:
        """As the superuser, in a database that no worker uses."""
        import sqlalchemy
        from sqlalchemy.pool import NullPool

        url = self._stack.postgres.url("postgres").replace("://", "+psycopg2://")
        engine = sqlalchemy.create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            answer = connection.exec_driver_sql(statement)
            return list(answer) if answer.returns_rows else []

    def spent(self, wait_s: float) -> Figures:
        """Database time and commits, CPU seconds and requests: differences of two are meant.

        Database time is `active_time`: what PostgreSQL's sessions spent on statements.
        """
        time.sleep(wait_s)
        found: Figures = {}
        for name, active_ms, commits in self.ask(COUNTERS):
            found |= {f"{name}_ms": float(active_ms), f"{name}_commits": float(commits)}
        postgres, mlflow = self._stack.postgres, self._stack.mlflow
        said = mlflow.log.read_text(errors="replace").splitlines()
        codes = [line.rsplit('HTTP/1.1" ', 1)[1] for line in said if 'HTTP/1.1" ' in line]
        logged = postgres.log.read_text(errors="replace").splitlines()
        machine, children = psutil.cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
        return found | {
            "wall_s": time.monotonic(),
            "machine_cpu_s": machine.user + machine.nice + machine.system,
            "workers_cpu_s": children.ru_utime + children.ru_stime,
            "s3_cpu_s": _cpu_s(self._stack.s3),
            "postgres_cpu_s": _cpu_s(postgres),
            "mlflow_cpu_s": _cpu_s(mlflow),
            "requests": float(len(codes)),
            "refused": float(sum(not code.startswith("2") for code in codes)),
            "slow_statements": float(sum(" ms  " in line for line in logged)),
            "database_errors": float(
                sum("ERROR:" in line and JOINED not in line for line in logged)
            ),
        }

    def during(self, works: Sequence[Callable[[], Found]], wait_s: float) -> list[Found]:
        """What each work found, one after the other, and what the servers spent on it."""
        marks, found = [self.spent(wait_s)], []
        for work in works:
            found.append(work())
            marks.append(self.spent(wait_s))
        return [
            one | {"servers": {name: after[name] - before[name] for name in after}}
            for one, before, after in zip(found, marks[:-1], marks[1:], strict=True)
        ]


def _cpu_s(server: processes.Server) -> float:
    """Of a server's processes, those that have ended included."""
    assert server._process is not None
    first = psutil.Process(server._process.pid)
    total = 0.0
    for process in [first, *first.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it ended this moment: its parent has its time next
            t = process.cpu_times()
            total += t.user + t.system + t.children_user + t.children_system
    return total


def claim_all(name: str, total: int, sampler: str) -> Found:
    """Claims and tells trials until there are no more, in this process, once its parent says so."""
    from green_tune import storage, store, sweep
    from green_tune.space import SPACE
    from green_tune.study import Outcome, open_study

    if sampler == "green":
        import_module("torch")  # a sweep has it when it claims, and green proposes with it
    locks = _timed_locks(storage)
    study = open_study(store.study_url(), name, SPACE, identity={}, sampler=sampler)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    trials, cpu_s = [], time.process_time()
    while True:
        locks.clear()
        began = time.monotonic()
        trial = study.claim(total, sweep.nothing_settled, sweep.everything_admitted)
        claimed = time.monotonic()
        if isinstance(trial, str):
            break
        kilograms = trial.values["batch_size"] * trial.values["lora_rank"] / 1e6
        study.tell(trial, Outcome(val_loss=1 / (1 + kilograms), emissions_kg=kilograms))
        told = time.monotonic()
        trials.append({"number": trial.number, "began": began, "claim_s": claimed - began,
                       "lock_s": sum(locks), "tell_s": told - claimed, "told": told})  # fmt: skip
    return {"trials": trials, "cpu_s": time.process_time() - cpu_s}


def _timed_locks(storage: Any) -> list[float]:
    """Will hold the seconds that each entry into the study's lock takes from now on."""
    plain, took = storage._lock, []

    @contextmanager
    def timed(where: object) -> Iterator[None]:
        began = time.perf_counter()
        with plain(where):
            took.append(time.perf_counter() - began)
            yield

    storage._lock = timed
    return took


def alone(told: Mapping[str, str], workers: int, total: int, sampler: str) -> Found:
    """A study of its own whose workers, all ready before the first claim, train nothing."""
    name = f"{sampler} {workers}"
    command = [sys.executable, "-m", HERE, "--claim", name, str(total), sampler]
    environment = os.environ | told | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as closing:
        started = [
            closing.enter_context(_process(command, environment, stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, text=True))
            for _ in range(workers)
        ]  # fmt: skip
        for each in started:
            if each.stdout.readline() != "ready\n":
                raise RuntimeError("a worker did not get ready")
        for each in started:
            each.stdin.write("go\n")
            each.stdin.flush()
        said = [json.loads(each.communicate(timeout=PATIENCE_S)[0]) for each in started]
    trials = [trial for one in said for trial in one["trials"]]
    wall_s = max(t["told"] for t in trials) - min(t["began"] for t in trials)
    say(f"{name}: {total / wall_s:.1f} trials a second")
    return {"workers": workers, "sampler": sampler, "name": name, "total": total, "wall_s": wall_s,
            "cpu_s": sum(one["cpu_s"] for one in said), "each": [len(o["trials"]) for o in said],
            "trials": sorted(trials, key=lambda trial: int(trial["number"]))}  # fmt: skip


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], **how: Any) -> Iterator[Any]:
    """One that does not outlive the block."""
    process = subprocess.Popen(command, env=environment, **how)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def check(study: str, total: int, study_url: str) -> Sequence[Any]:
    """The trials of a study, all complete; a trial that was lost and run again would be one more.

    Raises:
        RuntimeError: there are others, or fewer.
    """
    import optuna

    from green_tune.storage import open_storage

    trials = optuna.load_study(storage=open_storage(study_url), study_name=study).get_trials()
    states = Counter(trial.state.name for trial in trials)
    if states != {"COMPLETE": total}:
        raise RuntimeError(f"{study} was to have {total} complete trials, and has {dict(states)}")
    return trials


def commands(told: Mapping[str, str], room: Path, name: str, workers: int, total: int) -> Found:
    """That many `sweep` commands at once, on one study; they have all ended well."""
    asked = {"study": name, "trials": str(total), **SMALLEST}
    words = [word for key, text in asked.items() for word in (f"--{key}", text)]
    environment = os.environ | told | {
        "GREEN_TUNE_METERS": str(room / "meters"), "XDG_STATE_HOME": str(room / "state"),
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "entrypoints.sweep", *words]
    began = time.monotonic()
    with ExitStack() as closing:
        started = []
        for number in range(workers):
            out = closing.enter_context((room / f"{name}-{number}.txt").open("w+"))
            process = _process(command, environment, cwd=room, stdout=out, stderr=out)
            started.append((closing.enter_context(process), out))
        for each, out in started:
            if each.wait(PATIENCE_S):
                out.seek(0)
                raise RuntimeError(f"a worker of {name} has failed:\n{out.read()}")
    say(f"{name}: {workers} commands for {total} trials have ended")
    return {"workers": workers, "name": name, "total": total, "took_s": time.monotonic() - began}


def lives(trials: Sequence[Any], total: int) -> Found:
    """How long the trials of a study took, and the seconds of their workers in all.

    A worker's seconds are those from its first claim to its last tell.

    Raises:
        RuntimeError: two trials share a run, or a run is not finished.
    """
    client = import_module("mlflow").MlflowClient()
    runs = {trial.number: client.get_run(trial.user_attrs["run_id"]) for trial in trials}
    done = {run.info.run_id for run in runs.values() if run.info.status == "FINISHED"}
    if len(done) != total:
        raise RuntimeError(f"{total} trials have {len(done)} finished runs")
    worked = measured = spans = 0.0
    for who in {trial.user_attrs["worker"] for trial in trials}:
        mine = [trial for trial in trials if trial.user_attrs["worker"] == who]
        ended, began = max(t.datetime_complete for t in mine), min(t.datetime_start for t in mine)
        spans += (ended - began).total_seconds()
        metrics = [runs[trial.number].data.metrics for trial in mine]
        measured += S_PER_H * sum(m["runtime_h"] for m in metrics)
        worked += S_PER_H * sum(m.get(f"{p}/runtime_h", 0.0) for m in metrics for p in WORK)
    ends, starts = [t.datetime_complete for t in trials], [t.datetime_start for t in trials]
    return {
        "wall_s": (max(ends) - min(starts)).total_seconds(),
        "training_s": worked,
        "setup_and_saving_s": measured - worked,
        "outside_s": spans - measured,
        "trial_s": [(t.datetime_complete - t.datetime_start).total_seconds() for t in trials],
        "sessions_with_trials": len({trial.user_attrs["worker"] for trial in trials}),
    }


def studies_alone(servers: Team, asked: argparse.Namespace) -> list[Found]:
    """All samples of studies that train nothing.

    Raises:
        RuntimeError: a trial was claimed twice, or lost.
    """
    most, told = max(asked.workers), servers.told
    cases = [(n, asked.alone, "random") for n in asked.workers]
    cases += [(n, asked.green, "green") for n in sorted({min(asked.workers), most}) if asked.green]
    found = servers.during([partial(alone, told, *case) for case in cases], EXIT_S)
    for (_, total, _), one in zip(cases, found, strict=True):
        check(one["name"], total, told["GREEN_TUNE_STUDY_STORAGE"])
        if [trial["number"] for trial in one["trials"]] != list(range(total)):
            raise RuntimeError(f"{one['name']}: not each trial was claimed once")
    return found


def whole_commands(servers: Team, room: Path, asked: argparse.Namespace) -> list[Found]:
    """All samples of whole sweeps, the last one of a worker that finds nothing left to do."""
    import_module("tests.program").copy_to(room)
    some, told, total = sorted({min(asked.workers), max(asked.workers)}), servers.told, asked.trials
    some = some[:1] if asked.quick else some
    if not asked.quick:
        commands(told, room, "warm-up", 1, 1)
    works = [partial(commands, told, room, f"sweep-{n}", n, total) for n in some]
    if not asked.quick:
        works += [partial(commands, told, room, works[-1].args[2], 1, total)]
    found = servers.during(works, EXIT_S if asked.quick else FLUSH_S)
    os.environ |= told
    for one in found[: len(some)]:
        one |= lives(check(one["name"], total, told["GREEN_TUNE_STUDY_STORAGE"]), total)
    return found


def main() -> None:
    """Starts the servers, measures, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,2,4,8")
    parser.add_argument("--trials", type=int, default=16, help="of each sweep")
    parser.add_argument("--quick", action="store_true", help="two workers, few trials")
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    parser.add_argument("--claim", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.claim:
        name, total, sampler = asked.claim
        sys.stdout.write(json.dumps(claim_all(name, int(total), sampler)) + "\n")
        return
    asked.workers = [int(text) for text in ("1,2" if asked.quick else asked.workers).split(",")]
    asked.alone, asked.green = (ALONE_TRIALS, GREEN_TRIALS) if not asked.quick else (20, 0)
    asked.trials = 2 if asked.quick else asked.trials
    device = job.this_cpu()
    known = facts(device) | {name: metadata.version(name) for name in ("mlflow", "optuna")}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
        Path(folder).chmod(0o711)  # for root PostgreSQL is `nobody`
        servers, room = Team(Path(folder) / "team", closing), Path(folder) / "room"
        room.mkdir()
        known["postgresql"] = servers.ask("SHOW server_version")[0][0]
        known["cores"] = str(os.cpu_count())
        alone, sweeps = studies_alone(servers, asked), whole_commands(servers, room, asked)
    text = page(alone, sweeps, known)
    if not asked.discard:
        write("workers", device.name, text, {"facts": known, "studies": alone, "sweeps": sweeps})
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
