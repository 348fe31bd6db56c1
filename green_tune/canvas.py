"""What a study's figures share: their size, colours and axes, and how grams are named.

A door to matplotlib, through `Figure` alone, so that no global state and no screen is needed. It
draws nothing of a study: that is `pictures` and `panels`. All figures are for 900 pixels of width.
Colours are Okabe and Ito's, which colour-blind readers tell apart.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

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
