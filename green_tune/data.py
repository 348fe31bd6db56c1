"""The examples of a run: read from the built-in sample, a folder of JSON lines, or the hub.

Every row is checked before anything heavy starts, and a fault names its file and line. What a
row means is `tasks`' affair, and how long it is in tokens `training`'s.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from green_tune import samples
from green_tune.errors import DataError
from green_tune.tasks import Example, Task

SPLITS = ("train", "validation")  # `test` is left alone until something is evaluated on it


@dataclass(frozen=True, kw_only=True)
class Data:
    """The two splits that a training needs, and what identifies them.

    `digest` is a hash of every prompt and completion in order: equal digests, equal data.
    """

    source: str
    train: Sequence[Example]
    validation: Sequence[Example]

    @property
    def name(self) -> str:
        """A short name: sample, the folder's, or the hub data set's."""
        return Path(self.source).expanduser().resolve().name

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits."""
        text = hashlib.sha256()
        for example in (*self.train, None, *self.validation):
            text.update(repr(example and (example.prompt, example.completion)).encode())
        return text.hexdigest()[:16]


def load(task: Task, where: str, *, max_train: int = 0, max_validation: int = 0) -> Data:
    """The first `max_train` and `max_validation` examples (0: all) of a task's data.

    Raises:
        DataError: the data is missing, empty, malformed, or not for this task.
    """
    limits = dict(zip(SPLITS, (max_train, max_validation), strict=True))
    if where == "sample":
        read = {split: _sample(task, split) for split in SPLITS}
    elif where == "hub":
        read = _from_hub(task, limits)
    else:
        read = _from_folder(task, where)
    splits = {name: list(rows)[: limits[name] or None] for name, rows in read.items()}
    source = task.hub.id if where == "hub" else where
    return Data(source=source, train=splits["train"], validation=splits["validation"])


def _sample(task: Task, split: str) -> list[Example]:
    return [task.example(row) for row in samples.rows(task.name, split)]


def _from_hub(task: Task, limits: dict[str, int]) -> dict[str, list[Example]]:
    from green_tune import hub  # only those who ask for the hub pay for its libraries

    rows = {split: hub.rows(task.hub, split, limits[split]) for split in SPLITS}
    return {
        split: _examples(task, enumerate(rows[split], start=1), f"{task.hub.id} {split}")
        for split in SPLITS
    }


def _from_folder(task: Task, where: str) -> dict[str, list[Example]]:
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
    files = {split: folder / f"{split}.jsonl" for split in SPLITS}
    for path in files.values():
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in folder.glob("*.jsonl"))) or "no .jsonl file"
            raise DataError(f"data={folder} has no {path.name}; found: {found}")
    return {split: _examples(task, _read_lines(path), str(path)) for split, path in files.items()}


def _seen_from(folder: Path) -> str:
    return (
        "" if folder.is_absolute() or str(folder).startswith("~") else f" (looked in {Path.cwd()})"
    )


def _read_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Numbered rows of a file of JSON lines; blank lines are passed over but counted."""
    try:
        lines = path.read_bytes().split(b"\n")  # a text may hold what else ends lines in Python
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = str(error).split(": line ")[0]  # its own line number is always 1
            raise DataError(f"{path}:{number}: not a JSON line ({reason})") from None


def _examples(task: Task, rows: Iterable[tuple[int, Any]], origin: str) -> list[Example]:
    examples = []
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{origin}:{number}: not a JSON object")
        try:
            examples.append(task.example(row))
        except DataError as error:
            raise DataError(f"{origin}:{number}: {error}") from None
    if not examples:
        raise DataError(f"{origin} holds no example")
    return examples
