"""Which hyperparameters matter, where there is enough to say so."""

import logging
import math
import random
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import optuna
import pytest
import synthetic

from green_tune import importance
from green_tune.results import RunRecord
from green_tune.space import SPACE

NAMES = list(SPACE)


def trial(number: int, *, stopped: bool = False) -> RunRecord:
    """Loss is the learning rate's, but for a little; emissions are the epochs'."""
    dice = random.Random(number)
    rate, epochs = math.exp(dice.uniform(-10, -6)), dice.randint(1, 3)
    drawn = {"learning_rate": rate, "epochs": epochs, "batch_size": 2 ** dice.randint(1, 5)}
    loss = 1.5 + abs(math.log(rate) + 8) + 0.05 * dice.random()
    return RunRecord(
        run_id=f"{number:032x}",
        name="",
        kind="trial",
        status="FINISHED",
        started=datetime(2026, 11, 22, tzinfo=UTC),
        params={name: str(value) for name, value in drawn.items()} | {"lora_rank": "8"},
        metrics={"val_loss": loss, "emissions_kg": 0.01 * epochs + 0.0001 * dice.random()},
        tags={"stopped_early": "after step 1 of 2"} if stopped else {},
    )


TRIALS = [trial(number) for number in range(20)]


@pytest.fixture(scope="module")
def found() -> list[importance.Importance]:
    return importance.importances(TRIALS, NAMES)


def test_the_hyperparameter_that_decides_an_objective_comes_first(
    found: list[importance.Importance],
) -> None:
    firsts = {o: next(i for i in found if i.objective == o) for o in importance.OBJECTIVES}
    assert firsts["val_loss"].name == "learning_rate"
    assert firsts["emissions_kg"].name == "epochs"
    assert all(first.share > 0.5 for first in firsts.values())


def test_shares_lie_within_their_intervals_and_are_shares(
    found: list[importance.Importance],
) -> None:
    assert all(0 <= i.low <= i.share <= i.high <= 1 for i in found)
    assert any(i.low < i.high for i in found)
    for objective in importance.OBJECTIVES:
        assert sum(i.share for i in found if i.objective == objective) <= 1


def test_what_never_varied_or_was_never_given_has_no_line(
    found: list[importance.Importance],
) -> None:
    assert {i.name for i in found} == {"learning_rate", "epochs", "batch_size"}


def test_the_same_trials_give_the_same_importances(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 3)
    once, again = (importance.importances(TRIALS, NAMES) for _ in range(2))
    assert once == again


def test_the_intervals_are_what_resamples_of_the_trials_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mean(rows: Sequence[importance.Row], *_: object) -> dict[str, float]:
        return {"epochs": sum(numbers["epochs"] for numbers, _ in rows) / len(rows) / 10}

    monkeypatch.setattr(importance, "_shares", mean)
    found = importance.importances(TRIALS, NAMES)[0]
    drawn = [float(record.params["epochs"]) / 10 for record in TRIALS]
    assert found.share == pytest.approx(statistics.fmean(drawn))
    expected = 2 * 1.28 * statistics.pstdev(drawn) / len(drawn) ** 0.5  # 80 % of a normal mean's
    assert found.low < found.share < found.high
    assert 0.5 < (found.high - found.low) / expected < 1.5


def test_an_interval_is_widened_to_hold_what_all_trials_say() -> None:
    resampled = [{"epochs": 0.2 + k / 1000} for k in range(101)]
    found = importance._between("epochs", "val_loss", 0.25, resampled)
    assert (found.low, found.high) == pytest.approx((0.21, 0.29))
    assert importance._between("epochs", "val_loss", 0.1, resampled).low == 0.1
    assert importance._between("epochs", "val_loss", 0.4, resampled).high == 0.4


def test_with_too_few_trials_there_are_none_and_it_says_why() -> None:
    few = [*TRIALS[:14], *(trial(n, stopped=True) for n in range(100, 110))]
    assert importance.importances(few, NAMES) == []
    text = "importance needs 15 finished trials; there are 14: with fewer it is noise"
    assert importance.remark(few) == text


def test_with_rather_few_it_warns_and_with_many_it_does_not() -> None:
    assert importance.remark(TRIALS) == (
        "importance is rough below 30 finished trials; there are 20"
    )
    assert importance.remark([trial(number) for number in range(30)]) == ""


def test_an_objective_that_does_not_vary_has_nothing_to_explain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 3)
    flat = [replace(r, metrics={**r.metrics, "val_loss": 1.0}) for r in TRIALS]
    assert {i.objective for i in importance.importances(flat, NAMES)} == {"emissions_kg"}
    still = [replace(r, params={"epochs": "1"}) for r in TRIALS]
    assert importance.importances(still, NAMES) == []


@pytest.mark.parametrize(
    ("name", "text", "scaled"),
    [
        ("batch_size", "8", 3.0),
        ("learning_rate", "0.25", -2.0),
        ("warmup_steps", "0", 0.0),
        ("epochs", "", math.nan),
        ("lora_rank", "0", math.nan),
    ],
)
def test_values_are_taken_on_the_scale_of_their_search(name: str, text: str, scaled: float) -> None:
    assert importance._scaled(name, text) == pytest.approx(scaled, nan_ok=True)


