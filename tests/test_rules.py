"""Rules: each choice suits the device and says why; what it cannot do is refused with a way out."""

import pytest
from fakes import a_cpu, a_gpu

from green_tune import rules
from green_tune.config import TrainConfig
from green_tune.errors import ConfigError
from green_tune.hardware import Device

CPU = a_cpu()
T4 = a_gpu("Tesla T4", (7, 5))
A100 = a_gpu("NVIDIA A100-SXM4-40GB", (8, 0))
OLDER = a_gpu("NVIDIA GeForce GTX 1080", (6, 1))
NEWER = a_gpu("NVIDIA R1000", (11, 0))


@pytest.mark.parametrize(
    ("device", "precision"),
    [(T4, "fp16"), (A100, "bf16"), (OLDER, "fp32"), (NEWER, "fp32"), (CPU, "fp32")],
)
def test_auto_precision_is_what_the_device_does_natively(device: Device, precision: str) -> None:
    choice, reason = rules.precision(TrainConfig(), device, "llama")
    assert choice == precision
    assert reason.startswith(f"{precision}: ")


@pytest.mark.parametrize(
    ("asked", "device"), [("fp32", A100), ("fp16", A100), ("fp16", T4), ("bf16", CPU)]
)
def test_a_precision_that_was_asked_for_is_kept(asked: str, device: Device) -> None:
    choice = rules.precision(TrainConfig(precision=asked), device, "llama")
    assert choice == (asked, f"{asked}: asked for")


@pytest.mark.parametrize("asked", ["auto", "fp16"])
def test_gemma_in_fp16_is_let_through_under_guard(asked: str) -> None:
    config = TrainConfig(precision=asked)
    for family in ("gemma", "gemma2"):
        assert "Gemma is guarded: refused unless" in rules.precision(config, T4, family)[1]
    assert "guarded" not in rules.precision(config, T4, "llama")[1]
    assert "guarded" not in rules.precision(TrainConfig(), A100, "gemma")[1]


def test_prompts_with_enough_in_common_are_a_tree() -> None:
    assert rules.batching(TrainConfig(), 0.62) == (
        "tree",
        "tree: 62% of the prompt text is shared",
    )
    assert rules.batching(TrainConfig(), 0.2)[0] == "tree"
    assert rules.batching(TrainConfig(), 0.19)[0] == "flat"
    for asked in ("tree", "flat", "padded"):
        config = TrainConfig(batching=asked)
        assert rules.batching(config, 0.5) == (asked, f"{asked}: asked for")


@pytest.mark.parametrize(
    ("device", "precision", "attention"),
    [
        (CPU, "fp32", "documents"),
        (T4, "fp16", "padded"),
        (A100, "bf16", "varlen"),
        (A100, "fp32", "padded"),  # FlashAttention has no fp32
        (OLDER, "fp32", "padded"),
        (NEWER, "bf16", "padded"),
    ],
)
def test_auto_attention_is_what_the_device_has(
    device: Device, precision: str, attention: str
) -> None:
    for batching in ("tree", "flat"):
        choice, reason = rules.attention(TrainConfig(), device, batching, precision)
        assert choice == attention
        assert reason.startswith(f"{attention}: ")
    assert rules.attention(TrainConfig(), device, "padded", precision)[0] == "sdpa"


@pytest.mark.parametrize(
    ("asked", "device"), [("documents", A100), ("padded", A100), ("padded", CPU), ("varlen", NEWER)]
)
def test_an_attention_that_was_asked_for_is_kept(asked: str, device: Device) -> None:
    choice = rules.attention(TrainConfig(attention=asked), device, "flat", "bf16")
    assert choice == (asked, f"{asked}: asked for")


@pytest.mark.parametrize("asked", ["auto", "torch"])
def test_kernels_are_torchs_on_a_cpu_or_when_asked_for(asked: str) -> None:
    assert rules.kernels(TrainConfig(kernels=asked), CPU, liger=True)[0] == "torch"


def test_kernels_are_ligers_where_it_is_installed_on_a_gpu_of_the_table() -> None:
    assert rules.kernels(TrainConfig(), T4, liger=True)[0] == "liger"
    assert rules.kernels(TrainConfig(), T4, liger=False)[0] == "torch"
    assert rules.kernels(TrainConfig(), NEWER, liger=True)[0] == "torch"
    assert rules.kernels(TrainConfig(kernels="liger"), NEWER, liger=True)[0] == "liger"


def refused(config: TrainConfig, device: Device, batching: str = "flat") -> str:
    """The line that the first rule against it gives."""
    with pytest.raises(ConfigError) as caught:
        precision, _ = rules.precision(config, device, "llama")
        rules.attention(config, device, batching, precision)
        rules.kernels(config, device, liger=False)
        rules.check_quantization(config, device)
    return str(caught.value)


@pytest.mark.parametrize(
    ("asked", "device", "line"),
    [
        ({"precision": "bf16"}, T4,
         "precision=bf16 would be emulated on Tesla T4; use fp16 or auto"),
        ({"precision": "fp16"}, CPU, "precision=fp16 needs a GPU; use fp32 or auto"),
        ({"attention": "varlen"}, CPU,
         "attention=varlen: FlashAttention needs a GPU; use documents or auto"),
        ({"attention": "varlen"}, T4,
         "attention=varlen: Tesla T4 has no FlashAttention 2, which begins at compute capability "
         "8.0; use padded or auto"),
        ({"attention": "varlen", "precision": "fp32"}, A100,
         "attention=varlen: FlashAttention computes in 16 bits, not in fp32; use padded or auto"),
        ({"kernels": "liger"}, CPU, "kernels=liger needs a GPU; use torch or auto"),
        ({"kernels": "liger"}, T4,
         "kernels=liger needs a library: pip install green-tune[liger]"),
        ({"quantization": "nf4"}, CPU, "quantization=nf4 needs a GPU; use none or auto"),
    ],
)  # fmt: skip
def test_what_the_device_cannot_do_is_refused(
    asked: dict[str, str], device: Device, line: str
) -> None:
    assert refused(TrainConfig.parse(asked), device) == line


def test_padded_rows_have_an_attention_of_their_own() -> None:
    assert refused(TrainConfig(attention="documents"), CPU, "padded") == (
        "attention=documents is for batches without padding; with batching=padded use auto"
    )
