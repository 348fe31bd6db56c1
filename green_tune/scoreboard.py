"""How right the quotes were, all together: by what they are of, and by what they rest on.

Pure functions over records, as numbers, as a table and in words. What came of a single quote is
`outcomes`, how an interval gets its width `conformal`, and how all this is drawn `forecasts`.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from green_tune import blocks
from green_tune.blocks import Panel
from green_tune.conformal import LEVEL
from green_tune.counts import share
from green_tune.document import Column, Interval, Table
from green_tune.outcomes import EVIDENCE, UNITS, UNKNOWN, Figure, Outcome, known, spoken, unknown
from green_tune.results import RunRecord

K = TypeVar("K", bound=Hashable)
Records = Sequence[RunRecord]
SPOKEN: Mapping[Figure, str] = {"energy": "energy", "runtime": "time"}
WINDOW = 10  # quotes behind a rolling error


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How far off the quotes of one figure were, as shares of what was said.

    Half of them were off by at most `median`, nine in ten by at most `ninth` (the smallest error
    of which that is true), and half of the last `WINDOW` by at most `lately`. `bias` is the median
    of actual by quoted. `held` is the share that came out within the quote's own interval, with its
    exact interval.
    """

    quotes: int
    median: float
    ninth: float
    lately: float
    bias: float
    held: Interval


@dataclass(frozen=True, kw_only=True)
class Score:
    """The quotes of one base model on one task and GPU that rest on one kind of evidence."""

    panel: Panel
    model: str
    gpu: str
    evidence: str
    of: Mapping[Figure, Accuracy]


@dataclass(frozen=True, kw_only=True)
class Rolled:
    """How far off one quote was, and those just before it.

    `number` counts all quotes by their runs' start, from 1; `median` is that of `of` errors, up to
    this one, of the same evidence.
    """

    number: int
    off: float
    median: float
    of: int


def ratios(records: Records, *, evidence: str, figure: Figure) -> list[float]:
    """What came divided by what was said, of quotes with this evidence, the newest last.

    All are positive and finite.
    """
    return [each.ratio for each in known(records, figure) if each.evidence == evidence]


def scores(records: Records) -> list[Score]:
    """By task, base model, GPU and evidence; nothing where no quote's error is known."""
    found: dict[tuple[Panel, str, str, str], dict[Figure, Accuracy]] = {}
    for figure in UNITS:
        for cell, alike in _grouped(known(records, figure), _cell).items():
            found.setdefault(cell, {})[figure] = accuracy(alike)
    order = [*EVIDENCE, UNKNOWN]
    return [
        Score(panel=cell[0], model=cell[1], gpu=cell[2], evidence=cell[3], of=found[cell])
        for cell in sorted(found, key=lambda cell: (*cell[:3], order.index(cell[3])))
    ]


def accuracy(found: Sequence[Outcome]) -> Accuracy:
    """How far off these were.

    Raises:
        ValueError: there are none.
    """
    if not found:
        raise ValueError("an accuracy is of at least one quote")
    off = sorted(each.off for each in found)
    held = [each.held for each in found if each.held is not None]
    return Accuracy(
        quotes=len(found),
        median=statistics.median(off),
        ninth=off[math.ceil(9 * len(off) / 10) - 1],
        lately=statistics.median(each.off for each in found[-WINDOW:]),
        bias=statistics.median(each.ratio for each in found),
        held=share(sum(held), len(held)),
    )


def rolling(records: Records, figure: Figure = "energy") -> dict[str, list[Rolled]]:
    """The error over time by evidence: of the last `WINDOW` quotes, or as many as there are."""
    found: dict[str, list[Rolled]] = {name: [] for name in (*EVIDENCE, UNKNOWN)}
    for number, each in enumerate(known(records, figure), start=1):
        mine = found[each.evidence]
        last = [*(point.off for point in mine[-(WINDOW - 1) :]), each.off]
        middle = statistics.median(last)
        mine.append(Rolled(number=number, off=each.off, median=middle, of=len(last)))
    return {name: points for name, points in found.items() if points}


def summary(records: Records) -> str:
    """One sentence on all quotes, by their energy if it can be; empty where no error is known."""
    if not (figures := _figures(records)):
        return ""
    figure, found = next(iter(figures.items()))
    return f"Quoted before they began: {_runs(len(found))}; {_told(figure, found)}."


def in_words(records: Records) -> list[str]:
    """Texts on the quotes: all of them, those of each evidence, and how many are not judged.

    Empty where no error is known. Markdown, with nothing from a store in it.
    """
    figures = _figures(records)
    if not figures:
        return []
    more = [f"{_told(figure, found)}." for figure, found in [*figures.items()][1:]]
    sentences = [summary(records), *(line[:1].upper() + line[1:] for line in more)]
    figure, found = next(iter(figures.items()))
    missing = [f"{_runs(number)} {why}" for why, number in unknown(records).items()]
    sentences += [f"Not judged: {'; '.join(missing)}."] if missing else []
    return [" ".join(sentences), *_by_evidence(figure, found)]


