import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats  # type: ignore[import-untyped]
from synthetic import Effects, drawn, grid, run, searched

from green_tune import columns, knobs
from green_tune.claims import claims
from green_tune.document import Finding
from green_tune.results import STOPPED_EARLY, STOPPED_WHY, RunRecord, front

NAMES = ["rates", "totals", "batch_size", "accumulation", "uncorrelated", "epochs"]
SUPPORTED, CONTRADICTED, OPEN = "supported", "contradicted", "not enough evidence"
SAME = {"t4": 0.1, "l4": 0.1, "a100": 0.1}
START = 3.9
KNOWN = Effects(start=START, bend={"batch_size": (0.1, 3.0)}, loss={"epochs": -0.4})
STORES = 200
RARE = 1e-6  # the chance that a test of a rate fails though the rate is right

Change = Callable[[RunRecord], RunRecord]


def by_name(records: Sequence[RunRecord]) -> dict[str, Finding]:
    return {found.name: found for found in claims(records)}


def answers(records: Sequence[RunRecord]) -> dict[str, str]:
    return {name: found.answer for name, found in by_name(records).items()}


def metric(record: RunRecord, **changed: float) -> RunRecord:
    return replace(record, metrics={**record.metrics, **changed})


def tag(record: RunRecord, **changed: str) -> RunRecord:
    return replace(record, tags={**record.tags, **changed})


def without(record: RunRecord, name: str) -> RunRecord:
    return replace(record, metrics={k: v for k, v in record.metrics.items() if k != name})


def mixed() -> list[RunRecord]:
    """A grid, and a search with effects: a store in which each claim has something to say."""
    return [*grid(1, Effects()), *searched(2, KNOWN, 80)]


# --- any store ----------------------------------------------------------------------------------


def test_claims_come_in_their_fixed_order_whatever_the_store() -> None:
    assert [found.name for found in claims(mixed())] == NAMES
    assert [found.name for found in claims([])] == NAMES


def test_nothing_is_said_of_no_runs_or_one_run() -> None:
    for records in ([], searched(1, Effects(), 1)):
        assert set(answers(records).values()) == {OPEN}


def test_an_open_claim_alone_says_what_would_settle_it() -> None:
    for records in ([], searched(1, Effects(), 1), mixed(), grid(1, Effects())):
        for found in claims(records):
            assert bool(found.settle) is (found.answer == OPEN), found


def test_runs_are_ids_of_the_store_and_each_is_named_once() -> None:
    records = mixed()
    ids = {record.run_id for record in records}
    for found in claims(records):
        assert set(found.runs) <= ids
        assert len(set(found.runs)) == len(found.runs) > 0


def test_the_number_of_runs_that_is_said_is_that_of_the_ids() -> None:
    for found in claims(mixed()):
        number = re.search(r"; (\d+) runs?( of \d+ configs?)? in \d+ blocks?$", found.effect)
        assert number
        assert int(number[1]) == len(found.runs)


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, status="FAILED"),
        lambda r: replace(r, kind="sweep"),
        lambda r: replace(r, metrics={}),
        lambda r: metric(r, val_loss=math.nan, emissions_kg=math.nan, emissions_rate_kg_per_h=0),
        lambda r: tag(r, **{STOPPED_EARLY: "after step 3 of 9", STOPPED_WHY: "dominated by #2"}),
        lambda r: metric(r, val_loss=math.inf, emissions_kg=0.0, emissions_rate_kg_per_h=-1.0),
    ],
)
def test_what_did_not_finish_as_asked_or_has_no_figures_counts_for_nothing(change: Change) -> None:
    records = mixed()
    spoilt = [replace(change(r), run_id=f"{r.run_id}x") for r in mixed()[::3]]

    assert claims([*records, *spoilt]) == claims(records)
    assert set(answers(spoilt).values()) == {OPEN}


@pytest.mark.parametrize("name", ["val_loss", "start_val_loss", "emissions_kg", "energy_gpu_kwh"])
def test_a_metric_that_no_run_has_leaves_open_only_what_needs_it(name: str) -> None:
    found = answers([without(record, name) for record in mixed()])

    assert found["rates"] == SUPPORTED
    assert found["totals"] == (OPEN if name == "emissions_kg" else SUPPORTED)
    assert found["epochs"] == (CONTRADICTED if name == "energy_gpu_kwh" else OPEN)


def test_a_rate_that_no_run_has_is_emissions_over_hours() -> None:
    records = [without(r, "emissions_rate_kg_per_h") for r in grid(1, Effects())]

    assert answers(records)["rates"] == SUPPORTED


def test_constant_figures_have_no_effects() -> None:
    records = [metric(r, val_loss=1.0, emissions_kg=0.1) for r in searched(1, Effects(), 50)]

    assert {answers(records)[name] for name in NAMES if name != "epochs"} == {OPEN}


