"""Hyperparameters as Optuna sees them: nothing is lost on the way there and back."""

from typing import Any

import optuna
from dimensions import CHOICES, dimension, space_of
from hypothesis import given
from hypothesis import strategies as st

from green_tune.encoding import decode, distributions, encode, suggest
from green_tune.space import SPACE, Dimension


def dimensions() -> st.SearchStrategy[Dimension]:
    name = st.sampled_from(["batch_size", "epochs", "learning_rate"])
    numbers = st.lists(st.integers(0, 100), min_size=2, unique=True)
    powers = st.lists(st.integers(0, 12), min_size=2, max_size=2).map(
        lambda ends: [2 ** min(ends), 2 ** max(ends)]
    )
    ends = st.lists(st.integers(1, 100), min_size=2, max_size=2).map(sorted)
    decimals = st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=2).map(sorted)
    words = st.lists(st.text(min_size=1, max_size=3), min_size=2, unique=True)
    of: dict[str, st.SearchStrategy[Any]] = {
        "choice": numbers | words,
        "powers of two": powers,
        "linear": ends,
        "log": decimals,
    }
    return st.sampled_from(list(of)).flatmap(
        lambda scale: st.builds(lambda n, values: dimension(n, scale, *values), name, of[scale])
    )


@given(dimensions(), st.integers(0, 2**32 - 1))
def test_a_value_is_the_same_after_the_way_through_optuna(one: Dimension, seed: int) -> None:
    space = space_of(one)
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask()

    values = suggest(trial, space)

    assert values[one.name] in one
    assert encode(values, space) == trial.params
    assert decode(trial.params, space) == values
    assert trial.distributions == distributions(space)


def test_a_model_sees_an_order_where_there_is_one() -> None:
    params = encode({"batch_size": 16, "epochs": 1, "init": "zero"}, CHOICES)

    assert params == {"batch_size_of_2_8_16": 2, "epochs_of_1_2_3": 0, "init": "zero"}
    assert encode({"batch_size": 16}, SPACE) == {"log2_batch_size": 4}


def test_what_the_space_does_not_hold_is_left_out() -> None:
    values = {"batch_size": 6, "lora_rank": 128, "epochs": 2, "learning_rate": 1.0, "seed": 1}

    assert encode(values, SPACE) == {"epochs": 2}
    assert decode({"epochs": 2, "other": 1}, SPACE) == {"epochs": 2}
