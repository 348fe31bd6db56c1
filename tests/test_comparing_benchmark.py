"""The benchmark of reading a store: what it writes can be read and selected, and what it says."""

import pytest
from mlflow import MlflowClient

from benchmarks import comparing
from benchmarks.comparing import METRICS, OURS, PARAMS, PLAIN, TAGS


def test_made_up_runs_are_runs_that_are_selected(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparing, "BATCH", 9)
    comparing.fill(store_uri, comparing.BATCH + 1)

    assert comparing.read_ours(store_uri)["runs"] == comparing.BATCH + 1


def test_each_made_up_run_holds_as_much_as_is_said(store_uri: str) -> None:
    comparing.fill(store_uri, 2)
    client = MlflowClient(store_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'made up'")

    for run in client.search_runs([experiment.experiment_id]):
        assert len(run.data.metrics) == METRICS
        assert len(run.data.params) == PARAMS
        assert len(run.data.tags) == TAGS


def test_the_page_has_the_ratio_of_each_pair() -> None:
    ours = [{"total": s, "report": 2 * s, "grown_mib": 50.0} for s in (1.0, 2.0, 4.0)]
    plain = [{"total": s, "grown_mib": 200.0} for s in (3.0, 5.0, 8.0)]
    page = comparing.page({("SQLite", 1000, OURS): ours, ("SQLite", 1000, PLAIN): plain}, {})

    (row,) = [line for line in page.splitlines() if line.startswith("| SQLite")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        *("SQLite, 1,000 runs", "2.00 s", "5.00 s"),
        *("2.50", "2.00 to 3.00", "4.0 s", "50", "200", "4.0"),
    ]
