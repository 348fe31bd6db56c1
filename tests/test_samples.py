"""The built-in data set keeps the promises that training and scoring rely on."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from green_tune import samples

FIELDS = {
    "qa": ("id", "title", "context", "question", "answers"),
    "summarization": ("id", "title", "document", "summary"),
    "sentiment": ("id", "text", "label"),
}
# What a row of each task must not share with any other row.
IDENTITY = {
    "qa": ("context", "question"),
    "summarization": ("document",),
    "sentiment": ("text",),
}
WORDS = {
    ("qa", "context"): (50, 120),
    ("qa", "question"): (4, 15),
    ("summarization", "document"): (60, 130),
    ("summarization", "summary"): (10, 20),
    ("sentiment", "text"): (8, 30),
}
SPREAD = 1.4
EACH_TASK = pytest.mark.parametrize("task", FIELDS)
EACH_SPLIT = pytest.mark.parametrize("split", samples.SIZES)
EACH_TEXT = pytest.mark.parametrize(("task", "field"), WORDS)


def everything(task: str) -> list[samples.Row]:
    """Return the rows of all splits, one after the other."""
    return [row for split in samples.SIZES for row in samples.rows(task, split)]


def digest() -> str:
    """Return one hash over every row, in order; a second process prints the same."""
    content = json.dumps([everything(task) for task in FIELDS])
    return hashlib.sha256(content.encode()).hexdigest()


def lengths(task: str, field: str) -> list[int]:
    """Count the words of one field in every row of a task."""
    return [len(row[field].split()) for row in everything(task)]


def test_the_sizes_are_the_promised_ones() -> None:
    """The documentation quotes these numbers."""
    assert samples.SIZES == {"train": 320, "validation": 80, "test": 80}


@EACH_SPLIT
@EACH_TASK
def test_a_split_has_its_size_and_its_fields(task: str, split: str) -> None:
    """Every row has exactly the fields of its task, and no empty one."""
    found = samples.rows(task, split)
    assert len(found) == samples.SIZES[split]
    assert {tuple(row) for row in found} == {FIELDS[task]}
    assert all(all(row.values()) for row in found)


@pytest.mark.parametrize(("task", "split"), [("poetry", "train"), ("qa", "dev")])
def test_an_unknown_name_is_refused(task: str, split: str) -> None:
    """Both names are looked up, neither has a default."""
    with pytest.raises(KeyError):
        samples.rows(task, split)


@EACH_TASK
def test_no_row_occurs_twice_in_or_across_splits(task: str) -> None:
    """A repeated text would leak from training into the test."""
    texts = Counter(tuple(row[field] for field in IDENTITY[task]) for row in everything(task))
    assert texts.most_common(1)[0][1] == 1
    assert len({row["id"] for row in everything(task)}) == len(texts)


def test_a_passage_has_four_questions_in_one_split() -> None:
    """Whole passages belong to one split."""
    homes = Counter(
        (row["context"], split) for split in samples.SIZES for row in samples.rows("qa", split)
    )
    assert set(homes.values()) == {4}
    assert len({context for context, _ in homes}) == len(homes)
    assert len({row["title"] for row in everything("qa")}) == len(homes)


def test_a_passage_is_asked_about_four_different_things() -> None:
    """No two questions of a passage point at the same words."""
    spans = Counter((row["context"], row["answers"][0]["answer_start"]) for row in everything("qa"))
    assert set(spans.values()) == {1}


def test_every_answer_is_found_where_it_is_said_to_start() -> None:
    """Spans count characters of the context, and end where a word ends."""
    for row in everything("qa"):
        ((text, start),) = (answer.values() for answer in row["answers"])
        end = start + len(text)
        assert row["context"][start:end] == text
        assert not any(map(str.isalnum, row["context"][start - 1] + row["context"][end]))


def test_every_question_names_the_subject_of_its_passage() -> None:
    """A question can be understood without the order of the rows."""
    assert all(row["title"] in row["question"] for row in everything("qa"))
    assert all(row["title"] in row["context"] for row in everything("qa"))


@EACH_SPLIT
def test_the_labels_are_balanced(split: str) -> None:
    """Always answering with one label scores exactly one half."""
    labels = Counter(row["label"] for row in samples.rows("sentiment", split))
    half = samples.SIZES[split] // 2
    assert labels == {"negative": half, "positive": half}


@EACH_TASK
def test_rows_are_shuffled(task: str) -> None:
    """Neighbours in a file do not come from the same passage, and labels do not alternate."""
    numbers = [row["id"].split("-")[1] for row in samples.rows(task, "train")]
    assert numbers != sorted(numbers)


@EACH_TEXT
def test_lengths_stay_in_bounds_and_vary(task: str, field: str) -> None:
    """Texts fit a short context, and are not all of one length."""
    least, most = WORDS[task, field]
    found = lengths(task, field)
    assert least <= min(found)
    assert max(found) <= most
    assert max(found) >= min(found) * SPREAD


@EACH_TEXT
def test_texts_are_finished_sentences(task: str, field: str) -> None:
    """No template mark is left over, no article disagrees, no sentence is cut."""
    for row in everything(task):
        assert re.fullmatch(r'["A-Z][^][{}|]*[.?]', row[field])
        assert not re.search(r"\b(a [aeio]|an [^aeiouh])|  ", row[field], re.IGNORECASE)


def test_a_summary_is_no_copy_of_a_sentence() -> None:
    """The finding is said in other words."""
    assert not any(
        row["summary"].rstrip(".") in row["document"] for row in everything("summarization")
    )


@EACH_TASK
def test_rows_are_fresh_and_equal_on_each_call(task: str) -> None:
    """A caller who changes a row does not change the data set."""
    before = samples.rows(task, "test")
    expected = json.dumps(before)
    before[0].clear()
    assert json.dumps(samples.rows(task, "test")) == expected


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_writes_the_same_bytes(hash_seed: str) -> None:
    """Neither hash order nor the global random state reaches the rows."""
    paths = (Path(samples.__file__).parents[1], Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
    }
    code = "import random, test_samples; random.seed(7); print(test_samples.digest())"
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.strip() == digest()
