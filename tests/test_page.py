"""A document as Markdown, as a page and as files: all of it is there, and nothing of it runs."""

import csv
import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml

from green_tune import canvas, page
from green_tune.document import (
    MARKS,
    Answer,
    Column,
    Document,
    Finding,
    Picture,
    Section,
    Table,
    plain,
)

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
RUNS = [f"{number:032x}" for number in range(0xABCDEF0 << 100, (0xABCDEF0 << 100) + 12)]
LINKS = {run: f"http://127.0.0.1:5000/#/experiments/1/runs/{run}?a=b" for run in RUNS}
COLUMNS = [
    Column(name="run_id", heading="run"),
    Column(name="name", heading="name | of it"),
    Column(name="emissions_kg", heading="emissions (g)", factor=1000),
    Column(name="fits", heading="fits"),
]
ROWS = [
    {"run_id": run, "name": f"r{number}", "emissions_kg": 0.0123456 * number, "fits": number > 1}
    for number, run in enumerate(RUNS)
]
TABLE = Table(name="runs", title="All runs", columns=COLUMNS, rows=ROWS, note="A *note*.", shown=3)
SCALES = [math.nan, math.inf, -math.inf]
INK = ("ink", "soft", "link")


class Page(HTMLParser):
    """What a browser makes of a page: its elements with their attributes, and its texts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def picture(name: str = "front", words: str = "what it shows") -> Picture:
    figure, axes = canvas.plot(f"{name} <of> & all")
    axes.plot([1, 2], [3, 4], "o-")
    return Picture(name=name, title="The front", figure=figure, words=words, note="Its *note*.")


def finding(answer: Answer = "supported", runs: Sequence[str] = RUNS) -> Finding:
    return Finding(
        name="rates",
        claim="T4 < L4 < A100",
        answer=answer,
        effect="A *large* one.",
        runs=runs,
        settle="Two more runs.",
    )


def document(*parts: Any, title: str = "A report", section: str = "What it says") -> Document:
    sections = [Section(title=section, parts=parts)] if parts else []
    return Document(title=title, summary=["In **short**."], sections=sections, links=LINKS)


def column(factor: float = 1.0, digits: int = 3) -> Column:
    return Column(name="x", heading="x", factor=factor, digits=digits)


@pytest.mark.parametrize(
    ("value", "factor", "text"),
    [
        (None, 1, ""),
        (True, 1, "yes"),
        (False, 1, "no"),
        ("a_b", 1000, "a_b"),
        (12345, 1, "12345"),
        (12345.0, 1, "12345"),
        (12345.6, 1, "12300"),
        (0.12, 1, "0.120"),
        (0.0123456, 1000, "12.3"),
        (0.1234567, 1000, "123"),
        (0.00001234, 1, "1.23e-05"),
        (0.0, 1000, "0.00"),
        (-0.5, 1, "-0.500"),
        (math.nan, 1, "NaN"),
        (math.inf, 1, "∞"),
        (-math.inf, 1, "-∞"),
    ],
)
def test_values_are_shown_as_their_column_says(value: object, factor: float, text: str) -> None:
    assert page.shown(value, column(factor)) == text


SIGNS = st.text(alphabet="\\`*_{}[]<>()#+.!|~&-=:$ ab1/;w\t\n'\"", max_size=12)
ANY = st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@settings(deadline=None)
@given(SIGNS | ANY)
def test_a_plain_text_is_read_as_it_is_alone_and_in_a_cell(text: str) -> None:
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    as_is = escapeHtml(" ".join(text.split()))
    assert parser.render(plain(text)) == (f"<p>{as_is}</p>\n" if as_is else "")
    table = parser.render(f"before\n\n| a | b |\n| --- | --- |\n| {plain(text)} | next |")
    assert f"<td>{as_is}</td>\n<td>next</td>" in table


@pytest.mark.parametrize(
    "words", ["val_loss", "T4 < L4", "-0.5", "gemma-2b (qa), no. 3: 1e-05", "a & b", "x = 1.5!"]
)
def test_plain_words_are_left_alone(words: str) -> None:
    assert plain(words) == words


def test_markdown_has_all_that_a_document_has() -> None:
    text = page.to_markdown(document("A *text*.", TABLE, picture(), finding()), figures="pictures")
    assert text.startswith("# A report\n\nIn **short**.\n\n## What it says\n\nA *text*.\n\n### All")
    assert "| run | name \\| of it | emissions (g) | fits |\n| --- | --- | ---: | --- |" in text
    assert f"| [{RUNS[1][:8]}]({LINKS[RUNS[1]]}) | r1 | 12.3 | no |" in text
    assert "9 more rows in [tables/runs.csv](tables/runs.csv)\n\nA *note*." in text
    assert "![what it shows](pictures/front.png)\n\nIts *note*." in text
    assert "### T4 < L4 < A100\n\n**Supported.** A *large* one.\n\n" in text
    assert "To settle it: Two more runs.\n\nRuns:" in text
    assert text.count(f"]({LINKS[RUNS[9]]}) and 2 more") == 1
    assert RUNS[10] not in text


def test_the_page_has_all_that_a_document_has() -> None:
    html = page.to_html(document("A *text*.", TABLE, picture(), finding()))
    for part in ("<em>text</em>", "<strong>short</strong>", "Its <em>note</em>.", "T4 &lt; L4"):
        assert part in html
    read = Page(html)
    for part in ("9 more rows in tables/runs.csv.", "✓ supported", "and 2 more", "Two more runs."):
        assert part in read.text
    drawing = read.all("svg")[0]
    assert drawing["role"] == "img"
    assert drawing["aria-label"] == "what it shows"
    assert [each.get("data-n") for each in read.all("td")][6] == "0.0123456"


def test_a_page_of_nothing_is_a_page() -> None:
    assert "In <strong>short</strong>." in page.to_html(document())
    assert page.to_markdown(document()) == "# A report\n\nIn **short**.\n"
    assert [name for name, _ in page.files(document())] == ["report.md", "report.html"]


@pytest.mark.parametrize("answer", ["supported", "contradicted", "not enough evidence"])
def test_an_answer_is_said_in_words_and_with_a_mark_and_a_colour(answer: Answer) -> None:
    html = page.to_html(document(finding(answer)))
    assert f"{MARKS[answer]} {answer}" in Page(html).text
    assert f'class="finding {answer.replace(" ", "-")}"' in html
    assert f".{answer.replace(' ', '-')} {{ --mark:" in html


def test_nothing_on_the_page_comes_from_elsewhere() -> None:
    read = Page(page.to_html(document("![p](http://a.b/c.png)", TABLE, picture())))
    assert not read.all("link")
    assert not read.all("img")
    assert [each.get("src") for each in read.all("script")] == [None]
    policy = next(
        each["content"] for each in read.all("meta") if "http-equiv" in each and each["content"]
    )
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy


def test_only_the_script_of_the_page_may_run() -> None:
    html = page.to_html(document())
    script = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert len(script) == 1
    digest = b64encode(sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html


def test_what_a_store_names_is_text_wherever_it_stands() -> None:
    rows = [{**ROWS[0], "name": EVIL, "run_id": EVIL}]
    evil = replace(TABLE, name=EVIL, rows=rows, columns=[*COLUMNS, Column(name="x", heading=EVIL)])
    parts = (EVIL, plain(EVIL), evil, picture(EVIL, EVIL), replace(finding(), claim=EVIL, name=EVIL,
             effect=EVIL, settle=EVIL, runs=[EVIL]))  # fmt: skip
    html = page.to_html(document(*parts, title=EVIL, section=EVIL))
    read = Page(html)
    assert len(read.all("script")) == 1
    assert not read.all("img")
    assert not [name for _, each in read.elements for name in each if name.startswith("on")]
    assert read.text.count("<script>alert(1)</script>") > 8


@pytest.mark.parametrize(
    "link", ["javascript:alert(1)", " java\nscript:alert(1)", "data:text/html,x", "//[", "file:///"]
)
def test_links_that_lead_to_no_page_are_not_made(link: str) -> None:
    made = document(replace(TABLE, links={RUNS[0]: link}), finding(runs=RUNS[:1]))
    made = replace(made, links={RUNS[0]: link})
    hrefs = [str(each["href"]) for each in Page(page.to_html(made)).all("a")]
    assert [href for href in hrefs if not href.startswith(("#", "data:text/csv"))] == []
    assert re.findall(r"\]\((.*?)\)", page.to_markdown(made)) == ["tables/runs.csv"]


@pytest.mark.parametrize("link", ["javascript:alert(1)", "JAVASCRIPT&colon;a", "data:text/html,x"])
def test_a_text_cannot_make_links_that_run(link: str) -> None:
    made = Page(page.to_html(document(f"[a]({link}) <{link}>")))
    assert [each["href"] for each in made.all("a")] == ["#what-it-says"]
    assert f"[a]({link.replace('&colon;', ':')})" in made.text


def test_signs_in_an_address_end_neither_it_nor_an_attribute() -> None:
    link = "http://a.b/(c)|d\"'<e> f"
    made = replace(document(finding(runs=RUNS[:1])), links={RUNS[0]: link})
    assert "](http://a.b/%28c%29%7Cd%22%27%3Ce%3E%20f)" in page.to_markdown(made)
    hrefs = [each["href"] for each in Page(page.to_html(made)).all("a")]
    assert "http://a.b/%28c%29%7Cd%22%27%3Ce%3E%20f" in hrefs


def test_links_leave_the_page_open_and_do_not_know_it() -> None:
    read = Page(page.to_html(document("[a](https://a.b), [b](#c)", TABLE, finding())))
    out = [each for each in read.all("a") if str(each["href"]).startswith("http")]
    assert len(out) == 1 + TABLE.shown + 10
    assert {(each["target"], each["rel"]) for each in out} == {("_blank", "noopener noreferrer")}
    assert "target" not in next(each for each in read.all("a") if each["href"] == "#c")


def test_contents_lead_to_sections_and_no_two_ids_are_equal() -> None:
    sections = [Section(title=title, parts=[]) for title in ("A *b*", "a b", "日本", "?")]
    sections.append(Section(title="c", parts=[picture("one"), picture("two"), TABLE, finding()]))
    read = Page(page.to_html(replace(document(), sections=sections)))
    ids = [each["id"] for _, each in read.elements if "id" in each]
    assert len(ids) == len(set(ids))
    anchors = [str(each["href"])[1:] for each in read.all("a") if str(each["href"])[0] == "#"]
    assert anchors == ["a-b", "a-b-2", "x", "x-2", "c"]
    assert set(anchors) < set(ids)


def test_equal_documents_are_equal_pages() -> None:
    assert page.to_html(document(picture(), TABLE)) == page.to_html(document(picture(), TABLE))


def test_a_small_table_can_be_saved_from_the_page_and_a_large_one_lies_beside_it() -> None:
    def saved(table: Table) -> list[str]:
        anchors = Page(page.to_html(document(table))).all("a")
        return [str(each["href"]) for each in anchors if "download" in each]

    assert unquote(saved(TABLE)[0].partition(",")[2]) == page.to_csv(TABLE)
    assert saved(replace(TABLE, rows=ROWS * 1000)) == []


def test_files_are_named_by_what_they_hold() -> None:
    made = {name: content for name, content in page.files(document(picture("../A front"), TABLE))}
    assert list(made) == [
        "figures/a-front.png", "figures/a-front.svg", "tables/runs.csv", "tables/runs.json",
        "report.md", "report.html",
    ]  # fmt: skip
    assert made["figures/a-front.png"].startswith(b"\x89PNG")
    assert made["figures/a-front.svg"].startswith(b"<?xml")
    assert b"(figures/a-front.png)" in made["report.md"]


def test_files_are_made_one_at_a_time() -> None:
    broken = replace(picture("two"), figure=None)
    first = list(islice(page.files(document(picture("one"), broken)), 2))
    assert [name for name, _ in first] == ["figures/one.png", "figures/one.svg"]


def test_two_of_one_name_are_a_bug() -> None:
    for made in (document(TABLE, TABLE), document(picture("a b"), picture("a-b"))):
        with pytest.raises(ValueError, match="two of"):
            next(page.files(made))
        with pytest.raises(ValueError, match="two of"):
            page.to_html(made)


def test_csv_and_json_have_all_rows_in_base_units() -> None:
    names = ["run_id", "name", "emissions_kg", "fits"]
    rows = list(csv.DictReader(io.StringIO(page.to_csv(TABLE))))
    assert list(rows[0]) == names
    assert [float(row["emissions_kg"]) for row in rows] == [row["emissions_kg"] for row in ROWS]
    assert rows[2]["fits"] == "true"
    assert json.loads(page.to_json(TABLE)) == ROWS


def test_what_is_no_number_is_null_in_json() -> None:
    table = replace(TABLE, columns=[column()], rows=[{"x": x} for x in (*SCALES, None, 1.5)] + [{}])
    assert [row["x"] for row in json.loads(page.to_json(table))] == [None] * 4 + [1.5, None]


def test_a_spreadsheet_computes_nothing_that_a_store_names() -> None:
    texts = ["=1+1", " @SUM(A1)", "+cmd|' /C calc'!A0", "-x", "-1.5", "plain", -2]
    table = replace(TABLE, columns=[column()], rows=[{"x": text} for text in texts])
    kept = [row["x"] for row in csv.DictReader(io.StringIO(page.to_csv(table)))]
    assert kept == ["'=1+1", "' @SUM(A1)", "'+cmd|' /C calc'!A0", "'-x", "-1.5", "plain", "-2"]
    assert json.loads(page.to_json(table))[0]["x"] == "=1+1"


def schemes() -> list[dict[str, str]]:
    """The colours of the page by their names, in light and in dark."""
    style = Path(page.TEMPLATE).read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", style, flags=re.DOTALL)
    found = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in blocks]
    assert len(found) == 2
    return found


@pytest.mark.parametrize("colours", schemes(), ids=["light", "dark"])
def test_texts_are_readable_on_what_they_stand_on(colours: dict[str, str]) -> None:
    pairs = [(ink, paper) for ink in INK for paper in ("paper", "card")]
    pairs += [(mark, f"{mark}-paper") for mark in ("good", "bad", "open")]
    pairs += [(mark, "paper") for mark in ("good", "bad", "open")]
    for ink, paper in pairs:
        dark, light = sorted(luminance(colours[name]) for name in (ink, paper))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, paper)  # WCAG 2.2 AA


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
