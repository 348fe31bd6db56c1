import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from dimensions import CHOICES, dimension, space_of
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from green_tune import encoding, samplers
from green_tune.results import hypervolume
from green_tune.samplers import IMPUTED, NAMES, Green
from green_tune.space import SPACE, Space

Objective = Callable[[dict[str, Any]], tuple[float, float]]

SMALL = {
    name: SPACE[name] for name in ("learning_rate", "epochs", "batch_size", "accumulation_steps")
}
MODELS = ("green", "gp", "tpe", "nsga2")


def formula(values: dict[str, Any]) -> tuple[float, float]:
    """Stands for a training: more epochs learn and cost more, a wrong learning rate learns less."""
    off = math.log(values.get("learning_rate", 3e-4) / 3e-4)
    epochs, batch = values.get("epochs", 2), values.get("batch_size", 8)
    return 1 + math.exp(-epochs) + off**2 / 4, 0.001 * epochs * (1 + 8 / batch)


def study_of(name: str, space: Space, *, start: int = 3, seed: int = 0, **kw: Any) -> optuna.Study:
    sampler = samplers.make(name, space, seed=seed, start=start, **kw)
    return optuna.create_study(directions=["minimize"] * 2, sampler=sampler)


def go_on(
    study: optuna.Study, space: Space, trials: int, objective: Objective = formula
) -> list[dict[str, Any]]:
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, objective(encoding.suggest(trial, space)))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    whole = study_of(name, SMALL)
    go_on(whole, SMALL, 9)

    resumed = study_of(name, SMALL)
    go_on(resumed, SMALL, 5)
    resumed.sampler = samplers.make(name, SMALL, seed=0, start=3)

    assert go_on(resumed, SMALL, 4) == [trial.params for trial in whole.trials]


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_proposes_other_trials(name: str) -> None:
    one, other = (go_on(study_of(name, SMALL, seed=seed), SMALL, 5) for seed in (1, 2))

    assert one != other


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", [0, 6])
def test_workers_beside_one_another_propose_different_trials(name: str, known: int) -> None:
    study = study_of(name, SMALL)
    go_on(study, SMALL, known)
    proposed = []
    for _ in range(3):
        study.sampler = samplers.make(name, SMALL, seed=0, start=3)  # as each worker has its own
        proposed.append(encoding.suggest(study.ask(), SMALL))

    assert not any(one == other for i, one in enumerate(proposed) for other in proposed[:i])


@pytest.mark.parametrize("name", NAMES)
def test_no_trial_repeats_another_while_there_are_new_ones(name: str) -> None:
    proposed = go_on(study_of(name, CHOICES), CHOICES, 12)

    assert len({tuple(params.items()) for params in proposed}) == 12


@pytest.mark.parametrize("name", NAMES)
def test_what_a_user_enqueued_is_taken_and_the_rest_proposed(name: str) -> None:
    study = study_of(name, SMALL)
    study.enqueue_trial(encoding.encode({"epochs": 3, "batch_size": 4}, SMALL))

    values = encoding.suggest(study.ask(), SMALL)

    assert values["epochs"] == 3
    assert values["batch_size"] == 4
    assert values["learning_rate"] in SMALL["learning_rate"]


def test_a_start_is_spread_evenly_and_cheap_for_green_alone() -> None:
    wide = SMALL | {"epochs": dimension("epochs", "linear", 1, 8)}
    found = {name: go_on(study_of(name, wide, start=8), wide, 8) for name in MODELS}

    assert [params["epochs"] for params in found["green"]] != [1] * 8
    assert all(params["epochs"] <= 4 for params in found["green"])
    assert sorted(params["epochs"] for params in found["tpe"]) == list(range(1, 9))
    assert found["tpe"] == found["gp"]


def test_a_start_needs_no_earlier_trial() -> None:
    study = study_of("green", SMALL, start=4)
    asked = [encoding.suggest(study.ask(), SMALL) for _ in range(4)]

    done = go_on(study_of("green", SMALL, start=4), SMALL, 4)

    assert asked == [encoding.decode(params, SMALL) for params in done]


