"""What to leave out for a budget: of each option the mildest value that is enough."""

from collections.abc import Callable, Mapping

import pytest

from green_tune import order, trim
from green_tune.errors import ConfigError
from green_tune.order import Order

EXAMPLES = 100
Takes = Callable[[Order], float]


def takes(made: Order, *, quality: float = 0.0) -> float:
    """A made-up price in kg: a gram for each example and epoch of a run, and the task metrics."""
    return sum(
        unit.times
        * (
            unit.config.epochs * min(unit.config.max_train_examples or EXAMPLES, EXAMPLES) / 1000
            + quality * bool(unit.config.quality_examples)
        )
        for unit in made.units
    )


def proposed(
    budget_kg: float, price: Takes = takes, command: str = "train", **asked: str
) -> dict[str, float]:
    """Each proposal as it is shown, with its kilograms."""
    texts = order.defaults() | asked
    found = trim.proposals(command, texts, price, budget_kg, EXAMPLES)
    return {str(one): one.emissions_kg for one in found}


def test_each_option_is_lowered_as_little_as_is_enough() -> None:
    """4 epochs of 100 examples are 0.4 kg: 3 epochs 0.3, and half of the examples 0.2."""
    found = proposed(0.25, epochs="4")
    assert found == pytest.approx({"epochs=2": 0.2, "max_train_examples=50": 0.2})


@pytest.mark.parametrize(
    ("command", "asked", "budget_kg"),
    [
        ("train", {"epochs": "5"}, 0.31),
        ("sweep", {"trials": "9"}, 0.9),
        ("grid", {"epochs": "3", "seed": "4,5,6,7"}, 2.5),
        ("grid", {"epochs": "1..3", "trials": "6", "task": "qa"}, 2.9),
    ],
)
def test_proposals_are_within_the_budget_and_one_step_less_is_not(
    command: str, asked: Mapping[str, str], budget_kg: float
) -> None:
    texts = {**order.defaults(), **asked}
    found = trim.proposals(command, texts, takes, budget_kg, EXAMPLES)
    assert takes(order.read(command, texts)) > budget_kg
    assert len(found) >= 2
    for one in found:
        ((name, text),) = one.changes.items()
        assert (
            takes(order.read(command, texts | dict(one.changes))) == one.emissions_kg <= budget_kg
        )
        milder = _one_step_less(name, text, texts[name])
        assert takes(order.read(command, texts | {name: milder})) > budget_kg


def _one_step_less(name: str, text: str, asked: str) -> str:
    if name == "seed":
        return asked[: len(text) + 2]
    if name == "max_train_examples":
        shares = [int(EXAMPLES * share) for share in (1.0, *trim.SHARES)]
        return str(shares[shares.index(int(text)) - 1])
    low, _, high = text.rpartition("..")
    ranged = name == "epochs" and not asked.isdigit()
    return f"{low or 1}..{int(high) + 1}" if ranged else str(int(text) + 1)


def test_the_most_epochs_of_a_list_are_the_first_to_go() -> None:
    found = proposed(4.5, command="sweep", trials="10", epochs="2,8,4")
    assert "epochs=2,4" in found


def test_a_range_of_epochs_ends_at_its_lower_end() -> None:
    found = proposed(2.05, command="sweep", trials="10", epochs="2..4")
    assert found["epochs=2"] == pytest.approx(2.0)


def test_fewer_examples_are_fewer_than_there_are() -> None:
    """Asked for ten times as many as the data has, 75 % of those would be no fewer."""
    found = proposed(0.08, max_train_examples="1000")
    assert found == pytest.approx({"max_train_examples=75": 0.075})


@pytest.mark.parametrize(
    ("budget_kg", "changes", "kg"),
    [
        (0.061, "epochs=1 max_train_examples=10", 0.06),  # 15 examples are 0.065
        (0.015, "epochs=1 max_train_examples=5 quality_examples=0", 0.005),
    ],
)
def test_where_no_option_is_enough_alone_several_are_lowered_together(
    budget_kg: float, changes: str, kg: float
) -> None:
    """Task metrics are 0.05 kg, 5 examples in 4 epochs 0.02: each alone is above 0.061."""

    def price(made: Order) -> float:
        return takes(made, quality=0.05)

    assert proposed(budget_kg, price, epochs="4") == pytest.approx({changes: kg})
    assert proposed(0.004, price, epochs="4") == {}


def test_nothing_is_proposed_where_nothing_helps() -> None:
    assert proposed(0.5, lambda _: 1.0, epochs="4") == {}
    assert proposed(0.0, epochs="4") == {}


def test_a_value_that_another_option_forbids_is_passed_over() -> None:
    def price(made: Order) -> float:
        (unit,) = made.units
        if unit.config.epochs == 2:
            raise ConfigError("no room")
        return takes(made)

    assert "epochs=1" in proposed(0.25, price, epochs="4")
