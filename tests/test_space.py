"""The space of a sweep: pinned, narrowed or listed by a user, and never upside down."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from green_tune.config import TrainConfig
from green_tune.errors import ConfigError
from green_tune.space import SPACE, Dimension, defaults, split

BATCHES = st.integers(1, 4096)
RATES = st.floats(1e-9, 10.0)


def dimension(name: str, text: str) -> Dimension:
    return split({name: text})[1][name]


def refusal(asked: Mapping[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        split(asked)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_asked_is_the_table_around_the_default_run() -> None:
    assert split({}) == (TrainConfig(quality_examples=0), SPACE)
    assert split(defaults()) == split({})


def test_a_single_value_pins_a_dimension() -> None:
    fixed, space = split({"batch_size": "16", "epochs": "2", "task": "qa"})
    assert fixed == TrainConfig(batch_size=16, epochs=2, task="qa", quality_examples=0)
    assert set(space) == set(SPACE) - {"batch_size", "epochs"}


@settings(deadline=None)
@given(low=RATES, high=RATES)
def test_a_range_is_kept_to_the_last_digit(low: float, high: float) -> None:
    assume(low <= high)
    found = dimension("learning_rate", f"{low}..{high}")
    assert (found.low, found.high, found.scale) == (low, high, "log")
    assert dimension("learning_rate", str(found)) == found


@settings(deadline=None)
@given(values=st.lists(BATCHES, min_size=2, unique=True))
def test_a_list_is_kept_in_its_order(values: list[int]) -> None:
    found = dimension("batch_size", ",".join(map(str, values)))
    assert (found.values, found.scale) == (tuple(values), "choice")
    assert (found.low, found.high) == (min(values), max(values))
    assert dimension("batch_size", str(found)) == found


def test_a_value_listed_twice_counts_once() -> None:
    assert dimension("lora_rank", "8, 16,8").values == (8, 16)


@settings(deadline=None)
@given(low=BATCHES, high=BATCHES)
def test_powers_of_two_are_all_that_lie_in_the_range(low: int, high: int) -> None:
    assume(low <= high)
    powers = [2**k for k in range(13) if low <= 2**k <= high]
    assume(powers)
    found = dimension("batch_size", f"{low}..{high}")
    assert found.values == (powers[0], powers[-1])
    assert found.scale == "powers of two"
    assert dimension("batch_size", str(found)) == found


@pytest.mark.parametrize(
    ("name", "text", "shown", "fix"),
    [
        ("batch_size", "32..2", "batch_size=32..2 is upside down", "write 2..32"),
        ("learning_rate", "1e-3..1e-5", "learning_rate=1e-3..1e-5", "write 1e-05..0.001"),
        ("warmup_steps", "20..0", "warmup_steps=20..0 is upside down", "write 0..20"),
        ("batch_size", "5..7", "batch_size=5..7 holds no power of two", "such as 5,7"),
        ("batch_size", "0..8", "batch_size=0", "at least 1"),
        ("batch_size", "8,5000", "batch_size=5000", "at most 4096"),
        ("learning_rate", "1e-5..20", "learning_rate=20", "at most 10"),
        ("learning_rate", "1e..1", "learning_rate=1e ", "not a number"),
        ("learning_rate", "nan..1", "learning_rate=nan", "finite number"),
        ("learning_rate", "1e-5,inf", "learning_rate=inf", "finite number"),
        ("batch_size", "8.5..16", "batch_size=8.5", "whole number"),
        ("batch_size", "2..8..32", "batch_size=8..32", "whole number"),
        ("epochs", "a,b", "epochs=a", "whole number"),
    ],
)
def test_a_bad_range_is_shown_with_its_fix(name: str, text: str, shown: str, fix: str) -> None:
    line = refusal({name: text})
    assert line.startswith(shown)
    assert fix in line


@pytest.mark.parametrize("text", ["8..", "..8", "..", "8,", ",8"])
def test_a_range_without_an_end_is_shown_whole(text: str) -> None:
    assert f"batch_size={text}" in refusal({"batch_size": text})


@pytest.mark.parametrize("asked", [{"weight_decay": "0..0.1"}, {"use_rslora": "false..true"}])
def test_what_cannot_vary_is_refused_with_what_can(asked: dict[str, Any]) -> None:
    (name,) = asked
    line = refusal(asked)
    assert line.startswith(f"{name} does not vary")
    assert all(dim in line for dim in SPACE)


SHARES = st.integers(0, 999).map(lambda number: number / 1000)
DIMENSIONS = ["epochs=1..3", "batch_size=2..32", "batch_size=7,2,31", "learning_rate=5e-5..2e-3",
              "warmup_steps=0..0"]  # fmt: skip


@settings(deadline=None)
@given(text=st.sampled_from(DIMENSIONS), share=SHARES)
def test_a_share_of_the_way_through_a_dimension_is_one_of_its_values(
    text: str, share: float
) -> None:
    found = dimension(*text.split("="))
    assert found.at(share) in found


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("epochs=1..3", [1, 2, 3]),
        ("batch_size=4..32", [4, 8, 16, 32]),
        ("batch_size=31,2,7", [31, 2, 7]),
    ],
)
def test_equal_shares_have_one_value_each_from_the_first_to_the_last(
    text: str, values: list[int]
) -> None:
    found = dimension(*text.split("="))
    middles = [(number + 0.5) / len(values) for number in range(len(values))]
    assert [found.at(share) for share in middles] == values


def test_half_of_the_way_on_a_logarithmic_scale_is_the_geometric_mean() -> None:
    found = dimension("learning_rate", "1e-5..1e-3")
    assert [found.at(share) for share in (0, 0.5)] == pytest.approx([1e-5, 1e-4])


def test_dots_in_a_text_are_no_range() -> None:
    assert split({"data": "../reviews"})[0].data == "../reviews"


def test_a_sweep_without_a_range_is_refused() -> None:
    line = refusal(dict.fromkeys(SPACE, "8") | {"learning_rate": "1e-4"})
    assert line.startswith("nothing is left to vary; give a range to one of batch_size")


def test_an_unknown_parameter_is_refused() -> None:
    assert refusal({"batch": "1..8"}).startswith("unknown parameter batch; known: ")