def test_a_grid_has_every_point_once_in_a_random_order() -> None:
    space = {**CHOICES, **space_of(dimension("learning_rate", "log", 1e-4, 1e-2))}

    points = go_on(study_of("grid", space), space, samplers.grid_size(space))

    assert samplers.grid_size(space) == 3 * 3 * 2 * 3
    assert len({tuple(params.items()) for params in points}) == len(points)
    assert {round(params["learning_rate"], 9) for params in points} == {1e-4, 1e-3, 1e-2}
    assert points != sorted(points, key=lambda params: list(map(str, params.values())))


def test_a_grid_leaves_out_what_was_tried_whatever_became_of_it() -> None:
    space = space_of(dimension("epochs", "linear", 1, 3), dimension("rank", "choice", 4, 8))
    study = study_of("grid", space)
    study.enqueue_trial({"epochs": 2, "rank_of_4_8": 0})
    encoding.suggest(study.ask(), space)  # a worker that never tells
    failed = study.ask()
    encoding.suggest(failed, space)
    study.tell(failed, state=TrialState.FAIL)

    points = go_on(study, space, 4)

    assert len({tuple(params.items()) for params in points}) == 6
    assert go_on(study, space, 1)[-1] in points[:6]  # all are had: it begins again


def test_what_is_still_to_be_run_is_not_proposed() -> None:
    space = space_of(dimension("epochs", "linear", 1, 2))
    for name in NAMES:
        study = study_of(name, space)
        asked = study.ask()
        study.enqueue_trial({"epochs": 2})

        assert encoding.suggest(asked, space) == {"epochs": 1}


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [(1, 5, [1, 2, 3, 4, 5]), (0, 20, [0, 10, 20]), (0.0, 1.0, [0, 0.5, 1]), (3, 3, [3])],
)
def test_a_grid_takes_few_whole_numbers_all_and_else_three(
    low: float, high: float, values: list[float]
) -> None:
    space = space_of(dimension("x", "linear", low, high), dimension("y", "choice", 1, 2))

    points = go_on(study_of("grid", space), space, samplers.grid_size(space))

    assert sorted({params["x"] for params in points}) == pytest.approx(values)


def found_at_equal_carbon(name: str, seed: int) -> float:
    study = study_of(name, SMALL, start=4, seed=seed)
    spent_kg, points = 0.0, []
    while spent_kg < 0.04:
        trial = study.ask()
        loss, kg = formula(encoding.suggest(trial, SMALL))
        study.tell(trial, (loss, kg))
        spent_kg += kg
        points.append((loss, kg))
    return hypervolume(points[:-1], (2.0, 0.015))


def test_green_finds_more_than_chance_for_the_same_carbon() -> None:
    green, chance = (
        [found_at_equal_carbon(name, seed) for seed in range(3)] for name in ("green", "random")
    )

    assert sum(green) > 1.05 * sum(chance)
    assert min(green) > min(chance)


def test_a_weight_on_carbon_makes_trials_cheaper() -> None:
    def cost_kg(weight: float) -> float:
        study = study_of("green", SMALL, green=Green(carbon_weight=weight))
        return sum(formula(encoding.decode(p, SMALL))[1] for p in go_on(study, SMALL, 12))

    assert cost_kg(2.0) < cost_kg(0.0)


def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def draws() -> tuple[float, ...]:
    return torch.rand(1).item(), np.random.random(), random.random()


@pytest.mark.parametrize("name", NAMES)
def test_training_in_the_same_process_is_left_alone(name: str) -> None:
    study = study_of(name, SMALL)
    go_on(study, SMALL, 4)
    threads, precision = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(2)
    try:
        seed_everything()
        expected = draws()
        seed_everything()

        go_on(study, SMALL, 2)

        assert draws() == expected
        assert torch.get_num_threads() == 2
        assert torch.get_default_dtype() == precision
    finally:
        torch.set_num_threads(threads)


def told(values: list[tuple[float, float]], imputed: list[tuple[float, float] | None]) -> Any:
    """What green proposes after start trials with such values."""
    study = study_of("green", SMALL, start=len(values))
    for pair, attribute in zip(values, imputed, strict=True):
        trial = study.ask()
        encoding.suggest(trial, SMALL)
        if attribute:
            trial.set_user_attr(IMPUTED, list(attribute))
        study.tell(trial, pair)
    return encoding.suggest(study.ask(), SMALL)


