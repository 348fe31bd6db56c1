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
