"""What a report is made of, before it has a form: sections of texts, tables, figures, findings.

Texts are Markdown. Whatever comes from a store, such as a run's name, goes through `plain` first.
How a document looks is `page`; what stands in it is `dossier`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

Answer = Literal["supported", "contradicted", "not enough evidence"]
MARKS: Mapping[Answer, str] = {"supported": "✓", "contradicted": "✗", "not enough evidence": "?"}
# Signs where Markdown would take them for its own: `val_loss`, `a < b`, `-0.5` stay readable.
SPECIAL = re.compile(
    r"""
    [\\`*\[\]|~$]                           # anywhere; [ and ] are what links and pictures need
    | (?<![^\W_])_ | _(?![^\W_])            # not inside of a word
    | <(?=[a-zA-Z/!?])                      # a tag or an address
    | &(?=\#?\w+;)                          # an entity
    | (?<=:)/(?=/) | (?<=www)\.             # what GitHub makes a link of
    | ^[>=] | ^\#(?=\#*(\s|$)) | ^[-+](?=[\s-]|$)  # at the start
    """,
    re.VERBOSE,
)
LISTED = re.compile(r"^(\d{1,9})([.)])(?=\s|$)")


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate, and between what it lies at `level`; `n` is how many runs it rests on."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: the name of its values, in base units, and how they are shown.

    A number is multiplied by `factor` and written with `digits` significant digits. A column
    without a heading is in the files alone.
    """

    name: str
    heading: str
    factor: float = 1.0
    digits: int = 3


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of values in base units, for CSV and JSON; shown as its columns say.

    A row's value under a column is text, a number, a bool, or None where there is none. `links`
    are addresses by the text of a cell, such as a run's id. `shown` limits what a page shows.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]
    note: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    shown: int = 50

    @property
    def headed(self) -> list[Column]:
        """The columns that a page shows."""
        return [column for column in self.columns if column.heading]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A matplotlib figure, with what it shows in words for those who cannot see it."""

    name: str
    title: str
    figure: Any
    words: str
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A claim's answer on a user's own runs: the effect with its interval, and what it rests on.

    `settle` says what would settle an open one, and what that would cost. `runs` are ids.
    """

    name: str
    claim: str
    answer: Answer
    effect: str
    runs: Sequence[str]
    settle: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with what stands under it, in order; texts are Markdown."""

    title: str
    parts: Sequence[str | Table | Picture | Finding]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A whole report. `links` are the addresses of runs by their ids."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]
    links: Mapping[str, str] = field(default_factory=dict)


def plain(text: str) -> str:
    """A text as it is, on one line, whatever Markdown would make of its signs."""
    words = SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))
    return LISTED.sub(r"\1\\\2", words)


def web_address(link: str) -> str:
    """A link as Markdown and HTML may have it; empty where it leads to no page.

    What a store names is never run.
    """
    try:
        web = urlsplit(link).scheme in ("http", "https")
    except ValueError:
        return ""
    return quote(link.strip(), safe="/:?#@!$&*+,;=%-._~") if web else ""
