"""Task quality: how well a model does on a few validation examples with its adapter as it is.

Answers and summaries are generated, greedily and in batches. A label is the one that the model
finds most likely, so nothing is generated for it. What predictions are worth is `scores`' affair,
and when they are asked for is `experiment`'s.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from green_tune import attention, bars, batches, predictor, stop
from green_tune.job import Job
from green_tune.loading import named_out_of_memory, precision_of, without_gradients
from green_tune.tasks import Example
from green_tune.tokens import Encoded, Encoder
from green_tune.training import FineTuner

ROOMIER = 8  # times a micro-batch's tokens: nothing is kept to go backward. Else fewer

Tokens = list[int]


def measure(tuner: FineTuner) -> dict[str, float]:
    """The task's metrics, `quality.*`, on the first `quality_examples` of those that fit.

    A fresh adapter changes nothing, so before the training they are the base model's. Nothing is
    measured where none are asked for, and in processes that do not write the run: the metrics are
    of the whole set, which one process does alone. Where the base model is divided among them all
    do the same, as each has a part of every layer.

    Raises:
        OutOfMemory: not even this fits on the device.
        Stopped: the process was asked to stop.
    """
    asked = tuner.job.config.quality_examples
    if not asked or not (tuner.job.rank.writes or tuner.job.plan.shards > 1):
        return {}
    examples = [tuner.job.data.validation[one["number"]] for one in tuner.validation[:asked]]
    predict = _weighed if tuner.job.task.quality == "labels" else _generated
    with _inference(tuner):
        predictions = predict(tuner, examples)
    scores = _scored(tuner.job.task.quality, predictions, examples)
    scores["examples"] = float(len(predictions))
    return {f"quality.{name}": value for name, value in scores.items()}


def prepare(job: Job) -> None:
    """Imports what takes a second, and a trial without task metrics need not pay."""
    if job.config.quality_examples:
        from green_tune import scores  # noqa: F401


def _scored(
    quality: str, predictions: Mapping[int, str], examples: Sequence[Example]
) -> dict[str, float]:
    """Predictions, by the numbers of their examples, against what is right."""
    from green_tune import scores

    texts, asked = list(predictions.values()), [examples[number] for number in predictions]
    if quality == "answers":
        return scores.question_answering(texts, [example.references for example in asked])
    score = scores.labels if quality == "labels" else scores.summaries
    return score(texts, [example.completion for example in asked])


@contextmanager
def _inference(tuner: FineTuner) -> Iterator[None]:
    """Computes as a validation does: no dropout, no gradients, the precision of the plan.

    The memory that it takes is given back, and is not counted as the training's.
    """
    tuner.check()
    tuner.model.eval()
    with without_gradients(tuner.job), precision_of(tuner.job), named_out_of_memory(tuner.job):
        yield
    tuner.model.train()
    if tuner.job.device.kind == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _weighed(tuner: FineTuner, examples: Sequence[Example]) -> dict[int, str]:
    """For each example the label that is most likely as the whole completion, its end included.

    The sum over its tokens, as the training lowers it, and not their mean: with the end token
    labels exclude one another, so these are probabilities, which need no correction for length.
    """
    labels = _labels(tuner)
    unlikely: dict[int, list[float]] = {}
    with bars.bar("quality", parts=_label_micros(tuner, examples, labels)) as bar:
        for micro in bar:
            stop.check()
            losses = tuner.loss.each(micro).tolist()
            for owner, loss in zip(micro.owners, losses, strict=True):
                number, label = divmod(owner, len(labels))
                unlikely.setdefault(number, [0.0] * len(labels))[label] += loss
    names = list(labels)
    return {number: names[sums.index(min(sums))] for number, sums in sorted(unlikely.items())}


def _labels(tuner: FineTuner) -> dict[str, Tokens]:
    """The known labels in tokens, with their end."""
    names = tuner.job.data.labels
    alone = [Example(head="", body="", tail="", completion=name) for name in names]
    encoded = tuner.encoder.encode(alone)
    return {names[one["number"]]: one["input_ids"][-one["labelled"] :] for one in encoded}


def _label_micros(
    tuner: FineTuner, examples: Sequence[Example], labels: Mapping[str, Tokens]
) -> list[batches.Micro]:
    """Every example with every label; a prompt is computed once, but for padded batches.

    The owner of a label's tokens is its example's number times the labels, plus its own number.
    """
    plan = tuner.job.plan
    longest = max(labels, key=lambda name: len(labels[name]))
    candidates = [
        Encoded(
            input_ids=prompt + label,
            labelled=len(label),
            completion_bytes=0,
            cut=False,
            number=number * len(labels) + k,
        )
        for number, prompt in _prompts(tuner.encoder, examples, longest).items()
        for k, label in enumerate(labels.values())
    ]
    return batches.cut(
        candidates,
        "padded" if plan.batching == "padded" else "tree",
        tokens=plan.micro_batch_tokens,
        rows=plan.micro_batch_size,
    )


def _generated(tuner: FineTuner, examples: Sequence[Example]) -> dict[int, str]:
    """For each example what the model goes on with until its end token, always by the likeliest."""
    asked = (tuner.max_seq_len, tuner.job.task.max_new_tokens)
    limit, new = predictor.generation_bounds(tuner.model.config, *asked)
    prompts = _prompts(Encoder(tuner.tokenizer, limit), examples, "")
    numbers, tokens = list(prompts), ROOMIER * tuner.job.plan.micro_batch_tokens
    texts: dict[int, str] = {}
    with _greedy(tuner, new) as config, bars.bar("quality", parts=numbers) as bar:

        def ask(batch: Sequence[Tokens]) -> list[str]:
            stop.check()
            with _all_or_none(tuner.job):
                found = predictor.continued(tuner.loss.base, batch, config)
            return predictor.to_texts(tuner.tokenizer, found)

        given = list(prompts.values())
        for part in predictor.in_batches(given, ask, extra=new, tokens=tokens):
            texts |= {numbers[place]: text for place, text in part.items()}
            bar.update(len(part))
    return dict(sorted(texts.items()))


def _all_or_none(job: Job) -> AbstractContextManager[None]:
    """Of several processes that generate in step, none may go back to a smaller batch alone."""
    return named_out_of_memory(job) if job.plan.shards > 1 else nullcontext()


def _prompts(encoder: Encoder, examples: Sequence[Example], before: str) -> dict[int, Tokens]:
    """The prompts by number, each cut so that the completion `before` would fit behind it."""
    encoded = encoder.encode([replace(example, completion=before) for example in examples])
    return {one["number"]: one["input_ids"][: -one["labelled"]] for one in encoded}


@contextmanager
def _greedy(tuner: FineTuner, new: int) -> Iterator[Any]:
    """What `generate` is to do, with an attention that can."""
    # Compiled layers would be compiled again for each length of what they remember.
    plain = torch.compiler.set_stance("force_eager") if tuner.job.plan.compile else nullcontext()
    base = tuner.loss.base
    with attention.stock(base), plain, predictor.greedy(base, tuner.tokenizer, new) as config:
        yield config
