"""The scoreboard says how right quotes were, and nothing where nobody can know."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from scipy import stats  # type: ignore[import-untyped]
from synthetic import START, Effects, grid, quoted, searched

from green_tune import conformal, outcomes, scoreboard
from green_tune.results import RunRecord

BARE = searched(0, Effects(), 40)
RUNS = quoted(0, BARE, off=0.1, factor=1.2)


def by_start(records: Sequence[RunRecord]) -> list[RunRecord]:
    """One an hour, as they are given."""
    return [replace(r, started=START + timedelta(hours=n)) for n, r in enumerate(records)]


def with_errors(records: Sequence[RunRecord], errors: Sequence[float]) -> list[RunRecord]:
    return [
        replace(r, metrics={**r.metrics, "quote.energy_error": error})
        for r, error in zip(by_start(records), errors, strict=True)
    ]


def test_half_of_the_quotes_are_within_the_median_and_nine_in_ten_within_the_ninth() -> None:
    errors = [(-1) ** n * (n + 1) / 100 for n in range(10)]
    found = scoreboard.accuracy(outcomes.known(with_errors(RUNS[:10], errors), "energy"))
    assert found.quotes == 10
    assert found.median == pytest.approx(0.055)
    assert found.ninth == pytest.approx(0.09)
    assert found.bias == pytest.approx(1 + statistics.median(errors))


def test_one_quote_is_its_own_median_and_none_is_no_accuracy() -> None:
    found = scoreboard.accuracy(outcomes.known(with_errors(RUNS[:1], [-0.3]), "energy"))
    assert (found.median, found.ninth, found.bias) == pytest.approx((0.3, 0.3, 0.7))
    with pytest.raises(ValueError, match="at least one quote"):
        scoreboard.accuracy([])


def test_lately_is_the_median_of_the_last_ten() -> None:
    errors = [0.5] * 10 + [(-1) ** n * n / 100 for n in range(1, 11)]
    found = scoreboard.accuracy(outcomes.known(with_errors(RUNS[:20], errors), "energy"))
    assert found.lately == pytest.approx(0.055)
    assert found.median == pytest.approx(0.3)


def test_what_held_is_a_share_with_its_exact_interval() -> None:
    errors = [0.1] * 17 + [0.5] * 3
    held = scoreboard.accuracy(outcomes.known(with_errors(RUNS[:20], errors), "energy")).held
    assert (held.estimate, held.n) == (0.85, 20)
    exact = stats.binomtest(17, 20).proportion_ci(0.95, "exact")
    assert (held.low, held.high) == pytest.approx((exact.low, exact.high))


def test_there_is_a_score_for_each_task_model_gpu_and_evidence() -> None:
    runs = grid(0, Effects(), seeds=1)
    both = [*quoted(0, runs), *quoted(1, [replace(r, run_id=r.run_id + "2") for r in runs],
                                      evidence="probe")]  # fmt: skip
    found = scoreboard.scores(both)
    keys = [(each.panel.task, each.model, each.gpu, each.evidence) for each in found]
    assert len(set(keys)) == len(keys) == 2 * len(runs)
    assert {key[3] for key in keys} == {"fit", "probe"}
    assert keys == sorted(keys)  # the better evidence comes first here by its name as well
    assert sum(each.of["energy"].quotes for each in found) == len(both)


def test_scores_are_found_again_in_the_table() -> None:
    runs = [*RUNS, *quoted(1, BARE, evidence="table", off=0.3, bias=2.0)]
    table = scoreboard.table(runs)
    fit, by_table = table.rows
    assert (fit["evidence"], by_table["evidence"]) == ("fit", "table")
    assert by_table["energy_ratio_median"] == pytest.approx(2.0, rel=0.15)
    assert by_table["energy_error_median"] > fit["energy_error_median"] > 0
    for row in table.rows:
        assert set(row) == {column.name for column in table.columns}
        assert row["energy_held_low"] <= row["energy_held"] <= row["energy_held_high"]


def test_quotes_without_intervals_have_no_share_that_held() -> None:
    bare = [
        replace(r, metrics={k: v for k, v in r.metrics.items() if "_low_" not in k}) for r in RUNS
    ]
    (row,) = scoreboard.table(bare).rows
    assert row["energy_held"] is row["energy_held_low"] is row["energy_held_high"] is None
    assert "within" not in scoreboard.summary(bare)


def test_a_rolling_error_is_that_of_the_last_ten_of_its_kind() -> None:
    errors = [n / 100 for n in range(1, 26)]
    runs = with_errors(RUNS[:25], errors)
    other = [replace(r, tags={**r.tags, "quote.evidence": "table"}) for r in runs[::5]]
    mixed = [*other, *(r for r in runs if r.run_id not in {o.run_id for o in other})]
    found = scoreboard.rolling(mixed)
    assert list(found) == ["fit", "table"]
    numbers = [point.number for points in found.values() for point in points]
    assert sorted(numbers) == list(range(1, 26))
    mine = [errors[point.number - 1] for point in found["fit"]]
    for at, point in enumerate(found["fit"]):
        last = mine[max(0, at - 9) : at + 1]
        assert point.off == pytest.approx(mine[at])
        assert point.of == len(last)
        assert point.median == pytest.approx(statistics.median(last))


def test_ratios_are_of_one_evidence_the_newest_last() -> None:
    runs = with_errors(RUNS[:6], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    runs[1] = replace(runs[1], tags={**runs[1].tags, "quote.evidence": "probe"})
    runs[3] = replace(runs[3], tags={})
    mixed = runs[::-1]
    fit = scoreboard.ratios(mixed, evidence="fit", figure="energy")
    assert fit == pytest.approx([1.1, 1.3, 1.5, 1.6])
    assert scoreboard.ratios(mixed, evidence="probe", figure="energy") == pytest.approx([1.2])
    assert scoreboard.ratios(mixed, evidence="same", figure="energy") == []


def test_past_ratios_make_an_interval_that_holds_nine_of_ten_new_ones() -> None:
    past = quoted(1, searched(1, Effects(), 200), off=0.2)
    new = quoted(2, searched(2, Effects(), 400), off=0.2)
    width = conformal.width(scoreboard.ratios(past, evidence="fit", figure="runtime"), 3.0)
    ratios = scoreboard.ratios(new, evidence="fit", figure="runtime")
    within = sum(1 / width.factor <= ratio <= width.factor for ratio in ratios)
    assert stats.binomtest(within, len(ratios), conformal.LEVEL).pvalue > 0.01


def test_the_summary_has_the_numbers_of_the_accuracy() -> None:
    found = scoreboard.accuracy(outcomes.known(RUNS, "energy"))
    text = scoreboard.summary(RUNS)
    assert text.startswith("Quoted before they began: 40 runs; energy off by ")
    assert f"off by {scoreboard.percent(found.median)} % in the median" in text
    assert f"{scoreboard.percent(found.ninth)} % at the 90th percentile" in text
    assert f"{found.held.estimate * 40:.0f} of 40 within their 90 % interval" in text
    assert f"({100 * found.held.low:.0f} to {100 * found.held.high:.0f} %)" in text


def test_each_kind_of_evidence_is_said_where_there_are_several() -> None:
    assert len(scoreboard.in_words(RUNS)) == 1
    more = [*RUNS, *quoted(1, searched(3, Effects(), 4), evidence="same")]
    head, kinds = scoreboard.in_words(more)
    assert "Time off by" in head
    assert [line.split(":")[0] for line in kinds.splitlines()] == [
        "- By the same config", "- By a fit to this store",
    ]  # fmt: skip


def test_assumed_rates_of_a_cpu_are_called_so() -> None:
    by_fit, by_table = RUNS[:3], quoted(1, BARE[3:6], evidence="table")
    on_a_cpu = [replace(r, tags={**r.tags, "gpu_type": "cpu"}) for r in by_table]
    assert "- By assumed rates: 3 runs" in scoreboard.in_words([*by_fit, *on_a_cpu])[1]
    both = scoreboard.in_words([*by_fit, *by_table, *on_a_cpu])[1]
    assert "- By the table of GPUs or assumed rates: 6 runs" in both


def test_runs_that_did_not_end_as_quoted_are_counted_beside_the_others() -> None:
    cut = {name: x for name, x in RUNS[0].metrics.items() if not name.endswith("_error")}
    stopped = replace(RUNS[0], status="KILLED", metrics=cut)
    (text,) = scoreboard.in_words([stopped, *RUNS[1:]])
    assert "Quoted before they began: 39 runs" in text
    assert "Not judged: 1 run that did not end as quoted" in text
    assert scoreboard.in_words([stopped]) == []


def test_without_trusted_energy_quotes_are_judged_by_their_time() -> None:
    odd = [replace(r, tags={**r.tags, "energy_valid": "false"}) for r in RUNS]
    (text,) = scoreboard.in_words(odd)
    assert "; time off by" in text
    assert "energy off" not in text
    assert text.endswith("Not judged: 40 runs by their energy, which is not trusted.")
    (row,) = scoreboard.table(odd).rows
    assert "energy_error_median" not in row
    assert math.isfinite(row["runtime_error_median"])


@pytest.mark.parametrize("runs", [[], BARE, [replace(r, tags={}, params={}) for r in BARE]])
def test_nothing_is_said_where_no_run_has_a_quote(runs: list[RunRecord]) -> None:
    assert scoreboard.summary(runs) == ""
    assert scoreboard.in_words(runs) == []
    assert scoreboard.scores(runs) == []
    assert scoreboard.rolling(runs) == {}