@pytest.mark.parametrize(
    "change",
    [
        lambda r: metric(r, **{k: v / 1000 for k, v in r.metrics.items() if "emissions" in k}),
        lambda r: metric(
            r,
            val_loss=r.metrics["val_loss"] + 5 * (r.params["task"] == "qa"),
            start_val_loss=r.metrics["start_val_loss"] + 5 * (r.params["task"] == "qa"),
        ),
    ],
)
def test_no_unit_and_no_constant_of_a_block_changes_a_verdict(change: Change) -> None:
    records = mixed()
    changed = [change(record) for record in records]

    assert [f.effect for f in claims(changed)] == [f.effect for f in claims(records)]
    assert answers(changed) == answers(records)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_runs_changes_nothing_that_is_said(seed: int) -> None:
    records = mixed()
    shuffled = random.Random(seed).sample(records, len(records))
    for one, other in zip(claims(records), claims(shuffled), strict=True):
        assert (one.effect, one.answer, one.settle) == (other.effect, other.answer, other.settle)
        assert set(one.runs) == set(other.runs)


def test_thousands_of_runs_are_judged() -> None:
    records = [*grid(1, Effects(), seeds=100), *searched(2, KNOWN, 2000)]

    assert answers(records) == {
        "rates": SUPPORTED,
        "totals": SUPPORTED,
        "batch_size": SUPPORTED,
        "accumulation": OPEN,
        "uncorrelated": SUPPORTED,
        "epochs": CONTRADICTED,
    }


# --- GPUs ---------------------------------------------------------------------------------------


def test_the_grid_of_the_study_supports_what_it_found_of_gpus() -> None:
    found = by_name(grid(1, Effects()))

    assert found["rates"].answer == found["totals"].answer == SUPPORTED
    assert "A100 / L4 3.98 x" in found["rates"].effect
    assert "54 runs in 6 blocks" in found["rates"].effect
    assert "lowest in 6 of 6 cells" in found["totals"].effect


def test_a_rate_that_falls_contradicts() -> None:
    effects = Effects(rate={"t4": 0.05, "l4": 0.04, "a100": 0.2})

    assert by_name(grid(1, effects))["rates"].answer == CONTRADICTED
    assert by_name(grid(1, effects, gpus=("t4", "l4")))["rates"].answer == CONTRADICTED


def test_a_missing_gpu_leaves_the_rates_open_and_is_named_with_a_cost() -> None:
    found = by_name(grid(1, Effects(), gpus=("t4", "a100")))["rates"]

    assert found.answer == OPEN
    assert "A100 / T4" in found.effect
    assert "3 runs, 3 seeds each on L4" in found.settle
    assert re.search(r"some [\d.]+ k?g \(a guess", found.settle)


def test_both_sizes_of_an_a100_are_one_gpu() -> None:
    records = grid(1, Effects())
    sized = [
        tag(r, gpu_type=f"a100-{(40, 80)[i % 2]}") if r.tags["gpu_type"] == "a100" else r
        for i, r in enumerate(records)
    ]

    assert by_name(sized)["rates"].effect == by_name(records)["rates"].effect


def test_gpus_at_different_intensities_are_not_compared() -> None:
    records = [
        tag(r, intensity_g_per_kwh={"t4": "50", "l4": "300", "a100": "475"}[r.tags["gpu_type"]])
        for r in grid(1, Effects())
    ]

    assert answers(records)["rates"] == answers(records)["totals"] == OPEN


def test_gpus_that_never_ran_the_same_are_compared_with_the_rest_adjusted_for() -> None:
    """On the A100 alone runs had three epochs: unadjusted, it would be three times as dear."""
    dice = random.Random(1)
    effects = Effects(hours={"t4": 1.0, "l4": 1.0, "a100": 0.15})
    records = [
        run(dice, effects, task=task, gpu=gpu, **{**drawn(dice), "epochs": epochs})  # type: ignore[arg-type]
        for task in ("qa", "sentiment", "summarization")
        for gpu in ("t4", "l4", "a100")
        for _ in range(12)
        for epochs in [3 if gpu == "a100" and dice.random() < 0.8 else dice.randint(1, 3)]
    ]
    found = by_name(records)

    assert found["rates"].answer == SUPPORTED
    assert found["totals"].answer == SUPPORTED
    assert "3 of 3 cells" in found["totals"].effect


def test_two_cells_are_too_few_for_mostly() -> None:
    found = by_name(grid(1, Effects(), models=("gemma-2b",), tasks=("qa", "sentiment")))["totals"]

    assert found.answer == OPEN
    assert "lowest in 2 of 2 cells" in found.effect
    assert "1 further case" in found.settle


