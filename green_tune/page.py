"""A document's forms: Markdown, one page of HTML that needs no network, and all its files.

The door to markdown-it and Jinja2. It knows how a document looks, not what stands in it. Titles,
texts, notes, claims and words are Markdown, in which HTML is text; cells and headings of tables are
text as it is. Nothing that a store holds is ever run: see `page.html` for what the page allows.
"""

import csv
import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import count, islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup

from green_tune import canvas
from green_tune.document import (
    MARKS,
    Column,
    Document,
    Finding,
    Picture,
    Section,
    Table,
    plain,
    web_address,
)

TEMPLATE = Path(__file__).with_name("page.html")
FIGURES, TABLES = "figures", "tables"
INLINE_BYTES = 200_000  # a larger CSV lies beside the page only
LINKED = 10  # runs of one finding
LARGE = 1e15  # from here on a float is no exact count
RUN_ID = re.compile(r"[0-9a-f]{32}")
FORMULA = ("=", "+", "-", "@")  # what a spreadsheet takes for one
Part = str | Table | Picture | Finding
Links = Mapping[str, str]


def to_markdown(document: Document, figures: str = FIGURES, tables: str = TABLES) -> str:
    """As GitHub's Markdown, with figures and tables in the folders of these names."""
    blocks = [f"# {_line(document.title)}", *document.summary]
    for section in document.sections:
        blocks.append(f"## {_line(section.title)}")
        for part in section.parts:
            blocks += _blocks(part, document.links, figures, tables)
    return "\n\n".join(block.strip() for block in blocks if block.strip()) + "\n"


def to_html(document: Document) -> str:
    """As one page; figures, styles, and tables of at most `INLINE_BYTES` as CSV are inside of it.

    Raises ValueError where two figures or two tables have one name.
    """
    _check_names(document)
    sections = [
        {
            "id": anchor,
            "title": section.title,
            "parts": (_view(part, document.links) for part in section.parts),  # one at a time
        }
        for section, anchor in zip(document.sections, _anchors(document.sections), strict=True)
    ]
    template = _environment().from_string(TEMPLATE.read_text("utf-8"))
    return template.render(title=document.title, summary=document.summary, sections=sections)


def files(document: Document) -> Iterator[tuple[str, bytes]]:
    """Relative paths and what they hold, one after the other, so that one at a time is in memory.

    Raises ValueError where two figures or two tables have one name.
    """
    _check_names(document)
    for part in _parts(document, Picture):
        path = f"{FIGURES}/{_slug(part.name)}"
        yield f"{path}.png", canvas.to_png(part.figure)
        yield f"{path}.svg", canvas.to_svg(part.figure, _slug(part.name)).encode()
    for part in _parts(document, Table):
        path = f"{TABLES}/{_slug(part.name)}"
        yield f"{path}.csv", to_csv(part).encode()
        yield f"{path}.json", to_json(part).encode()
    yield "report.md", to_markdown(document).encode()
    yield "report.html", to_html(document).encode()


def to_csv(table: Table) -> str:
    """All rows in base units, under the columns' names.

    A text that a spreadsheet would compute gets an apostrophe before it; JSON leaves it as it is.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([_harmless(column.name) for column in table.columns])
    writer.writerows([_harmless(row.get(c.name)) for c in table.columns] for row in table.rows)
    return out.getvalue()


def to_json(table: Table) -> str:
    """All rows in base units, an object each; what is no finite number is null."""
    rows = [{c.name: _finite(row.get(c.name)) for c in table.columns} for row in table.rows]
    return json.dumps(rows, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def shown(value: object, column: Column) -> str:
    """A value as its column says; counts are exact, and None is empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, Real):
        return str(value)
    number = float(value)
    if column.factor == 1 and number.is_integer() and abs(number) < LARGE:
        return f"{number:.0f}"
    return _significant(number * column.factor, column.digits)


def _significant(number: float, digits: int) -> str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else f"{number:+}".replace("inf", "∞").removeprefix("+")
    text = f"{number:#.{digits}g}"
    if "e+" in text and abs(number) < LARGE:
        text = f"{float(text):.0f}"
    return text.removesuffix(".")


