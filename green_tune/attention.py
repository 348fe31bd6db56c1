"""How a micro-batch attends: each example sees itself, and nothing else, whatever lies beside it.

Three ways to compute the same, registered with transformers by name, each best somewhere:

    green_documents   one causal SDPA for each tree                  a CPU
    green_padded      one SDPA over all trees, padded in here alone  GPUs without FlashAttention 2
    green_varlen      torch's variable-length FlashAttention 2       GPUs from capability 8.0

The linear layers see flat tokens in all of them. A `Layout` is built once for a micro-batch and
serves all layers; it reaches them as a keyword argument of the model.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

from green_tune.batches import Micro
from green_tune.errors import ModelError

NAMES = {name: f"green_{name}" for name in ("documents", "padded", "varlen")} | {"sdpa": "sdpa"}
STOCK = "sdpa"

T = TypeVar("T")
Spans = list[tuple[int, int]]


class Layout:
    """Where the trees of a flat micro-batch lie, as tensors that are built when first needed."""

    def __init__(self, micro: Micro, device: torch.device) -> None:
        self._micro = micro
        self._device = device
        self._kept: dict[Any, Any] = {}
        nodes = micro.nodes
        self.trees: Spans = [(nodes[tree[0]].start, nodes[tree[-1]].end) for tree in micro.trees]

    def mask(self, tree: int, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores in a tree, (n, n); None where it is plainly causal.

        Numbers and not booleans, which SDPA would turn into numbers in every layer.
        """
        return self._once(
            ("mask", tree, window), lambda: _numbers(self._seen(tree, window), dtype, self._device)
        )

    def _seen(self, tree: int, window: int | None) -> torch.Tensor | None:
        start, end = self.trees[tree]
        numbers = self._micro.trees[tree]
        if len(numbers) == 1 and (not window or end - start <= window):
            return None
        seen = torch.zeros(end - start, end - start, dtype=torch.bool)
        for number in numbers:
            own = self._micro.nodes[number]
            for node in self._micro.path(number):
                seen[own.start - start : own.end - start, node.start - start : node.end - start] = 1
        seen.tril_()  # ancestors lie before their descendants
        if window:
            at = torch.tensor(self._micro.positions[start:end])
            seen &= at[:, None] - at < window
        return seen

    def grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """For each place in (trees, longest) a token, and for each token its place."""
        return self._once("grid", self._grid)

    def _grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(end - start for start, end in self.trees)
        tokens = torch.zeros(len(self.trees), longest, dtype=torch.long)
        places = []
        for row, (start, end) in enumerate(self.trees):
            tokens[row, : end - start] = torch.arange(start, end)
            places.append(torch.arange(end - start) + row * longest)
        return tokens.to(self._device), torch.cat(places).to(self._device)

    def grid_mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """The same for all trees, (trees, 1, longest, longest); None where causal is right."""
        return self._once(
            ("grid", window), lambda: _numbers(self._grid_seen(window), dtype, self._device)
        )

    def _grid_seen(self, window: int | None) -> torch.Tensor | None:
        masks = [self._seen(tree, window) for tree in range(len(self.trees))]
        if all(mask is None for mask in masks):
            return None
        longest = max(end - start for start, end in self.trees)
        seen = torch.ones(longest, longest, dtype=torch.bool).tril_()
        grid = seen.repeat(len(masks), 1, 1)  # what is beyond a tree's end is computed, never read
        for row, mask in enumerate(masks):
            if mask is not None:
                grid[row, : len(mask), : len(mask)] = mask
        return grid[:, None]

    def lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int, torch.Tensor | None]:
        """Of queries and keys of each node: ends so far, the longest; and which tokens are keys.

        A node's keys are its whole path, so those of a shared prefix are there once per branch;
        None where no node has a parent, and keys are as the queries.
        """
        return self._once("lengths", self._lengths)

    def _lengths(self) -> tuple[torch.Tensor, torch.Tensor, int, int, torch.Tensor | None]:
        nodes = self._micro.nodes
        paths = [self._micro.path(number) for number in range(len(nodes))]
        queries = [node.end - node.start for node in nodes]
        keys = [sum(node.end - node.start for node in path) for path in paths]
        tokens = None
        if keys != queries:
            spans = [torch.arange(node.start, node.end) for path in paths for node in path]
            tokens = torch.cat(spans).to(self._device)
        ends = (self._ends(queries), self._ends(keys))
        return *ends, max(queries), max(keys), tokens

    def _ends(self, lengths: list[int]) -> torch.Tensor:
        ends = torch.tensor([0, *lengths]).cumsum(0)
        return ends.to(self._device, torch.int32)

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]  # type: ignore[no-any-return]


