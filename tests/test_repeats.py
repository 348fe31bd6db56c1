import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from green_tune import repeats, summary
from green_tune.results import RunRecord


def record(
    number: int, loss: float, grams: float, *, kind: str = "trial", seed: int = 0
) -> RunRecord:
    return RunRecord(
        run_id=f"{kind}-{number}-{seed}",
        name=f"#{number}",
        kind=kind,
        status="FINISHED",
        started=datetime(2026, 11, 23, tzinfo=UTC),
        params={"seed": str(seed)},
        metrics={"val_loss": loss, "emissions_kg": grams / 1000, "steps": 10.0},
        tags={"green_tune.trial": str(number)},
    )


BEST, KNEE, GREENEST, BEATEN = (
    record(0, 1.0, 10.0),
    record(1, 1.1, 3.0),
    record(2, 3.0, 1.0),
    record(3, 3.5, 8.0),
)
TRIALS = [BEST, KNEE, GREENEST, BEATEN]


def again(number: int, *losses: float, grams: float) -> list[RunRecord]:
    return [
        record(number, loss, grams, kind="repeat", seed=seed)
        for seed, loss in enumerate(losses, start=1)
    ]


def test_the_best_the_knee_and_the_greenest_are_repeated() -> None:
    assert repeats.finalists(TRIALS) == {"0": ("best",), "1": ("knee",), "2": ("greenest",)}


def test_one_trial_may_be_all_of_them_and_is_repeated_once() -> None:
    assert repeats.finalists([BEST]) == {"0": ("best", "greenest")}


def test_what_failed_or_ended_early_is_no_finalist() -> None:
    failed = replace(GREENEST, status="FAILED")
    cut = replace(KNEE, tags={**KNEE.tags, "stopped_early": "after step 5 of 10"})
    assert repeats.finalists([BEST, cut, failed]) == {"0": ("best", "greenest")}
    assert repeats.finalists([failed]) == {}


def test_the_trial_itself_is_one_of_its_seeds() -> None:
    runs = [*again(0, 1.2, 1.4, grams=12.0), *again(1, 1.1, 1.1, grams=3.0)]
    first, second, third = repeats.spreads(TRIALS, runs)
    assert (first.trial, second.trial, third.trial) == ("1", "0", "2")
    assert second.seeds == 3
    assert second.mean("val_loss") == pytest.approx(1.2)
    assert second.deviation("val_loss") == pytest.approx(0.2)
    assert second.mean("emissions_kg") == pytest.approx(0.034 / 3)
    assert third.deviation("val_loss") == 0.0


def test_a_repeat_that_failed_is_no_seed() -> None:
    failed = replace(again(0, 9.0, grams=9.0)[0], status="FAILED")
    assert {spread.trial: spread.seeds for spread in repeats.spreads(TRIALS, [failed])}["0"] == 1


def test_what_chance_may_explain_is_a_tie() -> None:
    near = [*again(0, 1.3, 0.9, grams=10.5), *again(1, 1.0, 1.25, grams=3.1)]
    pairs = repeats.ties(repeats.spreads([BEST, KNEE], near))
    assert {what for *_, what in pairs} == {"loss"}
    far = [*again(0, 1.01, 0.99, grams=10.0), *again(1, 1.11, 1.09, grams=3.0)]
    assert repeats.ties(repeats.spreads([BEST, KNEE], far)) == []


def test_one_seed_alone_tells_nothing_from_chance() -> None:
    pairs = repeats.ties(repeats.spreads([BEST, GREENEST], []))
    assert sorted(what for *_, what in pairs) == ["emissions", "loss"]


def test_equal_trials_are_called_different_at_most_as_often_as_the_level_says() -> None:
    dice, different = random.Random(0), 0
    for _ in range(400):
        one, other = ([dice.gauss(1, 0.1) for _ in range(4)] for _ in range(2))
        different += repeats._differ(one, other)
    assert different / 400 < 0.08  # 5 % and its noise


def test_the_screen_shows_mean_and_spread_and_the_ties() -> None:
    runs = [*again(0, 1.3, 0.9, grams=10.5), *again(1, 1.0, 1.25, grams=3.1)]
    text = summary.repeats_table(TRIALS, runs)
    assert "1.067 ± 0.21" in text
    assert "equal in loss within their spread (Welch's t-test at 5 %)" in text
    assert max(len(line) for line in text.splitlines()) <= 80
    rows = summary.repeats_rows(TRIALS, runs)
    assert rows[0]["val_loss_mean"] == pytest.approx(3.2 / 3)
    assert rows[0]["emissions_kg_sd"] == pytest.approx(0.0005 / 3**0.5, rel=1e-3)
