"""Each way to lay out and attend is the same as one example at a time."""

import random
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from green_tune import attention, batches, nvml
from green_tune.errors import ModelError
from green_tune.loss import LabelLoss
from green_tune.tokens import Encoded

SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": LlamaConfig(num_key_value_heads=2, **SHAPE),
    "mistral": MistralConfig(sliding_window=24, num_key_value_heads=2, **SHAPE),
    "gemma": GemmaConfig(head_dim=32, num_key_value_heads=1, **SHAPE),
    "gpt2": GPT2Config(
        vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=128, bos_token_id=1,
        eos_token_id=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    ),
}  # fmt: skip
WAYS = [("documents", "flat"), ("documents", "tree"), ("padded", "flat"), ("padded", "tree"),
        ("varlen", "flat"), ("varlen", "tree"), ("sdpa", "padded")]  # fmt: skip


def examples() -> list[Encoded]:
    """Branches of two levels, lone documents, one that comes twice, and one prompt, two answers."""
    chance = random.Random(0)

    def words(count: int) -> list[int]:
        return [chance.randrange(3, 512) for _ in range(count)]

    passage = words(40)
    deeper = passage + words(20)
    made = [passage + words(12), passage + words(20), words(50), words(33), deeper + words(17)]
    made += [deeper + words(30), made[0], made[1][:-5] + words(5)]
    labels = (3, 5, 4, 7, 2, 6, 3, 5)
    return [
        Encoded(input_ids=ids, labelled=labelled, completion_bytes=1, cut=False, number=number)
        for number, (ids, labelled) in enumerate(zip(made, labels, strict=True))
    ]


def adapted(config: PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Any:
    """A small model of a family with an adapter that does something."""
    torch.manual_seed(0)
    base = built(config)
    lora = LoraConfig(
        r=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=config.model_type == "gpt2",
    )
    model = get_peft_model(base, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.to(dtype)


def built(config: PreTrainedConfig) -> Any:
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]


def gradients(model: Any) -> torch.Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return torch.cat(found).double()


def one_at_a_time(model: Any) -> tuple[float, torch.Tensor]:
    """The sum of losses and its gradient with plain transformers, eager attention, no batches."""
    model.get_base_model().set_attn_implementation("eager")
    total = torch.zeros((), dtype=torch.float64)
    for example in examples():
        ids = torch.tensor([example["input_ids"]])
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        scores = logits.log_softmax(-1).gather(1, ids[0, 1:, None])
        total = total - scores[-example["labelled"] :].sum()
    total.backward()  # type: ignore[no-untyped-call]
    return float(total.detach()), gradients(model)


def fake_varlen(  # noqa: PLR0917 - as torch has it
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    query_ends: torch.Tensor, key_ends: torch.Tensor, longest_query: int, longest_key: int,
    *, scale: float, window_size: tuple[int, int], enable_gqa: bool,
) -> torch.Tensor:  # fmt: skip
    """A fake of torch's FlashAttention 2, which needs a GPU: masks aligned bottom right, as there.

    Shapes (tokens, heads, size); `window_size` is (W, 0), or (-1, 0) for plainly causal.
    """
    assert query_ends.dtype == key_ends.dtype == torch.int32
    seen = []
    queries, keys = query_ends.tolist(), key_ends.tolist()
    assert (longest_query, longest_key) == tuple(
        max(b - a for a, b in pairwise(ends)) for ends in (queries, keys)
    )
    for n in range(len(queries) - 1):
        q = query[queries[n] : queries[n + 1]].transpose(0, 1)
        k, v = (x[keys[n] : keys[n + 1]].transpose(0, 1) for x in (key, value))
        after = (
            torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1] - torch.arange(k.shape[1])
        )
        mask = (after >= 0) & ((after <= window_size[0]) if window_size[0] >= 0 else True)
        part = torch.nn.functional.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        seen.append(part[0].transpose(0, 1))
    return torch.cat(seen)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    if not nvml.find_gpus():
        monkeypatch.setattr(attention, "varlen_attn", fake_varlen)
    attention.register()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_one_example_at_a_time(family: str) -> None:
    """In fp32 to 1e-6; in fp64 to 1e-7, as these families compute their norms in fp32 even so."""
    for dtype, apart in ((torch.float32, 1e-6), (torch.float64, 1e-7)):
        model = adapted(FAMILIES[family], dtype)
        expected, slope = one_at_a_time(model)
        loss = LabelLoss(model)
        for way, batching in WAYS:
            model.get_base_model().set_attn_implementation(attention.NAMES[way])
            micros = batches.cut(examples(), batching, tokens=200, rows=3)  # type: ignore[arg-type]
            assert len(micros) > 1
            total = 0.0
            for micro in micros:
                part = loss(micro)
                part.backward()
                total += float(part.detach())
            found = gradients(model)
            assert abs(total - expected) <= apart * expected, (way, batching, dtype)
            assert (found - slope).norm() <= apart * slope.norm(), (way, batching, dtype)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_a_frozen_output_layer_and_one_that_is_trained_give_the_same_loss() -> None:
    base = built(FAMILIES["llama"])
    base.set_attn_implementation(attention.NAMES["documents"])
    micro = batches.flat(examples(), share=True)
    plain = LabelLoss(base)(micro).detach()
    base.requires_grad_(False)
    assert float(LabelLoss(base)(micro)) == pytest.approx(float(plain), rel=1e-6)


