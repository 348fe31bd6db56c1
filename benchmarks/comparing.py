"""What it takes to read a whole store and say what it says, beside plain `mlflow.search_runs`.

    python -m benchmarks.comparing --runs 1000 10000 --rounds 5

On SQLite, and on a PostgreSQL server that this starts. The stores hold made-up runs, written into
MLflow's own tables, as logging ten thousand of them takes an hour; reading knows no difference.
Each reading is a process of its own, so that its memory is its own; imports are not counted.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.record import facts, interval, say, table, write
from green_tune import job
from green_tune.results import KIND

if TYPE_CHECKING:
    from green_tune.selection import Selection

METRICS, PARAMS, TAGS = 40, 40, 25  # of each run
EITHER_NEEDS = ("pandas", "mlflow.store.tracking.sqlalchemy_store", "green_tune.tracking",
                "green_tune.dossier", "green_tune.page", "psycopg2")  # fmt: skip
BATCH = 500  # runs of one insert
OURS, PLAIN = "green-tune", "mlflow.search_runs"
KIB_PER_MIB = 1024
START_MS = 1_700_000_000_000
GRIDS = {"base_model": ("gemma-2b", "llama-2-7b"), "gpu_type": ("t4", "l4", "a100-40")}
TASKS = ("qa", "summarization", "sentiment")

T = TypeVar("T")
Case = tuple[str, int, str]  # store, runs, who reads
Samples = dict[Case, list[dict[str, float]]]


def rows(numbers: range, experiment: int, dice: random.Random) -> dict[str, list[dict[str, Any]]]:
    """Runs as rows of MLflow's tables, each with its own losses and kilograms."""
    made: dict[str, list[dict[str, Any]]] = {"run": [], "metric": [], "param": [], "tag": []}
    for number in numbers:
        run_id = uuid.UUID(int=dice.getrandbits(128)).hex
        made["run"].append(_run(run_id, number, experiment))
        for key, value in _metrics(dice).items():
            row = {"key": key, "value": value, "timestamp": START_MS, "step": 0, "is_nan": False}
            made["metric"].append({**row, "run_uuid": run_id})
        for name, texts in (("param", _params(dice)), ("tag", _tags(dice))):
            made[name] += [{"key": k, "value": v, "run_uuid": run_id} for k, v in texts.items()]
    return made


def _run(run_id: str, number: int, experiment: int) -> dict[str, Any]:
    began = START_MS + 1000 * number
    return {"run_uuid": run_id, "name": f"run-{number}", "source_type": "LOCAL", "source_name": "",
            "entry_point_name": "", "user_id": "", "status": "FINISHED", "start_time": began,
            "end_time": began + 1000, "source_version": "", "lifecycle_stage": "active",
            "artifact_uri": f"/nowhere/{run_id}", "experiment_id": experiment}  # fmt: skip


def _metrics(dice: random.Random) -> dict[str, float]:
    kwh, hours = dice.uniform(0.1, 2), dice.uniform(0.2, 3)
    kg, loss = 0.475 * kwh, dice.uniform(1, 3)
    known = {"val_loss": loss, "val_bits_per_byte": loss / 3, "start_val_loss": loss + 2,
             "emissions_kg": kg, "runtime_h": hours, "emissions_rate_kg_per_h": kg / hours,
             "energy_kwh": kwh, "energy_gpu_kwh": 0.7 * kwh, "energy_cpu_kwh": 0.2 * kwh,
             "energy_ram_kwh": 0.1 * kwh, "energy_low_kwh": 0.9 * kwh, "energy_high_kwh": 1.4 * kwh,
             "emissions_low_kg": 0.9 * kg, "emissions_high_kg": 1.4 * kg, "steps": 200.0,
             "energy_modelled_share": 0.3, "train_tokens": 1e6,
             "base_parameters": 2.5e9}  # fmt: skip
    return known | {f"metric_{n}": dice.random() for n in range(METRICS - len(known))}


