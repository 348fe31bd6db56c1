"""The page of the benchmark of workers: tables of what it has measured, and what they mean."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.record import table

MS_PER_S = 1000.0
SLOW_MS = 100  # PostgreSQL logs statements that take longer
SMALLEST = {
    "gpu": "cpu", "country": "FRA", "max_train_examples": "24", "max_eval_examples": "8",
    "evals": "1", "epochs": "1", "batch_size": "4..8", "accumulation_steps": "1",
    "quality_examples": "0", "sampler": "random", "early_stop": "false", "reuse": "never",
    "warm_start": "never",
}  # fmt: skip
PARTS = ("training_s", "setup_and_saving_s", "outside_s")
TROUBLE = ("refused", "database_errors", "slow_statements")
ALONE_HEAD = ["sampler, workers", "trials/s", "ratio", "claim", "90 %", "of it lock", "90 %",
              "tell", "90 %", "database/trial", "commits", "PostgreSQL CPU",
              "workers' CPU", "others"]  # fmt: skip
SERVED_HEAD = ["workers", "requests/trial", "runs' database", "commits", "study's database",
               "commits", "MLflow CPU", "PostgreSQL CPU", "requests, sessions left out",
               "all CPU, sessions left out", "ratio"]  # fmt: skip
SPENT_HEAD = ["workers", "trials/min", "ratio", "a trial", "90 %", "training", "setup, saving",
              "outside of runs", "not training", "others"]  # fmt: skip

Found = dict[str, Any]


def page(alone: Sequence[Found], sweeps: Sequence[Found], known: Mapping[str, str]) -> str:
    """Everything as Markdown."""
    base = sweeps[0]
    trained = [one for one in sweeps if "trial_s" in one]
    lines = [
        "# Workers of one study", "",
        "Measured, on one machine: PostgreSQL, an S3 store and MLflow's server (2 processes, "
        f"with a login), and workers that share {known['cores']} cores with them and with whatever "
        "else runs. So the pace of several workers is that of these cores, and no cluster's; what "
        "the servers do for a trial is. Database time is PostgreSQL's `active_time`: what its "
        "sessions spend on statements, waits for a core and for the disk included. A ratio is that "
        "to the first row of its kind; where other processes kept cores busy meanwhile (others), "
        "those of paces say little.",
        "", "## Studies alone", "",
        f"Claims and tells of {_range(one['total'] for one in alone)} trials without any training "
        "between, the most that a study hands out. A claim holds the study's lock while its "
        "sampler proposes; the lock's seconds are those until it is had, its own connection "
        "included. Each trial was claimed once, and none is lost.",
        "", *table(ALONE_HEAD, [_alone_row(one, alone) for one in alone]),
        "## Whole commands", "",
        f"`sweep` with {base['total']} trials of `tiny`, of {SMALLEST['max_train_examples']} "
        "examples, proposed at random, one thread each. The servers' figures are of whole commands "
        "divided by their trials, with the beginning and the end of each session. A session "
        "alone is one that finds nothing left to do, as a whole; left out of the others is as much "
        "for each of their sessions, which is modelled.",
        "", *table(SERVED_HEAD, [_served_row(one, sweeps) for one in sweeps]),
        "Seconds of the workers for each trial, between the first claim of each and its last tell: "
        "training and validation, the rest of the run, and what lies between runs. The last two "
        "hardly grow with a trial: here one trains for a moment, so next to nothing of "
        "its time is training.",
        "", *table(SPENT_HEAD, [_spent_row(one, base) for one in trained]),
        _trouble([*alone, *sweeps]), "",
        "; ".join(f"{k}: {v}" for k, v in known.items()), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _alone_row(one: Found, every: Sequence[Found]) -> list[str]:
    total, spent = one["total"], one["servers"]
    base = next(other for other in every if other["sampler"] == one["sampler"])
    times = ([trial[name] for trial in one["trials"]] for name in ("claim_s", "lock_s", "tell_s"))
    return [
        f"{one['sampler']}, {one['workers']}",
        f"{total / one['wall_s']:.1f}",
        f"{total * base['wall_s'] / base['total'] / one['wall_s']:.2f}",
        *(_ms(of(samples)) for samples in times for of in (statistics.median, _p90)),
        f"{spent['studies_ms'] / total:.1f} ms",
        f"{spent['studies_commits'] / total:.1f}",
        _ms(spent["postgres_cpu_s"] / total),
        _ms(one["cpu_s"] / total),
        _others(one),
    ]  # fmt: skip


def _served_row(one: Found, every: Sequence[Found]) -> list[str]:
    """Of each trial; of the session, where it has none."""
    trials, spent = (one["total"], one["servers"]) if "trial_s" in one else (1, one["servers"])
    return [
        f"{one['workers']}" if "trial_s" in one else "a session alone",
        f"{spent['requests'] / trials:.1f}",
        f"{spent['tracking_ms'] / trials:.0f} ms",
        f"{spent['tracking_commits'] / trials:.0f}",
        f"{spent['studies_ms'] / trials:.1f} ms",
        f"{spent['studies_commits'] / trials:.1f}",
        _ms(spent["mlflow_cpu_s"] / trials),
        _ms(spent["postgres_cpu_s"] / trials),
        *_without_sessions(one, every),
    ]


def _without_sessions(one: Found, every: Sequence[Found]) -> list[str]:
    """Requests and CPU of each trial less those of as many sessions alone; to those of the first.

    Modelled: a session is taken to cost what the last one did, whatever it found.
    """
    base, session = every[0], every[-1]
    if "trial_s" in session or "trial_s" not in one:
        return ["", "", ""]

    def of_each(row: Found, amount: Callable[[Found], float]) -> float:
        return float((amount(row) - row["workers"] * amount(session)) / row["total"])

    cpu, before = of_each(one, _server_cpu_s), of_each(base, _server_cpu_s)
    requests = of_each(one, lambda row: row["servers"]["requests"])
    return [f"{requests:.1f}", _ms(cpu), f"{cpu / before:.2f}"]


def _spent_row(one: Found, base: Found) -> list[str]:
    return [
        f"{one['workers']}, {one['sessions_with_trials']} with trials",
        f"{60 * one['total'] / one['wall_s']:.1f}",
        f"{one['total'] * base['wall_s'] / base['total'] / one['wall_s']:.2f}",
        f"{statistics.median(one['trial_s']):.2f} s",
        f"{_p90(one['trial_s']):.2f} s",
        *(f"{one[name] / one['total']:.2f} s" for name in PARTS),
        f"{1 - one['training_s'] / sum(one[name] for name in PARTS):.0%}",
        _others(one),
    ]


def _trouble(every: Sequence[Found]) -> str:
    """What went wrong, or was slow, as the servers have logged it."""
    sums = {name: sum(one["servers"][name] for one in every) for name in TROUBLE}
    return (
        f"Requests that were not answered with success: {sums['refused']:.0f}. Errors of "
        f"PostgreSQL: {sums['database_errors']:.0f}. Statements over {SLOW_MS} ms: "
        f"{sums['slow_statements']:.0f}."
    )


def _others(one: Found) -> str:
    """How many cores were kept busy meanwhile by what is no part of this."""
    spent = one["servers"]
    ours = sum(spent[f"{who}_cpu_s"] for who in ("workers", "s3", "postgres", "mlflow"))
    return f"{max(0.0, spent['machine_cpu_s'] - ours) / spent['wall_s']:.1f} cores"


def _server_cpu_s(one: Found) -> float:
    return float(one["servers"]["mlflow_cpu_s"] + one["servers"]["postgres_cpu_s"])


def _p90(samples: Sequence[float]) -> float:
    return float(statistics.quantiles(samples, n=10, method="inclusive")[-1])


def _ms(seconds: float) -> str:
    return f"{MS_PER_S * seconds:.0f} ms"


def _range(counts: Iterable[int]) -> str:
    return " or ".join(str(count) for count in sorted(set(counts), reverse=True))
