"""Which adapter a rule takes: never one that another beats, and never one that is not there."""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import Effects, run

from green_tune import choice, points, selection
from green_tune.choice import Pair
from green_tune.errors import ConfigError
from green_tune.results import EVALUATIONS, REUSED, STUDY, TRIAL, RunRecord

PLAIN = run(random.Random(0), Effects())
FIGURES = st.floats(1e-6, 1e3) | st.sampled_from(
    [0.5, 1.0, 2.0]
)  # few values, so that equals occur
PAIRS = st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=12)
PERCENT = st.floats(0, 200)


@dataclass(frozen=True)
class Made:
    """The least that a rule looks at."""

    pair: Pair


def beats(one: Pair, other: Pair) -> bool:
    return one != other and one[0] <= other[0] and one[1] <= other[1]


def picked(rule: str, pairs: Sequence[Pair], within: float = 5.0, **more: Sequence[Pair]) -> Pair:
    return choice.pick(rule, [Made(pair) for pair in pairs], within_percent=within, **more).pair


def trial(
    number: int, loss: float, kg: float, *course: tuple[int, float, float, float], **tags: str
) -> RunRecord:
    """A trial that ended with a loss for some kilograms, after validations on its way."""
    own = {STUDY: "s", TRIAL: str(number), EVALUATIONS: json.dumps(course)}
    metrics = {**PLAIN.metrics, "val_loss": loss, "emissions_kg": kg, "steps": 100.0}
    return replace(
        PLAIN,
        run_id=f"{number:032x}",
        kind="trial",
        metrics=metrics,
        tags={**PLAIN.tags, **own, **tags},
    )


def chosen(
    records: Sequence[RunRecord],
    rules: Sequence[str] = choice.RULES,
    is_kept: Callable[[str], bool] = lambda address: True,
    within: float = 5.0,
) -> dict[str, tuple[str, ...]]:
    """The rules by the address that they choose."""
    found = choice.choose(records, rules, within_percent=within, is_kept=is_kept)
    return {one.address: one.rules for one in found}


def ends(address: str) -> bool:
    return address.endswith("/adapter")


@given(PAIRS, st.sampled_from(choice.RULES), PERCENT, st.lists(st.tuples(FIGURES, FIGURES)))
def test_nothing_beats_what_was_picked(
    pairs: list[Pair], rule: str, within: float, known: list[Pair]
) -> None:
    one = picked(rule, pairs, within, known=known)
    assert one in pairs
    assert not any(beats(other, one) for other in pairs)


@given(PAIRS, st.sampled_from(choice.RULES), PERCENT, st.randoms())
def test_the_order_in_which_adapters_are_found_does_not_matter(
    pairs: list[Pair], rule: str, within: float, dice: random.Random
) -> None:
    other = list(pairs)
    dice.shuffle(other)
    assert picked(rule, other, within) == picked(rule, pairs, within)


@given(PAIRS)
def test_the_greenest_within_nothing_is_the_best(pairs: list[Pair]) -> None:
    assert picked("greenest", pairs, 0.0) == picked("best", pairs)


@given(PAIRS, PERCENT)
def test_the_greenest_is_the_cheapest_of_those_whose_loss_is_near_enough(
    pairs: list[Pair], within: float
) -> None:
    limit = min(loss for loss, _ in pairs) * (1 + within / 100)
    near = [(kg, loss) for loss, kg in pairs if loss <= limit]
    assert picked("greenest", pairs, within) == min(near)[::-1]


@given(PAIRS)
def test_the_balanced_one_is_the_knee_where_the_front_has_one(pairs: list[Pair]) -> None:
    every = points.every(trial(n, *pair) for n, pair in enumerate(pairs))
    balanced, knee = picked("balanced", pairs), points.knee(every)
    assert balanced == (knee.pair if knee else min(pairs, key=lambda pair: pair[::-1]))


def test_the_balanced_one_of_a_bent_front_is_its_middle() -> None:
    assert picked("balanced", [(3.0, 1.0), (2.0, 1.1), (1.9, 3.0)]) == (2.0, 1.1)


def test_a_front_that_does_not_bend_is_balanced_at_its_cheap_end() -> None:
    assert picked("balanced", [(1.0, 3.0), (3.0, 1.0)]) == (3.0, 1.0)
    assert picked("balanced", [(1.0, 3.0), (2.9, 2.9), (3.0, 1.0)]) == (3.0, 1.0)


def test_results_that_are_known_from_elsewhere_shift_what_is_near_and_where_it_bends() -> None:
    pairs = [(2.0, 1.0), (1.5, 3.0)]
    assert picked("greenest", pairs, 40.0) == (2.0, 1.0)
    assert picked("greenest", pairs, 40.0, known=[(1.0, 9.0)]) == (1.5, 3.0)
    assert picked("balanced", pairs) == (2.0, 1.0)
    assert picked("balanced", pairs, known=[(4.0, 0.9), (1.4, 10.0)]) == (2.0, 1.0)
    assert picked("balanced", pairs, known=[(2.1, 0.1), (1.4, 10.0)]) == (1.5, 3.0)


@pytest.mark.parametrize("rule", choice.RULES)
def test_the_first_of_equals_stays(rule: str) -> None:
    first, second = Made((1.0, 1.0)), Made((1.0, 1.0))
    assert choice.pick(rule, [first, second], within_percent=5.0) is first


