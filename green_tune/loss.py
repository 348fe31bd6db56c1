"""The loss of a micro-batch: logits only where a label is, and never all of them at once.

It is the sum of the completion tokens' negative log-likelihoods, in nats. Whoever calls divides it
by the labels of the whole step, so it does not depend on how that was cut.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from green_tune.attention import Layout
from green_tune.batches import Micro

CHUNK = 2**25  # logits at once: 128 MiB in fp32; 131 positions of Gemma's vocabulary


class LabelLoss(nn.Module):
    """A causal language model as a function from a micro-batch to its summed loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model  # with an adapter, or without
        self.plain = True  # logits are the output layer's product; else they are scaled or capped

    def forward(self, micro: Micro) -> Tensor:
        """The sum over the labels of `micro`, a scalar in fp32."""
        if not self.plain:
            return _summed(*self._own_logits(micro))
        head = self.base.get_output_embeddings()
        hidden, targets = self.hidden(micro)
        if isinstance(head, nn.Linear) and not head.weight.requires_grad:
            summed = _FrozenHead.apply(hidden, head.weight, head.bias, targets)  # type: ignore[no-untyped-call]
            return cast(Tensor, summed)
        return _summed(head(hidden), targets)  # a head with an adapter of its own

    def each(self, micro: Micro) -> Tensor:
        """Each label's negative log-likelihood, (labels), in fp32; to call without gradients."""
        if not self.plain:
            return _each(*self._own_logits(micro))
        head = self.base.get_output_embeddings()
        hidden, targets = self.hidden(micro)
        size = max(1, CHUNK // len(head.weight))
        parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
        return torch.cat([_each(head(x.to(head.weight.dtype)), y) for x, y in parts])

    def hidden(self, micro: Micro) -> tuple[Tensor, Tensor]:
        """The last layer's output where a label is, (labels, hidden), and the targets (labels)."""
        out = self.base.base_model(**self.inputs(micro))
        return self._labelled(out.last_hidden_state, micro)

    def _own_logits(self, micro: Micro) -> tuple[Tensor, Tensor]:
        """Logits as the model itself makes them where a label is; of padded rows it makes all."""
        if not micro.width:
            at = _on(micro.label_at, self.base.device)
            out = self.base(**self.inputs(micro), logits_to_keep=at)
            return out.logits[0], _on(micro.targets, at.device)
        return self._labelled(self.base(**self.inputs(micro)).logits, micro)

    def inputs(self, micro: Micro) -> dict[str, Any]:
        """What the model is called with; a flat micro-batch's layout is among it."""
        device = self.base.device
        ids = torch.tensor(micro.ids, device=device).view(-1, micro.width or len(micro.ids))
        inputs = {"input_ids": ids, "position_ids": _like(ids, micro.positions), "use_cache": False}
        if micro.width:
            return {**inputs, "attention_mask": _real(micro, ids)}
        return {**inputs, "layout": Layout(micro, device)}

    def _labelled(self, out: Tensor, micro: Micro) -> tuple[Tensor, Tensor]:
        flat, device = out.flatten(0, 1), out.device
        return flat[_on(micro.label_at, device)], _on(micro.targets, device)

    @property
    def base(self) -> Any:
        """The base model itself, its layers adapted."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model


class _FrozenHead(torch.autograd.Function):
    """Output layer and cross-entropy, some positions at a time, with the gradient in the same go.

    The output layer is frozen, so all that backward needs is the gradient of its input: as large
    as the input, where logits and their gradients are as large as the vocabulary. The same idea
    as Liger's fused linear cross-entropy (arXiv 2410.10989), without its kernels.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Any, targets: Tensor) -> Tensor:
        """Sums the loss, and keeps its gradient where one is asked for."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=exact)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        size = max(1, CHUNK // len(weight))
        for part in range(0, len(hidden), size):
            at = slice(part, part + size)
            x = hidden[at].to(weight.dtype)
            logits = nn.functional.linear(x, weight, bias).to(exact)
            logs = logits.log_softmax(-1)
            total -= logs.gather(1, targets[at, None]).sum()
            if gradient is not None:
                slope = logs.exp_()
                slope[torch.arange(len(x), device=x.device), targets[at]] -= 1
                gradient[at] = (slope.to(weight.dtype) @ weight).to(hidden.dtype)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *slopes: Any) -> Any:
        """Scales what `forward` has found."""
        (gradient,) = ctx.saved_tensors
        return (gradient * slopes[0]).to(gradient.dtype), None, None, None


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def _each(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def _real(micro: Micro, ids: Tensor) -> Tensor:
    """1 for tokens, 0 for padding."""
    lengths = _on([node.end - node.start for node in micro.nodes], ids.device)
    return (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()


def _like(ids: Tensor, numbers: Any) -> Tensor:
    return _on(numbers, ids.device).view(ids.shape)


def _on(numbers: Any, device: Any) -> Tensor:
    return torch.tensor(numbers, device=device)
