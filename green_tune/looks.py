"""What the figures of many runs share: who is drawn how, panels, legends, units, points.

A door to matplotlib, on a `canvas`. It knows how a GPU, a model and a task look, and what there is
no room for; what is drawn of them is `charts`, `scatters` and `trends`. Every colour has a
second mark, and all are readable on white and on black. Names from a store are drawn as they are.
"""

import math
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.special import stdtrit  # type: ignore[import-untyped]

from green_tune.blocks import Panel, gpu, panel, titles
from green_tune.canvas import (
    BLUE,
    DARK,
    DPI,
    GREEN,
    ON_DARK,
    ORANGE,
    RED,
    SKY,
    SMALL,
    WIDTH,
    fit_scale,
    is_spread,
)
from green_tune.hardware import GPUS
from green_tune.points import intensities
from green_tune.results import RunRecord

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Pair = tuple[float, float]
Drawn = tuple[Figure, str]  # a figure, and what it shows in words

COLOURS = (BLUE, ORANGE, GREEN, RED, SKY, "#CC79A7")
HATCHES = ("", "//", "..", "\\\\", "xx", "--")
MARKERS = ("o", "s", "^", "D", "v", "P")
MOST = len(COLOURS)  # series of one kind: more are not told apart
MOST_PANELS = 12
LINKED, VECTORS = 400, 1000  # points: up to so many are links, and lines rather than pixels
CLAUSES = 9  # of a description: a listener remembers no more
NAME, LINE = 20, 110  # characters of a name, and of a line below a figure
FEWEST = 3  # runs behind an interval
DECADES_100, DECADES_30 = 100, 30  # from which a narrow axis has room for fewer ticks
OUTLYING = 6  # interquartile ranges above the upper quartile
MASS = {"kg": 1.0, "g": 1e3, "mg": 1e6, "µg": 1e9}
ENERGY = {"kWh": 1.0, "Wh": 1e3, "mWh": 1e6, "µWh": 1e9}
TIME = {"h": 1.0, "min": 60.0, "s": 3600.0}
GAP = (math.sqrt(5) - 1) / 2  # of a sequence that fills a width evenly, however long it is


