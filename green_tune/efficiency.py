"""How much energy a token took: a comparison's bars beside what was published.

A door to matplotlib, in the looks of `looks`. The figure comes with a line that says in words what
it shows; the values are given, and are computed nowhere here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D

from green_tune.canvas import DARK, ON_DARK
from green_tune.charts import DOT, ERRORS, ON_LOG, WHISKERS, line
from green_tune.looks import (
    Drawn,
    by_power,
    gpu_name,
    interval,
    legend,
    looks,
    panels,
    said,
    scale,
    scatter,
    spread_out,
    text,
)

DASHES = ("--", ":", "-.", "-")
MOST_BARS = 24


def efficiency_figure(
    values: Mapping[tuple[str, str], Sequence[float]], floors: Mapping[str, float], title: str
) -> Drawn | None:
    """Millijoules per token and billion parameters of each model on each GPU, as given run by run.

    `values` are by model and GPU; `floors` are published figures by what they are called, drawn as
    lines. None where there are no values.
    """
    rows = {key: [x for x in found if math.isfinite(x) and x > 0] for key, found in values.items()}
    means = {key: interval(found) for key, found in rows.items() if found}
    if not means:
        return None
    kept = sorted(means, key=lambda key: means[key][0])[:MOST_BARS]
    figure, (axes,) = panels(title, 1, height=0.7 + 0.3 * len(kept))
    _rows(axes, {key: rows[key] for key in kept})
    lines = _floors(axes, floors)
    ends = [x for key in kept for x in rows[key]] + list(floors.values())
    logarithmic = scale(axes, "x", ends)
    if logarithmic:
        axes.set_xlim(min(ends) / 1.5, max(ends) * 1.3)
    axes.set_yticks(range(len(kept)), [f"{text(by)} on {text(gpu_name(on))}" for by, on in kept])
    axes.set_ylim(len(kept) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("mJ per token and billion parameters")
    gone = f"Not drawn: {len(means) - len(kept)} that need more." * (len(means) > len(kept))
    has_interval = any(math.isfinite(means[key][1]) for key in kept)
    legend(figure, lines, WHISKERS * has_interval, ON_LOG * logarithmic, gone)
    words = [f"{text(by)} on {text(gpu_name(on))} {means[by, on][0]:.3g} mJ" for by, on in kept]
    beside = ", ".join(f"{name}: {x:.2g} mJ" for name, x in floors.items())
    return figure, said(words, f"{gone} {f'Published: {beside}.' if floors else ''}".strip())


def _rows(axes: Any, rows: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """A lying bar for each model and GPU, with its runs."""
    gpus = looks(sorted({on for _, on in rows}, key=by_power), gpu_name)
    for row, ((_, on), found) in enumerate(rows.items()):
        mean, half = interval(found)
        axes.barh(row, mean, 0.72, color=gpus[on].colour, hatch=gpus[on].hatch, ec=ON_DARK, lw=0,
                  xerr=half, error_kw=ERRORS)  # fmt: skip
        ys = [row + offset for offset in spread_out(len(found), 0.5)]
        scatter(axes, list(zip(found, ys, strict=True)), [], {}, most=DOT, color=DARK)


def _floors(axes: Any, floors: Mapping[str, float]) -> list[Line2D]:
    """Lines at published figures; with their legend."""
    lines = []
    for n, (name, x) in enumerate(floors.items()):
        dashes = DASHES[n % len(DASHES)]
        axes.axvline(x, color=DARK, lw=1.4, ls=dashes, zorder=5)
        lines.append(line(f"{text(name, 44)}: {x:.2g} mJ", dashes, DARK))
    return lines
