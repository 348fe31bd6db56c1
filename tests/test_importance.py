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
