"""How much memory a training takes: an estimate from the model's shape, before anything is loaded.

    total = 1.06 x (weights + adapter + optimizer + activations + logits + workspace)

Modelled, not measured on a GPU. The bytes of activations were counted on a CPU: the storages that
autograd keeps for the backward pass, on layers of the four studied models (2026, torch 2.13,
transformers 5.23, peft 0.21). The rest is arithmetic. It knows no devices: `fit` compares.
"""

from bisect import bisect_right
from dataclasses import dataclass, fields, replace

from green_tune.shapes import Shape

GIB = 2**30
FRAGMENTATION = 1.06  # what an allocator loses between blocks
CONTEXT_GIB = {True: 0.7, False: 0.5}  # on a GPU: CUDA's context, kernels; on a CPU: libraries
NF4_BYTES = 0.516  # of a weight: 4 bits, and its doubly quantised scale for each 64 of them
STATE_BYTES = 8  # of a trainable weight: itself and its gradient in fp32; Adam's two moments too

# What a layer keeps, in multiples of `_kept`. fp32 adapters under autocast keep a 16-bit copy of
# each input, and of themselves: counted over 64 tokens. Over long batches 1.20 (Gemma 1.10) was
# counted; the larger figure stays, since the temporaries of the backward pass are not counted.
AUTOCAST = 1.45
AUTOCAST_GEMMA = 1.52
FP32 = 2.0  # counted: 1.82 to 1.92
# Dropout keeps its mask and what it let through: counted on LLaMA and Mistral, less on Gemma.
# DoRA keeps its outputs with and without the adapter: counts vary, these are the careful end.
DROPOUT = {"fp32": 1.1, "16-bit": 0.6}
DORA = {"fp32": 2.0, "16-bit": 1.6}
# No adapter in the MLP: 0.79 to 0.87 of all-linear, counted on q_proj,v_proj; the careful end.
ATTENTION_ONLY = 0.87

# Logits are computed where there is a label, this many positions at a time. A logit costs itself,
# its fp32 copy, its log-probability and their gradient.
LOGITS_CHUNK = 1024
LOGIT_BYTES = {"fp32": 16, "16-bit": 14}

LAYERS_AT_ONCE = 3  # whole ones, of divided weights: by the way that FSDP2 works, not measured

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
TARGETS = {"all-linear": (*ATTENTION, *MLP), "attention": ATTENTION, "mlp": MLP}


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What an estimate depends on besides the shape."""

    precision: str = "fp32"  # fp32, bf16 or fp16
    quantization: str = "none"  # none or nf4
    rank: int = 16
    targets: str = "all-linear"
    layers: int = 0  # the top n are adapted; 0: all
    dora: bool = False
    dropout: float = 0.0
    tokens: int = 0  # of a micro-batch, padding included
    label_share: float = 0.15  # of positions that have a label: 3 to 15 % in the studied tasks
    checkpointing: bool = False
    shards: int = 1  # processes that share the layers' weights among them
    on_gpu: bool = True

    @property
    def width(self) -> str:
        """How wide the arithmetic is: `fp32` or `16-bit`."""
        return "fp32" if self.precision == "fp32" else "16-bit"

    @property
    def bytes(self) -> int:
        """Bytes of one weight that is not quantised."""
        return 4 if self.precision == "fp32" else 2


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a training takes, part by part, in GiB."""

    weights_gib: float
    adapter_gib: float  # weights and gradients
    optimizer_gib: float
    activations_gib: float
    logits_gib: float
    workspace_gib: float  # a dequantised matrix, and what comes before the first tensor

    @property
    def total_gib(self) -> float:
        """The sum, and what an allocator loses on top of it."""
        return FRAGMENTATION * sum(self._parts().values())

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {gib:.1f}" for name, gib in self._parts().items())
        return f"{parts}, x {FRAGMENTATION} for fragmentation"

    def _parts(self) -> dict[str, float]:
        return {part.name.removesuffix("_gib"): getattr(self, part.name) for part in fields(self)}