def test_a_stopped_trial_counts_with_what_it_would_have_reached() -> None:
    ended = [(2.0, 0.01), (1.5, 0.02), (1.2, 0.03), (1.9, 0.001)]
    planned = [*ended[:3], (1.1, 0.04)]

    assert told(ended, [None, None, None, (1.1, 0.04)]) == told(planned, [None] * 4)
    assert told(ended, [None] * 4) != told(planned, [None] * 4)


def test_how_far_a_trial_diverged_does_not_matter() -> None:
    usual = [(2.0, 0.01), (1.5, 0.02), (1.2, 0.03)]

    near, far = (told([*usual, (loss, 0.01)], [None] * 4) for loss in (5.0, 5e6))

    assert near == far
    assert near != told([*usual, (1.1, 0.01)], [None] * 4)


DEGENERATE: dict[str, list[tuple[float, float]]] = {
    "equal losses": [(1.0, 0.01), (1.0, 0.02), (1.0, 0.03)],
    "equal emissions": [(1.0, 0.01), (1.1, 0.01), (1.2, 0.01)],
    "all equal": [(1.0, 0.01)] * 3,
    "one diverged": [(math.inf, 0.01), (1.1, 0.02), (1.2, 0.03)],
    "all diverged": [(math.inf, 0.01), (math.inf, 0.02), (math.inf, 0.03)],
    "no emissions": [(1.0, 0.0), (1.1, 0.0), (1.2, 0.0)],
    "infinite emissions": [(1.0, math.inf), (1.1, 0.02), (1.2, 0.03)],
    "huge": [(1e30, 1e-30), (1.1, 1e30), (1.2, 0.03)],
}


@pytest.mark.parametrize("space", [SMALL, {"epochs": SPACE["epochs"]}, CHOICES])
@pytest.mark.parametrize("case", DEGENERATE)
def test_green_goes_on_whatever_trials_gave(case: str, space: Space) -> None:
    study = study_of("green", space, start=2)
    results = iter(DEGENERATE[case])
    go_on(study, space, 3, lambda _: next(results))

    values = encoding.suggest(study.ask(), space)

    assert all(values[name] in one for name, one in space.items())


def test_imputed_values_that_are_no_numbers_are_left_out() -> None:
    values = told([(1.0, 0.01), (1.1, 0.02), (1.2, 0.03)], [(math.nan, math.nan), None, None])

    assert all(values[name] in one for name, one in SMALL.items())


def test_green_needs_two_finished_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    original = optuna.samplers.GPSampler._sample_relative_impl

    def look(self: Any, study: Any, completed: list[FrozenTrial], *rest: Any) -> Any:
        looked.append(len(completed))
        return original(self, study, completed, *rest)

    monkeypatch.setattr(optuna.samplers.GPSampler, "_sample_relative_impl", look)
    study = study_of("green", SMALL, start=0)

    go_on(study, SMALL, 4)

    assert looked == [2, 3]


def test_a_model_that_fails_is_replaced_by_the_even_spread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("not positive definite")

    monkeypatch.setattr(optuna.samplers.GPSampler, "_sample_relative_impl", fail)

    proposed = go_on(study_of("green", SMALL, start=2), SMALL, 4)

    assert proposed == go_on(study_of("green", SMALL, start=4), SMALL, 4)
    assert "not positive definite" in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_a_space_of_one_point_is_proposed(name: str) -> None:
    space = space_of(dimension("epochs", "linear", 2, 2), dimension("rank", "powers of two", 8, 8))

    assert go_on(study_of(name, space), space, 5) == [{"epochs": 2, "log2_rank": 3}] * 5


@settings(max_examples=5, deadline=None)
@given(st.integers(-(2**40), 2**40))
def test_any_seed_will_do(seed: int) -> None:
    for name in NAMES:
        go_on(study_of(name, SMALL, start=2, seed=seed), SMALL, 3)