@dataclass(frozen=True, kw_only=True)
class Look:
    """How one series is drawn; `name` is fit for a figure."""

    name: str
    colour: str
    hatch: str
    marker: str

    def bar(self) -> Patch:
        """Its line in a legend of bars."""
        return Patch(fc=self.colour, ec=ON_DARK, hatch=self.hatch, lw=0, label=self.name)

    def dot(self, colour: str = "", marker: str = "") -> Line2D:
        """Its line in a legend of points, or of its colour or marker alone."""
        return Line2D([], [], ls="", ms=6, marker=marker or self.marker,
                      color=colour or self.colour, label=self.name)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The runs that are drawn, and how; `left_out` says which are not, and is empty otherwise."""

    records: Sequence[RunRecord]
    gpus: Mapping[str, Look]
    models: Mapping[str, Look]
    panels: Mapping[Panel, str]
    left_out: str

    def mark(self, record: RunRecord) -> tuple[str, str]:
        """Colour by GPU and marker by model; where there is one of a kind, both by the other."""
        own, other = self.gpus[gpu(record)], self.models[model(record)]
        colour = other.colour if len(self.gpus) == 1 else own.colour
        return colour, own.marker if len(self.models) == 1 else other.marker

    def handles(self, drawn: Sequence[RunRecord]) -> list[Line2D]:
        """The legend to `mark`: of those that are drawn alone."""
        on, of = {*map(gpu, drawn)}, {*map(model, drawn)}
        gpus = {key: look for key, look in self.gpus.items() if key in on}
        models = {key: look for key, look in self.models.items() if key in of}
        if len(self.gpus) > 1 and len(self.models) > 1:
            return two_marks(gpus, models)
        return [look.dot() for look in (models if len(self.gpus) == 1 else gpus).values()]


def cast(records: Iterable[RunRecord], *needed: str) -> Cast | None:
    """The runs that have all of these metrics, as finite numbers, with a look for each series.

    GPUs by their power limit, models by their size. Of more than can be told apart those with most
    runs are kept. None where no run is left.
    """
    there = [r for r in records if all(math.isfinite(value(r, name)) for name in needed)]
    gpus, models = Counter(map(gpu, there)), Counter(map(model, there))
    panels = Counter(map(panel, there))
    most = {name for name, _ in gpus.most_common(MOST)}, {m for m, _ in models.most_common(MOST)}
    called = titles(there)
    tasks = {each for each, _ in panels.most_common(MOST)}
    kept = [r for r in there if gpu(r) in most[0] and model(r) in most[1] and panel(r) in tasks]
    if not kept:
        return None
    gone = {
        "GPU": [gpu_name(each) for each in gpus if each not in most[0]],
        "model": [each for each in models if each not in most[1]],
        "task": [called[each] for each in panels if each not in tasks],
    }
    size = {model(r): value(r, "base_parameters") for r in kept}
    by_size = sorted(size, key=lambda m: (math.inf if math.isnan(size[m]) else size[m], m))
    return Cast(
        records=kept,
        gpus=looks(sorted({*map(gpu, kept)}, key=by_power), gpu_name),
        models=looks(by_size),
        panels={each: text(called[each], 40) for each in sorted({*map(panel, kept)})},
        left_out=not_drawn(gone),
    )


def two_marks(colours: Mapping[str, Look], markers: Mapping[str, Look]) -> list[Line2D]:
    """A legend of points of which the colour says one thing and the marker another."""
    return [*(look.dot(marker="o") for look in colours.values()),
            *(look.dot(colour=DARK) for look in markers.values())]  # fmt: skip


def looks(
    keys: Sequence[str], name: Callable[[str], str] = str, width: int = NAME
) -> dict[str, Look]:
    """A look for each key, in the given order; beyond `MOST` they begin again."""
    return {
        key: Look(
            name=text(name(key), width),
            colour=COLOURS[n % MOST],
            hatch=HATCHES[n % MOST],
            marker=MARKERS[n % MOST],
        )
        for n, key in enumerate(keys)
    }


def not_drawn(gone: Mapping[str, Sequence[str]]) -> str:
    """Which series there is no room for; empty where there is room for all."""
    parts = [
        f"{len(names)} {kind}{'s' * (len(names) > 1)} with fewest runs"
        f" ({', '.join(text(name) for name in names[:3])}{', …' * (len(names) > 3)})"  # noqa: PLR2004
        for kind, names in gone.items()
        if names
    ]
    return f"Not drawn: {', '.join(parts)}." if parts else ""


def alike(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items by a key, in the order in which the keys first occur."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def value(record: RunRecord, name: str) -> float:
    """A metric; NaN where the run has none."""
    return record.metrics.get(name, math.nan)


def model(record: RunRecord) -> str:
    """The base model's name."""
    return record.tags.get("base_model", "unknown")


def gpu_name(key: str) -> str:
    """As its maker writes it: A100-40 for a100-40."""
    return key if key == "unknown" else key.upper()


def by_power(key: str) -> tuple[float, str]:
    """The order of GPUs: a CPU first, one that no table knows last."""
    limits = {"cpu": 0.0} | {row.name: float(row.power_limit_w) for row in GPUS}
    return limits.get(key, math.inf), key


def text(name: str, width: int = NAME) -> str:
    """A name from a store as matplotlib can draw it: no formulas, no signs that its font lacks.

    Long ones lose their middle, since names that begin alike often differ at their ends.
    """
    one = " ".join(name.split()) or "unnamed"
    half = (width - 1) // 2
    short = one if len(one) <= width else f"{one[: width - 1 - half]}…{one[-half:]}"
    drawn = "".join(sign if _has(sign) else "?" for sign in short)
    return (" " * drawn.startswith("_") + drawn).replace("$", r"\$")


@cache
def _has(sign: str) -> bool:
    return bool(get_font(findfont(FontProperties())).get_char_index(ord(sign)))


def unit(values: Iterable[float], units: Mapping[str, float] = MASS) -> tuple[str, float]:
    """The unit that a reader would choose for the largest, and how many of it make one of ours.

    `units` are from the largest to the smallest; ours is kg, kWh or h.
    """
    largest = max(values)
    return next((each for each in units.items() if largest * each[1] >= 1), [*units.items()][-1])


