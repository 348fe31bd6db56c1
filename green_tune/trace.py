"""A trace: how carbon intensity went over time, read from a CSV of Electricity Maps.

It answers for a stretch of time, or says that it cannot: where the file has a gap there is no
figure. It knows nothing of runs and of energy.
"""

import csv
import io
import math
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from operator import itemgetter
from pathlib import Path

from green_tune.errors import ConfigError
from green_tune.intensity import HIGHEST_G_PER_KWH

HOUR_S, DAY_S = 3600.0, 86400.0
UNNAMED = "unnamed zone"
KINDS = {"life cycle": ("lifecycle", "lca"), "direct": ("direct",)}  # the better one first
ZONE_COLUMNS = ("zoneid", "zonename", "country")  # the most exact one first
SHOWN = 4  # names in a message

Line = tuple[int, list[str]]  # its number in the file, its cells


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Carbon intensities of one zone, each from its own time on.

    `kind` says what they count: life cycle, or direct (what leaves the power plants alone).
    A row holds for `step_s`, and one hour longer where the next one is missing.
    """

    zone: str
    kind: str
    source: str
    rows: Sequence[tuple[float, float]]  # (UTC in seconds since 1970, g CO2e per kWh), sorted
    step_s: float = HOUR_S

    @property
    def years(self) -> str:
        """The year of its figures, or the first and the last: 2026, 2025..2026."""
        ends = (datetime.fromtimestamp(self.rows[end][0], UTC) for end in (0, -1))
        return "..".join(dict.fromkeys(str(moment.year) for moment in ends))

    def mean_g_per_kwh(self, start_s: float, seconds: float) -> float | None:
        """The mean over a stretch, each intensity weighted by its time in it.

        None where some of the stretch is not covered. A stretch of no length has the intensity
        of its moment.
        """
        if self.gap(start_s, seconds) is not None:
            return None
        held = self._held(start_s, seconds)
        spans = [(until - since, g) for since, until, _, g in held]
        length = math.fsum(span for span, _ in spans)
        return math.fsum(span * g for span, g in spans) / length if length else held[0][3]

    def gap(self, start_s: float, seconds: float) -> float | None:
        """The first moment of a stretch without a figure, in UTC seconds; None where all have one.

        Electricity Maps leaves single hours out; carrying one forward longer would be guessing.
        """
        held = self._held(start_s, seconds)
        if not held:
            return start_s
        ends = [(since, until, time + self.step_s + HOUR_S) for since, until, time, _ in held]
        return next((max(since, end) for since, until, end in ends if not until <= end), None)

    def _held(self, start_s: float, seconds: float) -> list[tuple[float, float, float, float]]:
        """Since when, until when, the time and the figure of each row that the stretch meets.

        Empty where the stretch begins before the first row.
        """
        end_s = start_s + seconds
        first = bisect_right(self.rows, start_s, key=itemgetter(0)) - 1
        if first < 0:
            return []
        after = bisect_left(self.rows, end_s, lo=first + 1, key=itemgetter(0))
        met = self.rows[first:after]
        edges = [start_s, *(time for time, _ in met[1:]), end_s]
        return [(edges[i], edges[i + 1], time, g) for i, (time, g) in enumerate(met)]


def read(path: str | Path) -> Trace:
    """The trace in a CSV of Electricity Maps' data portal, of any year.

    Life-cycle intensities are taken where the file has them, else direct ones.

    Raises:
        ConfigError: it cannot be read, or some of it is not what it should be.
    """
    path = Path(path)
    header, table = _table(path)
    names = [_plain(name) for name in header]
    kind, column = _intensity_column(names, header, path)
    times = _times(table, _time_column(names, header, path), path)
    rows = _rows(times, [(number, cells[column].strip()) for number, cells in table], path)
    first, last = (datetime.fromtimestamp(rows[end][0], UTC).date() for end in (0, -1))
    return Trace(
        zone=_zone(table, names, path),
        kind=kind,
        source=f"{path.name} ({kind}, {first}..{last})",
        rows=rows,
        step_s=_step_s(times, path),
    )


def _table(path: Path) -> tuple[list[str], list[Line]]:
    """The header, and the lines with as many cells as it has."""
    lines = _lines(path)
    if not lines:
        raise ConfigError(f"{path} is empty; a CSV of hourly intensities is needed")
    header = lines[0][1]
    if len(header) == 1:
        raise ConfigError(f"{path} has one column, {header[0]!r}; commas must stand between cells")
    if not lines[1:]:
        raise ConfigError(f"{path} has a header, but no rows")
    for number, cells in lines[1:]:
        if len(cells) != len(header):  # cut off, or shifted by a comma inside of a number
            raise ConfigError(
                f"{path}, line {number}: {len(cells)} cells under {len(header)} columns; "
                "each column has one cell"
            )
    return header, lines[1:]


def _lines(path: Path) -> list[Line]:
    """The lines of a CSV, empty ones left out."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    try:
        lines = [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num} is not CSV: {error}") from None
    return [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]


