"""Reading a data set: every fault is found before a run starts, by file and line."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from green_tune import hub
from green_tune.data import SPLITS, Data, load
from green_tune.errors import DataError
from green_tune.tasks import TASKS, Example, HubData

SENTIMENT = TASKS["sentiment"]
GOOD = b'{"text": "a fine film", "label": "positive"}\n'


def folder(place: Path, **splits: bytes) -> Path:
    for split, content in {"train": GOOD, "validation": GOOD, **splits}.items():
        (place / f"{split}.jsonl").write_bytes(content)
    return place


def refusal(where: object) -> str:
    with pytest.raises(DataError) as caught:
        load(SENTIMENT, str(where))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_sample_is_there_for_every_task(task: Any) -> None:
    data = load(task, "sample")
    assert (data.name, len(data.train), len(data.validation)) == ("sample", 320, 80)


def test_the_first_examples_are_taken_and_0_takes_all() -> None:
    whole, part = load(SENTIMENT, "sample"), load(SENTIMENT, "sample", max_train=3)
    assert part.train == whole.train[:3]
    assert part.validation == whole.validation
    few = load(SENTIMENT, "sample", max_validation=1_000_000, max_train=1)
    assert (len(few.train), few.validation) == (1, whole.validation)


def test_each_split_of_a_folder_is_read_in_order(tmp_path: Path) -> None:
    train = lines({"text": "bad", "label": 0, "id": "x"}, {"text": "good", "label": "positive"})
    data = load(SENTIMENT, str(folder(tmp_path, train=train)))
    assert [one.body for one in data.train] == ["bad", "good"]
    assert [one.completion for one in data.train] == ["negative", "positive"]
    assert [one.body for one in data.validation] == ["a fine film"]


def test_a_folder_gives_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "reviews"
    place.mkdir()
    folder(place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(place)
    for where in (str(place), f"{place}/", "~/reviews", "../reviews", "."):
        assert load(SENTIMENT, where).name == "reviews"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_no_character_inside_a_text_breaks_its_line(tmp_path: Path, mark: str) -> None:
    row = {"text": f"one{mark}two", "label": "positive"}
    train = json.dumps(row, ensure_ascii=False).encode() + b"\n" + GOOD
    data = load(SENTIMENT, str(folder(tmp_path, train=train)))
    assert [one.body for one in data.train] == [row["text"], "a fine film"]


def test_windows_line_ends_a_byte_order_mark_and_blank_lines_are_passed_over(
    tmp_path: Path,
) -> None:
    train = b"\xef\xbb\xbf" + b"\r\n\r\n \t\r\n".join([GOOD.strip()] * 2)
    data = load(SENTIMENT, str(folder(tmp_path, train=train)))
    assert [one.prompt for one in data.train] == ["Review: a fine film\nSentiment:\n"] * 2


@pytest.mark.parametrize("where", ["missing", "~nobody-here/reviews", "x" * 300, "Sample"])
def test_a_folder_that_is_not_there_is_named_with_what_would_do(tmp_path: Path, where: str) -> None:
    asked = where if where.startswith("~") else str(tmp_path / where)
    line = refusal(asked)
    assert line == f"data={asked} is not a folder; known besides folders: sample, hub"


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_that_is_not_there_is_named_with_what_is(tmp_path: Path, split: str) -> None:
    (folder(tmp_path) / f"{split}.jsonl").rename(tmp_path / "dev.jsonl")
    other = next(name for name in SPLITS if name != split)
    line = f"data={tmp_path} has no {split}.jsonl; found: dev.jsonl, {other}.jsonl"
    assert refusal(tmp_path) == line


def test_a_folder_of_other_files_is_said_to_hold_none(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    assert refusal(tmp_path).endswith("has no train.jsonl; found: no .jsonl file")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\r\n"])
def test_an_empty_file_is_refused(tmp_path: Path, split: str, content: bytes) -> None:
    folder(tmp_path, **{split: content})
    assert refusal(tmp_path) == f"{tmp_path / split}.jsonl holds no example"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b'{"text": "a", "label": ', "not a JSON line"),
        (b"a fine film,positive", "not a JSON line"),
        (b'{"text": "a"} {"text": "b"}', "not a JSON line"),
        (b'{"text": "caf\xe9", "label": 1}', "not a JSON line ('utf-8' codec"),
        (b'{"text": "a", "label": ' + b"1" * 5000 + b"}", "not a JSON line"),
        (b"[1, 2]", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'{"text": "a"}', "field 'label' is missing; sentiment needs text, label"),
        (b'{"text": 5, "label": "positive"}', "field 'text' is "),
        (b'{"text": "a", "label": 2}', "field 'label' is "),
        (b'{"text": "half a pair: \\ud83d", "label": 1}', "field 'text' is "),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_a_bad_line_is_named_by_file_and_number(
    tmp_path: Path, split: str, line: bytes, fault: str
) -> None:
    folder(tmp_path, **{split: GOOD + b"\n" + line + b"\n" + GOOD})
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / split}.jsonl:3: {fault}")
    assert "line 1" not in message  # the one number of a line is the file's


def labelled(*labels: Any) -> bytes:
    return lines(*({"text": f"text {n}", "label": label} for n, label in enumerate(labels)))


def test_labels_are_those_of_the_whole_training_split_sorted(tmp_path: Path) -> None:
    train = labelled("so-so", 1, "negative ", "positive", "bad")
    place = folder(tmp_path, train=train, validation=labelled("bad", 0))
    for limit in (0, 1):
        data = load(SENTIMENT, str(place), max_train=limit, max_validation=limit)
        assert data.labels == ("bad", "negative", "positive", "so-so")


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_only_a_classification_has_labels(task: Any) -> None:
    known = ("negative", "positive") if task.quality == "labels" else ()
    assert load(task, "sample", max_train=1).labels == known


@pytest.mark.parametrize("limit", [0, 1])
def test_a_label_that_was_never_taught_is_named_by_file_and_line(
    tmp_path: Path, limit: int
) -> None:
    validation = labelled(0) + b"\n" + labelled("neutral")
    folder(tmp_path, train=labelled(1, 0), validation=validation)
    with pytest.raises(DataError) as caught:
        load(SENTIMENT, str(tmp_path), max_train=limit, max_validation=limit)
    assert str(caught.value) == (
        f"{tmp_path}/validation.jsonl:3: label 'neutral' is not among those of the training data: "
        "negative, positive"
    )


def test_a_line_break_in_a_label_breaks_no_message(tmp_path: Path) -> None:
    folder(tmp_path, train=labelled("very\ngood", "bad"), validation=labelled("not\ngood"))
    assert refusal(tmp_path).endswith(
        r"label 'not\ngood' is not among those of the training data: bad, very good"
    )


def test_fifty_labels_are_a_classification_and_more_are_not(tmp_path: Path) -> None:
    folder(tmp_path, train=labelled(*map(str, range(50))), validation=labelled("7"))
    assert len(load(SENTIMENT, str(tmp_path)).labels) == 50
    folder(tmp_path, train=labelled(*map(str, range(731))), validation=labelled("7"))
    line = f"{tmp_path}/train.jsonl holds 731 different labels: not a classification"
    assert refusal(tmp_path) == line


def hub_with(monkeypatch: pytest.MonkeyPatch, **labels: list[int]) -> None:
    """A hub whose splits hold these labels."""

    def rows(_: HubData, split: str, limit: int) -> list[dict[str, Any]]:
        return [{"text": "a", "label": label} for label in labels[split][: limit or None]]

    monkeypatch.setattr(hub, "rows", rows)


def test_labels_on_the_hub_are_those_of_the_whole_training_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_with(monkeypatch, train=[0, 0, 1], validation=[1, 0, -1])
    data = load(SENTIMENT, "hub", max_train=2, max_validation=2)
    assert (len(data.train), len(data.validation)) == (2, 2)
    assert data.labels == ("negative", "positive")


def test_a_label_on_the_hub_that_was_never_taught_is_named_by_split_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub_with(monkeypatch, train=[0, 0], validation=[0, 1])
    with pytest.raises(DataError, match=r"^stanfordnlp/sst2 validation:2: label 'positive' is not"):
        load(SENTIMENT, "hub")


def asked(*prompts: tuple[str, str, str]) -> Data:
    train = [Example(head=h, body=b, tail=t, completion="unused") for h, b, t in prompts]
    return Data(source="", train=train, validation=train)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([], 0),
        ([("", "", "")], 0),
        ([("C: ", "abcde", "Q?")] * 1, 0),
        ([("C: ", "abcde", "Q?")] * 2, 8 / 20),  # a tail never counts as shared
        ([("C: ", "abcde", "Q?"), ("C: ", "abcde", "Why?")], 8 / 22),
        ([("C: ", "abcde", "Q?"), ("C: ", "abcdf", "Q?")], 0),
        ([("C: ", "ab", "Q"), ("C: ", "cd", "Q"), ("C: ", "ab", "R")], 5 / 18),
    ],
)
def test_what_repeats_an_earlier_passage_is_shared(
    prompts: list[tuple[str, str, str]], shared: float
) -> None:
    assert asked(*prompts).shared == pytest.approx(shared)


def test_real_questions_share_passages_and_nothing_else_does(shared: Path) -> None:
    parts = {task.name: load(task, str(shared / task.name)).shared for task in TASKS.values()}
    assert 0.6 < parts["qa"] < 0.8
    assert parts["summarization"] == pytest.approx(0, abs=0.01)
    assert parts["sentiment"] == pytest.approx(0, abs=0.01)


def test_digests_are_equal_where_prompts_and_completions_are() -> None:
    examples = [
        Example(head=head, body=body, tail="", completion=completion)
        for head, body, completion in product(["", "a"], repeat=3)
    ]
    splits = [split for size in range(3) for split in product(examples, repeat=size)]
    seen, digests = set(), set()
    for train, validation in product(splits, repeat=2):
        read = tuple(tuple((e.prompt, e.completion) for e in part) for part in (train, validation))
        digest = Data(source="", train=train, validation=validation).digest
        seen.add((read, digest))
        digests.add(digest)
    assert len(seen) == len(digests) == len({read for read, _ in seen}) == 43**2


def test_a_digest_knows_no_further_references() -> None:
    one = Example(head="", body="a", tail="", completion="b")
    digests = {
        Data(source="", train=[replace(one, references=more)], validation=[one], labels=more).digest
        for more in ((), ("b",), ("b", "c"))
    }
    assert len(digests) == 1
