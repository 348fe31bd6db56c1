"""The plan: what is asked is joined with the device, with a reason for each choice."""

from pathlib import Path
from typing import Any

import pytest
from fakes import a_cpu, a_gpu
from hypothesis import given, settings
from hypothesis import strategies as st

from green_tune import fit
from green_tune.config import TrainConfig
from green_tune.errors import ConfigError
from green_tune.hardware import GPUS, Device
from green_tune.plan import Plan, fits, make_plan, table
from green_tune.shapes import SHAPES, Shape

PAGE = Path(__file__).parents[1] / "docs" / "plan.md"
LLAMA, GEMMA = SHAPES["llama-2-7b"], SHAPES["gemma-2b"]
SMALL = Shape(family="llama", layers=4, hidden=128, heads=4, kv_heads=4, head_dim=32, mlp=384,
              vocab=1000, context=512)  # fmt: skip
CPU = a_cpu()
T4, L4 = a_gpu("Tesla T4", (7, 5), 15), a_gpu("NVIDIA L4", (8, 9), 22.5)
UNKNOWN = a_gpu("NVIDIA GeForce GTX 1080", (6, 1), 8)


def plan(device: Device, shape: Shape | None = SMALL, **asked: Any) -> Plan:
    return make_plan(TrainConfig(model="llama-2-7b", **asked), device, shape, nf4=True)


def test_a_plan_is_written_with_a_reason_for_each_choice() -> None:
    config = TrainConfig(model="llama-2-7b", accumulation_steps=4)
    made = make_plan(config, T4, LLAMA, shared=0.62, nf4=True, liger=True, processes=2)
    assert made.to_params() == {
        "plan.precision": "fp16",
        "plan.quantization": "nf4",
        "plan.batching": "tree",
        "plan.attention": "padded",
        "plan.micro_batch_tokens": "1142",
        "plan.examples": "32",
        "plan.micro_batch_size": "2",
        "plan.checkpointing": "false",
        "plan.compile": "false",
        "plan.kernels": "liger",
        "plan.shards": "1",
        "plan.memory_gib": "14.25",
        "plan.reasons": "fp16: bf16 would be emulated; "
        "nf4: 16-bit weights leave no room for 512 tokens; "
        "tree: 62% of the prompt text is shared; "
        "padded: Tesla T4 has no FlashAttention 2, which begins at compute capability 8.0; "
        "micro-batch 1142 tokens: as many as fit; no checkpointing: it fits; liger: installed; "
        "no compile: not asked for; memory: 14.2 of 14.2 usable GiB, estimated; "
        "16 examples of each step in each of 2 processes",
    }


def test_what_was_asked_for_is_kept() -> None:
    made = plan(
        L4,
        LLAMA,
        quantization="nf4",
        batching="flat",
        attention="documents",
        micro_batch_tokens=700,
        gradient_checkpointing="true",
        compile=True,
    )
    assert (made.quantization, made.batching, made.attention) == ("nf4", "flat", "documents")
    assert (made.micro_batch_tokens, made.checkpointing, made.compile) == (700, True, True)
    assert sum("asked for" in reason for reason in made.reasons) == 6


@pytest.mark.parametrize(
    ("device", "asked", "tokens", "why"),
    [
        (CPU, {}, 2048, "more would gain nothing"),
        (CPU, {"batch_size": 2}, 1024, "a whole step"),
        (CPU, {"max_seq_len": 3000}, 2048, "more would gain nothing"),  # beyond its context
        (L4, {"batch_size": 99}, 16384, "more would gain nothing"),
        (UNKNOWN, {}, 512, "this GPU is not in the table"),
    ],
)
def test_a_micro_batch_is_no_larger_than_it_pays(
    device: Device, asked: dict[str, Any], tokens: int, why: str
) -> None:
    made = plan(device, **asked)
    assert made.micro_batch_tokens == tokens
    assert f"micro-batch {tokens} tokens: {why}" in made.to_params()["plan.reasons"]


def test_an_unknown_gpu_is_used_with_care() -> None:
    made = plan(UNKNOWN)
    assert (made.precision, made.attention, made.kernels) == ("fp32", "padded", "torch")
    assert made.micro_batch_size == 1


def test_of_an_unknown_shape_nothing_is_estimated() -> None:
    assert [plan(each, None, batch_size=99).micro_batch_tokens for each in (CPU, L4)] == [
        2048,
        4096,
    ]
    made = make_plan(TrainConfig(), T4, None, family="gemma")
    assert (made.quantization, made.checkpointing, made.memory_gib) == ("none", False, 0.0)
    assert made.reasons[-1] == "memory: not estimated, the shape of this model is not known"
    assert "Gemma is guarded" in made.reasons[0]


