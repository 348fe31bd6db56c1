"""The fused layer gives what peft's gives, forward and backward."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from green_tune import lora

SHAPE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
IDS = torch.arange(3, 63).view(2, 30)


def adapted(fused: bool, dtype: torch.dtype = torch.float32, **kind: Any) -> Any:
    """LLaMA's layers have no bias; Qwen's have."""
    torch.manual_seed(0)
    base: Any = Qwen2ForCausalLM(Qwen2Config(**SHAPE)) if kind.pop("bias", 0) else None
    base = base or LlamaForCausalLM(LlamaConfig(**SHAPE))
    model = get_peft_model(base.to(dtype), LoraConfig(r=4, target_modules="all-linear", **kind))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if fused:
        assert lora.fuse(model) == 14
    return model


def step(model: Any, *, autocast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.autocast("cpu", torch.bfloat16, autocast):
        loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    found = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    return loss.detach(), torch.cat(found)


@pytest.mark.parametrize("kind", [{}, {"bias": 1}, {"use_rslora": True}])
def test_loss_and_gradients_are_those_of_peft(kind: dict[str, Any]) -> None:
    (expected, slope), (loss, found) = (step(adapted(fused, **kind)) for fused in (False, True))
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert (found - slope).norm() <= 1e-6 * slope.norm()


def test_in_16_bits_it_agrees_as_far_as_they_go_and_gradients_stay_in_32() -> None:
    kind = {"dtype": torch.bfloat16}
    expected, slope = step(adapted(False, **kind), autocast=True)
    loss, found = step(adapted(True, **kind), autocast=True)
    assert float(loss) == pytest.approx(float(expected), rel=1e-2)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, slope, dim=0) > 0.999


@pytest.mark.parametrize("kind", [{"lora_dropout": 0.1}, {"use_dora": True}])
def test_layers_that_do_more_stay_with_peft(kind: dict[str, Any]) -> None:
    assert lora.fuse(adapted(False, **kind)) == 0


def test_switched_off_or_merged_the_adapter_is_what_peft_makes_of_it() -> None:
    plain, model = adapted(False), adapted(True)
    with torch.inference_mode():
        with plain.disable_adapter(), model.disable_adapter():
            assert torch.equal(model(IDS).logits, plain(IDS).logits)
        model.merge_adapter()
        assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-5)
        model.unmerge_adapter()
        assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-5)


def test_unfused_a_layer_is_pefts_again() -> None:
    plain, model = adapted(False), adapted(True)
    lora.unfuse(model)
    with torch.inference_mode():
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert not [m for m in model.modules() if "forward" in m.__dict__]


def test_it_keeps_less_for_the_backward_pass() -> None:
    """Bytes that autograd keeps, each storage once, weights left out."""

    def kept(fused: bool) -> int:
        model = adapted(fused, torch.bfloat16)
        own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
        seen: dict[int, int] = {}
        alive = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                seen[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            model(input_ids=IDS.repeat(8, 1), use_cache=False)
        return sum(seen.values())

    assert kept(True) < 0.9 * kept(False)
