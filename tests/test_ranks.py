import pytest

from green_tune.errors import ConfigError
from green_tune.ranks import Rank, this


def test_a_process_alone_is_all_there_is() -> None:
    assert this({}) == Rank()
    assert (Rank().writes, Rank().measures) == (True, True)


def test_of_two_nodes_with_two_processes_each_two_measure_and_one_writes() -> None:
    ranks = [
        this({"RANK": f"{n}", "WORLD_SIZE": "4", "LOCAL_RANK": f"{n % 2}", "LOCAL_WORLD_SIZE": "2"})
        for n in range(4)
    ]
    assert [rank.writes for rank in ranks] == [True, False, False, False]
    assert [rank.measures for rank in ranks] == [True, False, True, False]
    assert {(rank.world, rank.here) for rank in ranks} == {(4, 2)}


@pytest.mark.parametrize(
    ("rank", "divisions"),
    [
        (Rank(), (1,)),
        (Rank(number=1, world=4, local=1, here=4), (1, 4)),
        (Rank(number=1, world=8, local=1, here=4), (1, 4, 8)),  # a node's first: they are closer
        (Rank(number=1, world=2, local=0, here=1), (1, 2)),
        (Rank(number=1, world=3, local=1, here=2), (1, 3)),  # nodes that are not alike
        (Rank(number=1, world=8, local=1, here=4, shards=True), (4, 8)),
        (Rank(shards=True), (1,)),  # nobody to share with
    ],
)
def test_a_base_may_be_divided_among_a_node_or_among_all(
    rank: Rank, divisions: tuple[int, ...]
) -> None:
    assert rank.divisions == divisions


def test_accelerates_wish_to_shard_is_heard() -> None:
    several = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    assert this(several | {"ACCELERATE_USE_FSDP": "true"}).shards
    assert not this(several).shards


def test_accelerate_that_has_started_one_process_of_several_is_refused() -> None:
    """As `accelerate launch --cpu --num_processes 2` does, and says nothing of it."""
    with pytest.raises(ConfigError, match="torchrun --nproc_per_node"):
        this({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"})
    assert this({"ACCELERATE_MIXED_PRECISION": "no"}) == Rank()  # --num_processes 1


@pytest.mark.parametrize("alone", [{"RANK": "1"}, {"LOCAL_RANK": "1"}, {"WORLD_SIZE": "1"}])
def test_variables_that_something_else_has_left_behind_start_nothing(alone: dict[str, str]) -> None:
    assert this(alone) == Rank()


@pytest.mark.parametrize(
    "wrong",
    [
        {"WORLD_SIZE": "abc"},
        {"WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "1"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ],
)
def test_variables_that_make_no_sense_are_one_line(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="make no sense"):
        this(wrong)
