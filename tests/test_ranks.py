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


def test_without_the_size_of_a_node_all_are_taken_to_be_on_one() -> None:
    assert this({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}).here == 2