def trainable(shape: Shape, *, rank: int, targets: str, layers: int = 0, dora: bool = False) -> int:
    """Parameters of a LoRA adapter: rank x (in + out) for each adapted matrix.

    Names that this shape's matrices do not have, such as GPT-2's c_attn, count as all-linear:
    the upper bound.
    """
    adapted = [shape.matrices[name] for name in _adapted(targets) if name in shape.matrices]
    each = sum(rank * (wide + high) + (high if dora else 0) for wide, high in adapted)
    return each * _adapted_layers(shape, layers)


def estimate(shape: Shape, choices: Choices) -> Estimate:
    """What training a model of that shape takes."""
    parameters = trainable(
        shape,
        rank=choices.rank,
        targets=choices.targets,
        layers=choices.layers,
        dora=choices.dora,
    )
    return Estimate(
        weights_gib=_weights(shape, choices) / GIB,
        adapter_gib=parameters * STATE_BYTES / GIB,
        optimizer_gib=parameters * STATE_BYTES / GIB,
        activations_gib=_activations(shape, choices) / GIB,
        logits_gib=_logits(shape, choices) / GIB,
        workspace_gib=_workspace(shape, choices) / GIB + CONTEXT_GIB[choices.on_gpu],
    )


def most_tokens(shape: Shape, choices: Choices, memory_gib: float, at_most: int) -> int:
    """The most tokens of a micro-batch that fit into that memory; 0 where not even one does."""

    def needed(tokens: int) -> float:
        return estimate(shape, replace(choices, tokens=tokens)).total_gib

    return bisect_right(range(1, at_most + 1), memory_gib, key=needed)


def _adapted(targets: str) -> tuple[str, ...]:
    everything = TARGETS["all-linear"]
    names = TARGETS.get(targets) or tuple(name.strip() for name in targets.split(","))
    return names if set(names) <= set(everything) else everything


def _adapted_layers(shape: Shape, layers: int) -> int:
    return min(layers, shape.layers) or shape.layers


def _weights(shape: Shape, choices: Choices) -> float:
    rest = shape.parameters - shape.linear_parameters  # embeddings and norms stay as they are
    each = NF4_BYTES if choices.quantization == "nf4" else choices.bytes
    return each * shape.linear_parameters / choices.shards + choices.bytes * rest


def _activations(shape: Shape, choices: Choices) -> float:
    """What is kept for the backward pass, which goes no further down than the lowest adapter."""
    one, layers = _kept(shape, choices), _adapted_layers(shape, choices.layers)
    if choices.checkpointing:  # each layer's input, and the one layer that is computed again
        return choices.tokens * (layers * choices.bytes * shape.hidden + one)
    return choices.tokens * layers * one


def _kept(shape: Shape, choices: Choices) -> float:
    """Bytes for one token and layer: 12 h + 4 q + 4 kv + 8 f with 16-bit adapters on everything.

    h is the hidden width, q and kv those of the queries and keys, f the MLP's. A gated MLP keeps
    four tensors of width f, one of two matrices keeps two of them.
    """
    mlp = (8 if shape.gated else 4) * shape.mlp
    kept = 12 * shape.hidden + 4 * shape.q_width + 4 * shape.kv_width + mlp
    return kept * _factor(shape, choices)


def _factor(shape: Shape, choices: Choices) -> float:
    autocast = AUTOCAST_GEMMA if shape.family.startswith("gemma") else AUTOCAST
    factor = FP32 if choices.precision == "fp32" else autocast
    factor += DROPOUT[choices.width] if choices.dropout else 0
    factor += DORA[choices.width] if choices.dora else 0
    return factor * (1 if set(_adapted(choices.targets)) & set(MLP) else ATTENTION_ONLY)


def _logits(shape: Shape, choices: Choices) -> float:
    positions = min(choices.tokens * choices.label_share, LOGITS_CHUNK)
    return positions * shape.vocab * LOGIT_BYTES[choices.width]


def _workspace(shape: Shape, choices: Choices) -> float:
    """The largest matrix, dense: nf4 unpacks it, DoRA takes its norm with the adapter added.

    Of divided weights, three layers: one that computes, the next one as it comes in, and the
    buffer that it comes in.
    """
    matrix = choices.bytes * shape.hidden * shape.mlp
    layer = choices.bytes * shape.linear_parameters / shape.layers
    gathered = LAYERS_AT_ONCE * layer * (choices.shards > 1)
    return matrix * ((choices.quantization == "nf4") + 2 * choices.dora) + gathered
