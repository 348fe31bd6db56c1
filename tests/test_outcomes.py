"""What came of quotes is read off what a run has noted, whoever else has written there."""

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from synthetic import START, Effects, quoted, searched

from green_tune import outcomes, report
from green_tune.outcomes import UNITS
from green_tune.results import REUSED, SHARED, RunRecord

RUNS = quoted(0, searched(0, Effects(), 6))


def without_errors(record: RunRecord, status: str = "KILLED") -> RunRecord:
    kept = {name: x for name, x in record.metrics.items() if not name.endswith("_error")}
    return replace(record, status=status, metrics=kept)


def with_metrics(record: RunRecord, **metrics: float) -> RunRecord:
    return replace(record, metrics={**record.metrics, **metrics})


def test_what_came_is_what_the_run_spent() -> None:
    for figure, unit in UNITS.items():
        found, name = outcomes.known(RUNS, figure), f"{figure}_{unit}"
        assert [each.came for each in found] == pytest.approx(
            [each.record.metrics[name] for each in found]
        )


def test_a_figure_that_a_comparison_has_cut_changes_no_outcome() -> None:
    whole = outcomes.known(RUNS, "energy")
    cut = outcomes.known([with_metrics(r, energy_kwh=1e-9) for r in RUNS], "energy")
    assert [each.came for each in cut] == [each.came for each in whole]


def test_outcomes_are_in_the_order_in_which_runs_began() -> None:
    hours = (3, 1, 2, 0, 5, 4)
    mixed = [
        replace(record, started=START + timedelta(hours=at))
        for record, at in zip(RUNS, hours, strict=True)
    ]
    began = [each.record.started for each in outcomes.known(mixed, "energy")]
    assert began == sorted(began)


def test_it_held_where_it_came_out_within_the_interval() -> None:
    (one,) = outcomes.known(RUNS[:1], "energy")
    said = one.said
    metrics = {"quote.energy_low_kwh": said / 2, "quote.energy_high_kwh": said * 2}
    for error, held in ((0.9, True), (1.1, False), (-0.4, True), (-0.6, False)):
        (found,) = outcomes.known(
            [with_metrics(RUNS[0], **metrics, **{"quote.energy_error": error})], "energy"
        )
        assert found.held is held


def test_a_quote_without_an_interval_neither_held_nor_failed() -> None:
    bare = {k: v for k, v in RUNS[0].metrics.items() if "_low_" not in k}
    (found,) = outcomes.known([replace(RUNS[0], metrics=bare)], "energy")
    assert found.held is None


@pytest.mark.parametrize("error", [-1.0, -2.0, math.inf, math.nan])
def test_an_error_that_cannot_be_is_none(error: float) -> None:
    odd = with_metrics(RUNS[0], **{"quote.energy_error": error})
    assert not outcomes.known([odd], "energy")
    assert outcomes.known([odd], "runtime")


@pytest.mark.parametrize("said", [0.0, -1.0, math.inf, math.nan])
def test_nothing_is_measured_against_a_quote_of_nothing(said: float) -> None:
    assert not outcomes.known([with_metrics(RUNS[0], **{"quote.energy_kwh": said})], "energy")


def test_runs_that_did_not_end_as_quoted_are_counted_and_those_under_way_are_not() -> None:
    runs = [
        without_errors(RUNS[0]),
        without_errors(RUNS[1], "FAILED"),
        without_errors(RUNS[2], "FINISHED"),  # one that was resumed
        without_errors(RUNS[3], "RUNNING"),
        *RUNS[4:],
    ]
    assert outcomes.unknown(runs) == {outcomes.NOT_AS_QUOTED: 3}


def test_energy_that_is_not_trusted_is_no_outcome_but_its_time_is_one() -> None:
    odd = replace(RUNS[0], tags={**RUNS[0].tags, "energy_valid": "false"})
    assert not outcomes.known([odd], "energy")
    assert len(outcomes.known([odd], "runtime")) == 1
    assert outcomes.unknown([odd]) == {outcomes.DISTRUSTED: 1}


def test_a_run_beside_another_says_nothing_of_its_quote() -> None:
    flags = f"paused for 2.0 s; {SHARED}, split equally, for 30.0 s"
    beside = replace(RUNS[0], tags={**RUNS[0].tags, "energy_flags": flags})
    assert [outcomes.known([beside], figure) for figure in UNITS] == [[], []]
    assert outcomes.unknown([beside]) == {outcomes.BESIDE: 1}
    paused = replace(RUNS[0], tags={**RUNS[0].tags, "energy_flags": "paused for 2.0 s"})
    assert len(outcomes.known([paused], "energy")) == 1


def test_a_run_that_was_taken_over_has_no_quote_of_its_own() -> None:
    taken = replace(RUNS[0], tags={**RUNS[0].tags, REUSED: "another"})
    assert not outcomes.known([taken], "energy")
    assert outcomes.unknown([taken, without_errors(taken)]) == {}


def test_runs_without_a_quote_say_nothing() -> None:
    foreign = replace(RUNS[0], metrics={"val_loss": 1.0}, tags={}, params={})
    assert [outcomes.known([foreign], figure) for figure in UNITS] == [[], []]
    assert outcomes.unknown([foreign]) == {}


@pytest.mark.parametrize("tag", ["", "guessed", "<b>"])
def test_evidence_that_nobody_knows_is_called_so(tag: str) -> None:
    odd = replace(RUNS[0], tags={**RUNS[0].tags, "quote.evidence": tag})
    assert outcomes.evidence(odd) == "unknown"
    assert outcomes.evidence(replace(odd, tags={})) == "unknown"
    assert outcomes.evidence(RUNS[0]) == "fit"


def test_a_cpu_is_in_no_table_of_gpus() -> None:
    tags = {**RUNS[0].tags, "quote.evidence": "table"}
    on = [replace(RUNS[0], tags={**tags, "gpu_type": name}) for name in ("cpu", "t4")]
    assert [outcomes.spoken(each) for each in on] == ["assumed rates", "the table of GPUs"]
    shown = report.quoted(on[0])
    assert shown[1].startswith("by assumed rates: ")