def _text(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8-sig")
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder; give the CSV itself") from None
    except (FileNotFoundError, RuntimeError):  # or the home of nobody: ~name/fr.csv
        raise ConfigError(
            f"{path} does not exist; give a CSV of hourly intensities, an ISO code or g/kWh"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is not text in UTF-8; save it as CSV (UTF-8)") from None


def _plain(name: str) -> str:
    """A column's name without what varies from year to year: gCO₂eq/kWh is gco2eqkwh."""
    folded = unicodedata.normalize("NFKC", name).lower()
    return "".join(letter for letter in folded if letter.isalnum())


def _time_column(names: Sequence[str], header: Sequence[str], path: Path) -> int:
    for column, name in enumerate(names):
        if "utc" in name and ("date" in name or "time" in name):
            return column
    raise ConfigError(
        f"{path} has no column of times in UTC, such as Datetime (UTC), and local ones are not "
        f"read; its columns: {', '.join(header)}"
    )


def _intensity_column(names: Sequence[str], header: Sequence[str], path: Path) -> tuple[str, int]:
    """What the best column of intensities in g/kWh counts, and which one it is."""
    for kind, words in KINDS.items():
        for column, name in enumerate(names):
            grams = "gco2" in name and "kgco2" not in name and "kwh" in name
            if "carbonintensity" in name and grams and any(word in name for word in words):
                return kind, column
    raise ConfigError(
        f"{path} has no column such as Carbon intensity gCO₂eq/kWh (Life cycle) or (direct); "
        f"its columns: {', '.join(header)}"
    )


def _times(table: Sequence[Line], column: int, path: Path) -> list[float]:
    """The times of all lines, in UTC seconds since 1970."""
    return [_time(cells[column].strip(), f"{path}, line {number}") for number, cells in table]


def _time(text: str, place: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{place}: {text!r} is no time; write 2026-11-22 10:00:00 (UTC)"
        ) from None


def _step_s(times: Sequence[float], path: Path) -> float:
    """The smallest spacing of the file, at most an hour."""
    ordered = sorted(set(times))
    spacing = min((b - a for a, b in pairwise(ordered)), default=HOUR_S)
    if spacing >= DAY_S:  # else a day's mean would pass for that of its first hours
        raise ConfigError(
            f"{path} has one row in {spacing / HOUR_S:g} h; a trace has one an hour, or more"
        )
    return min(spacing, HOUR_S)


def _rows(
    times: Sequence[float], texts: Sequence[tuple[int, str]], path: Path
) -> tuple[tuple[float, float], ...]:
    """Times and intensities, sorted; a cell without a figure is a gap."""
    known: dict[float, float] = {}
    for time, (number, text) in zip(times, texts, strict=True):
        if text:
            figure = _figure(text, f"{path}, line {number}")
            if known.setdefault(time, figure) != figure:
                raise ConfigError(
                    f"{path}, line {number}: {datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M} "
                    f"UTC has {known[time]:g} and {figure:g} g/kWh; leave the right one"
                )
    if not known:
        raise ConfigError(f"{path} has no intensity in any of its {len(texts)} rows")
    return tuple(sorted(known.items()))


def _figure(text: str, place: str) -> float:
    try:
        figure = float(text)
    except ValueError:
        figure = math.nan
    if not 0 <= figure <= HIGHEST_G_PER_KWH:
        raise ConfigError(
            f"{place}: {text!r} is no intensity in g CO2e per kWh; 0 to {HIGHEST_G_PER_KWH:g}"
        )
    return figure


def _zone(table: Sequence[Line], names: Sequence[str], path: Path) -> str:
    """The one zone of the file: its id, or else its name."""
    for column in [names.index(name) for name in ZONE_COLUMNS if name in names]:
        zones = list(dict.fromkeys(cells[column].strip() for _, cells in table))
        if len(zones) > 1:
            more = ", ..." if len(zones) > SHOWN else ""
            shown = ", ".join(zone or "(empty)" for zone in zones[:SHOWN])
            raise ConfigError(f"{path} holds {len(zones)} zones ({shown}{more}); keep one")
        if zones[0]:
            return zones[0]
    return UNNAMED
