"""Reading a data set: every fault is found before a run starts, by file and line."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from green_tune.data import SPLITS, Data, load
from green_tune.errors import DataError
from green_tune.tasks import TASKS, Example

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
