"""What a study's figures share: their size, colours and axes, and how grams are named.

A door to matplotlib, through `Figure` alone, so that no global state and no screen is needed. It
draws nothing of a study: that is `pictures` and `panels`. All figures are for 900 pixels of width.
Colours are Okabe and Ito's, which colour-blind readers tell apart.

A themed SVG takes its greys from the page around it, so that it can be read on light and on dark:
black is the page's ink, white its paper. What stands on a colour instead is drawn in `ON_DARK` or
`ON_LIGHT`, which look like white and black and stay as they are.
"""

import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from green_tune.points import Point, intensities
from green_tune.results import RunRecord

KG_TO_G = 1000.0
WIDTH, HEIGHT, DPI = 7.5, 4.8, 120  # inches, and what makes them 900 pixels
SMALL = 8  # points of type
SPREAD = 10  # the largest by the smallest value, from which on a logarithmic axis reads better
GREEN, BLUE, ORANGE, RED, SKY = "#009E73", "#0072B2", "#E69F00", "#D55E00", "#56B4E9"
DARK, GREY = "0.25", "0.6"
ON_DARK, ON_LIGHT = "#fffffe", "#000001"
CROWD = 1000  # marks of a figure; from here on a picture of them is smaller than their paths
SHARP_DPI = 150  # of such a picture inside of an SVG
DIM = 0.11  # luminance below which a line is lost on dark paper
PAPER = "var(--paper, #fff)"
COLOUR = re.compile(r"\b(fill|stroke)(: |=\")#([0-9a-f]{6})\b")
ASIDE = 'rel="noopener noreferrer" tabindex="-1"'  # keys would have to pass hundreds of points
NUMBERS = re.compile(r' (?:d|x|y|transform|width|height)="[^"]*"')
ANCHOR = re.compile(r'<a xlink:href="(?!https?://)[^"]*"[^>]*>')  # that leads to no page
DECIMALS = re.compile(r"(\.\d\d)\d+")
WHITE = {"boxstyle": "round,pad=0.12", "fc": "white", "ec": "none", "alpha": 0.8}


def plot(title: str, height: float = HEIGHT) -> tuple[Figure, Any]:
    """A figure with a title and one pair of axes; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(textwrap.fill(title, 70))
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def legend(figure: Figure, note: str = "") -> None:
    """Below the axes, where it covers nothing; a note belongs to it, so that neither does that."""
    look = {"fontsize": SMALL, "title_fontsize": SMALL, "frameon": False, "columnspacing": 1.2}
    figure.legend(loc="outside lower center", ncols=6, title=note or None, **look)


def in_grams(records: Sequence[RunRecord], width: int = 80, of: str = "") -> str:
    """What an axis of emissions says: the unit, and which grid intensity it rests on."""
    return textwrap.fill(f"{of}emissions (g CO2e; {intensities(records)})", width)


def ceiling(found: Sequence[Point]) -> float:
    """The base model's loss, above which none is drawn at its height; infinite if unknown."""
    starts = [point.record.metrics.get("start_val_loss", math.inf) for point in found]
    return min(starts, default=math.inf)


def is_spread(values: Iterable[float]) -> bool:
    """Whether a logarithmic axis reads better."""
    low, high = min(values := list(values)), max(values)
    return low > 0 and high / low > SPREAD


def fit_scale(set_scale: Callable[[str], None] | None, axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where the values are far apart, its ticks written as plain numbers."""
    if not is_spread(values):
        return
    if set_scale is not None:
        set_scale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def to_png(figure: Figure) -> bytes:
    """As an image on white, 900 pixels wide."""
    _lay_out(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", metadata={"Software": None})
    return file.getvalue()


def to_svg(figure: Figure, name: str, words: str = "", *, themed: bool = False) -> str:
    """As a drawing: on its own, on white and with its letters as paths; themed, for inside of HTML.

    Equal figures of the same `name` are equal texts. Themed, letters are the page's own, which can
    be searched and are small; ids are unique by `name`, and `words` are for those who cannot see.
    """
    _lay_out(figure)
    file = io.StringIO()
    look: Any = {"svg.fonttype": "none" if themed else "path", "svg.hashsalt": name}
    with rc_context(look), _crowds_as_images(figure):
        figure.savefig(
            file,
            format="svg",
            dpi=SHARP_DPI,
            facecolor="none" if themed else "white",
            transparent=themed,
            metadata={"Date": None},
        )
    svg = ANCHOR.sub("<a>", file.getvalue())
    return _themed(svg, words) if themed else svg


def _lay_out(figure: Figure) -> None:
    """Places what is in a figure once: each form of it would do so again, a bit differently."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@contextmanager
def _crowds_as_images(figure: Figure) -> Iterator[None]:
    """Thousands of marks as paths would make a page too heavy to open."""
    count = {
        mark: _count(mark) for axes in figure.axes for mark in (*axes.collections, *axes.lines)
    }
    crowded = sum(count.values()) > CROWD
    crowds = [m for m, n in count.items() if crowded and n > CROWD / 20 and not m.get_rasterized()]
    for crowd in crowds:
        crowd.set_rasterized(True)
    try:
        yield
    finally:
        for crowd in crowds:
            crowd.set_rasterized(False)


def _count(mark: Any) -> int:
    """How many times a thing of a figure is repeated; once what is a line."""
    if hasattr(mark, "get_offsets"):
        return len(mark.get_offsets())
    return len(mark.get_xdata()) if mark.get_marker() not in (None, "None", "", " ") else 1


def _themed(svg: str, words: str) -> str:
    """Without what is for a file on its own, and what would reach the page around it."""
    body = svg[svg.index("</metadata>") + len("</metadata>") : svg.rindex("</svg>")]
    box = re.search(r'viewBox="[^"]*"', svg)
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # matplotlib's names, the same in every figure
    body = re.sub(r" ?font-family: 'DejaVu Sans',[^;\"]*;?", "", body)
    body = NUMBERS.sub(lambda found: DECIMALS.sub(r"\1", found[0].replace("\n", " ")), body)
    body = COLOUR.sub(lambda found: f"{found[1]}{found[2]}{_of_the_page(found[1], found[3])}", body)
    body = re.sub(r"\n\s*<", "<", body).replace(" xlink:href=", " href=").strip()
    body = body.replace(' target="_blank">', f' target="_blank" {ASIDE}>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box[0] if box else ""} role="img"'
        f' aria-label="{escape(words)}" fill="currentColor" stroke-linejoin="round">{body}</svg>'
    )


def _of_the_page(which: str, colour: str) -> str:
    """A grey as so much of the page's ink on its paper; a dark line as much lighter as it asks."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4))
    if not red == green == blue:
        fixed = f"#{colour}" == ON_LIGHT
        dark = which == "stroke" and not fixed and _luminance(red, green, blue) < DIM
        return f"color-mix(in srgb, #{colour} var(--kept, 100%), #fff)" if dark else f"#{colour}"
    ink = 100 - round(100 * red)
    if ink in (0, 100):
        return PAPER if ink == 0 else "currentColor"
    return f"color-mix(in srgb, currentColor {ink}%, {PAPER})"


def _luminance(*channels: float) -> float:
    """Relative luminance of sRGB channels in 0..1, from 0 to 1 (WCAG 2.2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]  # noqa: PLR2004
    return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
