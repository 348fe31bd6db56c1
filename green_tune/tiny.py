"""The base models `tiny`: Llama-shaped, with a tokenizer, built on the spot from a fixed seed.

They make every command work in seconds without a download. Their weights are random, so they know
nothing; they learn because their residual stream is small and their output layer is not, so that
an adapter's first steps already move the predictions. Once built, one is a folder like any other.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from green_tune import samples
from green_tune.errors import ModelError
from green_tune.models import BUILT, TINY
from green_tune.predictor import quiet
from green_tune.tasks import TASKS

SPECIAL = ("<pad>", "<s>", "</s>")


def folder(name: str = TINY) -> Path:
    """The folder that holds one of `models.BUILT`, built there first if need be (under a second).

    It is named for what it is made of, so that a change of any of it builds another.
    """
    recipe = json.dumps([_shape(name), _output_std(name), SPECIAL, _texts()]).encode()
    place = _cache() / f"{name}-{hashlib.sha256(recipe).hexdigest()[:12]}"
    if not place.exists():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ModelError(f"{error}; {name} is built there: set XDG_CACHE_HOME") from None
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            built = build(Path(scratch) / place.name, name)
            try:
                built.rename(place)  # atomic: another process sees all of it or nothing
            except OSError:
                if not place.exists():  # else another process was first, with the same bytes
                    raise
    return place


def build(target: Path, name: str = TINY) -> Path:
    """Writes model and tokenizer into `target`; the same bytes every time."""
    tokenizer(_texts(), _shape(name)["vocab_size"]).save_pretrained(target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**_shape(name)))
        torch.nn.init.normal_(model.lm_head.weight, std=_output_std(name))
    with quiet():  # a bar for a file of 800 kB would be the first thing that anybody sees
        model.save_pretrained(target)
    return target


def tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on some texts; every text can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    pad, start, end = SPECIAL
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe, pad_token=pad, bos_token=start, eos_token=end
    )


def _shape(name: str) -> dict[str, Any]:
    return {key: value for key, value in BUILT[name].items() if key != "model_type"}


def _output_std(name: str) -> float:
    """Logits of order one from the start."""
    return float(_shape(name)["hidden_size"] ** -0.5)


@cache
def _texts() -> list[str]:
    examples = [
        task.example(row) for task in TASKS.values() for row in samples.rows(task.name, "train")
    ]
    return [text for example in examples for text in (example.prompt, example.completion)]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "green-tune"
