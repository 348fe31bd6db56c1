import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from green_tune import attention, batches, quality, scores, stop, tiny, training
from green_tune.errors import OutOfMemory, Stopped
from green_tune.job import Job
from green_tune.ranks import Rank
from green_tune.training import FineTuner

MakeJob = Callable[..., Job]
TASKS = {"sentiment": "labels", "qa": "question_answering", "summarization": "summaries"}


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[[FineTuner], list[str]]:
    """What `measure` hands to be scored."""

    def predictions(tuner: FineTuner) -> list[str]:
        seen: list[str] = []

        def listen(given: Sequence[str], _: object) -> dict[str, float]:
            seen.extend(given)
            return {}

        with monkeypatch.context() as patch:
            patch.setattr(scores, TASKS[tuner.job.task.name], listen)
            quality.measure(tuner)
        return seen

    return predictions


def folder(place: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A data set with the same rows in both splits."""
    place.mkdir()
    for split in ("train", "validation"):
        (place / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return place


def prompts(tuner: FineTuner) -> list[list[int]]:
    """Of the validation examples that are looked at, where none had to be cut."""
    return [one["input_ids"][: -one["labelled"]] for one in tuner.validation][:QUESTIONS]


QUESTIONS = 4
LABEL_ROWS = [
    {"text": f"{number} {word} " * 8, "label": label}
    for number in range(4)
    for word, label in (("fine", "good"), ("poor", "not good at all"), ("so", "in the middle"))
]


def log_likelihood(model: Any, prompt: list[int], completion: list[int]) -> float:
    """One sequence alone, by the model's own logits."""
    with torch.inference_mode():
        logs = model(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return sum(float(logs[place, token]) for place, token in zip(at, completion, strict=True))


def greedy(model: Any, prompt: list[int], end: int, most: int) -> list[int]:
    """One sequence alone, token by token and with nothing remembered."""
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + most:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == end:
                break
    return ids[len(prompt) :]


def answers(tuner: FineTuner, given: Sequence[list[int]]) -> list[str]:
    """What the model goes on with, one prompt at a time."""
    end, most = tuner.tokenizer.eos_token_id, tuner.job.task.max_new_tokens
    tuner.model.eval()
    with attention.stock(tuner.loss.base):
        ids = [greedy(tuner.loss.base, prompt, end, most) for prompt in given]
    return [tuner.tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]


@pytest.mark.parametrize("batching", ["tree", "flat", "padded"])
def test_labels_are_as_likely_as_one_by_one(
    make_job: MakeJob, tmp_path: Path, batching: str, predicted: Callable[[FineTuner], list[str]]
) -> None:
    data = folder(tmp_path / "labels", LABEL_ROWS)
    job = make_job(data=str(data), batching=batching, micro_batch_tokens=200)
    tuner = training.load(job)
    assert job.data.labels == ("good", "in the middle", "not good at all")
    plain = AutoModelForCausalLM.from_pretrained(tiny.folder())
    end = tuner.tokenizer.eos_token_id
    labels = [tuner.tokenizer(name)["input_ids"] + [end] for name in job.data.labels]
    expected = [
        [log_likelihood(plain, one["input_ids"][: -one["labelled"]], label) for label in labels]
        for one in tuner.validation
    ]
    likeliest = [job.data.labels[row.index(max(row))] for row in expected]
    seen: dict[int, float] = {}
    each = tuner.loss.each

    def listened(micro: batches.Micro) -> torch.Tensor:
        losses = each(micro)
        for owner, loss in zip(micro.owners, losses.tolist(), strict=True):
            seen[owner] = seen.get(owner, 0.0) + loss
        return losses

    tuner.loss.each = listened  # type: ignore[method-assign]
    assert predicted(tuner) == likeliest
    flat = [-value for row in expected for value in row]
    assert [seen[owner] for owner in range(len(flat))] == pytest.approx(flat, abs=1e-4)


def test_a_prompt_is_computed_once_for_all_labels_and_cut_the_same_for_each(
    make_job: MakeJob, tmp_path: Path
) -> None:
    job = make_job(data=str(folder(tmp_path / "labels", LABEL_ROWS[:3])), max_seq_len=40)
    tuner = training.load(job)
    micros: list[batches.Micro] = []
    each = tuner.loss.each
    tuner.loss.each = lambda micro: micros.append(micro) or each(micro)  # type: ignore
    assert quality.measure(tuner)["quality.examples"] == 3
    assert sum(len(micro.trees) for micro in micros) == 3
    for micro in micros:
        assert all(len(tree) == 4 for tree in micro.trees)  # a prompt and three labels


def test_a_rule_that_was_learnt_shows_in_the_accuracy(make_job: MakeJob, tmp_path: Path) -> None:
    data = folder(tmp_path / "labels", [row for row in LABEL_ROWS if row["label"] != "good"])
    tuner = training.load(make_job(data=str(data), epochs=40, learning_rate=1e-2, batch_size=4))
    before = quality.measure(tuner)
    tuner.fit()
    after = quality.measure(tuner)
    assert before["quality.accuracy"] <= 0.5
    assert after == {"quality.accuracy": 1.0, "quality.f1": 1.0, "quality.examples": 8.0}


@pytest.mark.parametrize("task", ["qa", "summarization"])
def test_generated_texts_are_those_of_one_prompt_at_a_time(
    make_job: MakeJob, task: str, predicted: Callable[[FineTuner], list[str]]
) -> None:
    tuner = training.load(make_job(task=task, quality_examples=QUESTIONS))
    assert len({len(prompt) for prompt in prompts(tuner)}) > 1
    assert predicted(tuner) == answers(tuner, prompts(tuner))


def test_generating_ends_with_the_end_token_and_never_after_the_bound(
    make_job: MakeJob, tmp_path: Path, predicted: Callable[[FineTuner], list[str]]
) -> None:
    answer = [{"text": "so it is"}]
    rows = [{"context": f"{n} " * n, "question": "Why?", "answers": answer} for n in range(1, 9)]
    data = str(folder(tmp_path / "qa", rows))
    asked = {"quality_examples": QUESTIONS, "epochs": 30, "learning_rate": 1e-2, "batch_size": 4}
    job = make_job(task="qa", data=data, **asked)
    tuner = training.load(job)
    bound = tuner.job.task.max_new_tokens
    assert max(len(tuner.tokenizer(text)["input_ids"]) for text in predicted(tuner)) > bound // 2
    tuner.fit()
    after = predicted(tuner)
    assert after == answers(tuner, prompts(tuner))
    assert after == ["so it is"] * QUESTIONS


def test_a_pretrained_model_generates_the_same_and_never_beyond_its_context(
    make_job: MakeJob, shared: Path, predicted: Callable[[FineTuner], list[str]]
) -> None:
    model = str(shared / "models" / "stories260K")
    job = make_job(task="qa", data=str(shared / "qa"), model=model, quality_examples=QUESTIONS)
    tuner = training.load(job)
    given: list[list[int]] = []
    generate = tuner.loss.base.generate

    def listened(input_ids: torch.Tensor, **asked: Any) -> Any:
        for row, real in zip(input_ids, asked["attention_mask"].bool(), strict=True):
            given.append(row[real].tolist())
        return generate(input_ids=input_ids, **asked)

    tuner.loss.base.generate = listened
    found = predicted(tuner)
    assert max(map(len, given)) <= 512 - job.task.max_new_tokens
    assert sorted(found) == sorted(answers(tuner, given))


def test_a_base_models_own_wishes_for_generating_change_nothing_and_warn_of_nothing(
    make_job: MakeJob,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    predicted: Callable[[FineTuner], list[str]],
) -> None:
    place = tmp_path / "base"
    shutil.copytree(tiny.folder(), place)
    wishes = {"do_sample": True, "temperature": 0.5, "top_k": 3, "repetition_penalty": 5.0,
              "max_length": 20, "min_new_tokens": 30, "num_beams": 2}  # fmt: skip
    (place / "generation_config.json").write_text(json.dumps(wishes))
    plain = training.load(make_job(task="qa", quality_examples=QUESTIONS))
    tuner = training.load(make_job(task="qa", quality_examples=QUESTIONS, model=str(place)))
    transformers.logging.set_verbosity_warning()  # type: ignore[no-untyped-call]
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        assert predicted(tuner) == predicted(plain)
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert caplog.records == []
    assert tuner.loss.base.generation_config.temperature == 0.5


@pytest.mark.parametrize("task", ["qa", "sentiment"])
def test_measuring_leaves_the_training_as_it_was(make_job: MakeJob, task: str) -> None:
    tuner = training.load(make_job(task=task, quality_examples=4, lora_dropout=0.1))
    tuner.model.train()
    chance = torch.get_rng_state()
    weights = {name: weight.clone() for name, weight in tuner.model.named_parameters()}
    own = tuner.loss.base.config._attn_implementation
    first, again = quality.measure(tuner), quality.measure(tuner)
    assert first == again
    assert first["quality.examples"] == 4
    assert tuner.model.training
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(weights[name], now) for name, now in tuner.model.named_parameters())
    assert tuner.loss.base.config._attn_implementation == own


def test_fewer_are_generated_at_once_where_the_memory_is_small(
    make_job: MakeJob, predicted: Callable[[FineTuner], list[str]]
) -> None:
    tuner = training.load(make_job(task="qa", quality_examples=QUESTIONS))
    whole = predicted(tuner)
    generate, sizes, most = tuner.loss.base.generate, [], 2

    def limited(input_ids: torch.Tensor, **asked: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise torch.OutOfMemoryError("out of memory")
        return generate(input_ids=input_ids, **asked)

    tuner.loss.base.generate = limited
    assert predicted(tuner) == whole
    assert sizes[0] == QUESTIONS
    assert sum(size for size in sizes if size <= most) == QUESTIONS
    most = 0
    with pytest.raises(OutOfMemory):
        predicted(tuner)


def test_a_request_to_stop_is_answered_between_batches(
    make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop, "_asked", [15])
    for task in TASKS:
        tuner = training.load(make_job(task=task))
        with pytest.raises(Stopped):
            quality.measure(tuner)


def test_one_of_several_processes_measures(make_job: MakeJob) -> None:
    second = replace(make_job(), rank=Rank(number=1, world=2))
    tuner = training.load(make_job())
    tuner.job = second
    assert quality.measure(tuner) == {}


def test_where_none_are_asked_for_nothing_is_measured_and_no_library_is_imported() -> None:
    code = (
        "import sys\n"
        "from types import SimpleNamespace as N\n"
        "from green_tune import experiment, quality\n"
        "assert quality.measure(N(job=N(config=N(quality_examples=0)))) == {}\n"
        "assert not {'green_tune.scores', 'torchmetrics', 'nltk'} & set(sys.modules)\n"
    )
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
