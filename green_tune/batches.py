"""Which examples make a step, and how they lie in its micro-batches: no padding, nothing twice.

The examples of an optimiser step are laid end to end. Where several start with the same tokens
(questions on one passage), these are there once, and the examples branch off: a tree. A
micro-batch is a forest of such trees, cut by a budget of tokens. It is lists of numbers:
`attention` says how it is computed, and nothing here knows torch.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

from green_tune.tokens import Encoded

Batching = Literal["tree", "flat", "padded"]

MIN_SHARED = 16  # tokens; a branch has a price of its own in the attention


class Node(NamedTuple):
    """Tokens [start, end) of a micro-batch; they see their ancestors, and what is before them."""

    start: int
    end: int
    parent: int  # its number in the micro-batch; -1 for a root


@dataclass(frozen=True, kw_only=True)
class Micro:
    """One forward pass: flat tokens, or rows of `width` that are padded.

    `label_at[k]` is where token `targets[k]` is predicted; a position may predict several, as
    examples with the same prompt and other completions share it. `owners[k]` is the `number` of
    the example whose label it is.
    """

    ids: Sequence[int]
    positions: Sequence[int]
    nodes: Sequence[Node]
    label_at: Sequence[int]
    targets: Sequence[int]
    owners: Sequence[int]
    useful: int  # tokens of its examples, shared ones counted for each
    width: int = 0  # of a padded row; flat ones have none

    @cached_property
    def trees(self) -> list[list[int]]:
        """The numbers of the nodes of each tree; they lie side by side, a root first."""
        trees: list[list[int]] = []
        for number, node in enumerate(self.nodes):
            if node.parent < 0:
                trees.append([])
            trees[-1].append(number)
        return trees

    def path(self, number: int) -> list[Node]:
        """A node with its ancestors, the root first."""
        path: list[Node] = []
        while number >= 0:
            path.insert(0, self.nodes[number])
            number = self.nodes[number].parent
        return path


class Schedule:
    """The steps of a training: which examples in which order, the same on every process.

    `groups[i]` is the same for examples with the same passage; under `tree` these come one after
    the other, else every example is shuffled on its own. Each epoch has another order.
    """

    def __init__(
        self, groups: Sequence[int], *, size: int, epochs: int, seed: int, batching: Batching
    ) -> None:
        self._groups = list(groups) if batching == "tree" else list(range(len(groups)))
        self._size = size
        self._seed = seed
        self.steps_per_epoch = -(-len(groups) // size)
        self.steps = self.steps_per_epoch * epochs

    def step(self, number: int) -> list[int]:
        """The examples of one step; the last of an epoch may have fewer."""
        epoch, within = divmod(number, self.steps_per_epoch)
        return self._order(epoch)[within * self._size : (within + 1) * self._size]

    def _order(self, epoch: int) -> list[int]:
        if getattr(self, "_shuffled", (None,))[0] != epoch:
            self._shuffled = (epoch, self._shuffle(epoch))
        return self._shuffled[1]

    def _shuffle(self, epoch: int) -> list[int]:
        chance = random.Random(f"{self._seed}/{epoch}")  # not a cipher, but the same everywhere
        rank: dict[int, float] = {}
        for group in self._groups:
            rank.setdefault(group, chance.random())
        keys = [(rank[group], group, chance.random()) for group in self._groups]
        return sorted(range(len(keys)), key=keys.__getitem__)


def shares(examples: Sequence[Encoded], processes: int) -> list[list[Encoded]]:
    """A step's examples for each process of a training, with alike numbers of tokens.

    Neighbours stay together, as they may share a prefix.
    """
    ordered = sorted(examples, key=lambda example: example["input_ids"])
    total = sum(len(example["input_ids"]) for example in ordered)
    parts: list[list[Encoded]] = [[] for _ in range(processes)]
    before = 0
    for example in ordered:
        middle = before + len(example["input_ids"]) / 2
        parts[min(int(middle * processes / total), processes - 1)].append(example)
        before += len(example["input_ids"])
    return parts


def cut(
    examples: Sequence[Encoded], batching: Batching, *, tokens: int, rows: int = 1
) -> list[Micro]:
    """Micro-batches of at most `tokens` tokens, or of `rows` rows where they are padded.

    An example that is longer makes one alone; a tree may exceed them by a few tokens a branch.
    """
    if batching == "padded":
        by_length = sorted(examples, key=lambda example: len(example["input_ids"]))
        return [padded(by_length[at : at + rows]) for at in range(0, len(by_length), rows)]
    tree = batching == "tree"
    ordered = sorted(examples, key=lambda e: e["input_ids"] if tree else [len(e["input_ids"])])
    return [flat(part, share=tree) for part in _parts(ordered, tokens, tree)]


def _parts(examples: Sequence[Encoded], tokens: int, tree: bool) -> Iterator[list[Encoded]]:
    part: list[Encoded] = []
    used = 0
    for example in examples:
        ids = example["input_ids"]
        shared = _common(part[-1]["input_ids"], ids) if tree and part else 0
        new = len(ids) - (shared if shared >= MIN_SHARED else 0)
        if part and used + new > tokens:
            yield part
            part, used, new = [], 0, len(ids)
        part.append(example)
        used += new
    if part:
        yield part


def padded(examples: Sequence[Encoded]) -> Micro:
    """One row for each example, filled up to the longest: as most trainers do it."""
    width = max(len(example["input_ids"]) for example in examples)
    ids: list[int] = []
    positions: list[int] = []
    nodes, label_at, targets, owners = [], [], [], []
    for row, example in enumerate(examples):
        start, own = row * width, example["input_ids"]
        ids += [*own, *[0] * (width - len(own))]
        positions += range(width)
        nodes.append(Node(start, start + len(own), -1))
        for at in range(len(own) - example["labelled"], len(own)):
            label_at.append(start + at - 1)
            targets.append(own[at])
            owners.append(example["number"])
    return Micro(
        ids=ids,
        positions=positions,
        nodes=nodes,
        label_at=label_at,
        targets=targets,
        owners=owners,
        useful=sum(len(example["input_ids"]) for example in examples),
        width=width,
    )


def flat(examples: Sequence[Encoded], *, share: bool) -> Micro:
    """The examples end to end; with `share`, what they have in common is there once."""
    layer = _Layer()
    if share:
        layer.branch(sorted(examples, key=lambda example: example["input_ids"]), [], -1)
    else:
        for example in examples:
            layer.leaf(example, [], -1)
    return Micro(
        ids=layer.ids,
        positions=layer.positions,
        nodes=layer.nodes,
        label_at=layer.label_at,
        targets=layer.targets,
        owners=layer.owners,
        useful=sum(len(example["input_ids"]) for example in examples),
    )


class _Layer:
    """Lays examples down, node by node; `path` is where the tokens of all ancestors lie."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.nodes: list[Node] = []
        self.label_at: list[int] = []
        self.targets: list[int] = []
        self.owners: list[int] = []

    def branch(self, examples: Sequence[Encoded], path: list[int], parent: int) -> None:
        """Sorted examples that have the tokens of `path` in common."""
        for run in _runs(examples, len(path)):
            if len(run) == 1:
                self.leaf(run[0], path, parent)
            else:
                stem = run[0]["input_ids"][: _common(run[0]["input_ids"], run[-1]["input_ids"])]
                self.branch(run, *self._node(stem, path, parent))

    def leaf(self, example: Encoded, path: list[int], parent: int) -> None:
        """The rest of an example, and all its labels."""
        ids = example["input_ids"]
        if len(ids) > len(path):  # else it is the same, to the last token, as another
            path, _ = self._node(ids, path, parent)
        for at in range(len(ids) - example["labelled"], len(ids)):
            self.label_at.append(path[at - 1])
            self.targets.append(ids[at])
            self.owners.append(example["number"])

    def _node(self, ids: Sequence[int], path: list[int], parent: int) -> tuple[list[int], int]:
        start, depth = len(self.ids), len(path)
        self.ids += ids[depth:]
        self.positions += range(depth, len(ids))
        self.nodes.append(Node(start, len(self.ids), parent))
        return path + list(range(start, len(self.ids))), len(self.nodes) - 1


def _runs(examples: Sequence[Encoded], depth: int) -> Iterator[list[Encoded]]:
    """Neighbours that have enough in common beyond `depth` tokens to be a branch of their own."""
    run = [examples[0]]
    for before, example in pairwise(examples):
        if _common(before["input_ids"], example["input_ids"]) < depth + MIN_SHARED:
            yield run
            run = []
        run.append(example)
    yield run


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two examples have in common at the start."""
    length = min(len(one), len(other))
    for at in range(length):
        if one[at] != other[at]:
            return at
    return length