def test_one_adapter_is_the_best_the_greenest_and_the_balanced_one() -> None:
    assert chosen([PLAIN]) == {f"runs:/{PLAIN.run_id}/adapter": choice.RULES}


def test_an_adapter_is_chosen_once_for_all_rules_that_prefer_it() -> None:
    records = [trial(0, 1.0, 9.0), trial(1, 1.01, 2.0), trial(2, 3.0, 1.0)]
    found = choice.choose(records, choice.RULES, within_percent=5.0, is_kept=ends)
    assert [(one.point.record.tags[TRIAL], one.rules) for one in found] == [
        ("0", ("best",)),
        ("1", ("greenest", "balanced")),
    ]
    assert {one.front for one in found} == {((3.0, 1.0), (1.01, 2.0), (1.0, 9.0))}


def test_an_adapter_on_the_way_is_chosen_where_it_was_kept() -> None:
    records = [trial(0, 1.0, 9.0, (50, 0.5, 1.02, 4.0))]
    on_the_way = f"runs:/{records[0].run_id}/checkpoints/step-50"
    assert chosen(records, ["greenest"]) == {on_the_way: ("greenest",)}
    assert chosen(records, ["greenest"], ends) == {
        f"runs:/{records[0].run_id}/adapter": ("greenest",)
    }


def test_an_adapter_that_was_not_kept_stands_in_nobodys_way() -> None:
    # Trained for too long: the validation on the way beats the end, and was not kept.
    records = [trial(0, 1.2, 9.0, (50, 0.5, 1.0, 4.0)), trial(1, 2.0, 10.0)]
    assert chosen(records, ["best"], ends) == {f"runs:/{records[0].run_id}/adapter": ("best",)}


def test_the_store_is_asked_for_each_adapter_once_and_for_none_that_is_beaten() -> None:
    records = [
        trial(0, 1.2, 9.0, (50, 0.5, 1.0, 4.0)),
        trial(1, 1.1, 9.0),
        trial(2, 2.0, 10.0),
    ]
    asked: list[str] = []
    choice.choose(
        records,
        choice.RULES,
        within_percent=5.0,
        is_kept=lambda address: asked.append(address) or ends(address),  # type: ignore[func-returns-value]
    )
    assert sorted(asked) == [
        f"runs:/{records[0].run_id}/checkpoints/step-50",
        f"runs:/{records[1].run_id}/adapter",
    ]


def test_of_a_train_run_only_the_end_is_there() -> None:
    course = json.dumps([(50, 0.5, 0.1, 0.001)])
    record = replace(PLAIN, tags={**PLAIN.tags, EVALUATIONS: course})
    assert list(chosen([record])) == [f"runs:/{PLAIN.run_id}/adapter"]


def test_an_adapter_that_was_taken_over_is_where_it_was_trained() -> None:
    earlier = "e" * 32
    record = trial(0, 1.0, 9.0, (50, 0.5, 1.02, 4.0), **{REUSED: earlier})
    (best, greenest) = choice.choose(
        [record], ["best", "greenest"], within_percent=5.0, is_kept=lambda _: True
    )
    assert (best.address, best.run_id) == (f"runs:/{earlier}/adapter", earlier)
    assert greenest.address == f"runs:/{earlier}/checkpoints/step-50"


def test_without_any_adapter_there_is_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="none of these runs has an adapter to promote"):
        chosen([PLAIN], is_kept=lambda _: False)
    with pytest.raises(ConfigError, match="none of these runs has an adapter to promote"):
        chosen([replace(PLAIN, status="FAILED")])


@pytest.mark.parametrize("name", ["val_loss", "emissions_kg"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_never_gets_to_a_rule(name: str, value: float) -> None:
    bad = replace(PLAIN, run_id="b" * 32, metrics={**PLAIN.metrics, name: value})
    assert [one.run_id for one in selection.select([bad, PLAIN]).records] == [PLAIN.run_id]


def test_runs_are_grouped_by_base_model_and_task() -> None:
    dice = random.Random(1)
    records = [
        run(dice, Effects(), model=model, task=task)
        for model in ("gemma-2b", "llama-2-7b")
        for task in ("qa", "sentiment", "qa")
    ]
    found = choice.groups(records)
    assert {key: len(some) for key, some in found.items()} == {
        ("gemma-2b", "qa"): 2,
        ("gemma-2b", "sentiment"): 1,
        ("llama-2-7b", "qa"): 2,
        ("llama-2-7b", "sentiment"): 1,
    }


@pytest.mark.parametrize("tag", ["data_digest", "base_model_commit", "base_digest"])
def test_losses_on_other_data_or_another_base_are_not_compared(tag: str) -> None:
    both = [
        replace(PLAIN, tags={**PLAIN.tags, tag: "common"}),
        replace(PLAIN, tags={**PLAIN.tags, tag: "rare"}),
        replace(PLAIN, tags={**PLAIN.tags, tag: "common"}),
    ]
    with pytest.raises(ConfigError) as caught:
        choice.groups(both)
    assert str(caught.value) == (
        f"runs of gemma-2b for qa have 2 different {tag}, so their losses cannot be compared: "
        f"choose, such as the 2 runs of filter=\"tags.{tag} = 'common'\", or a study="
    )
