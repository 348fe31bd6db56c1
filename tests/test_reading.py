"""Reading back the newest runs alone, by which the next one is foretold."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from mlflow import MlflowClient

from green_tune import reading
from green_tune.query import Query
from green_tune.results import KIND, STUDY
from green_tune.tracking import Tracker

START = datetime(2026, 11, 22, tzinfo=UTC)


def put(uri: str, hour: int, kind: str = "train", **tags: str) -> None:
    """A run that started at an hour, and is called by it."""
    started = START + timedelta(hours=hour)
    every = {KIND: kind, "gpu_type": "a100-40"} | tags
    MlflowClient(uri).create_run("0", int(started.timestamp() * 1000), every, str(hour))


def names(uri: str, query: Query) -> list[int]:
    return [int(record.name) for record in reading.find(MlflowClient(uri), query)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (Query(newest=3), [3, 4, 5]),
        (Query(newest=9), [0, 1, 2, 3, 4, 5]),
        (Query(), [0, 1, 2, 3, 4, 5]),
        (Query(gpu="a100", newest=2), [4, 5]),
        (Query(gpu="a100-40", newest=2), [2, 4]),
        (Query(study="s", newest=2), [1, 2]),
        (Query(study="s", parts=True, newest=4), [2, 3, 4, 5]),
    ],
)
def test_the_newest_are_those_that_started_last_whatever_they_are_selected_by(
    store_uri: str, query: Query, found: list[int]
) -> None:
    for hour in (3, 0, 5, 1, 4, 2):  # not in their order, as several machines write them
        gpu = "a100-80" if hour % 2 else "a100-40"
        put(store_uri, hour, gpu_type=gpu, **{STUDY: "s" if hour < 3 else "s/part"})
    put(store_uri, 9, "sweep", **{STUDY: "s"})  # sums of others, which are never compared
    assert names(store_uri, query) == found


def test_a_store_of_more_pages_than_one_is_read_from_its_newest_run_on(
    store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE", 2)
    for hour in range(7):
        put(store_uri, hour, "sweep" if hour in {5, 6} else "trial")
    pages: list[object] = []
    real = MlflowClient.search_runs

    def search_runs(self: MlflowClient, *asked: Any, **more: Any) -> Any:
        pages.append(more.get("page_token"))
        return real(self, *asked, **more)

    monkeypatch.setattr(MlflowClient, "search_runs", search_runs)
    assert names(store_uri, Query(newest=3)) == [2, 3, 4]
    assert len(pages) == 3  # of four: those with runs 6 and 5, 4 and 3, 2 and 1


def test_the_next_run_is_foretold_by_trainings_and_probes_of_its_device(store_uri: str) -> None:
    kinds = ("train", "trial", "cell", "repeat", "probe", "quote", "sweep", "compare", "evaluate")
    for hour, kind in enumerate(kinds):
        put(store_uri, hour, kind)
    put(store_uri, 20, gpu_type="t4")
    found = Tracker(store_uri).newest("a100-40")
    assert [record.kind for record in found] == ["train", "trial", "cell", "repeat", "probe"]
