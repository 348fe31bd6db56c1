"""Processes that train together: alone nothing is asked, and a lost one is named as such."""

import signal
from collections.abc import Callable, Iterator

import pytest
from torch import distributed

from green_tune import loading, peers
from green_tune.errors import ConfigError, RunFailed
from green_tune.job import Job


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_process_alone_has_its_own_answer() -> None:
    assert peers.from_everywhere(3) == [3]
    assert peers.from_everywhere_at_last("x") == ["x"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:29075."),
        distributed.DistNetworkError("The client socket has failed to connect"),
    ],
)
def test_a_lost_process_is_one_line_that_the_launchers_signal_does_not_hide(
    error: RuntimeError,
) -> None:
    with pytest.raises(RunFailed, match="another of the processes"), peers.noticing():
        raise error
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match=r"^mat1 and mat2 shapes"), peers.noticing():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN


def test_processes_that_would_divide_a_base_in_unlike_ways_are_refused(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers of others are given: their devices would have to differ."""
    monkeypatch.setattr(peers, "from_everywhere", lambda mine: [mine, mine | {"plan.shards": "2"}])
    with pytest.raises(ConfigError, match=r"differ in plan.shards: 1 and 2; start all"):
        loading.Base(make_job())