def documents(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **asked: Any
) -> tuple[torch.Tensor, None]:
    """Tree by tree; query (1, heads, tokens, size) to (1, tokens, heads, size)."""
    layout, scale, window, dropout = _asked(asked)
    sizes = [end - start for start, end in layout.trees]
    parts = zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)
    seen = []
    for tree, (q, k, v) in enumerate(parts):  # split: a slice's gradient is as large as the whole
        mask = layout.mask(tree, window, query.dtype)
        seen.append(_attended(q, k, v, mask, scale=scale, dropout_p=dropout))
    return torch.cat(seen, 2).transpose(1, 2), None


def padded(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **asked: Any
) -> tuple[torch.Tensor, None]:
    """All trees at once, filled up to the longest; shapes as `documents`."""
    layout, scale, window, dropout = _asked(asked)
    tokens, places = layout.grid()
    q, k, v = (x[0][:, tokens].transpose(0, 1) for x in (query, key, value))  # (trees, heads, …)
    mask = layout.grid_mask(window, query.dtype)
    seen = _attended(q, k, v, mask, scale=scale, dropout_p=dropout)
    return seen.transpose(1, 2).flatten(0, 1)[places][None], None


def varlen(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **asked: Any
) -> tuple[torch.Tensor, None]:
    """Node by node in one kernel, which aligns a branch's last query with the path's last key."""
    layout, scale, window, dropout = _asked(asked)
    if dropout:
        raise ModelError(
            "attention=varlen has no dropout, which this base's config.json asks for "
            "(attention_dropout): take attention=padded"
        )
    query_ends, key_ends, longest_query, longest_key, tokens = layout.lengths()
    where = query.device.type
    if torch.is_autocast_enabled(where):  # which does not know this kernel
        query, key, value = (x.to(torch.get_autocast_dtype(where)) for x in (query, key, value))
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (tokens, heads, size)
    if tokens is not None:
        key, value = key[tokens], value[tokens]
    seen = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        query_ends,
        key_ends,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(window - 1 if window else -1, 0),
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return cast(torch.Tensor, seen)[None], None


def register() -> None:
    """Makes the three known to transformers; they get no mask from it, and need none."""
    for name, function in (("documents", documents), ("padded", padded), ("varlen", varlen)):
        AttentionInterface.register(NAMES[name], torch.compiler.disable(function))  # type: ignore[no-untyped-call]


@contextmanager
def stock(model: Any) -> Iterator[None]:
    """The model with transformers' own attention, as generating needs it."""
    ours = model.config._attn_implementation
    try:
        model.set_attn_implementation(STOCK)
    except ValueError as error:
        reason = str(error).split(".")[0]
        raise ModelError(f"this kind of model cannot be trained here: {reason}") from None
    try:
        yield
    finally:
        model.set_attn_implementation(ours)


def _numbers(
    seen: torch.Tensor | None, dtype: torch.dtype, device: torch.device
) -> torch.Tensor | None:
    if seen is None:
        return None
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf).to(device)


def _asked(asked: dict[str, Any]) -> tuple[Layout, float | None, int | None, float]:
    layout = asked.get("layout")
    if layout is None:
        raise ModelError(
            "this kind of model does not pass on where examples begin, so they would see one "
            "another: take batching=padded"
        )
    if any(asked.get(name) is not None for name in ("softcap", "position_bias", "s_aux")):
        raise ModelError(
            "this kind of model changes its attention scores (soft-capping, position bias, sinks), "
            "and no attention here can: take another base model"
        )
    return layout, asked.get("scaling"), asked.get("sliding_window"), asked.get("dropout") or 0.0


def _attended(query: Any, key: Any, value: Any, mask: Any, **how: Any) -> torch.Tensor:
    """One SDPA; keys and values that several queries share are repeated where kernels need it.

    A CPU's kernel does not; of a GPU's only FlashAttention, which takes no mask.
    """
    groups = query.shape[1] // key.shape[1]
    grouped = query.device.type == "cpu" and groups > 1
    if groups > 1 and not grouped:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    return sdpa(
        query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped, **how
    )
