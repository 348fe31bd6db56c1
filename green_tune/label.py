"""The label of an adapter: one picture for a slide, with what it is, what it took, what it can.

A door to matplotlib, in the looks of `canvas`. Figures are the card's, in the card's words; there
is no grade and no scale, since nobody has set one. What is not known is left out, and names that
are too long lose their middle.
"""

import io
import re
from collections.abc import Iterable
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from green_tune.canvas import DARK, GREEN, to_png
from green_tune.cells import duration
from green_tune.facts import CardFacts, best_known, energy, hardware, how_known, line, mass, words
from green_tune.looks import text
from green_tune.points import intensities

SIZE, DPI = (8.0, 4.5), 200  # inches: 800 x 450 pixels, twice as many in each direction
LEFT, RIGHT, TOP = 0.055, 0.955, 0.86
COLUMNS, GAP = 3, 0.03
BESIDE = 0.555  # where the words beside the large figure begin
ROWS = (0.345, 0.16)
QUIET = "0.35"  # still read when projected, where a lighter grey is not
SMALLEST, FIGURE = 0.85, 0.3  # of a size; names are cut then, and the large figure is never
SLACK = 0.985  # letters of another size are not wider in exactly that proportion
LONGEST = 90  # signs of a text
TINTS = 64  # greys and greens at the edges of letters; more are not seen, and three times the bytes
TRIFLES = re.compile(r"\((R|TM)\)|^1 x |, \d+ GiB$|\bNVIDIA (?=.)| Processor(?=,)")


def draw(facts: CardFacts) -> bytes:
    """A PNG of 1600 x 900 pixels; equal facts are equal bytes."""
    figure = Figure(figsize=SIZE, dpi=DPI)
    figure.add_artist(Rectangle((0, 0), 0.018, 1, color=GREEN, lw=0))
    _write(figure, (LEFT, TOP), f"{facts.base}, {facts.task}", 25, weight="bold")
    _write(figure, (LEFT, TOP - 0.075), _named(facts), 11, color=QUIET)
    _write(figure, (LEFT, 0.585), f"{mass(facts.emissions_kg)} CO2e", 38, BESIDE - 0.025,
           least=FIGURE, color=GREEN, weight="bold")  # fmt: skip
    for number, said in enumerate(_basis(facts)):
        _write(figure, (BESIDE, 0.665 - 0.05 * number), said, 11, color=QUIET)
    for number, (name, value) in enumerate(_tiles(facts)):
        _tile(figure, number, name, value)
    _write(figure, (LEFT, 0.06), _maker(facts), 10, color=QUIET)
    return _few_tints(to_png(figure))


def alt(facts: CardFacts) -> str:
    """The label in words, for those who cannot see it."""
    return words(facts)


def _basis(facts: CardFacts) -> Iterable[str]:
    """What the large figure rests on."""
    yield f"energy {how_known(facts.modelled_share)}"
    intensity = line(intensities([facts.record]))
    yield f"carbon intensity{', assumed' * intensity.startswith('assumed: ')}:"
    yield intensity.removeprefix("assumed: ")


def _tiles(facts: CardFacts) -> Iterable[tuple[str, str]]:
    """What each of the small figures is, and the figure."""
    yield "energy", energy(facts.energy_kwh)
    yield TRIFLES.sub("", hardware(facts)), duration(facts.runtime_h)
    yield "validation loss", f"{facts.val_loss:.4g}"
    if quality := best_known(facts):
        yield quality[0], f"{quality[1]:.3g}"
    if facts.study:
        yield f"whole sweep, {facts.study.trials} trials", f"{mass(facts.study.emissions_kg)} CO2e"
    if facts.predictions:
        yield "per 1,000 predictions", f"{mass(facts.predictions.emissions_kg)} CO2e"


def _tile(figure: Figure, number: int, name: str, value: str) -> None:
    width = (RIGHT - LEFT - (COLUMNS - 1) * GAP) / COLUMNS
    x, y = LEFT + number % COLUMNS * (width + GAP), ROWS[number // COLUMNS]
    figure.add_artist(Rectangle((x, y + 0.135), width, 0.003, color="0.85", lw=0))
    _write(figure, (x, y + 0.078), name, 10.5, x + width, color=QUIET)
    _write(figure, (x, y), value, 19, x + width)


def _maker(facts: CardFacts) -> str:
    version = line(facts.record.tags.get("version.green_tune", ""))
    low, high = facts.emissions_low_kg, facts.emissions_high_kg
    known = low is not None and high is not None
    bounds = f", bounds {mass(low or 0)} to {mass(high or 0)}" * known
    return f"green-tune {version}".rstrip() + bounds


def _named(facts: CardFacts) -> str:
    kept = "" if facts.step is None else f", as it was at step {facts.step}"
    return f"LoRA adapter {line(facts.model_name)}{kept}"


def _write(figure: Figure, at: tuple[float, float], words: str, size: float, right: float = RIGHT,
           least: float = SMALLEST, **look: Any) -> None:  # fmt: skip
    """One line that ends before `right`: smaller where it has to be, then without its middle."""
    drawn = figure.text(*at, text(words, LONGEST), size=size, **({"color": DARK} | look))
    most = (right - at[0]) * figure.bbox.width
    for length in range(LONGEST, 0, -1):
        drawn.set(text=text(words, length), size=size)
        wide = drawn.get_window_extent().width
        if wide > most:
            drawn.set(size=size * max(least, SLACK * most / wide))
        if drawn.get_window_extent().width <= most:
            return


def _few_tints(png: bytes) -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(TINTS).save(file, "png", optimize=True)
    return file.getvalue()