def _params(dice: random.Random) -> dict[str, str]:
    known = {"task": dice.choice(TASKS), "batch_size": str(2 ** dice.randint(1, 5)),
             "accumulation_steps": str(dice.randint(1, 8)), "epochs": str(dice.randint(1, 3)),
             "learning_rate": f"{5e-5 * 40 ** dice.random():.6g}",
             "warmup_steps": str(dice.randint(0, 20)), "lora_rank": str(2 ** dice.randint(2, 6)),
             "seed": str(dice.randint(0, 4))}  # fmt: skip
    return known | {f"param_{n}": str(dice.randrange(100)) for n in range(PARAMS - len(known))}


def _tags(dice: random.Random) -> dict[str, str]:
    loss, kg = dice.uniform(1, 3), dice.uniform(0.05, 1)
    parts = [n / 4 for n in range(5)]
    course = [[int(200 * x), x, loss + 2 - 2 * x**0.5, kg * x] for x in parts]
    known = {KIND: "trial", "data_digest": "0123456789ab", "energy_valid": "true", "pue": "1.0",
             "intensity_g_per_kwh": "475.0", "intensity_zone": "world average",
             "intensity_assumed": "true", "green_tune.evaluations": json.dumps(course),
             "mlflow.user": "someone", "mlflow.source.name": "train"}  # fmt: skip
    known |= {name: dice.choice(texts) for name, texts in GRIDS.items()}
    return known | {f"tag_{n}": "as long as most of them" for n in range(TAGS - len(known))}


def fill(uri: str, count: int) -> None:
    """Makes an MLflow store of that many runs."""
    import sqlalchemy
    from mlflow import MlflowClient
    from mlflow.store.tracking.dbmodels import models

    experiment = int(MlflowClient(uri).create_experiment("made up"))
    tables: dict[str, Any] = {"run": models.SqlRun, "metric": models.SqlLatestMetric,
                              "param": models.SqlParam, "tag": models.SqlTag}  # fmt: skip
    dice = random.Random(0)
    with sqlalchemy.create_engine(uri).begin() as connection:
        for first in range(0, count, BATCH):
            numbers = range(first, min(first + BATCH, count))
            for name, part in rows(numbers, experiment, dice).items():
                connection.execute(sqlalchemy.insert(tables[name].__table__), part)


def report(selected: "Selection") -> int:
    """What `compare` makes of a selection, as files that nobody keeps; how many bytes they have."""
    from green_tune import dossier, page

    links = {
        record.run_id: f"http://127.0.0.1:5000/#/{record.run_id}" for record in selected.records
    }
    document = dossier.make(dossier.Case(selection=selected, links=links))
    return sum(len(content) for _, content in page.files(document))


def read_ours(uri: str) -> dict[str, float]:
    """Seconds of each part, as `compare` does it."""
    from green_tune.query import EVERY, Query
    from green_tune.selection import select
    from green_tune.tracking import Tracker

    seconds = {}
    found, seconds["read"] = timed(lambda: Tracker(uri).find(Query(kinds=EVERY)))
    selection, seconds["select"] = timed(lambda: select(found))
    _, seconds["report"] = timed(lambda: report(selection))
    return seconds | {"runs": float(len(selection.records))}


def read_plain(uri: str) -> dict[str, float]:
    """Seconds of MLflow's own way, which makes a pandas table of all runs."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    found, seconds = timed(lambda: mlflow.search_runs(search_all_experiments=True))
    return {"read": seconds, "runs": float(len(found))}


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What the work comes to, and its wall seconds."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def child(who: str) -> None:
    """One reading of the store in the environment, in this process; as a line of JSON."""
    for name in EITHER_NEEDS:
        import_module(name)
    before = peak_mib()
    uri = os.environ["MLFLOW_TRACKING_URI"]
    done = read_ours(uri) if who == OURS else read_plain(uri)
    peak = peak_mib()
    sys.stdout.write(json.dumps(done | {"peak_mib": peak, "grown_mib": peak - before}) + "\n")


def peak_mib() -> float:
    """The most memory that this process has had; rusage would count its parent's before exec."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) / KIB_PER_MIB


