"""The benchmark of verdicts: what counts as wrong, and that its stores are what they are called."""

from collections import Counter

import pytest

from benchmarks import verdicts
from benchmarks.verdicts import Scenario, Tally
from green_tune.results import RunRecord

FEW = 3

CASES = {case.name: case for case in (*verdicts.gpus(), *verdicts.searches())}


@pytest.mark.parametrize(("truth", "wrong"), [("true", 0.2), ("false", 0.3), ("null", 0.5)])
def test_what_is_wrong_depends_on_what_is_true(truth: verdicts.Truth, wrong: float) -> None:
    case = Scenario(name="any", store=lambda seed: [], truth={"rates": truth})
    found = Tally(
        answers={"rates": Counter({"supported": 3, "contradicted": 2, "not enough evidence": 5})},
        covered={},
    )

    assert verdicts.wrong(found, case, "rates") == pytest.approx(wrong)


@pytest.mark.parametrize("name", CASES)
def test_each_scenario_is_tallied_store_by_store(name: str) -> None:
    case = CASES[name]

    found = verdicts.tallied(case, FEW)

    assert found.answers.keys() == case.truth.keys()
    assert {answers.total() for answers in found.answers.values()} == {FEW}
    assert all(covered.total() <= FEW for covered in found.covered.values())
    assert name in verdicts.page([(case, found)], [], FEW, {"machine": "any"})


def epochs_by_rate(records: list[RunRecord]) -> tuple[float, float]:
    rows = sorted(records, key=lambda r: float(r.params["learning_rate"]))
    half = len(rows) // 2
    means = [
        sum(float(r.params["epochs"]) for r in part) / len(part)
        for part in (rows[:half], rows[half:])
    ]
    return means[0], means[1]


def test_in_a_confounded_search_epochs_rise_with_the_learning_rate() -> None:
    low, high = epochs_by_rate(verdicts.together(1, verdicts.FLAT, 100))

    assert high > low + 0.5


def test_a_thinned_grid_lacks_runs_of_every_gpu_unevenly() -> None:
    whole = verdicts.grids(verdicts.EQUAL, 10)(1)

    left = Counter(r.tags["gpu_type"] for r in verdicts.thinned(whole, 1))

    assert all(0 < count < 60 for count in left.values())
    assert len(set(left.values())) > 1


def test_a_sampler_repeats_more_of_what_it_found_than_a_random_search() -> None:
    records = verdicts.evolved(1, verdicts.SEARCH, 60)
    rates = Counter(record.params["learning_rate"] for record in records)

    assert len(records) == 60
    assert max(rates.values()) > 3