def test_padded_rows_are_those_asked_for_as_far_as_they_fit() -> None:
    roomy, tight = (plan(each, GEMMA, batching="padded") for each in (L4, T4))
    assert (roomy.attention, roomy.micro_batch_size, roomy.micro_batch_tokens) == ("sdpa", 4, 2048)
    assert (tight.micro_batch_size, tight.micro_batch_tokens) == (2, 1024)
    assert tight.memory_gib < fit.usable_gib(T4) - 1  # of what is used, not of what would fit
    assert plan(CPU, batching="padded").micro_batch_size == 8  # the study's, large or not


@settings(deadline=None)
@given(
    st.integers(1, 512),
    st.integers(1, 64),
    st.integers(1, 9),
    st.sampled_from([CPU, T4, UNKNOWN]),
    st.sampled_from(["flat", "padded"]),
)
def test_several_processes_share_a_step_equally_or_not_at_all(
    batch: int, accumulation: int, processes: int, device: Device, batching: str
) -> None:
    config = TrainConfig(batch_size=batch, accumulation_steps=accumulation, batching=batching)
    if batch * accumulation % processes:
        with pytest.raises(ConfigError, match=f"take a multiple of {processes}"):
            make_plan(config, device, SMALL, processes=processes)
        return
    made = make_plan(config, device, SMALL, processes=processes)
    share = batch * accumulation // processes
    assert made.examples == batch * accumulation
    assert share % made.micro_batch_size == 0
    assert 1 <= made.micro_batch_size <= min(batch, share)
    assert made.micro_batch_tokens <= max(share, 1) * config.max_seq_len


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({}, "llama-2-7b in nf4 on Tesla T4, 15 GiB needs bitsandbytes: "),
        ({"quantization": "nf4"}, "llama-2-7b in nf4 on Tesla T4, 15 GiB needs bitsandbytes: "),
        ({"quantization": "none"}, "llama-2-7b does not fit into Tesla T4, 15 GiB: needs 15.0 GiB"),
        ({"attention": "varlen"}, "attention=varlen: Tesla T4 has no FlashAttention 2"),
        ({"kernels": "liger"}, "kernels=liger needs a library: pip install green-tune"),
    ],
)
def test_what_cannot_be_planned_is_refused(asked: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=f"^{line}"):
        make_plan(TrainConfig(model="llama-2-7b", **asked), T4, LLAMA)


def divided(divisions: tuple[int, ...], device: Device = T4, **asked: Any) -> Plan:
    config = TrainConfig(model="llama-2-7b", **asked)
    return make_plan(config, device, LLAMA, processes=4, divisions=divisions, nf4=True, liger=True)


def test_a_base_that_does_not_fit_one_gpu_is_divided_among_as_few_as_it_fits() -> None:
    made = divided((1, 2, 4))
    assert (made.shards, made.quantization, made.kernels) == (2, "none", "torch")
    assert made.memory_gib <= fit.usable_gib(T4)
    assert "layers divided among 2 processes, a part in each: it does not fit otherwise" in (
        made.reasons
    )
    assert divided((1, 2, 4), L4).shards == 1


@pytest.mark.parametrize("asked", [{"quantization": "nf4"}, {"use_dora": True}, {"compile": True}])
def test_what_needs_whole_weights_has_them(asked: dict[str, Any]) -> None:
    assert divided((1, 2), **asked).shards == 1
    with pytest.raises(ConfigError, match="with a base model that is divided among processes"):
        divided((2,), **asked)


def test_what_the_launcher_asks_to_divide_is_divided() -> None:
    made = divided((4,), L4)
    assert made.shards == 4
    assert made.reasons[-1] == "layers divided among 4 processes, a part in each: asked for"


def test_a_base_that_does_not_fit_divided_either_is_refused() -> None:
    small = a_gpu("NVIDIA A10", (8, 6), 5)
    line = "llama-2-7b does not fit into NVIDIA A10, 5 GiB, its layers divided among 2 processes: "
    with pytest.raises(ConfigError, match=f"^{line}needs .*another GPU"):
        divided((1, 2), small, quantization="none")


def test_nf4_on_a_cpu_is_refused_as_such_however_small_it_is() -> None:
    with pytest.raises(ConfigError, match=r"^quantization=nf4 needs a GPU; use none or auto$"):
        plan(CPU, LLAMA, quantization="nf4")


def test_a_gpu_of_the_table_is_planned_for_without_the_machine() -> None:
    rows = {gpu.name: gpu for gpu in GPUS}
    config = TrainConfig(model="llama-2-7b", quantization="none")
    assert fits(config, LLAMA, rows["t4"]) is None
    assert fits(config, LLAMA, rows["l4"]) == make_plan(config, L4, LLAMA)


def test_the_page_holds_the_table_of_the_study() -> None:
    assert f"\n\n{table()}\n\n" in PAGE.read_text()
    assert len(table().splitlines()) == 2 + 4 * 4
