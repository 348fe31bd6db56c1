"""A linear layer with its LoRA adapter as one function: the same numbers, less memory to move.

peft computes `base(x) + B(A(x)) * scaling` with three temporaries of the output's size, and in 16
bits a copy of the input in fp32 for each layer. Here the scaling is applied to A's output, which is
as narrow as the rank, both products are added in place, and backward keeps the input as it is and
A's output alone. The idea is Unsloth's and Axolotl's, in plain torch, so it serves a CPU too.
"""

from types import MethodType
from typing import Any, cast

import torch
from peft.tuners.lora import layer as peft_layers
from torch import Tensor

ADAPTER = "default"


def fuse(model: Any) -> int:
    """Replaces the forward of each plain adapted layer; gives their number.

    Layers that do more keep peft's: dropout, DoRA, quantised or transposed weights.
    """
    plain = [module for module in model.modules() if _is_plain(module)]
    for module in plain:
        module.forward = MethodType(_forward, module)
    return len(plain)


def unfuse(model: Any) -> None:
    """Gives each layer peft's own forward back."""
    for module in model.modules():
        module.__dict__.pop("forward", None)


def _is_plain(module: Any) -> bool:
    return (
        type(module) is peft_layers.Linear
        and type(module.base_layer) is torch.nn.Linear
        and not module.base_layer.weight.requires_grad
        and isinstance(module.lora_dropout[ADAPTER], torch.nn.Identity)
        and not module.lora_variant
        and not module.lora_bias[ADAPTER]
    )


def _forward(module: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As peft's; while the adapter is merged, switched off or another's, peft's own."""
    if module.merged or module.disable_adapters or module.active_adapters != [ADAPTER] or kwargs:
        return type(module).forward(module, x, *args, **kwargs)  # type: ignore[no-any-return]
    base, a, b = module.base_layer, module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
    of = (base.weight, base.bias, a, b, module.scaling[ADAPTER])
    return cast(Tensor, _Adapted.apply(x, *of))  # type: ignore[no-untyped-call]


class _Adapted(torch.autograd.Function):
    """x (…, in) to x Wᵀ + bias + s (x Aᵀ) Bᵀ (…, out), with W frozen."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - as autograd calls it
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        """Keeps x and the narrow product; all products are in the precision of `_computed_in`."""
        dtype = _computed_in(x)
        flat = x.reshape(-1, x.shape[-1]).to(dtype)
        w = weight.to(dtype)
        narrow = (flat @ a.to(dtype).t()).mul_(s)
        y = flat @ w.t() if bias is None else torch.addmm(bias.to(dtype), flat, w.t())
        y.addmm_(narrow, b.to(dtype).t())
        ctx.save_for_backward(flat, narrow, weight, a, b)
        ctx.scaling, ctx.shape, ctx.dtype = s, x.shape, x.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Any:
        """Of x, where it is asked for (not below the lowest adapter), and of A and B."""
        flat, narrow, weight, a, b = ctx.saved_tensors
        slope = slopes[0].reshape(-1, slopes[0].shape[-1]).to(flat.dtype)
        inner = (slope @ b.to(flat.dtype)).mul_(ctx.scaling)  # (tokens, rank)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (slope @ weight.to(flat.dtype)).addmm_(inner, a.to(flat.dtype))
            of_x = of_x.view(ctx.shape).to(ctx.dtype)
        of_a, of_b = (inner.t() @ flat).to(a.dtype), (slope.t() @ narrow).to(b.dtype)
        return of_x, None, None, of_a, of_b, None


def _computed_in(x: Tensor) -> torch.dtype:
    where = x.device.type
    return torch.get_autocast_dtype(where) if torch.is_autocast_enabled(where) else x.dtype