def test_an_a100_that_is_mostly_dearer_contradicts() -> None:
    effects = Effects(hours={"t4": 1.0, "l4": 1.0, "a100": 1.0})

    assert by_name(grid(1, effects))["totals"].answer == CONTRADICTED


def test_one_seed_each_counts_cells_alone() -> None:
    found = by_name(grid(1, Effects(), seeds=1))["totals"]
    fewer = by_name(grid(1, Effects(), seeds=1, models=("gemma-2b",)))["totals"]

    assert found.answer == SUPPORTED
    assert "54 to 100 %" in found.effect  # 0.025 ** (1 / 6)
    assert fewer.answer == OPEN


def test_it_is_said_where_the_energy_of_the_gpu_alone_ranks_otherwise() -> None:
    records = grid(1, Effects())
    dear = [metric(r, energy_gpu_kwh=9.0 if r.tags["gpu_type"] == "a100" else 1.0) for r in records]

    assert "by the GPU's energy alone in 0" in by_name(dear)["totals"].effect
    assert "energy" not in by_name(records)["totals"].effect


# --- hyperparameters ----------------------------------------------------------------------------


def test_known_effects_have_the_verdicts_that_they_ask_for() -> None:
    effects = replace(KNOWN, loss={"learning_rate": -0.05, "epochs": -0.4})
    found = by_name(searched(3, effects, 150))

    assert found["batch_size"].answer == SUPPORTED
    assert found["uncorrelated"].answer == CONTRADICTED
    assert found["epochs"].answer == CONTRADICTED


def test_another_batch_size_that_is_better_contradicts() -> None:
    effects = Effects(bend={"batch_size": (0.1, 5.0)})
    found = by_name(searched(3, effects, 150))["batch_size"]

    assert found.answer == CONTRADICTED
    assert "intervals for all together" in found.effect


@pytest.mark.parametrize("sizes", [(8,), (4, 8), (4, 16, 32)])
def test_eight_is_judged_among_three_sizes_at_least(sizes: Sequence[int]) -> None:
    dice = random.Random(1)
    records = [run(dice, KNOWN, batch_size=size, seed=i) for size in sizes for i in range(9)]

    assert by_name(records)["batch_size"].answer == OPEN


def test_where_only_the_batch_size_differs_seeds_give_the_noise() -> None:
    dice = random.Random(1)
    records = [run(dice, KNOWN, batch_size=b, seed=i) for b in (2, 8, 32) for i in range(5)]

    assert by_name(records)["batch_size"].answer == SUPPORTED


def test_seeds_of_a_few_configs_are_not_taken_for_many_configs() -> None:
    """Five configs whose losses differ by chance, each with many seeds: five points, no more."""
    dice = random.Random(1)
    asked = [drawn(dice) for _ in range(5)]
    worse = [dice.gauss(0, 1) for _ in asked]
    records = [
        metric(r, val_loss=r.metrics["val_loss"] + more)
        for one, more in zip(asked, worse, strict=True)
        for seed in range(40)
        for r in [run(dice, Effects(), seed=seed, **one)]  # type: ignore[arg-type]
    ]
    found = answers(records)

    assert {found[name] for name in ("batch_size", "accumulation", "uncorrelated")} == {OPEN}


def test_accumulation_that_only_the_best_have_supports_and_the_reverse_contradicts() -> None:
    dice = random.Random(1)
    records = [
        metric(run(dice, Effects(), accumulation_steps=steps, learning_rate=1e-4 * (1 + i)),
               val_loss=worse, emissions_kg=worse)
        for i, (steps, worse) in enumerate([(4, 1.0), (1, 2.0), (8, 3.0), (7, 4.0)] * 12)
    ]  # fmt: skip
    flipped = [
        metric(r, val_loss=5 - r.metrics["val_loss"], emissions_kg=5 - r.metrics["emissions_kg"])
        for r in records
    ]

    assert by_name(records)["accumulation"].answer == SUPPORTED
    assert "100 % of the best quarter" in by_name(records)["accumulation"].effect
    assert by_name(flipped)["accumulation"].answer == CONTRADICTED
    assert "0 % of the best quarter" in by_name(flipped)["accumulation"].effect


def test_two_epochs_are_enough_where_a_third_adds_little() -> None:
    found = by_name(searched(3, Effects(start=START), 60))["epochs"]

    assert found.answer == SUPPORTED
    assert re.search(r"for 1\.[45]\d? x .* the emissions", found.effect)


def test_without_more_than_two_epochs_nothing_is_known_of_them() -> None:
    records = [r for r in searched(3, KNOWN, 90) if r.params["epochs"] != "3"]

    found = by_name(records)["epochs"]

    assert found.answer == OPEN
    assert "of 3" in found.settle


