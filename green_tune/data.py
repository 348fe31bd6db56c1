"""The examples of a run: read from the built-in sample, a folder of JSON lines, or the hub.

Every row is checked before anything heavy starts, and a fault names its file and line. What a
row means is `tasks`' affair, and how long it is in tokens `training`'s.
"""

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from green_tune import samples
from green_tune.errors import DataError
from green_tune.tasks import Example, Task

SPLITS = ("train", "validation")  # `test` is left alone until something is evaluated on it
TYPICAL = 1000  # training examples that show which label is frequent, and how long a summary is
LABELS_MAX = 50  # more are texts in the wrong column, and each costs a forward pass to weigh

Rows = tuple[str, Iterable[tuple[int, Any]]]  # where they come from; each with its line's number


@dataclass(frozen=True, kw_only=True)
class Data:
    """The two splits that a training needs, and what identifies them.

    `digest` is a hash of every prompt and completion in order: equal digests, equal data.
    `labels` are those of the whole training split, sorted; none where the task has no labels.
    """

    source: str
    train: Sequence[Example]
    validation: Sequence[Example]
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """A short name: sample, the folder's, or the hub data set's."""
        return Path(self.source).expanduser().resolve().name

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        text = hashlib.sha256()
        for example in (*self.train, None, *self.validation):
            text.update(repr(example and (example.prompt, example.completion)).encode())
        return text.hexdigest()[:16]

    @cached_property
    def shared(self) -> float:
        """The share, 0 to 1, of the training prompts' characters that repeat a head and body.

        About 0.7 where each passage is asked three or four questions, and 0 where none recurs.
        """
        everything = sum(len(one.prompt) for one in self.train)
        passages = {one.head + one.body for one in self.train}
        unique = sum(map(len, passages)) + sum(len(one.tail) for one in self.train)
        return 1 - unique / everything if everything else 0.0


def load(task: Task, where: str, *, max_train: int = 0, max_validation: int = 0) -> Data:
    """The first `max_train` and `max_validation` examples (0: all) of a task's data.

    Raises:
        DataError: the data is missing, empty, malformed, or not for this task.
    """
    if where == "sample":
        read = {split: _sample(task, split) for split in SPLITS}
    elif where == "hub":
        read = _from_hub(task, dict(zip(SPLITS, (max_train, max_validation), strict=True)))
    else:
        read = _from_folder(where)
    train = _examples(task, *read["train"])
    labels = _labels(train, read["train"][0]) if task.quality == "labels" else ()
    validation = _examples(task, *read["validation"], labels)
    return Data(
        source=task.hub.id if where == "hub" else where,
        train=train[: max_train or None],
        validation=validation[: max_validation or None],
        labels=labels,
    )


@dataclass(frozen=True, kw_only=True)
class Split:
    """Rows of one split as they were read, and the examples that they are."""

    source: str
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Example]


def load_split(
    task: Task, where: str, split: str, *, most: int = 0, labels: Sequence[str] = ()
) -> Split:
    """The first `most` examples (0: all) of any split of a task's data, or of a file of JSON lines.

    Raises:
        DataError: it is missing, empty, malformed, or not for this task.
    """
    if where.endswith(".jsonl"):
        read = (where, read_lines(Path(where)))
    elif where == "sample":
        if split not in samples.SIZES:
            raise DataError(f"split={split}: sample has {', '.join(samples.SIZES)}")
        read = _sample(task, split)
    elif where == "hub":
        if split not in task.hub.splits:
            raise DataError(f"split={split}: {task.hub.id} has {', '.join(task.hub.splits)}")
        read = _from_hub(task, {split: most})[split]
    else:
        read = _from_folder(where, (split,))[split]
    origin, numbered = read[0], islice(read[1], most or None)
    kept: list[Mapping[str, Any]] = []
    examples = _examples(task, origin, _kept(numbered, kept), labels)
    return Split(source=origin, rows=kept, examples=examples)


def to_evaluate(
    task: Task, where: str, split: str, *, most: int, labels: Sequence[str]
) -> tuple[Split, Sequence[Example]]:
    """What is predicted, and the first `TYPICAL` training examples; none of those for a file.

    Raises:
        DataError: the data is missing, malformed, or not for this task.
    """
    found = load_split(task, where, split, most=most, labels=labels)
    if where.endswith(".jsonl"):
        return found, ()
    return found, load_split(task, where, "train", most=TYPICAL).examples


def _kept(
    rows: Iterable[tuple[int, Any]], kept: list[Mapping[str, Any]]
) -> Iterator[tuple[int, Any]]:
    for number, row in rows:
        kept.append(row)
        yield number, row


def _sample(task: Task, split: str) -> Rows:
    return f"sample {split}", enumerate(samples.rows(task.name, split), start=1)


def _from_hub(task: Task, limits: dict[str, int]) -> dict[str, Rows]:
    from green_tune import hub  # only those who ask for the hub pay for its libraries

    if task.quality == "labels" and "train" in limits:
        limits = limits | {"train": 0}  # a label may first occur after the limit
    rows = {split: hub.rows(task.hub, split, limit) for split, limit in limits.items()}
    return {split: (f"{task.hub.id} {split}", enumerate(rows[split], start=1)) for split in limits}


def _from_folder(where: str, splits: Sequence[str] = SPLITS) -> dict[str, Rows]:
    folder = Path(where)
    try:
        folder = folder.expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError):  # too long a name, or the home of a user who does not exist
        there = False
    if not there:
        raise DataError(
            f"data={where} is not a folder{_seen_from(folder)}; known besides folders: sample, hub"
        )
    files = {split: folder / f"{split}.jsonl" for split in splits}
    for path in files.values():
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) or "no .jsonl file"
            raise DataError(f"data={folder} has no {path.name}; found: {found}")
    return {split: (str(path), read_lines(path)) for split, path in files.items()}


def _seen_from(folder: Path) -> str:
    return (
        "" if folder.is_absolute() or str(folder).startswith("~") else f" (looked in {Path.cwd()})"
    )


def read_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Numbered rows of a file of JSON lines; blank lines are passed over but counted."""
    try:
        content = path.expanduser().read_bytes().removeprefix(BOM_UTF8)  # as Windows writes it
        lines = content.split(b"\n")  # a text may hold what else ends lines in Python
    except (OSError, RuntimeError) as error:  # the latter of ~somebody who is not here
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {why}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).split(": line ")[0]  # its own line number is always 1
            raise DataError(f"{path}:{number}: not a JSON line ({reason})") from None


def _examples(
    task: Task, origin: str, rows: Iterable[tuple[int, Any]], labels: Sequence[str] = ()
) -> list[Example]:
    examples = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{origin}:{number}: not a JSON object")
        try:
            examples.append(task.example(row))
            _check_label(examples[-1].completion, labels)
        except DataError as error:
            raise DataError(f"{origin}:{number}: {error}") from None
    if not examples:
        raise DataError(f"{origin} holds no example")
    return examples


def _labels(examples: Sequence[Example], origin: str) -> tuple[str, ...]:
    labels = tuple(sorted({one.completion for one in examples}))
    if len(labels) > LABELS_MAX:
        raise DataError(f"{origin} holds {len(labels)} different labels: not a classification")
    return labels


def _check_label(label: str, known: Sequence[str]) -> None:
    if known and label not in known:
        names = " ".join(", ".join(known).split())  # one line, whatever a label holds
        raise DataError(f"label {label!r} is not among those of the training data: {names}")
