"""The shape of a language model: what its memory and its work are computed from.

A shape is read from a `config.json` of Hugging Face, or is a row of the table of studied models.
It knows matrices and how many there are. It has no weights, and downloads nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from green_tune.errors import ModelError

# What each number is called in a config.json. GPT-2 is the one old naming still in wide use.
LLAMA_KEYS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp": "intermediate_size",
    "vocab": "vocab_size",
    "context": "max_position_embeddings",
}
GPT2_KEYS = {
    "layers": "n_layer",
    "hidden": "n_embd",
    "heads": "n_head",
    "mlp": "n_inner",
    "vocab": "vocab_size",
    "context": "n_positions",
}
# Their MLP is two matrices, as GPT-2's. An unknown family is taken to have three: the upper bound.
PLAIN_MLP = ("gpt_neox", "phi", "starcoder2")
# A mixture of experts has its MLP many times over: these keys say so, and no estimate is made.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
CAUSAL = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The matrices of a decoder-only transformer. Widths are in elements."""

    family: str  # model_type of config.json
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int  # width inside of the MLP
    vocab: int
    context: int  # most positions of one example
    gated: bool = True  # an MLP of three matrices (SwiGLU, GeGLU), not of two
    tied: bool = False  # the output layer is the embedding, stored once

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self | None:
        """The shape that a config.json describes; None where it does not say enough."""
        if any(config.get(key) for key in EXPERTS):
            return None
        family, old = str(config.get("model_type", "")), "n_embd" in config
        numbers = _numbers(config, GPT2_KEYS if old else LLAMA_KEYS)
        if not all(_is_size(number) for number in numbers.values()):
            return None
        gated = not old and family not in PLAIN_MLP
        tied = config.get("tie_word_embeddings")
        if tied is None:  # as in Gemma's: the class knows it, the file does not say it
            tied = old or family.startswith("gemma")
        return cls(family=family, gated=gated, tied=bool(tied), **numbers)

    @property
    def q_width(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all keys of a token; the values' is the same."""
        return self.kv_heads * self.head_dim

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one decoder layer: widths in and out, named as LLaMA's."""
        attention = {
            "q_proj": (self.hidden, self.q_width),
            "k_proj": (self.hidden, self.kv_width),
            "v_proj": (self.hidden, self.kv_width),
            "o_proj": (self.q_width, self.hidden),
        }
        gate = {"gate_proj": (self.hidden, self.mlp)} if self.gated else {}
        mlp = {"up_proj": (self.hidden, self.mlp), "down_proj": (self.mlp, self.hidden)}
        return attention | gate | mlp

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers of the decoder layers: those that nf4 makes small."""
        return self.layers * sum(wide * high for wide, high in self.matrices.values())

    @property
    def parameters(self) -> int:
        """All weights. Biases and learned positions are left out: under 1 % where there are any."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return self.linear_parameters + embeddings + norms

    @property
    def parameters_b(self) -> float:
        """All weights, in billions."""
        return self.parameters / 1e9


def check_causal(config: Mapping[str, Any], name: str) -> None:
    """Raises ModelError when a config.json names architectures, none of them a causal model."""
    architectures = config.get("architectures") or []
    if architectures and not any(str(each).endswith(CAUSAL) for each in architectures):
        raise ModelError(
            f"model={name} is a {architectures[0]}, not a causal language model: "
            "take a decoder such as a LlamaForCausalLM, MistralForCausalLM or GemmaForCausalLM"
        )


def _numbers(config: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    numbers: dict[str, Any] = {name: config.get(key) for name, key in keys.items()}
    hidden, heads = numbers["hidden"], numbers["heads"]
    if _is_size(hidden) and _is_size(heads):
        # Absent and null mean the same here: as many as follow from the others.
        numbers["kv_heads"] = numbers.get("kv_heads") or heads
        numbers["head_dim"] = numbers.get("head_dim") or hidden // heads
        if keys is GPT2_KEYS:
            numbers["mlp"] = numbers["mlp"] or 4 * hidden
    return numbers


def _is_size(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


# Of each model's config.json at the hub.
SHAPES = {
    "llama-2-7b": Shape(
        family="llama", layers=32, hidden=4096, heads=32, kv_heads=32, head_dim=128,
        mlp=11008, vocab=32000, context=4096,
    ),
    "mistral-7b": Shape(
        family="mistral", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128,
        mlp=14336, vocab=32000, context=32768,
    ),
    "gemma-2b": Shape(
        family="gemma", layers=18, hidden=2048, heads=8, kv_heads=1, head_dim=256,
        mlp=16384, vocab=256000, context=8192, tied=True,
    ),
    "gemma-7b": Shape(
        family="gemma", layers=28, hidden=3072, heads=16, kv_heads=16, head_dim=256,
        mlp=24576, vocab=256000, context=8192, tied=True,
    ),
}  # fmt: skip