def test_the_loss_is_the_same_however_few_logits_are_there_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted(FAMILIES["llama"])
    model.get_base_model().set_attn_implementation(attention.NAMES["documents"])
    micro, found = batches.flat(examples(), share=False), []
    for chunk in (2**25, 512 * 4, 1):
        monkeypatch.setattr("green_tune.loss.CHUNK", chunk)
        loss = LabelLoss(model)(micro)
        loss.backward()
        found.append((float(loss.detach()), gradients(model)))
    for value, slope in found[1:]:
        assert value == pytest.approx(found[0][0], rel=1e-6)
        assert (slope - found[0][1]).norm() <= 1e-6 * found[0][1].norm()


def test_logits_are_computed_where_a_label_is_and_nowhere_else() -> None:
    model = adapted(FAMILIES["llama"])
    model.get_base_model().set_attn_implementation(attention.NAMES["documents"])
    hidden, targets = LabelLoss(model).hidden(batches.flat(examples(), share=True))
    assert len(hidden) == len(targets) == sum(e["labelled"] for e in examples())


def test_frozen_weights_get_no_gradient_and_nothing_goes_back_below_the_lowest_adapter() -> None:
    torch.manual_seed(0)
    base = built(LlamaConfig(**{**SHAPE, "num_hidden_layers": 4}))
    lora = LoraConfig(target_modules=["q_proj", "down_proj"], layers_to_transform=[2, 3])
    model = get_peft_model(base, lora)
    base.set_attn_implementation(attention.NAMES["documents"])
    needs: list[bool] = []
    for layer in base.model.layers:
        layer.register_forward_hook(lambda module, _, out: needs.append(out.requires_grad))
    LabelLoss(model)(batches.flat(examples(), share=True)).backward()
    assert needs == [False, False, True, True]
    assert all((p.grad is not None) == ("lora_" in n) for n, p in model.named_parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_a_model_that_changes_its_scores_is_refused_rather_than_trained_otherwise() -> None:
    config = Gemma2Config(head_dim=32, num_key_value_heads=2, **SHAPE)
    base = built(config)
    base.set_attn_implementation(attention.NAMES["documents"])
    with pytest.raises(ModelError, match=r"soft-capping.*another base model"):
        LabelLoss(base)(batches.flat(examples(), share=False))


def test_a_model_that_does_not_pass_the_layout_on_is_refused() -> None:
    with pytest.raises(ModelError, match="batching=padded"):
        attention.documents(SimpleNamespace(), None, None, None, None)


@pytest.mark.gpu
@pytest.mark.parametrize("batching", ["flat", "tree"])
@pytest.mark.parametrize("way", ["varlen", "padded", "documents"])
def test_on_a_gpu_each_way_agrees_with_one_at_a_time_as_far_as_bf16_goes(
    way: str, batching: batches.Batching
) -> None:
    model = adapted(FAMILIES["llama"])
    expected, slope = one_at_a_time(model)
    model = model.to("cuda", torch.bfloat16)
    model.get_base_model().set_attn_implementation(attention.NAMES[way])
    loss = LabelLoss(model)(batches.flat(examples(), share=batching == "tree"))
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=0.02)
    found = gradients(model).cpu()
    assert torch.cosine_similarity(found, slope, dim=0) > 0.99