def _harmless(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str) or not value.lstrip().startswith(FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


def _blocks(part: Part, links: Links, figures: str, tables: str) -> list[str]:
    """A part as blocks of Markdown."""
    if isinstance(part, Table):
        return _table_blocks(part, links, tables)
    if isinstance(part, Picture):
        image = f"![{plain(_words(part.words))}]({figures}/{_slug(part.name)}.png)"
        return [f"### {_line(part.title)}", image, part.note]
    if isinstance(part, Finding):
        return _finding_blocks(part, links)
    return [part]


def _table_blocks(table: Table, links: Links, tables: str) -> list[str]:
    known, columns = {**links, **table.links}, table.headed
    lines = [
        [plain(column.heading) for column in columns],
        ["---:" if _is_numeric(table, column) else "---" for column in columns],
        *(
            [_linked(shown(row.get(column.name), column), known) for column in columns]
            for row in table.rows[: table.shown]
        ),
    ]
    path = f"{tables}/{_slug(table.name)}.csv"
    more = len(table.rows) - table.shown
    return [
        f"### {_line(table.title)}",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        f"{more} more rows in [{path}]({path})" if more > 0 else "",
        table.note,
    ]


def _finding_blocks(finding: Finding, links: Links) -> list[str]:
    runs = ", ".join(_linked(run, links) for run in finding.runs[:LINKED])
    more = len(finding.runs) - LINKED
    return [
        f"### {_line(finding.claim)}",
        f"**{finding.answer.capitalize()}.** {_line(finding.effect)}",
        f"To settle it: {finding.settle}" if finding.settle else "",
        (f"Runs: {runs}" + (f" and {more} more" if more > 0 else "")) if runs else "",
    ]


def _linked(text: str, links: Links) -> str:
    address = web_address(links.get(text, ""))
    label = plain(_label(text))
    return f"[{label}]({address})" if address else label


def _label(text: str) -> str:
    """Of an id so much as tells it from others."""
    return text[:8] if RUN_ID.fullmatch(text) else text


def _is_numeric(table: Table, column: Column) -> bool:
    """Its values are figures; a bool is none."""
    values = (row.get(column.name) for row in table.rows)
    kinds = {isinstance(x, Real) and not isinstance(x, bool) for x in values if x is not None}
    return kinds == {True}


def _view(part: Part, links: Links) -> dict[str, Any]:
    """A part as the template takes it."""
    if isinstance(part, Table):
        return {"kind": "table", "slug": _slug(part.name), "table": part, **_cells(part, links)}
    if isinstance(part, Picture):
        name = _slug(part.name)
        svg = canvas.to_svg(part.figure, name, _words(part.words), themed=True)
        return {"kind": "picture", "slug": name, "picture": part, "svg": Markup(svg)}
    if isinstance(part, Finding):
        runs = [_cell(run, run, links) for run in islice(part.runs, LINKED)]
        look = {"slug": _slug(part.name), "class": part.answer.replace(" ", "-")}
        more = max(0, len(part.runs) - LINKED)
        return {"kind": "finding", "finding": part, "runs": runs, "more": more,
                "mark": MARKS[part.answer], **look}  # fmt: skip
    return {"kind": "text", "text": part}


def _cells(table: Table, links: Links) -> dict[str, Any]:
    known = {**links, **table.links}
    columns = table.headed
    numeric = [_is_numeric(table, column) for column in columns]
    text = to_csv(table)
    return {
        "numeric": numeric,
        "rows": [
            [_cell(row.get(c.name), shown(row.get(c.name), c), known) for c in columns]
            for row in table.rows[: table.shown]
        ],
        "more": max(0, len(table.rows) - table.shown),
        "csv": f"data:text/csv;charset=utf-8,{quote(text, safe=',:;/@')}"
        if len(text.encode()) < INLINE_BYTES
        else "",
    }


def _cell(value: object, text: str, links: Links) -> dict[str, Any]:
    """What is shown, where it leads, and the number that it is sorted by."""
    figure = isinstance(value, Real) and not isinstance(value, bool)
    return {
        "text": _label(text),
        "link": web_address(links.get(text, "")),
        "number": float(value) if figure else None,  # type: ignore[arg-type]
    }


def _parts(document: Document, kind: type[Any]) -> Iterator[Any]:
    return (p for section in document.sections for p in section.parts if isinstance(p, kind))


def _check_names(document: Document) -> None:
    for kind in (Picture, Table):
        names: set[str] = set()
        for part in _parts(document, kind):
            if _slug(part.name) in names:
                raise ValueError(f"two of {kind.__name__} are named {part.name!r}")
            names.add(_slug(part.name))


def _slug(text: str) -> str:
    """A name for files and anchors on any system."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-").lower() or "x"


def _anchors(sections: Sequence[Section]) -> list[str]:
    taken: list[str] = []
    for section in sections:
        slug = _slug(_words(section.title))
        candidates = (f"{slug}-{n}" if n > 1 else slug for n in count(1))
        taken.append(next(each for each in candidates if each not in taken))
    return taken


def _line(text: str) -> str:
    return " ".join(text.split())


def _words(markdown: str) -> str:
    """What is read of a line of Markdown."""
    tokens = PARSER.parseInline(_line(markdown))[0].children or []
    return "".join(token.content for token in tokens)


def _parser() -> MarkdownIt:
    """HTML stays text, and no picture is loaded from anywhere; links leave the page alone."""

    def link_open(self: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
        if not str(tokens[index].attrGet("href")).startswith("#"):
            tokens[index].attrSet("target", "_blank")
            tokens[index].attrSet("rel", "noopener noreferrer")
        return str(self.renderToken(tokens, index, options, env))

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.add_render_rule("link_open", link_open)
    return parser


PARSER = _parser()


def _environment() -> Environment:
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["block"] = lambda text: Markup(PARSER.render(text))
    environment.filters["line"] = lambda text: Markup(PARSER.renderInline(_line(text)))
    environment.filters["words"] = _words
    environment.filters["digest"] = lambda text: b64encode(sha256(text.encode()).digest()).decode()
    return environment
