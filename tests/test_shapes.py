"""Shapes: the sizes of the studied models come out right, and any other config.json is read."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from green_tune.errors import ModelError
from green_tune.shapes import SHAPES, Shape, check_causal

GEMMA: dict[str, Any] = {
    "model_type": "gemma", "hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8,
    "num_key_value_heads": 1, "head_dim": 256, "intermediate_size": 16384, "vocab_size": 256000,
    "max_position_embeddings": 8192,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "intermediate_size": 11008, "vocab_size": 32000, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
    "vocab_size": 50257, "n_inner": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "billions", "linear"),
    [
        ("llama-2-7b", 6.738, 6.476),
        ("mistral-7b", 7.242, 6.979),
        ("gemma-2b", 2.506, 1.982),
        ("gemma-7b", 8.538, 7.751),
    ],
)
def test_the_studied_models_have_their_published_sizes(
    model: str, billions: float, linear: float
) -> None:
    shape = SHAPES[model]
    assert round(shape.parameters_b, 3) == billions
    assert round(shape.linear_parameters / 1e9, 3) == linear


def test_a_config_is_read_with_what_it_leaves_out() -> None:
    assert Shape.of(LLAMA) == SHAPES["llama-2-7b"]
    assert Shape.of(GEMMA) == SHAPES["gemma-2b"]  # tied, though its file does not say so
    assert Shape.of(LLAMA | {"head_dim": None, "num_key_value_heads": None}) == Shape.of(LLAMA)


def test_gpt_2_has_names_and_an_mlp_of_its_own() -> None:
    shape = Shape.of(GPT2)
    assert shape is not None
    assert (shape.mlp, shape.gated, shape.tied, shape.context) == (3072, False, True, 1024)
    assert shape.parameters == pytest.approx(124_439_808, rel=0.01)  # as published


@pytest.mark.parametrize("config", [LLAMA, GEMMA, GPT2], ids=lambda config: config["model_type"])
@given(data=st.data(), value=st.sampled_from([None, 0, -1, 1.5, "8", True, [1]]))
def test_no_shape_is_made_up(config: dict[str, Any], data: st.DataObject, value: object) -> None:
    optional = {"model_type", "tie_word_embeddings", "num_key_value_heads", "head_dim", "n_inner"}
    key = data.draw(st.sampled_from(sorted(set(config) - optional)))
    assert Shape.of(config | {key: value}) is None
    assert Shape.of({name: each for name, each in config.items() if name != key}) is None


@pytest.mark.parametrize("key", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_of_a_mixture_of_experts_no_estimate_is_made(key: str) -> None:
    assert Shape.of(LLAMA | {key: 8}) is None


@pytest.mark.parametrize("name", ["BertForMaskedLM", "T5ForConditionalGeneration"])
def test_what_is_not_a_causal_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=rf"^model=x/y is a {name}, not a causal language model: "):
        check_causal({"architectures": [name]}, "x/y")


@pytest.mark.parametrize(
    "config", [{}, {"architectures": None}, {"architectures": ["LlamaForCausalLM"]},
               {"architectures": ["GPT2LMHeadModel"]}],
)  # fmt: skip
def test_a_causal_model_or_an_unnamed_one_is_let_through(config: dict[str, Any]) -> None:
    check_causal(config, "x")
