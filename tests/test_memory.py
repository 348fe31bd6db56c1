"""Memory: the estimate is the research's, grows with what costs memory, and finds what fits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from green_tune.memory import Choices, estimate, most_tokens, trainable
from green_tune.shapes import SHAPES, Shape

LLAMA, GEMMA = SHAPES["llama-2-7b"], SHAPES["gemma-2b"]
HALF = Choices(precision="bf16", tokens=1000)
GPT2 = Shape(family="gpt2", layers=12, hidden=768, heads=12, kv_heads=12, head_dim=64, mlp=3072,
             vocab=50257, context=1024, gated=False, tied=True)  # fmt: skip


@pytest.mark.parametrize(
    ("model", "everything", "q_and_v"),
    [
        ("llama-2-7b", 40.0, 8.4),
        ("mistral-7b", 41.9, 6.8),
        ("gemma-2b", 19.6, 1.8),
        ("gemma-7b", 50.0, 6.4),
    ],
)
def test_an_adapter_has_the_parameters_that_peft_counts(
    model: str, everything: float, q_and_v: float
) -> None:
    for targets, millions in {"all-linear": everything, "q_proj, v_proj": q_and_v}.items():
        assert round(trainable(SHAPES[model], rank=16, targets=targets) / 1e6, 1) == millions


def test_an_adapter_is_the_sum_of_what_it_adapts() -> None:
    def count(targets: str, layers: int = 0, dora: bool = False) -> int:
        return trainable(LLAMA, rank=16, targets=targets, layers=layers, dora=dora)

    assert count("attention") + count("mlp") == count("all-linear") == count("c_attn,q_proj")
    assert 8 * count("mlp", layers=4) == count("mlp") == count("mlp", layers=99)
    assert count("q_proj", dora=True) - count("q_proj") == 32 * 4096
    assert trainable(GPT2, rank=1, targets="mlp") == 12 * 2 * (768 + 3072)  # it has no gate


# Of the research: usable GiB, fp32 adapters under autocast, a label at a tenth of the positions.
MOST_TOKENS = {
    ("none", 14.7): {"gemma-2b": 1890},
    ("nf4", 14.7): {"llama-2-7b": 1203, "mistral-7b": 1072, "gemma-2b": 2507, "gemma-7b": 681},
    ("none", 22.0): {"llama-2-7b": 935, "mistral-7b": 742, "gemma-2b": 3477, "gemma-7b": 327},
    ("nf4", 22.0): {"llama-2-7b": 2135, "mistral-7b": 1933, "gemma-2b": 4093, "gemma-7b": 1343},
    ("none", 39.4): {"llama-2-7b": 3157, "mistral-7b": 2792, "gemma-2b": 7258, "gemma-7b": 1905},
    ("none", 79.1): {"llama-2-7b": 8227, "mistral-7b": 7469, "gemma-2b": 15885, "gemma-7b": 5506},
}


@pytest.mark.parametrize(("quantization", "memory_gib"), MOST_TOKENS)
def test_the_researchs_table_comes_out(quantization: str, memory_gib: float) -> None:
    choices = replace(HALF, quantization=quantization, label_share=0.1)
    for model, tokens in MOST_TOKENS[quantization, memory_gib].items():
        found = most_tokens(SHAPES[model], choices, memory_gib, 100_000)
        assert found == pytest.approx(tokens, rel=0.05)  # it took LLaMA's factor for Gemma too


@pytest.mark.parametrize("model", ["llama-2-7b", "mistral-7b", "gemma-7b"])
def test_seven_billion_16_bit_weights_are_too_many_for_a_t4(model: str) -> None:
    assert most_tokens(SHAPES[model], HALF, 14.7, 4096) < 16


@pytest.mark.parametrize(
    "more",
    [
        {"precision": "fp32"}, {"rank": 64}, {"dora": True}, {"dropout": 0.1}, {"tokens": 1001},
        {"label_share": 0.2},
    ],
)  # fmt: skip
def test_what_costs_memory_is_counted(more: dict[str, str]) -> None:
    for shape in (LLAMA, GEMMA, GPT2):
        assert estimate(shape, replace(HALF, **more)).total_gib > estimate(shape, HALF).total_gib  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "less",
    [
        {"quantization": "nf4"}, {"checkpointing": True}, {"targets": "q_proj,v_proj"},
        {"layers": 8}, {"on_gpu": False},
    ],
)  # fmt: skip
def test_what_saves_memory_is_counted(less: dict[str, str]) -> None:
    for shape in (LLAMA, GEMMA):
        assert estimate(shape, replace(HALF, **less)).total_gib < estimate(shape, HALF).total_gib  # type: ignore[arg-type]


def test_only_layers_above_the_lowest_adapter_keep_activations() -> None:
    top = estimate(LLAMA, replace(HALF, layers=8))
    assert 4 * top.activations_gib == pytest.approx(estimate(LLAMA, HALF).activations_gib)
    assert top.weights_gib == estimate(LLAMA, HALF).weights_gib


def test_logits_are_bounded_since_they_come_in_chunks() -> None:
    long, longer = (estimate(GEMMA, replace(HALF, tokens=n)) for n in (10_000, 100_000))
    assert long.logits_gib == longer.logits_gib == 1024 * 256000 * 14 / 2**30


def test_an_estimate_is_its_parts_and_says_them() -> None:
    of = estimate(LLAMA, HALF)
    parts = [of.weights_gib, of.adapter_gib, of.optimizer_gib, of.activations_gib, of.logits_gib]
    assert of.total_gib == pytest.approx(1.06 * (sum(parts) + of.workspace_gib))
    assert str(of) == (
        "weights 12.6 + adapter 0.3 + optimizer 0.3 + activations 7.3 + logits 0.1 + workspace 0.7"
        ", x 1.06 for fragmentation"
    )


@given(
    st.sampled_from([LLAMA, GEMMA, GPT2]),
    st.sampled_from([HALF, Choices(), replace(HALF, quantization="nf4", checkpointing=True)]),
    st.floats(0, 100),
    st.integers(0, 50_000),
)
def test_one_token_more_than_the_most_does_not_fit(
    shape: Shape, choices: Choices, memory_gib: float, at_most: int
) -> None:
    most = most_tokens(shape, choices, memory_gib, at_most)
    assert 0 <= most <= at_most
    if most:
        assert estimate(shape, replace(choices, tokens=most)).total_gib <= memory_gib
    if most < at_most:
        assert estimate(shape, replace(choices, tokens=most + 1)).total_gib > memory_gib


def test_divided_weights_are_those_of_the_layers_and_three_layers_are_there_at_once() -> None:
    whole = estimate(LLAMA, HALF)
    for shards in (2, 8):
        part = estimate(LLAMA, replace(HALF, shards=shards))
        layers_gib = 2 * LLAMA.linear_parameters / 2**30
        saved = whole.weights_gib - part.weights_gib
        assert saved == pytest.approx(layers_gib * (1 - 1 / shards))
        more = part.workspace_gib - whole.workspace_gib
        assert more == pytest.approx(3 * layers_gib / LLAMA.layers)
        assert (part.adapter_gib, part.optimizer_gib) == (whole.adapter_gib, whole.optimizer_gib)
