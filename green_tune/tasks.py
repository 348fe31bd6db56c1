"""The table of tasks: what a row of data must hold, and the prompt and completion it becomes.

A prompt ends in a line break and a completion starts without a space, so that the two can be
tokenised apart: their boundary is exact with every tokenizer, and prompts share prefixes.
It knows no files and no tokenizers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from green_tune.errors import ConfigError, DataError

Row = Mapping[str, Any]
Quality = Literal["answers", "summaries", "labels"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt and its completion. The loss is taken on the completion only.

    The prompt is `head + body + tail`; where it is too long, the body alone is cut, so the
    question and the instruction survive. `references` are all accepted answers, the completion
    first.
    """

    head: str
    body: str
    tail: str
    completion: str
    references: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The whole prompt."""
        return self.head + self.body + self.tail


@dataclass(frozen=True, kw_only=True)
class HubData:
    """Where the hub keeps a task's data set, and how its columns are called there."""

    id: str
    config: str | None
    splits: Mapping[str, str]
    columns: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One row: a name, the fields that a row of data needs, and how it is put to a model.

    `template` holds one field between its first pair of braces that may be cut: the long one.
    `accepted` gives every right completion of a row; the first alone is taught. `quality` says
    what completions are and so how they are scored. At most `max_new_tokens` are generated for
    that: 0 where the model only weighs the known labels.
    """

    name: str
    fields: tuple[str, ...]
    template: tuple[str, str, str]  # head, the long field's name, tail
    accepted: Callable[[Row], Sequence[str]]
    quality: Quality
    max_new_tokens: int
    hub: HubData

    def example(self, row: Row) -> Example:
        """A row of data as prompt and completion.

        Raises:
            DataError: a field is missing, empty or of the wrong type.
        """
        for name in self.fields:
            if name not in row:
                raise DataError(f"field {name!r} is missing; {self.name} needs {self._needs()}")
        head, body, tail = self.template
        texts = {name: _text(name, row[name]) for name in self.fields[:-1]}
        accepted = [_text(self.fields[-1], text).strip() for text in self.accepted(row)]
        return Example(
            head=head.format(**texts),
            body=texts[body].strip(),
            tail=tail.format(**texts),
            completion=accepted[0],
            references=tuple(dict.fromkeys(accepted)),
        )

    def _needs(self) -> str:
        return ", ".join(self.fields)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {name!r} is not a text, or empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"field {name!r} is no text: half a surrogate pair in it") from None
    return value


def _answers(row: Row) -> list[str]:
    match row["answers"]:
        case {"text": [*texts]}:  # as on the hub
            pass
        case [*answers]:
            texts = [one.get("text") if isinstance(one, Mapping) else None for one in answers]
        case _:
            texts = []
    if texts and all(isinstance(text, str) for text in texts):
        return texts
    raise DataError('field \'answers\' is not a list of answers, such as [{"text": "Paris"}]')


def _label(row: Row) -> str:
    """A label as a word; hub data sets number theirs, and give -1 where it is kept secret."""
    label = row["label"]
    if type(label) is int and label in (0, 1):
        return ("negative", "positive")[label]
    if isinstance(label, str) and label.strip():
        return label
    raise DataError(f"field 'label' is {label!r}: neither a word, nor 0 or 1 (1 is positive)")


TASKS = {
    task.name: task
    for task in (
        Task(
            name="qa",
            fields=("context", "question", "answers"),
            template=("Context: ", "context", "\nQuestion: {question}\nAnswer:\n"),
            accepted=_answers,
            quality="answers",
            max_new_tokens=32,
            hub=HubData(
                id="rajpurkar/squad",
                config=None,
                splits={"train": "train", "validation": "validation"},
                columns={},
            ),
        ),
        Task(
            name="summarization",
            fields=("document", "summary"),
            template=("Document: ", "document", "\nSummary:\n"),
            accepted=lambda row: [row["summary"]],
            quality="summaries",
            max_new_tokens=96,
            hub=HubData(
                id="abisee/cnn_dailymail",
                config="3.0.0",
                splits={"train": "train", "validation": "validation", "test": "test"},
                columns={"article": "document", "highlights": "summary"},
            ),
        ),
        Task(
            name="sentiment",
            fields=("text", "label"),
            template=("Review: ", "text", "\nSentiment:\n"),
            accepted=lambda row: [_label(row)],
            quality="labels",
            max_new_tokens=0,
            hub=HubData(
                id="stanfordnlp/sst2",
                config=None,
                splits={"train": "train", "validation": "validation"},
                columns={"sentence": "text"},
            ),
        ),
    )
}


def resolve(name: str) -> Task:
    """The task called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in TASKS:
        raise ConfigError(f"task={name} is unknown; known: {', '.join(TASKS)}")
    return TASKS[name]
