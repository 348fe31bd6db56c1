"""A sweep's account book, over a made-up meter and made-up runs."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from green_tune import worker
from green_tune.config import SweepConfig
from green_tune.footprint import Basis
from green_tune.ledger import Ledger
from green_tune.results import (
    EVALUATIONS,
    REUSED,
    STOPPED_EARLY,
    WORKER,
    Evaluation,
    RunRecord,
    to_tag,
)

KG_PER_KWH = 0.5
BASIS = Basis(g_per_kwh=500.0)
HALF = Evaluation(step=2, progress=0.5, val_loss=1.0, emissions_kg=0.1)
WHOLE = Evaluation(step=4, progress=1.0, val_loss=0.9, emissions_kg=0.2)


def a_run(
    kwh: float | None = None,
    *,
    kind: str = "trial",
    who: str = "elsewhere:1:1",
    status: str = "FINISHED",
    reused: bool = False,
    epochs: int = 1,
    course: Sequence[Evaluation] = (WHOLE,),
) -> RunRecord:
    """A run with what it has spent in its figures; a session has it beside its trials."""
    prefix = "" if kind == "trial" else "overhead/"
    spent = {"energy_kwh": kwh, "emissions_kg": (kwh or 0) * KG_PER_KWH, "runtime_h": kwh}
    return RunRecord(
        run_id="r",
        name="one",
        kind=kind,
        status=status,
        started=datetime(2026, 1, 1, tzinfo=UTC),
        params={"epochs": str(epochs), "batch_size": "8", "lora_rank": "16"},
        metrics={}
        if kwh is None
        else {prefix + name: value or 0.0 for name, value in spent.items()},
        tags={WORKER: who, EVALUATIONS: to_tag(course)} | ({REUSED: "x"} if reused else {}),
    )


def a_ledger(*records: RunRecord, here_kwh: float = 0.0, **options: float) -> Ledger:
    """The book of a sweep whose own meter stands at `here_kwh`."""
    meter: Any = SimpleNamespace(
        spent_kwh=here_kwh, spent_kg=here_kwh * KG_PER_KWH, read=lambda: None, basis=BASIS
    )
    trials = [record for record in records if record.kind == "trial"]
    sessions = [record for record in records if record.kind != "trial"]
    ledger = Ledger(SweepConfig(**options), meter, lambda: (trials, sessions))  # type: ignore[arg-type]
    ledger.look()
    return ledger


def test_what_is_spent_is_this_meter_and_the_runs_of_all_others() -> None:
    spent = a_ledger(
        a_run(10, who=worker.this()),  # is in the meter
        a_run(1),
        a_run(2, who="of a session before:2:2", status="FAILED"),
        a_run(0.5, kind="worker"),
        here_kwh=100,
    ).spent()
    assert spent.energy_kwh == pytest.approx(103.5)
    assert spent.emissions_kg == pytest.approx(103.5 * KG_PER_KWH)


def test_what_was_taken_over_has_cost_nothing_here() -> None:
    assert a_ledger(a_run(7, reused=True)).spent().energy_kwh == 0


def test_what_the_first_session_spent_beside_its_trials_counts_in_the_next_one() -> None:
    # A later session opens the study's own run again, and so it is tagged as this worker's.
    assert a_ledger(a_run(3, kind="sweep", who=worker.this())).spent().energy_kwh == 3


def test_a_session_under_way_has_no_figures_yet() -> None:
    assert a_ledger(a_run(kind="worker", status="RUNNING")).spent().energy_kwh == 0


def test_a_totals_line_of_the_studys_run_is_not_counted_beside_its_trials() -> None:
    run = a_run(3, kind="sweep")
    totals = RunRecord(**(run.__dict__ | {"metrics": {**run.metrics, "energy_kwh": 50.0}}))
    assert a_ledger(totals).spent().energy_kwh == 3


def test_a_trial_under_way_elsewhere_counts_as_what_it_is_expected_to_take() -> None:
    under_way = a_run(status="RUNNING", epochs=2, course=())
    ledger = a_ledger(a_run(4, who=worker.this()), under_way)
    expected = ledger.expected({"epochs": 2, "batch_size": 8, "lora_rank": 16})
    assert expected.energy_kwh == pytest.approx(8, rel=0.05)
    assert ledger.spent().energy_kwh == pytest.approx(expected.energy_kwh)


def test_a_run_that_ended_before_it_began_has_spent_nothing() -> None:
    whole = a_run(0.2)
    never_began = a_run(status="FAILED", course=())
    assert a_ledger(whole, never_began).spent().energy_kwh == a_ledger(whole).spent().energy_kwh


def test_this_workers_own_trial_under_way_is_in_the_meter_alone() -> None:
    under_way = a_run(who=worker.this(), status="RUNNING", course=())
    assert a_ledger(a_run(4, who=worker.this()), under_way).spent().energy_kwh == 0


def test_nothing_is_expected_while_nothing_is_known() -> None:
    ledger = a_ledger(a_run(status="RUNNING", course=()), energy_budget_kwh=1)
    assert ledger.spent().energy_kwh == 0
    assert ledger.refuse({"epochs": 3}) == ""


@pytest.mark.parametrize(
    "useless", [a_run(9, status="FAILED"), a_run(9, course=()), a_run(course=[HALF])]
)
def test_a_trial_without_a_result_or_figures_teaches_no_price(useless: RunRecord) -> None:
    assert a_ledger(useless).expected({"epochs": 1}).energy_kwh == 0


def test_a_trial_that_was_ended_half_way_teaches_what_a_whole_one_takes() -> None:
    half = a_run(2, course=[HALF], who=worker.this())
    cut = replace(half, tags={**half.tags, STOPPED_EARLY: "after step 2 of 4"})
    ledger = a_ledger(cut)
    assert ledger.expected({"epochs": 1}).energy_kwh == pytest.approx(4)


@pytest.mark.parametrize(
    ("option", "here", "said"),
    [
        ({"energy_budget_kwh": 10}, 7, "energy_budget_kwh=10: 7 kWh are spent, 3 kWh are left and"),
        ({"emissions_budget_kg": 5}, 7, "emissions_budget_kg=5: 3.5 kg are spent, 1.5 kg are left"),
        ({"energy_budget_kwh": 10}, 10, "energy_budget_kwh=10: 10 kWh are spent, nothing is left"),
        ({"timeout_h": 3}, 0, "3 h are left and the next trial is expected to take 4 h"),
    ],
)
def test_a_trial_that_would_break_a_budget_is_refused_with_the_figures(
    option: dict[str, float], here: float, said: str
) -> None:
    ledger = a_ledger(a_run(4, who=worker.this()), here_kwh=here, **option)
    assert said in ledger.refuse({"epochs": 1})


def test_a_trial_that_a_budget_allows_is_not_refused() -> None:
    samples = a_run(4, who=worker.this())
    assert a_ledger(samples, here_kwh=5, energy_budget_kwh=10).refuse({"epochs": 1}) == ""
    assert a_ledger(samples, here_kwh=5).refuse({"epochs": 1}) == ""
    assert a_ledger(samples, here_kwh=5, energy_budget_kwh=10).refuse({"epochs": 3}) != ""


def test_a_trial_under_way_ends_when_what_its_end_takes_is_no_longer_left() -> None:
    ledger = a_ledger(here_kwh=8, emissions_budget_kg=5)
    assert ledger.over(1.8) == ""
    assert "1 kg are left and its last validation is expected to take 1.1 kg" in ledger.over(2.2)
    assert "nothing is left" in a_ledger(here_kwh=10, emissions_budget_kg=5).over()


def test_a_trial_under_way_is_judged_by_a_fresh_reading_where_there_is_a_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s, readings = [1000.0], list[float]()
    monkeypatch.setattr("green_tune.ledger.time", SimpleNamespace(monotonic=lambda: now_s[0]))

    class Meter:
        spent_kwh = spent_kg = 0.0
        basis = BASIS

        def read(self) -> None:
            readings.append(now_s[0])
            self.spent_kwh += 1.0

    meter: Any = Meter()
    without = Ledger(SweepConfig(), meter, lambda: ([], []))
    ledger = Ledger(SweepConfig(energy_budget_kwh=2.5), meter, lambda: ([], []))
    now_s[0] += 1
    assert without.over() == ""
    assert readings == []
    assert [ledger.over(), ledger.over()] == ["", ""]  # the second asks within a moment
    assert readings == [1001.0]
    now_s[0] += 1
    assert ledger.over() == ""
    now_s[0] += 1
    assert "3 kWh are spent" in ledger.over()


def test_a_budget_counts_what_the_others_have_spent_since() -> None:
    meter: Any = SimpleNamespace(spent_kwh=0.0, spent_kg=0.0, read=lambda: None, basis=BASIS)
    trials: list[RunRecord] = []
    ledger = Ledger(SweepConfig(energy_budget_kwh=2), meter, lambda: (trials, []))
    ledger.look()
    assert ledger.over() == ""
    trials.append(a_run(2))
    assert ledger.over() == ""
    ledger.look()
    assert "2 kWh are spent" in ledger.over()


def test_a_timeout_is_the_time_since_this_command_began(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [1000.0]
    monkeypatch.setattr("green_tune.ledger.time", SimpleNamespace(monotonic=lambda: now_s[0]))
    ledger = a_ledger(a_run(100), timeout_h=2.0)  # its hours are another's
    now_s[0] += 1.5 * 3600
    assert ledger.spent().runtime_h == 1.5
    assert ledger.over() == ""
    now_s[0] += 3600
    assert ledger.over() == "timeout_h=2: 2.5 h are spent, nothing is left"
