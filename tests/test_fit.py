"""Fit: the least is given up that has to be, what was pinned stays, and a refusal shows a way."""

import pytest
from fakes import a_cpu, a_gpu

from green_tune import fit
from green_tune.config import TrainConfig
from green_tune.hardware import GPUS, Device, Gpu
from green_tune.memory import Choices, estimate
from green_tune.shapes import SHAPES, Shape

LLAMA, GEMMA_7B = SHAPES["llama-2-7b"], SHAPES["gemma-7b"]
CPU = a_cpu(31)
T4, L4 = a_gpu("Tesla T4", (7, 5), 15), a_gpu("NVIDIA L4", (8, 9), 22.5)


def found(device: Device, asked: dict[str, str], shape: Shape = LLAMA) -> Choices | None:
    return fit.find(TrainConfig.parse({"model": "m"} | asked), device, shape, at_most=4096)


@pytest.mark.parametrize(
    ("device", "shape", "asked", "quantization", "checkpointing"),
    [
        (L4, LLAMA, {}, "none", False),  # a small micro-batch before 4 bits
        (L4, GEMMA_7B, {}, "nf4", False),
        (L4, GEMMA_7B, {"max_seq_len": "128"}, "none", False),
        (L4, GEMMA_7B, {"quantization": "none"}, "none", True),
        (L4, LLAMA, {"quantization": "nf4"}, "nf4", False),
        (L4, LLAMA, {"gradient_checkpointing": "true"}, "none", True),
        (T4, LLAMA, {}, "nf4", False),
        (T4, LLAMA, {"max_seq_len": "2048"}, "nf4", True),
        (T4, LLAMA, {"micro_batch_tokens": "2000"}, "nf4", True),
    ],
)
def test_the_least_is_given_up_that_has_to_be(
    device: Device, shape: Shape, asked: dict[str, str], quantization: str, checkpointing: bool
) -> None:
    choices = found(device, asked, shape)
    assert choices is not None
    assert (choices.quantization, choices.checkpointing) == (quantization, checkpointing)
    assert estimate(shape, choices).total_gib <= fit.usable_gib(device)


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        (T4, {"quantization": "none"}),
        (T4, {"max_seq_len": "2048", "gradient_checkpointing": "false"}),
        (T4, {"micro_batch_tokens": "99999", "quantization": "nf4"}),
        (CPU, {}),  # fp32 weights, and never in 4 bits
    ],
)
def test_what_was_pinned_is_not_given_up(device: Device, asked: dict[str, str]) -> None:
    assert found(device, asked) is None


def test_a_micro_batch_holds_its_longest_example() -> None:
    for asked in ({"micro_batch_tokens": "100"}, {"micro_batch_tokens": "512"}):
        choices = found(L4, asked)
        assert choices is not None
        assert choices.tokens == 512


def test_a_refusal_says_what_is_missing_and_what_would_fit() -> None:
    line = fit.refusal(TrainConfig(model="llama-2-7b", quantization="none"), T4, LLAMA)
    assert line == (
        "llama-2-7b does not fit into Tesla T4, 15 GiB: needs 15.0 GiB at the least (weights 12.6 "
        "+ adapter 0.3 + optimizer 0.3 + activations 0.2 + logits 0.0 + workspace 0.7, x 1.06 for "
        "fragmentation), 14.2 are usable; what would fit: quantization=nf4, lora_layers=1, or "
        "another GPU (l4, a10g, a10, rtx3090, ...)"
    )


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ({"gradient_checkpointing": "false", "max_seq_len": "2048"},
         "gradient_checkpointing=true, max_seq_len=1024, lora_layers=16, or another GPU (l4, "),
        ({"micro_batch_tokens": "100000"}, "micro_batch_tokens=0, or another GPU (a100-80, "),
        ({"lora_rank": "1024", "use_dora": "true"},
         "lora_layers=4, lora_rank=128, or another GPU (a100-80, "),
        ({"use_dora": "true", "gradient_checkpointing": "false"},
         "gradient_checkpointing=true, use_dora=false, max_seq_len=256, "),
        ({"precision": "fp32", "lora_rank": "1024"},
         "what would fit: lora_layers=4, lora_rank=128, or another GPU (a100-80, "),
        ({"precision": "fp32", "quantization": "none"},
         "what would fit: quantization=nf4, or another GPU (a100-40, "),
        ({"max_seq_len": "1000000", "lora_rank": "4096"}, "what would fit: nothing in the table"),
    ],
)  # fmt: skip
def test_a_remedy_is_one_that_was_tried(asked: dict[str, str], remedy: str) -> None:
    config = TrainConfig.parse(asked)
    assert remedy in fit.refusal(config, a_gpu("NVIDIA A10", (8, 6), 15), LLAMA)


def test_without_bitsandbytes_the_way_without_it_is_shown() -> None:
    line = "m in nf4 on Tesla T4, 15 GiB needs bitsandbytes: pip install green-tune[quant]"
    config = TrainConfig(model="m")
    assert fit.needs_bitsandbytes(config, T4, LLAMA) == line
    assert fit.needs_bitsandbytes(config, T4, None) == line
    plain = fit.needs_bitsandbytes(config, L4, LLAMA)
    assert plain.endswith("[quant]; quantization=none fits")
    slow = fit.needs_bitsandbytes(config, L4, GEMMA_7B)
    assert slow.endswith("[quant]; quantization=none fits with checkpointing")


@pytest.mark.parametrize("row", GPUS, ids=lambda row: str(row.name))
def test_a_gpu_of_the_table_never_has_more_than_its_nominal_memory(row: Gpu) -> None:
    device = fit.as_device(row)
    assert 0.9 * row.memory_gib < device.memory_gib <= row.memory_gib
    assert (device.gpu_type, device.capability) == (row.name, row.capability)
