"""A look before the first step: do examples that lie side by side see one another?

A model that ignores where examples begin trains on a contaminated batch without an error. Three
documents, two of them with a prefix in common, are laid into one micro-batch and compared with
each alone, computed by transformers' own attention. The same look finds fp16 overflows, and models
whose logits are more than their output layer's product.
"""

from collections.abc import Sequence
from typing import Any

import torch

from green_tune import attention, batches
from green_tune.batches import Micro
from green_tune.errors import ModelError
from green_tune.job import Job
from green_tune.loading import precision_of, without_gradients
from green_tune.loss import LabelLoss
from green_tune.plan import Plan
from green_tune.tokens import Encoded

TOKENS = 48  # of a document: enough to see another, and cheap
APART = {"fp32": 1e-4, "bf16": 0.15, "fp16": 0.03}  # relative, of the worst token


def check_examples_apart(loss: LabelLoss, examples: Sequence[Encoded], job: Job) -> None:
    """Compares three short documents in one micro-batch with each alone.

    Raises:
        ModelError: they see one another, or what comes after them, or the numbers overflow.
    """
    documents, plan = _documents(examples), job.plan
    loss.model.eval()
    with without_gradients(job), precision_of(job):
        with attention.stock(loss.base):
            alone = [loss.hidden(batches.padded([document]))[0].float() for document in documents]
            changed = loss.hidden(batches.padded([_with_other_end(documents[0])]))[0].float()
            loss.plain = _is_plain(loss, batches.padded(documents[:1]))
        together = [(micro, loss.hidden(micro)[0].float()) for micro in _layouts(documents, plan)]
    loss.model.train()
    _check_causal(changed, alone[0], plan)
    for micro, found in together:
        _compare(found, _in_order(micro.owners, alone), plan)


def _layouts(documents: Sequence[Encoded], plan: Plan) -> list[Micro]:
    """All that may be used: labels are scored as trees, whatever a training takes."""
    if plan.batching == "padded":
        return [batches.padded(documents)]
    return [batches.flat(documents, share=share) for share in (False, True)]


def _with_other_end(document: Encoded) -> Encoded:
    *ids, last = document["input_ids"]
    other = next((token for token in ids if token != last), last)
    return Encoded(**{**document, "input_ids": [*ids, other]})


def _check_causal(changed: torch.Tensor, before: torch.Tensor, plan: Plan) -> None:
    """Another last token must change nothing before it, as labels would be seen in advance."""
    if _apart(changed, before) > APART[plan.precision]:
        raise ModelError(
            "this base model sees what comes after a token, so it is no causal language model"
        )


def _is_plain(loss: LabelLoss, micro: Micro) -> bool:
    """Whether the logits are what the output layer makes of the last layer's output, to the bit.

    False for models that scale either, such as Granite and Cohere.
    """
    seen: dict[str, torch.Tensor] = {}

    def last(_: object, given: object, out: Any) -> None:
        seen["hidden"] = out.last_hidden_state

    def head(_: object, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.update(given=given[0], made=out)

    base = loss.base
    hooks = [
        base.base_model.register_forward_hook(last),
        base.get_output_embeddings().register_forward_hook(head),
    ]
    logits = base(**loss.inputs(micro)).logits
    for hook in hooks:
        hook.remove()
    made = seen["made"].to(logits.dtype)
    return torch.equal(seen["given"], seen["hidden"]) and torch.equal(made, logits)


def _documents(examples: Sequence[Encoded]) -> list[Encoded]:
    """Two beginnings of one example with other ends, and another example.

    The longest is taken, so that the two have enough in common to be a tree.
    """
    one = max(examples, key=lambda example: len(example["input_ids"]))["input_ids"]
    other = examples[-1]["input_ids"]
    first, last = one[:TOKENS], other[: TOKENS // 2]
    turned = first[: 2 * len(first) // 3] + last
    rows = (first, turned, last)
    return [
        Encoded(
            input_ids=ids,
            labelled=max(1, len(ids) - 1),
            completion_bytes=1,
            cut=False,
            number=number,
        )
        for number, ids in enumerate(rows)
    ]


def _in_order(owners: Sequence[int], alone: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows of each document alone, in the order in which they lie together."""
    rows = {number: iter(part) for number, part in enumerate(alone)}
    return torch.stack([next(rows[owner]) for owner in owners])


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest relative difference of a row."""
    return float(((one - other).norm(dim=-1) / other.norm(dim=-1)).max())


def _compare(together: torch.Tensor, alone: torch.Tensor, plan: Plan) -> None:
    if not (together.isfinite().all() and alone.isfinite().all()):
        if plan.precision == "fp16":
            raise ModelError(
                "the activations of this base model overflow in fp16: take a GPU with bf16, or "
                "precision=fp32"
            )
        return  # weights that are no numbers: the validation before the first step says so
    apart = _apart(together, alone)
    if apart > APART[plan.precision]:
        raise ModelError(
            f"examples in one {plan.batching} batch would see one another ({apart:.2g} apart from "
            f"alone, at most {APART[plan.precision]:g}) with attention={plan.attention}: take "
            "batching=padded"
        )
