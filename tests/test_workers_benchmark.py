"""The benchmark of workers: what it counts, refuses and says. It starts no server here."""

from typing import Any

import optuna
import pytest

from benchmarks import workers, workers_page
from benchmarks.workers_page import Found
from green_tune import storage
from green_tune.study import OBJECTIVES

SERVERS = {
    "studies_ms": 400.0, "studies_commits": 200.0, "tracking_ms": 800.0, "tracking_commits": 400.0,
    "postgres_cpu_s": 2.0, "mlflow_cpu_s": 6.0, "requests": 80.0, "refused": 1.0,
    "wall_s": 10.0, "machine_cpu_s": 20.0, "workers_cpu_s": 6.0, "s3_cpu_s": 1.0,
    "database_errors": 0.0, "slow_statements": 3.0,
}  # fmt: skip
SESSION = {"requests": 4.0, "mlflow_cpu_s": 0.6, "postgres_cpu_s": 0.2}


def swept(workers: int, **more: Any) -> Found:
    return {"workers": workers, "total": 4, "servers": SERVERS, "sessions_with_trials": workers,
            "training_s": 2.0, "setup_and_saving_s": 4.0, "outside_s": 2.0, "wall_s": 8.0,
            "trial_s": [1.0, 2.0, 3.0, 4.0], **more}  # fmt: skip


def alone(workers: int, wall_s: float) -> Found:
    trial = {"claim_s": 0.2, "lock_s": 0.05, "tell_s": 0.01}
    return {"workers": workers, "sampler": "random", "total": 4, "trials": [trial] * 4,
            "wall_s": wall_s, "cpu_s": 2.0, "servers": SERVERS}  # fmt: skip


def rows(page: str, first: str) -> list[list[str]]:
    found = [line for line in page.splitlines() if line.startswith(f"| {first}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found]


def test_the_page_has_figures_of_each_trial_and_ratios_to_one_worker() -> None:
    page = workers_page.page(
        [alone(1, 8.0), alone(8, 4.0)],
        [
            swept(1),
            swept(8, wall_s=4.0, servers=SERVERS | {"mlflow_cpu_s": 10.0}),
            {"workers": 1, "total": 4, "servers": SERVERS | SESSION},
        ],
        {"cores": "2"},
    )
    assert rows(page, "random, 8") == [[
        "random, 8", "1.0", "2.00", "200 ms", "200 ms", "50 ms", "50 ms", "10 ms", "10 ms",
        "100.0 ms", "50.0", "500 ms", "500 ms", "0.5 cores",
    ]]  # fmt: skip
    served, spent = rows(page, "8")
    assert served[:8] == ["8", "20.0", "200 ms", "100", "100.0 ms", "50.0", "2500 ms", "500 ms"]
    assert served[8:] == ["12.0", "1400 ms", "0.78"], "without eight sessions, and without one"
    assert spent == [
        "8, 8 with trials", "60.0", "2.00", "2.50 s", "3.70 s", "0.50 s", "1.00 s", "0.50 s", "75%",
        "0.1 cores",
    ]  # fmt: skip
    (session,) = rows(page, "a session alone")
    assert session[1:3] == ["4.0", "800 ms"], "it is given as a whole"


def test_trouble_of_every_row_is_said() -> None:
    page = workers_page.page([alone(1, 8.0)], [swept(1)], {"cores": "2"})
    assert "not answered with success: 2." in page
    assert "over 100 ms: 6." in page


def test_a_study_that_lacks_a_trial_or_has_run_one_again_is_refused(url: str) -> None:
    study = optuna.create_study(
        storage=storage.open_storage(url), study_name="s", directions=["minimize"] * len(OBJECTIVES)
    )
    study.tell(study.ask(), [1.0, 1.0])
    assert len(workers.check("s", 1, url)) == 1
    with pytest.raises(RuntimeError, match="2 complete trials"):
        workers.check("s", 2, url)
    study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    with pytest.raises(RuntimeError, match="FAIL"):
        workers.check("s", 1, url)


def test_the_lock_that_is_timed_still_locks(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_lock", storage._lock)
    took = workers._timed_locks(storage)
    with storage.locked(url), storage.locked(url):
        assert len(took) == 1, "who is in already does not enter again"
    assert took[0] > 0
