"""Effects in words, and what more runs would cost that settle an open question.

Costs are modelled from the emissions of the runs that are there. Which question is open, and what
runs it needs, is for who asks.
"""

import math

from green_tune import effects
from green_tune.columns import FEWEST_RUNS, Runs, positive
from green_tune.document import Answer, Interval
from green_tune.effects import Bools

WORTH = 10  # times the runs there are: what would take more is too close to call
POWER = 1.43  # (1.96 + 0.84) / 1.96: for a power of 80 % of a test at 95 %
KG_TO_G = 1000.0
LARGEST = 700.0  # logarithm of a ratio that still is a number
SUPPORTED: Answer = "supported"
CONTRADICTED: Answer = "contradicted"
OPEN: Answer = "not enough evidence"


def more(found: Interval, distance: float) -> float:
    """How many more runs until an interval probably ends within that distance of its middle.

    Its width goes by 1 / sqrt(n), and its middle will move: this many are enough in four of five
    cases, if the effect is what it seems.
    """
    half = POWER * (found.high - found.low) / 2
    return max(1.0, found.n * ((half / distance) ** 2 - 1)) if distance > 0 else math.inf


def likely(runs: Runs, count: float, what: str) -> str:
    """As `further`, for a number that `more` has found."""
    return further(runs, count, f"{what}, if the effect is what it seems")


def further(runs: Runs, count: float, what: str) -> str:
    """So many more runs of a kind, with their cost; or that they are not worth it."""
    if count > WORTH * max(len(runs.ids), FEWEST_RUNS**2):
        return "no number of runs that is worth its emissions: the effect is too close to the limit"
    whole = max(1, math.ceil(count))
    return f"about {plural(whole, 'more run')} {what}, {price(runs, whole)}"


def price(runs: Runs, count: int) -> str:
    """What so many runs would emit, if they are like those that are there."""
    known = runs.kg[positive(runs.kg)]
    mean = float(known.mean()) if len(known) else math.nan
    return cost(count, mean, "modelled: the mean of what is here")


def cheapest(runs: Runs) -> float:
    """The mean kg of the config that emits least; NaN where nothing is known."""
    paid = runs.where(positive(runs.kg))
    return float(effects.means(paid.kg, paid.config).min()) if paid.ids else math.nan


def cost(count: int, kg: float, how: str) -> str:
    """The emissions of so many runs of that many kg, and how this is known."""
    known = f"some {mass(count * kg)} ({how})"
    return known if math.isfinite(kg) else "at a cost that is not known"


def mass(kg: float) -> str:
    """Emissions in the unit that a reader would choose: 3.1 mg, 31 g, 1.2 kg."""
    grams = kg * KG_TO_G
    if grams >= KG_TO_G:
        return f"{kg:.3g} kg" if kg < KG_TO_G else f"{kg:.0f} kg"
    return f"{grams:.3g} g" if grams >= 1 else f"{grams * 1000:.3g} mg"


def counted(text: str, runs: Runs, configs: int = 0) -> str:
    """A text with what it rests on; `configs` where these were the rows."""
    places = len(set(runs.place.tolist()))
    of = f" of {plural(configs, 'config')}" * bool(configs)
    return (
        f"{text}; {plural(len(runs.ids), 'run')}{of} in {plural(places, 'block')}" * bool(places)
        or text
    )


def plural(count: int, what: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {what}" + "s" * (count != 1)


def times(found: Interval) -> str:
    """The interval of a logarithm as that of a ratio."""
    if not math.isfinite(found.estimate):
        return "not known"
    ends = (found.estimate, found.low, found.high)
    middle, low, high = (three(math.exp(min(end, LARGEST))) for end in ends)
    return f"{middle} x (95 % interval {low} to {high})"


def signed(found: Interval) -> str:
    """An interval of what may be on both sides of 0."""
    if not math.isfinite(found.estimate):
        return "not known"
    return f"{found.estimate:+.2f} ({found.low:+.2f} to {found.high:+.2f})"


def points(found: Interval) -> str:
    """An interval of a part, in percent."""
    middle, low, high = (f"{100 * end:.1f}" for end in (found.estimate, found.low, found.high))
    return f"{middle} % (95 % interval {low} to {high} %)"


def percent(among: Bools) -> str:
    """How many of them are true."""
    return f"{100 * among.mean():.0f} %" if len(among) else "none"


def three(value: float) -> str:
    """A number in three digits; an end that nothing limits in words."""
    return f"{value:.3g}" if math.isfinite(value) else "any"