def test_optuna_says_nothing_and_is_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 2)
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert importance.importances(TRIALS, NAMES)
        assert optuna.logging.get_verbosity() == logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
    assert capsys.readouterr().err == ""


RATE_BENDS = synthetic.Effects(bend={"learning_rate": (0.1, -12)})


def pooled(effects: synthetic.Effects, runs: int) -> list[RunRecord]:
    """A search on each GPU, for each model and task: emissions differ 200-fold between them."""
    places = [(m, t, g) for m in synthetic.MODELS for t in synthetic.TASKS for g in synthetic.HOURS]
    return [
        record
        for seed, (model, task, gpu) in enumerate(places)
        for record in synthetic.searched(seed, effects, runs, model=model, task=task, gpu=gpu)
    ]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "RESAMPLES", 3)
    monkeypatch.setattr(importance, "MOST", 90)


@pytest.mark.usefixtures("brief")
def test_over_models_tasks_and_gpus_what_decides_comes_first() -> None:
    found = importance.explained(pooled(RATE_BENDS, 5), NAMES)
    firsts = {o: next(i for i in found if i.objective == o) for o in importance.OBJECTIVES}
    assert firsts["val_loss"].name == "learning_rate"
    assert firsts["emissions_kg"].name == "epochs"
    assert all(first.share > 0.5 for first in firsts.values())


@pytest.mark.usefixtures("brief")
def test_what_decides_nothing_has_next_to_no_share() -> None:
    found = importance.explained(pooled(RATE_BENDS, 5), NAMES)
    decide = {("val_loss", "learning_rate"), ("emissions_kg", "epochs")}
    others = [i.share for i in found if (i.objective, i.name) not in decide]
    assert len(others) == 2 * (len(NAMES) - 1)
    assert max(others) < 0.1


@pytest.mark.usefixtures("brief")
def test_pooled_alone_a_study_has_nearly_the_same_shares_of_its_loss() -> None:
    # A forest's splits are those of any linear scale, but for ties that rounding breaks.
    alone, found = (
        {i.name: i.share for i in explain(TRIALS, NAMES) if i.objective == "val_loss"}
        for explain in (importance.importances, importance.explained)
    )
    assert found == pytest.approx(alone, abs=0.05)


def test_within_its_block_each_loss_counts_in_deviations_and_each_emission_as_a_logarithm() -> None:
    records = pooled(RATE_BENDS, 4)
    rows = importance._pooled(records, NAMES)
    assert len(rows) == len(records) == 72
    per_block = 4 * len(synthetic.HOURS)
    for start in range(0, 72, per_block):
        losses = [values[0] for _, values in rows[start : start + per_block]]
        assert statistics.fmean(losses) == pytest.approx(0, abs=1e-9)
        assert statistics.pstdev(losses) == pytest.approx(1)
    for start in range(0, 72, 4):
        kilograms = [r.metrics["emissions_kg"] for r in records[start : start + 4]]
        mean = statistics.geometric_mean(kilograms)
        found = [values[1] for _, values in rows[start : start + 4]]
        assert found == pytest.approx([math.log(kg / mean) for kg in kilograms])


def test_a_large_pool_is_sampled_and_always_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "MOST", 20)
    records = pooled(RATE_BENDS, 3)
    once, again = (importance._pooled(records, NAMES) for _ in range(2))
    assert len(once) == 20
    assert once == again
    monkeypatch.setattr(importance, "MOST", 54)
    whole = importance._pooled(records, NAMES)
    assert len(whole) == 54
    assert all(row in whole for row in once)


def test_what_does_not_compare_is_no_row() -> None:
    records = synthetic.searched(0, RATE_BENDS, 20)
    alone = synthetic.searched(1, RATE_BENDS, 2, gpu="t4")
    failed = [replace(record, status="FAILED") for record in records]
    ended = [replace(r, tags={**r.tags, "stopped_early": "after step 1 of 2"}) for r in records]
    unknown = [replace(record, params={"task": "qa"}) for record in records[:5]]
    odd = [
        replace(records[0], metrics={**records[0].metrics, name: value})
        for name, value in (("val_loss", math.nan), ("emissions_kg", 0.0))
    ]
    rows = importance._pooled([*records, *alone, *failed, *ended, *unknown, *odd], NAMES)
    assert len(rows) == 20


def test_a_name_that_few_runs_have_is_left_out_and_costs_no_run() -> None:
    records = synthetic.searched(0, RATE_BENDS, 20)
    rare = [replace(r, params={**r.params, "lora_alpha": "32"}) for r in records[:9]]
    rows = importance._pooled([*rare, *records[9:]], [*NAMES, "lora_alpha"])
    assert len(rows) == 20
    assert all(numbers.keys() == set(NAMES) for numbers, _ in rows)


def test_a_pool_that_is_too_small_has_no_importances_and_says_why() -> None:
    few = synthetic.searched(0, RATE_BENDS, 14)
    assert importance.explained(few, NAMES) == []
    assert importance.explained_remark(few, NAMES) == (
        "importance needs 15 finished runs that compare; there are 14: with fewer it is noise"
    )
    assert importance.explained_remark(synthetic.searched(0, RATE_BENDS, 30), NAMES) == ""
    assert importance.explained([], NAMES) == []