def measure(uri: str, who: str) -> dict[str, float]:
    """One reading in a process of its own; the address goes by the environment, not the command."""
    command = [sys.executable, "-m", "benchmarks.comparing", "--child", who]
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{who} failed:\n{done.stderr}")
    one: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return one | {"total": sum(one.get(part, 0.0) for part in ("read", "select"))}


@contextmanager
def stores(counts: Sequence[int]) -> Iterator[dict[tuple[str, int], str]]:
    """Filled stores of either kind, by their address; gone afterwards."""
    server = import_module("tests.postgres").Postgres()
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = {}
            for count in counts:
                made["SQLite", count] = f"sqlite:///{Path(folder) / f'{count}.db'}"
                url = server.new_database()
                made["PostgreSQL", count] = url.replace("://", "+psycopg2://")
            for (kind, count), uri in made.items():
                say(f"makes {count} runs in {kind}")
                fill(uri, count)
            yield made
    finally:
        server.close()


def page(samples: Samples, known: Mapping[str, str]) -> str:
    """Everything as Markdown."""
    keys = list(dict.fromkeys((kind, runs) for kind, runs, _ in samples))
    head = ["", "green-tune", PLAIN, "ratio", "95 %", "the report then", "memory", PLAIN, "ratio"]
    lines = [
        "# Reading a whole store", "",
        f"Wall seconds to read and select all runs of a store, each with {METRICS} metrics, "
        f"{PARAMS} params and {TAGS} tags, beside plain `mlflow.search_runs`; medians of "
        f"{len(next(iter(samples.values())))} processes each, in turns. The ratio is "
        f"{PLAIN} by green-tune, pair by pair, with a bootstrap interval of its median. Memory is "
        "what a process grew by at its peak, in MiB, beyond what it had with everything imported; "
        "that of green-tune holds the report, with all figures and tables.",
        "", *table(head, [_row(samples, *key) for key in keys]),
        "; ".join(f"{k}: {v}" for k, v in known.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _row(samples: Samples, kind: str, runs: int) -> list[str]:
    ours, plain = (samples[kind, runs, who] for who in (OURS, PLAIN))

    def median(of: Sequence[Mapping[str, float]], name: str) -> float:
        return statistics.median(one[name] for one in of)

    ratios = [theirs["total"] / mine["total"] for mine, theirs in zip(ours, plain, strict=True)]
    low, high = interval(ratios)
    memory = [median(of, "grown_mib") for of in (ours, plain)]
    return [
        f"{kind}, {runs:,} runs",
        f"{median(ours, 'total'):.2f} s",
        f"{median(plain, 'total'):.2f} s",
        f"{statistics.median(ratios):.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{median(ours, 'report'):.1f} s",
        *(f"{mib:.0f}" for mib in memory),
        f"{memory[1] / memory[0]:.1f}",
    ]


def main() -> None:
    """Makes the stores, reads them in turns, prints and records."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=(OURS, PLAIN), help=argparse.SUPPRESS)
    parser.add_argument("--discard", action="store_true", help="print, and record nothing")
    asked = parser.parse_args()
    if asked.child:
        child(asked.child)
        return
    device = job.this_cpu()
    versions = {name: metadata.version(name) for name in ("mlflow", "sqlalchemy", "pandas")}
    known = facts(device) | versions
    samples: Samples = {}
    with stores(asked.runs) as made:
        for number in range(asked.rounds):
            turns = (OURS, PLAIN) if number % 2 else (PLAIN, OURS)
            for (kind, count), uri in made.items():
                for who in turns:
                    samples.setdefault((kind, count, who), []).append(one := measure(uri, who))
                    if one["runs"] != count:
                        raise RuntimeError(f"{who} has read {one['runs']:.0f} of {count} runs")
                    say(f"{kind}, {count} runs, {who}: {one['total']:.2f} s, "
                        f"{one['grown_mib']:.0f} MiB")  # fmt: skip
    text = page(samples, known)
    if not asked.discard:
        named = {f"{kind}, {runs}, {who}": of for (kind, runs, who), of in samples.items()}
        write("comparing", device.name, text, {"facts": known, "samples": named})
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