def basis(records: Sequence[RunRecord]) -> str:
    """Which grid intensities the emissions rest on, in up to two lines below a figure."""
    return f"Carbon intensity ({text(intensities(records), 2 * LINE)})."


def said(clauses: Sequence[str], more: str = "") -> str:
    """A description of clauses, with how many of them are left out, and one more sentence."""
    rest = f"; and {len(clauses) - CLAUSES} more" * (len(clauses) > CLAUSES)
    words = "; ".join(clauses[:CLAUSES]) + rest + "."
    drawn = f"{words} {more}".strip().replace(r"\$", "$")
    return re.sub(r"(?<=[ (]) _", "_", drawn)


def panels(
    title: str, number: int, columns: int = 2, height: float = 2.4, **look: Any
) -> tuple[Figure, list[Any]]:
    """A figure with so many pairs of axes, row by row; `height` in inches is that of a row."""
    columns = min(columns, number)
    rows = -(-number // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.06)
    figure = Figure(figsize=(WIDTH, 1.1 + height * rows), dpi=DPI, layout=layout)
    figure.suptitle(textwrap.fill(title, 70))
    every = list(figure.subplots(rows, columns, squeeze=False, **look).flat)
    for spare in every[number:]:
        spare.remove()
    for axes in every[:number]:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=SMALL + 1)
    return figure, every[:number]


def legend(figure: Figure, handles: Sequence[Any], *notes: str) -> None:
    """Below the axes, where it covers nothing; as many columns as its names leave room for."""
    widths = [len(handle.get_label()) + 8 for handle in handles] or [1]
    columns = len(widths) if sum(widths) <= LINE else max(1, min(6, LINE // max(widths)))
    note = "\n".join(textwrap.fill(line, LINE) for line in notes if line)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        title=note or None,
        fontsize=SMALL,
        title_fontsize=SMALL,
        frameon=False,
        columnspacing=1.2,
    )


def scale(axes: Any, which: str, values: Sequence[float]) -> bool:
    """`fit_scale` for an axis that may be narrow; true where it became logarithmic."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if not is_spread(values):
        axis.set_major_locator(MaxNLocator(5))
        return False
    fit_scale(axes.set_xscale if which == "x" else axes.set_yscale, axis, values)
    ratio = max(values) / min(values)
    subs = (1,) if ratio > DECADES_100 else (1, 3) if ratio > DECADES_30 else (1, 2, 5)
    axis.set_major_locator(LogLocator(subs=subs))
    return True


def scatter(
    axes: Any,
    where: Sequence[tuple[float, float]],
    ids: Sequence[str],
    links: Mapping[str, str],
    of: int = 0,
    most: float = math.inf,
    **look: Any,
) -> None:
    """Points as large and dense as their number allows, each a link to its run where it has one.

    A few stand out among many, and above them. `of` is how many points the figure has, where that
    is more; `most`, the largest area of one in points squared.
    """
    if not where:
        return
    number = max(of, len(where))
    size, alpha = next(each for limit, *each in DENSITIES if len(where) <= limit)
    look = {"s": min(size, most), "alpha": alpha, "zorder": 3 + 1 / (1 + len(where)), **look}
    marks = axes.scatter(*zip(*where, strict=True), lw=0, rasterized=number > VECTORS, **look)
    if links and number <= LINKED:
        marks.set_urls([links.get(run_id) for run_id in ids])


DENSITIES = ((60, 30.0, 0.9), (LINKED, 16.0, 0.75), (2000, 8.0, 0.45), (math.inf, 4.0, 0.2))


def spread_out(number: int, width: float) -> list[float]:
    """Offsets within a width, evenly and always the same, so that points do not hide others."""
    return [((0.5 + n * GAP) % 1 - 0.5) * width for n in range(number)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval: NaN below `FEWEST` values.

    Student's t, so the values are taken as normally distributed.
    """
    mean, n = math.fsum(values) / len(values), len(values)
    if n < FEWEST:
        return mean, math.nan
    t = float(stdtrit(n - 1, 0.975))
    return mean, t * statistics.stdev(values) / math.sqrt(n)


def edge(values: Sequence[float]) -> float:
    """Above which values would press all others flat; infinite where none does."""
    if len(values) <= FEWEST:
        return math.inf
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    limit = high + OUTLYING * (high - low)
    return limit if high > low and max(values) > limit else math.inf
