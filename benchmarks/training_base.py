"""What the contenders of `benchmarks.training` get: a base model, its tokenizer, some examples."""

import json
import logging
import random
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import disable_progress_bars as hide_progress
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.record import say
from green_tune import tiny
from green_tune.shapes import SHAPES, Shape
from green_tune.tasks import TASKS, Example


def chosen(asked: Any, task: str, room: Path) -> Path:
    """Some of a task's examples, in a folder of their own: whole passages, drawn by chance.

    The first rows of a shuffled file would share less of their passages than the file does.
    """
    rows = _rows(asked.data / task / "train.jsonl")
    field, dice = TASKS[task].template[1], random.Random(0)
    passages: dict[str, list[str]] = {}
    for row in rows:
        passages.setdefault(json.loads(row)[field], []).append(row)
    drawn: list[str] = []
    for passage in dice.sample(list(passages), len(passages)):
        if not asked.examples or len(drawn) < asked.examples:
            drawn += passages[passage]
    dice.shuffle(drawn)
    folder = room / task
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(drawn))
    (folder / "validation.jsonl").write_text(
        "\n".join(_rows(asked.data / task / "validation.jsonl")[: asked.validate])
    )
    return folder


def models(asked: Any) -> dict[str, Shape | None]:
    """The base models by name; a folder's shape is its own affair."""
    if asked.model:
        return {asked.model.resolve().name: None}
    if asked.device == "cuda":
        return {name: SHAPES[name] for name in asked.models}
    heads, mlp = max(1, asked.hidden // 32), asked.hidden * 11 // 4
    small = Shape(
        family="llama", layers=asked.layers, hidden=asked.hidden, heads=heads,
        kv_heads=max(1, heads // 2), head_dim=asked.hidden // heads, mlp=mlp,
        vocab=vocab(asked), context=4096,
    )  # fmt: skip
    return {f"llama of {small.parameters / 1e6:.1f} M parameters": small}


def vocab(asked: Any) -> int:
    """Tokens of the vocabulary: as asked, else small on a CPU."""
    return asked.vocab or (32000 if asked.device == "cuda" else 4096)


def build(shape: Shape, room: Path, vocab: int, folders: Mapping[str, Path], asked: Any) -> Path:
    """A base model at random weights from a fixed seed, with a tokenizer of these tasks' text."""
    say("a base model and its tokenizer")
    hush()
    texts = [text for task in folders for text in _texts(asked.data / task / "train.jsonl", task)]
    folder = room / "base"
    tokenizer = tiny.tokenizer(texts, vocab)
    tokenizer.save_pretrained(str(folder))
    torch.manual_seed(0)
    with torch.device(asked.device):
        dtype = torch.bfloat16 if asked.device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype)  # type: ignore[no-untyped-call]
    model.save_pretrained(str(folder))
    return folder


def config_of(shape: Shape) -> Any:
    """What transformers calls such a shape."""
    return AutoConfig.for_model(
        shape.family,
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tied,
        **dict(zip(("pad_token_id", "bos_token_id", "eos_token_id"), range(3), strict=True)),
    )


def _texts(path: Path, task: str) -> Iterator[str]:
    for row in _rows(path):
        example: Example = TASKS[task].example(json.loads(row))
        yield from (example.prompt, example.completion)


def _rows(path: Path) -> list[str]:
    return [row for row in path.read_text(encoding="utf-8").split("\n") if row.strip()]


def hush() -> None:
    """Progress is one line for each measurement."""
    warnings.simplefilter("ignore")
    hide_progress()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)
