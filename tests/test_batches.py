import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from green_tune import batches
from green_tune.batches import Micro, Schedule
from green_tune.tokens import Encoded

LONG = batches.MIN_SHARED + 4


def example(ids: list[int], labelled: int = 1, number: int = 0) -> Encoded:
    return Encoded(input_ids=ids, labelled=labelled, completion_bytes=1, cut=False, number=number)


@st.composite
def examples(draw: st.DrawFn) -> list[Encoded]:
    """Some with long prefixes in common, two levels deep, and some equal to the last token."""
    chance = random.Random(draw(st.integers(0, 10**6)))
    stems: list[list[int]] = [[]]
    for _ in range(draw(st.integers(0, 4))):
        stems.append(chance.choice(stems) + [chance.randrange(3) for _ in range(LONG)])
    made = []
    for number in range(draw(st.integers(1, 12))):
        ids = chance.choice(stems) + [chance.randrange(4) for _ in range(chance.randrange(2, 30))]
        made.append(example(ids, chance.randrange(1, len(ids)), number))
    return made


def sees(micro: Micro, at: int) -> list[int]:
    """The tokens that a position may attend to, those before it in its example's path."""
    number = next(n for n, node in enumerate(micro.nodes) if node.start <= at < node.end)
    places = [place for node in micro.path(number) for place in range(node.start, node.end)]
    return [micro.ids[place] for place in places if place <= at]


@pytest.mark.parametrize("batching", ["flat", "tree", "padded"])
@given(made=examples(), tokens=st.integers(1, 200))
def test_each_label_is_predicted_from_all_of_its_example_and_nothing_else(
    batching: batches.Batching, made: list[Encoded], tokens: int
) -> None:
    micros = batches.cut(made, batching, tokens=tokens, rows=3)
    found = [
        (owner, tuple(sees(micro, at)), target)
        for micro in micros
        for owner, at, target in zip(micro.owners, micro.label_at, micro.targets, strict=True)
    ]
    expected = [
        (e["number"], tuple(e["input_ids"][:at]), e["input_ids"][at])
        for e in made
        for at in range(len(e["input_ids"]) - e["labelled"], len(e["input_ids"]))
    ]
    assert sorted(found) == sorted(expected)
    assert sum(micro.useful for micro in micros) == sum(len(e["input_ids"]) for e in made)


@given(made=examples(), tokens=st.integers(1, 200))
def test_positions_count_from_the_start_of_the_example(made: list[Encoded], tokens: int) -> None:
    for micro in batches.cut(made, "tree", tokens=tokens):
        for at, position in enumerate(micro.positions):
            assert position == len(sees(micro, at)) - 1


@given(made=examples(), tokens=st.integers(40, 200))
def test_flat_micro_batches_keep_to_their_budget(made: list[Encoded], tokens: int) -> None:
    for micro in batches.cut(made, "flat", tokens=tokens):
        assert len(micro.ids) <= tokens or len(micro.nodes) == 1
        assert len(micro.ids) == micro.useful


def test_what_examples_have_in_common_is_there_once() -> None:
    passage, other = list(range(100, 150)), list(range(200, 250))
    made = [example([*passage, 1, n]) for n in range(3)] + [example([*other, 1, 2])]
    (micro,) = batches.cut(made, "tree", tokens=1000)
    assert len(micro.ids) == 51 + 3 + 52  # even the 1 is shared
    assert micro.useful == 4 * 52
    assert [len(tree) for tree in micro.trees] == [4, 1]


def test_a_few_tokens_in_common_make_no_branch() -> None:
    (micro,) = batches.cut([example([1, 2, 3, 4, n]) for n in (5, 6)], "tree", tokens=100)
    assert [node.parent for node in micro.nodes] == [-1, -1]


def test_padded_rows_are_as_long_as_the_longest_of_them() -> None:
    made = [example(list(range(length))) for length in (3, 9, 4, 8)]
    micros = batches.cut(made, "padded", tokens=1, rows=2)
    assert [(micro.width, len(micro.ids)) for micro in micros] == [(4, 8), (9, 18)]


@given(
    groups=st.lists(st.integers(0, 8), min_size=1, max_size=60),
    size=st.integers(1, 12),
    batching=st.sampled_from(["tree", "flat", "padded"]),
)
def test_every_example_comes_once_an_epoch_in_steps_of_the_asked_size(
    groups: list[int], size: int, batching: batches.Batching
) -> None:
    schedule = Schedule(groups, size=size, epochs=2, seed=3, batching=batching)
    steps = [schedule.step(number) for number in range(schedule.steps)]
    half = schedule.steps_per_epoch
    for epoch in (steps[:half], steps[half:]):
        assert sorted(example for step in epoch for example in step) == list(range(len(groups)))
        assert all(len(step) == size for step in epoch[:-1])


def test_questions_on_one_passage_come_one_after_the_other_and_passages_by_chance() -> None:
    groups = [number % 10 for number in range(40)]
    schedule = Schedule(groups, size=40, epochs=2, seed=0, batching="tree")
    first, second = (([groups[n] for n in schedule.step(epoch)]) for epoch in (0, 1))
    assert all(first[at : at + 4] == [first[at]] * 4 for at in range(0, 40, 4))
    assert first != second
    assert first[::4] != sorted(first[::4])


def test_the_order_depends_on_the_seed_alone() -> None:
    def order(seed: int, size: int) -> list[int]:
        schedule = Schedule(range(30), size=size, epochs=1, seed=seed, batching="flat")
        return [example for n in range(schedule.steps) for example in schedule.step(n)]

    assert order(1, 8) == order(1, 5)
    assert order(1, 8) != order(2, 8)


@given(made=examples(), processes=st.integers(1, 5))
def test_processes_share_a_step_without_remainder(made: list[Encoded], processes: int) -> None:
    parts = batches.shares(made, processes)
    assert len(parts) == processes
    assert sorted(e["number"] for part in parts for e in part) == list(range(len(made)))
    longest = max(len(e["input_ids"]) for e in made)
    sizes = [sum(len(e["input_ids"]) for e in part) for part in parts]
    assert max(sizes) - sum(sizes) / processes <= longest