def table(records: Records) -> Table:
    """The scores, a row for each task, base model, GPU and evidence."""
    titles = blocks.titles(records)
    rows = [
        {
            "task": titles[score.panel],
            "model": score.model,
            "gpu_type": score.gpu,
            "evidence": score.evidence,
            "quotes": max(each.quotes for each in score.of.values()),
            **{k: v for figure, each in score.of.items() for k, v in _cells(figure, each).items()},
        }
        for score in scores(records)
    ]
    return Table(name="scoreboard", title="Scoreboard", columns=COLUMNS, rows=rows, note=NOTE)


def _columns(figure: Figure, *beside: str) -> tuple[Column, ...]:
    """Of one figure; its bias and the interval of what held have headings where they are given."""
    bias, low, high = beside or ("", "", "")
    name = SPOKEN[figure]
    return (
        Column(name=f"{figure}_error_median", heading=f"{name} off, %", factor=100, digits=2),
        Column(name=f"{figure}_error_ninth", heading="9 in 10, %", factor=100, digits=2),
        Column(name=f"{figure}_error_lately", heading="lately, %", factor=100, digits=2),
        Column(name=f"{figure}_ratio_median", heading=bias),
        Column(name=f"{figure}_held", heading="held, %", factor=100, digits=2),
        Column(name=f"{figure}_held_low", heading=low, factor=100, digits=2),
        Column(name=f"{figure}_held_high", heading=high, factor=100, digits=2),
    )


COLUMNS = (
    Column(name="task", heading="task"),
    Column(name="model", heading="model"),
    Column(name="gpu_type", heading="GPU"),
    Column(name="evidence", heading="by"),
    Column(name="quotes", heading="quotes"),
    *_columns("energy", "ratio", "from", "to"),
    *_columns("runtime"),
)
NOTE = (
    "By: what quotes rest on. Off: how far the actual figure was from the quoted one, in the "
    f"median, and in nine of ten at most; lately: in the median of the last {WINDOW}. Ratio: "
    "actual by quoted, the median, above 1 where quotes were too low. Held: how many "
    f"came out within their {100 * LEVEL:.0f} % interval; from and to are its exact 95 % "
    "interval."
)


def _cells(figure: Figure, found: Accuracy) -> dict[str, Any]:
    some = found.held.n > 0
    return {
        f"{figure}_error_median": found.median,
        f"{figure}_error_ninth": found.ninth,
        f"{figure}_error_lately": found.lately,
        f"{figure}_ratio_median": found.bias,
        f"{figure}_held": found.held.estimate if some else None,
        f"{figure}_held_low": found.held.low if some else None,
        f"{figure}_held_high": found.held.high if some else None,
    }


def _cell(each: Outcome) -> tuple[Panel, str, str, str]:
    record = each.record
    return (
        blocks.panel(record),
        record.tags.get("base_model", UNKNOWN),
        blocks.gpu(record),
        each.evidence,
    )


def _figures(records: Records) -> dict[Figure, list[Outcome]]:
    """The outcomes of each figure that has any, energy first."""
    return {figure: found for figure in UNITS if (found := known(records, figure))}


def _by_evidence(figure: Figure, found: Sequence[Outcome]) -> list[str]:
    """A list of what quotes of each evidence came to, where there are several kinds."""
    kinds = _grouped(found, lambda each: each.evidence)
    if len(kinds) == 1:
        return []
    lines = [
        f"- By {_spoken(name, kinds[name])}: {_runs(len(kinds[name]))};"
        f" {_told(figure, kinds[name])}."
        for name in (*EVIDENCE, UNKNOWN)
        if name in kinds
    ]
    return ["\n".join(lines)]


def _spoken(name: str, found: Sequence[Outcome]) -> str:
    if name == UNKNOWN:
        return "what is not known"
    return " or ".join(sorted({spoken(each.record) for each in found}, reverse=True))


def _told(figure: Figure, some: Sequence[Outcome]) -> str:
    found = accuracy(some)
    held = found.held
    off = f"{SPOKEN[figure]} off by {percent(found.median)} %"
    if found.quotes > 1:
        off += f" in the median, {percent(found.ninth)} % at the 90th percentile"
    if not held.n:
        return off
    inside = (
        f"{round(held.estimate * held.n)} of {held.n} within their {100 * LEVEL:.0f} % interval"
    )
    return f"{off}; {inside} ({100 * held.low:.0f} to {100 * held.high:.0f} %)"


def percent(part: float) -> str:
    """A share in percent, without its sign: two digits where it is small."""
    return f"{100 * part:.0f}" if part >= 0.095 or not part else f"{100 * part:.2g}"  # noqa: PLR2004


def _grouped(found: Iterable[Outcome], key: Callable[[Outcome], K]) -> dict[K, list[Outcome]]:
    groups: dict[K, list[Outcome]] = defaultdict(list)
    for each in found:
        groups[key(each)].append(each)
    return dict(groups)


def _runs(number: int) -> str:
    return f"{number:,} run{'s' * (number != 1)}"
