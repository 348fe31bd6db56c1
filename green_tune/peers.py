"""The processes that train one adapter together: how they meet, ask one another, and part.

What they tell one another goes over gloo, whatever device they train on: a process that waits
keeps its GPU idle, may wait long, and notices at once that another has ended. Gradients go over the
devices' own links. Which process this is, `ranks` knows; that they talk to one another is a matter
of the whole process, and so is this state.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from green_tune.errors import RunFailed
from green_tune.ranks import NAMES, Rank

# Limits are for a machine that is gone without a word: a process that has ended shows at once.
PATIENCE = timedelta(hours=6)  # with one that loads, measures or saves alone
IN_STEP = timedelta(hours=1)  # where all compute: with GPUs that spin as they wait
SHOWN = 200  # characters of a library's error
LOST = ("by peer", "Broken pipe", "Timed out waiting", "Connection refused", "NCCL", "gloo")

_talk: list[Any] = []  # the group in which they talk


def meet(rank: Rank, device: torch.device) -> None:
    """Waits until all are there; does nothing for one alone, or where they have met."""
    # The plan has taken note of it; else accelerate and transformers would shard in their own way.
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    if rank.world == 1:  # accelerate would take what something else has left behind for a launcher
        for name in NAMES:
            os.environ.pop(name, None)
        return
    if distributed.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with noticing():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=IN_STEP)
        _talk.append(distributed.new_group(backend="gloo", timeout=PATIENCE))


def from_everywhere(mine: Any) -> list[Any]:
    """What each of the processes that train together hands in, in their order.

    Raises:
        RunFailed: another one has ended.
    """
    if not _talk:
        return [mine]
    found = [None] * distributed.get_world_size()
    with noticing():
        distributed.all_gather_object(found, mine, group=_talk[0])
    return found


def from_everywhere_at_last(mine: Any) -> list[Any]:
    """The same, after which they part: else they can wait for one another as they exit."""
    found = from_everywhere(mine)
    if _talk:
        _talk.clear()
        distributed.destroy_process_group()
    return found


def same_as_first(tensors: list[torch.Tensor]) -> None:
    """Gives them all the values that they have in the first process."""
    with noticing(), torch.no_grad():
        for tensor in tensors:
            distributed.broadcast(tensor, src=0)


def average(tensors: list[torch.Tensor]) -> None:
    """Replaces each by its mean over all processes, all of them in one go."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with noticing():
        distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


@contextmanager
def noticing() -> Iterator[None]:
    """Gives the end of another process its own name; that one's message says why it ended.

    Raises:
        RunFailed: another one has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or any(t in str(error) for t in LOST)):
            raise
        # This process is ending; the launcher's request to those that are left would hide why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        found = str(error).strip().split("\n")[0]
        raise RunFailed(
            "another of the processes that train together has ended, and what it has printed says "
            f"why, or it cannot be reached: {found[:SHOWN]}"
        ) from error
