"""Which filter left no run, said from what the store does have."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from green_tune.query import EVERY, RESULTS, Query, emptied
from green_tune.results import FRONT, STUDY, RunRecord

START = datetime(2026, 11, 22, tzinfo=UTC)


def run(number: int, model: str, task: str, gpu: str, **more: str) -> RunRecord:
    return RunRecord(
        run_id=str(number),
        name="",
        kind="train",
        status="FINISHED",
        started=START + timedelta(hours=number),
        params={"task": task},
        tags={"base_model": model, "gpu_type": gpu, **more},
    )


STORE = (
    run(0, "tiny", "qa", "t4", **{STUDY: "s/tiny-qa", FRONT: "true"}),
    run(1, "tiny", "sentiment", "l4", **{STUDY: "s"}),
    run(2, "gemma-2b", "sentiment", "a100-40"),
)


def finder(found: Sequence[RunRecord] = ()) -> Callable[[Query], Sequence[RunRecord]]:
    """A store of three runs, of which a user's own filter finds those given."""
    return lambda query: found if query.filter else STORE


@pytest.mark.parametrize(
    ("query", "line"),
    [
        (
            Query(task="sentimnt"),
            "no run has task=sentimnt: the store has sentiment (2), qa (1); "
            "did you mean sentiment?",
        ),
        (Query(gpu="h100"), "no run has gpu=h100: the store has t4 (1), l4 (1), a100-40 (1)"),
        (Query(model="tiny", task="x"), "no run has task=x: the store has sentiment (2), qa (1)"),
        (Query(study="other"), "no run has study=other: the store has s/tiny-qa (1), s (1)"),
        (
            Query(fingerprint="ab"),
            "no run has fingerprint=ab: none of the 3 runs in the store says its fingerprint",
        ),
        (
            Query(since=START + timedelta(days=2)),
            "no run matches since=2026-11-24T00:00: the runs of the store started from "
            "2026-11-22T00:00 to 2026-11-22T02:00",
        ),
        (
            Query(filter="params.tsk = 'qa'"),
            "no run matches filter=params.tsk = 'qa', of 3 in the store",
        ),
        (
            Query(model="tiny", gpu="a100"),
            "2 runs match model=tiny and 1 match gpu=a100, none matches both",
        ),
        (
            Query(task="sentiment", front=True, model="tiny"),
            "2 runs match task=sentiment and 1 match front=true, none matches both",
        ),
        (
            Query(task="qa", until=START),
            "no run matches until=2026-11-22T00:00: the runs of the store started from "
            "2026-11-22T00:00 to 2026-11-22T02:00",
        ),
    ],
)
def test_the_filter_that_leaves_no_run_is_named(query: Query, line: str) -> None:
    assert emptied(finder(), query) == line


def test_filters_that_leave_none_only_all_together_are_named_together() -> None:
    store = (*STORE, run(3, "gemma-2b", "qa", "l4"))
    query = Query(model="tiny", task="qa", gpu="l4")

    assert emptied(lambda _: store, query) == (
        "2 runs match model=tiny, 2 match task=qa and 2 match gpu=l4, none matches all 3"
    )


def test_a_users_own_filter_is_asked_of_the_store() -> None:
    line = emptied(finder(STORE[2:]), Query(model="tiny", filter="metrics.val_loss < 2"))

    assert line == (
        "2 runs match model=tiny and 1 match filter=metrics.val_loss < 2, none matches both"
    )


def test_an_empty_store_is_said_to_be_empty() -> None:
    assert emptied(lambda _: [], Query(task="qa")) == "the store holds no runs to compare"


@pytest.mark.parametrize(
    "query", [Query(task="qa"), Query(), Query(study="s", parts=True), Query(gpu="A100")]
)
def test_nothing_is_blamed_where_runs_match(query: Query) -> None:
    assert emptied(finder(), query) == ""


def test_many_values_are_not_all_listed() -> None:
    store = [run(n, f"model-{n}", "qa", "t4") for n in range(20)]

    assert "model-11 (1) and 8 others" in emptied(lambda _: store, Query(model="none"))


def test_one_search_is_enough_for_several_kinds_and_for_all() -> None:
    assert Query().filters() == ["tags.`green_tune.kind` LIKE '%'"]
    assert Query(kinds=EVERY).filters() == [""]
    assert Query(kinds=RESULTS).filters() == [""]
    assert Query(kinds=("trial",)).filters() == ["tags.`green_tune.kind` = 'trial'"]


def test_results_are_runs_of_ours_and_of_other_tools_and_no_sums() -> None:
    kinds = ("train", "cell", "trial", "repeat", "", "sweep", "grid", "compare", "refused")
    asked = Query(kinds=RESULTS)
    takes = [kind for kind in kinds if asked.takes(replace(STORE[0], kind=kind))]
    assert takes == ["train", "cell", "trial", "repeat", ""]