def test_without_two_epochs_much_more_than_one_decides_nothing() -> None:
    records = [r for r in searched(3, KNOWN, 90) if r.params["epochs"] != "2"]
    little = [r for r in searched(3, Effects(start=START), 90) if r.params["epochs"] != "2"]

    assert by_name(records)["epochs"].answer == OPEN
    assert by_name(little)["epochs"].answer == SUPPORTED


def test_a_bend_is_told_though_it_is_no_correlation() -> None:
    middle = math.log2(5e-5 * 40**0.5)
    effects = Effects(bend={"learning_rate": (0.1, middle)})
    found = by_name(searched(3, effects, 300))["uncorrelated"]

    assert "loss is lowest inside the range of the learning rate" in found.effect
    assert "bend" not in by_name(searched(3, Effects(), 300))["uncorrelated"].effect


def test_more_runs_cost_as_many_times_what_runs_have_cost() -> None:
    records = searched(1, Effects(), 60)
    mean_g = 1000 * float(np.mean([r.metrics["emissions_kg"] for r in records]))

    found = by_name(records)["uncorrelated"]

    number = re.match(r"about (\d+) more runs .*, some ([\d.]+) (k?)g \(modelled", found.settle)
    assert number
    grams = float(number[2]) * (1000 if number[3] else 1)
    assert grams == pytest.approx(int(number[1]) * mean_g, rel=0.01)


pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30)


@given(pairs)
@settings(deadline=None)
def test_depths_are_fronts_peeled_off_one_after_the_other(points: list[tuple[int, int]]) -> None:
    loss, kg = np.array(points, dtype=float).T
    depths = knobs.depths(loss, kg)
    left, depth = list(range(len(points))), 0
    while left:
        peeled = front(left, lambda i: (loss[i], kg[i]))
        assert {int(depths[i]) for i in peeled} == {depth}
        left, depth = [i for i in left if i not in peeled], depth + 1


# --- how often verdicts are wrong ---------------------------------------------------------------


def tallied(make: Callable[[int], Sequence[RunRecord]]) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for seed in range(STORES):
        for name, answer in answers(make(seed)).items():
            found[name][answer] += 1
    return found


ALLOWED = int(stats.binom.isf(RARE, STORES, 0.05))


def test_gpus_that_are_alike_are_seldom_told_apart() -> None:
    effects = Effects(rate=SAME, hours=SAME, tails=3, uneven={"a100": 3.0})
    found = tallied(lambda seed: grid(seed, effects, models=("gemma-2b",)))

    assert found["rates"][SUPPORTED] + found["rates"][CONTRADICTED] <= ALLOWED
    assert found["totals"][SUPPORTED] + found["totals"][CONTRADICTED] <= ALLOWED


def test_hyperparameters_without_an_effect_are_seldom_given_one() -> None:
    found = tallied(lambda seed: searched(seed, Effects(start=START, tails=3), 40))

    for name in ("batch_size", "accumulation"):
        assert found[name][SUPPORTED] + found[name][CONTRADICTED] <= ALLOWED
    assert found["uncorrelated"][CONTRADICTED] <= ALLOWED
    assert found["epochs"][CONTRADICTED] <= ALLOWED


def test_what_is_at_the_limit_is_seldom_called_within_it() -> None:
    """8 ties with 16, the learning rate correlates at 0.3, a third epoch adds the margin."""
    third = knobs.EXTRA * 2.0 / (1 - knobs.EXTRA)
    effects = Effects(
        start=START,
        bend={"batch_size": (0.1, 3.5)},
        loss={"learning_rate": 0.0102 * 3, "epochs": -third},
    )
    found = tallied(lambda seed: searched(seed, effects, 60))

    for name in ("batch_size", "epochs"):
        assert found[name][SUPPORTED] + found[name][CONTRADICTED] <= ALLOWED
    assert found["uncorrelated"][SUPPORTED] <= ALLOWED


def test_true_claims_are_mostly_supported_where_there_is_evidence() -> None:
    grids = tallied(lambda seed: grid(seed, Effects(), models=("gemma-2b",)))
    searches = tallied(lambda seed: searched(seed, KNOWN, 120))

    assert grids["rates"][SUPPORTED] > 0.9 * STORES
    assert grids["totals"][SUPPORTED] > 0.9 * STORES
    assert searches["batch_size"][SUPPORTED] > 0.9 * STORES
    assert searches["epochs"][CONTRADICTED] > 0.9 * STORES


def test_columns_of_a_part_are_those_of_its_runs() -> None:
    runs = columns.read(mixed())
    part = runs.where(np.isin(runs.family, ["t4"]))

    assert set(part.family) == {"t4"}
    assert len(part.loss) == len(part.ids) == 18
    assert sorted(set(part.stratum.tolist())) == list(range(6))
