"""Advice is given where seeds prove it, and nowhere else."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from statistics import fmean

import pytest
import synthetic

from green_tune import advice
from green_tune.results import RunRecord

START = datetime(2026, 11, 22, tzinfo=UTC)
DEFAULT = {
    "task": "qa",
    "batch_size": "8",
    "accumulation_steps": "1",
    "learning_rate": "0.0002",
    "warmup_steps": "5",
    "epochs": "1",
    "lora_rank": "16",
}
SD = 0.02  # of losses over seeds
LOSSES = (0.0, SD, -SD)  # whose standard deviation is SD
LOGS = (0.0, 0.01, -0.01)


def runs(
    loss: float = 1.0,
    kg: float = 0.1,
    *,
    gpu: str = "l4",
    model: str = "gemma-2b",
    seeds: int = 3,
    kind: str = "train",
    **asked: str,
) -> list[RunRecord]:
    """A config on some seeds, around a loss and kilograms."""
    params = DEFAULT | asked
    return [
        RunRecord(
            run_id="-".join((model, gpu, *asked.values(), str(seed))),
            name="",
            kind=kind,
            status="FINISHED",
            started=START,
            params={**params, "seed": str(seed)},
            metrics={
                "val_loss": loss + LOSSES[seed % 3],
                "emissions_kg": kg * math.exp(LOGS[seed % 3]),
            },
            tags={"base_model": model, "gpu_type": gpu, "data_digest": "d"},
        )
        for seed in range(seeds)
    ]


def texts(records: Sequence[RunRecord]) -> list[list[str]]:
    return [[clause.text for clause in one.clauses] for one in advice.advise(records)]


BEST = runs(1.0, 0.1)
EQUAL = runs(1.001, 0.059, batch_size="16")


def test_a_config_with_an_equal_loss_and_fewer_emissions_is_advised() -> None:
    (found,) = advice.advise([*BEST, *EQUAL])
    use, saving, loss = found.clauses
    assert use.text == "For qa on gemma-2b use batch 16"
    assert saving.text.startswith("41 % less emissions (95 % interval ")
    assert saving.text.endswith(" than batch 8, which has the lowest loss")
    assert loss.text == "loss +0.00, equal within the spread of 3 seeds (sd 0.02)"


def test_each_clause_names_the_runs_that_it_rests_on() -> None:
    (found,) = advice.advise([*BEST, *EQUAL])
    theirs, both = [{r.run_id for r in group} for group in (EQUAL, [*BEST, *EQUAL])]
    assert [set(clause.runs) for clause in found.clauses] == [theirs, both, both]


def test_the_interval_is_welchs_at_the_level_that_all_comparisons_share() -> None:
    pair = advice.Pair(one=group(EQUAL), other=group(BEST))
    # Two means of three with equal deviations: t with 4 degrees of freedom is 2.776 at 2.5 %.
    error = 0.01 * math.sqrt(2 / 3)
    assert pair.ratio() == pytest.approx(0.59)
    assert pair.ratio(0.025) == pytest.approx(0.59 * math.exp(2.7764 * error), rel=1e-5)
    assert pair.ratio(0.975) == pytest.approx(0.59 * math.exp(-2.7764 * error), rel=1e-5)
    # Compared are the one with the best and the best with its next: 1.25 % for each end.
    low, high = (100 * (1 - pair.ratio(risk)) for risk in (0.0125, 1 - 0.0125))
    (shown,) = advice.advise([*BEST, *EQUAL])
    assert f"interval {low:.0f} to {high:.0f})" in shown.clauses[1].text


def group(records: Sequence[RunRecord]) -> advice.Group:
    (found,) = advice._groups(records)
    return found


def test_a_loss_is_as_good_by_welleks_test() -> None:
    # Its bound for 3 and 3 seeds at 2 deviations and 5 %: 0.65 deviations above the other's.
    near, far = (
        advice.Pair(one=group(runs(1.0 + by * SD, batch_size="2")), other=group(BEST))
        for by in (0.63, 0.67)
    )
    assert near.deviation == pytest.approx(SD)
    assert near.worse == pytest.approx(0.63 * SD)
    assert near.is_as_good(0.05)
    assert not far.is_as_good(0.05)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (runs(1.05, 0.05, batch_size="16"), "a higher loss"),
        (runs(1.001, 0.097, batch_size="16"), "surely emits 5 % less"),
        (runs(0.999, 0.103, batch_size="16"), "surely emits 5 % less"),
        (runs(0.9, 0.2, batch_size="16"), "a higher loss"),
        (runs(1.001, 0.05, batch_size="16", seeds=2), "only one config"),
        ([], "only one config"),
    ],
)
def test_where_the_evidence_is_thin_it_is_silent_and_says_why(
    other: Sequence[RunRecord], why: str
) -> None:
    records = [*BEST, *other]
    assert advice.advise(records) == []
    assert why in advice.why_silent(records)


def test_without_seeds_it_says_how_to_get_them() -> None:
    said = advice.why_silent([BEST[0], *EQUAL[:2]])
    assert said.startswith("no config was run on 3 seeds; -P repeats=3 of a sweep, or as many")
    assert advice.why_silent([]).startswith("no run of known hyperparameters")
    assert advice.why_silent([*BEST, *EQUAL]) == ""


def test_a_config_that_scatters_more_than_the_best_is_not_equal_to_it() -> None:
    wild = [
        replace(r, metrics={**r.metrics, "val_loss": 1.001 + 20 * LOSSES[i]})
        for i, r in enumerate(EQUAL)
    ]
    assert advice.advise([*BEST, *wild]) == []


@pytest.mark.parametrize(("name", "value"), [("val_loss", 1.001), ("emissions_kg", 0.059)])
@pytest.mark.parametrize("where", [(0,), (1,), (0, 1)])
def test_figures_that_never_scatter_prove_nothing(
    name: str, value: float, where: Sequence[int]
) -> None:
    still = [
        replace(r, metrics={**r.metrics, name: value - 1e-4 * n}) if n in where else r
        for n, records in enumerate((EQUAL, BEST))
        for r in records
    ]
    assert advice.advise(still) == []


def test_a_seed_that_was_run_twice_is_no_further_chance() -> None:
    again = [replace(EQUAL[0], run_id=f"again-{n}") for n in range(5)]
    assert advice.advise([*BEST, *EQUAL[:2], *again]) == []
    whole = advice.Group(block=group(BEST).block, config=(), gpu="l4", records=[*EQUAL, *again])
    assert (whole.losses, whole.logs) == (group(EQUAL).losses, group(EQUAL).logs)


def test_of_several_the_cheapest_is_advised() -> None:
    cheapest, costly = runs(1.002, 0.03, epochs="2"), runs(1.3, 0.01, lora_rank="4")
    found = texts([*BEST, *EQUAL, *cheapest, *costly])
    assert [clauses[0] for clauses in found] == ["For qa on gemma-2b use 2 epochs"]
    assert found[0][1].startswith("3.3 x less emissions (95 % interval ")


def test_the_cheapest_is_advised_though_another_saves_more_beside_its_own_reference() -> None:
    best, dear = runs(1.0, 0.05), runs(1.001, 0.2, epochs="2")
    ((use, saving, _),) = texts([*best, *dear, *runs(1.001, 0.03, epochs="3")])
    assert use == "For qa on gemma-2b use 3 epochs"
    assert saving.startswith("40 % less")


def test_the_best_itself_is_advised_where_the_next_best_costs_more() -> None:
    ((use, saving, loss),) = texts([*runs(1.0, 0.05, epochs="1"), *runs(1.5, 0.1, epochs="2")])
    assert use == "For qa on gemma-2b use 1 epoch"
    assert saving.endswith(" than 2 epochs, which has the next lowest loss")
    assert loss == "loss -0.50, no higher within the spread of 3 seeds (sd 0.02)"


def test_the_same_config_is_compared_over_gpus() -> None:
    records = [*runs(1.0, 0.31, gpu="t4"), *runs(1.001, 0.1), *runs(1.0, 0.2, gpu="a100")]
    ((use, saving, loss),) = texts(records)
    assert use == "For qa on gemma-2b use the same config on L4"
    assert saving.startswith("3.1 x less emissions (95 % interval ")
    assert saving.endswith(" than on T4")
    assert loss == "loss +0.00, where 3 seeds spread with sd 0.02"


def test_a_gpu_on_which_the_loss_is_much_higher_is_not_advised() -> None:
    assert advice.advise([*runs(1.0, 0.31, gpu="t4"), *runs(1.1, 0.1)]) == []


def test_gpus_are_named_where_there_are_several() -> None:
    ((use, saving, _),) = texts([*runs(1.0, 0.1, gpu="a100"), *runs(1.001, 0.05, epochs="2")])
    assert use == "For qa on gemma-2b use 2 epochs on L4"
    assert " than 1 epoch on A100, which" in saving


def test_losses_compare_within_a_block_alone() -> None:
    other = runs(0.2, 0.01, model="llama-2-7b", batch_size="16")
    assert advice.advise([*BEST, *other]) == []
    assert "only one config" in advice.why_silent([*BEST, *other])


def test_a_value_may_be_typed_in_any_way_and_a_default_left_out() -> None:
    typed = [{"learning_rate": "2e-4"}, {"learning_rate": "0.0002", "lora_alpha": "32"}, {}]
    same = [replace(r, params={**r.params, **t}) for r, t in zip(BEST, typed, strict=True)]
    assert len(advice._groups(same)) == 1
    assert len(advice._groups([*same, *runs(lora_alpha="64")])) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, status="FAILED"),
        lambda r: replace(r, tags={**r.tags, "energy_valid": "false"}),
        lambda r: replace(r, tags={**r.tags, "stopped_early": "after step 1 of 2"}),
        lambda r: replace(r, metrics={**r.metrics, "emissions_kg": 0.0}),
        lambda r: replace(r, metrics={**r.metrics, "val_loss": math.nan}),
        lambda r: replace(r, metrics={"val_loss": 1.0}),
        lambda r: replace(r, params={"task": "qa", "seed": r.params["seed"]}),
    ],
)
def test_what_has_no_figures_to_trust_is_no_evidence(
    change: Callable[[RunRecord], RunRecord],
) -> None:
    assert advice.advise([*BEST, *EQUAL[:2], change(EQUAL[2])]) == []
    assert advice.advise([*BEST, *(replace(r, kind="repeat") for r in EQUAL)]) != []


def store(
    dice: random.Random, loss: float, ratio: float, *, rivals: int, seeds: int, blocks: int = 1
) -> list[RunRecord]:
    """A best config in each block, and rivals that all have these true differences from it."""
    return [
        replace(
            record,
            metrics={
                "val_loss": dice.gauss(1.0 + loss * bool(rival), SD),
                "emissions_kg": (ratio if rival else 1.0) * math.exp(dice.gauss(0, 0.05)),
            },
        )
        for block in range(blocks)
        for rival in range(rivals + 1)
        for record in runs(warmup_steps=str(rival), model=f"m{block}", seeds=seeds)
    ]


def advised(stores: int, loss: float, ratio: float, **sizes: int) -> float:
    """The share of stores in which there is an advice."""
    found = [advice.advise(store(random.Random(n), loss, ratio, **sizes)) for n in range(stores)]
    return fmean(bool(one) for one in found)


@pytest.mark.parametrize(("rivals", "blocks", "seeds"), [(1, 1, 5), (4, 1, 5), (2, 3, 3)])
def test_where_nothing_is_equal_or_cheaper_at_most_one_store_in_twenty_gets_an_advice(
    rivals: int, blocks: int, seeds: int
) -> None:
    sizes = {"rivals": rivals, "blocks": blocks, "seeds": seeds}
    chance = 2 * math.sqrt(0.05 * 0.95 / 300)  # of 300 stores' own
    assert advised(300, advice.SAME_LOSS * SD, 0.6, **sizes) <= 0.05 + chance
    assert advised(300, 0.0, advice.WORTHWHILE, **sizes) <= 0.05 + chance


def test_where_something_is_both_it_is_mostly_said() -> None:
    assert advised(100, 0.0, 0.6, rivals=1, seeds=5) > 0.6
    assert advised(100, 0.0, 0.6, rivals=1, seeds=10) > 0.8


def test_a_grid_says_where_each_task_and_model_costs_least() -> None:
    found = advice.advise(synthetic.grid(0, synthetic.Effects(noise=0.02), seeds=5))
    places = {(m, t) for m in synthetic.MODELS for t in synthetic.TASKS}
    assert {one.clauses[0].text for one in found} == {
        f"For {task} on {model} use the same config on A100" for model, task in places
    }
    assert all(one.clauses[1].text.endswith(" than on T4") for one in found)
