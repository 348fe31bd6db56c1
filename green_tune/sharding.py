"""A frozen base model in parts: each process holds its share of every layer's weights.

A layer is put together where it computes and taken apart again, forward and backward (torch's
FSDP2). What lies outside of the layers (embeddings, the last norm, the output layer) is whole in
every process: it would be put together for all of a step anyway. It knows nothing of adapters;
those are put on afterwards, and are whole everywhere too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from green_tune.peers import same_as_first


def divide(base: Any, layers: Sequence[Any], parts: int, device: torch.device) -> None:
    """Gives each process its share of a base model that the first process has loaded.

    The others hand in the same model with any weights. `parts` neighbours share a layer among
    them; where there are more processes, each such neighbourhood has all of it. No more than one
    layer is whole on the device at a time.
    """
    shape = (distributed.get_world_size() // parts, parts)
    names = ("copies", "fsdp")  # by the latter peft knows that a matrix computes as a whole one
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)["fsdp"]
    for layer in layers:
        _bring(layer, device)
        fully_shard(layer, mesh=mesh)
    whole = {p for p in base.parameters() if not isinstance(p, DTensor)}
    _bring(base, device)
    # The root, which knows their order and fetches the next one in time; it has nothing to share.
    fully_shard(base.base_model, mesh=mesh, ignored_params=whole)
    base._is_fsdp_managed_module = True  # so that transformers generates in step


def _bring(module: Any, device: torch.device) -> None:
    """What of a module is not divided yet is put on the device, as the first process has it."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(device)
    kept = module.state_dict().values()  # other buffers each process has made itself
    same_as_first([tensor for tensor in kept if not isinstance(tensor, DTensor)])
