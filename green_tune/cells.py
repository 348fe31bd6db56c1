"""What the tables on a terminal are made of: cells from records, and a table as text.

A door to rich. It knows how one figure is written, not which ones belong together.
"""

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from green_tune.results import RunRecord

KG_TO_G = 1000.0
MINUTE_S, HOUR_S = 60, 3600


def new_table(*headings: str, gap: int = 1) -> Table:
    """An empty table; texts stand left, figures right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False)
    for heading in headings:
        texts = ("", "run", "model", "task", "gpu", "alias", "version", "from")
        table.add_column(heading, justify="left" if heading in texts else "right", no_wrap=True)
    return table


def to_text(table: Table, width: int) -> str:
    """The table as plain text of at most that many columns."""
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def star(records: Sequence[RunRecord]) -> str:
    """An asterisk where some intensity was assumed; the line below the table explains it."""
    return "*" if any(r.tags.get("intensity_assumed") == "true" for r in records) else ""


def loss(record: RunRecord) -> str:
    """Validation loss; of a run that has none, how it ended."""
    if record.status == "FINISHED":
        loss = record.metrics.get("val_loss")
        return "" if loss is None else f"{loss:.4f}"
    return record.status.lower()


def grams(record: RunRecord) -> str:
    """Emissions in g CO2e."""
    return figure(record, "emissions_kg", KG_TO_G)


def time(record: RunRecord) -> str:
    """How long it ran."""
    hours = record.metrics.get("runtime_h")
    return "" if hours is None else duration(hours)


def figure(record: RunRecord, name: str, factor: float = 1.0) -> str:
    """A metric in three digits; empty where there is none."""
    value = record.metrics.get(name)
    return "" if value is None else f"{value * factor:.3g}"


def cropped(text: str, width: int) -> str:
    """A text with what does not fit left out."""
    return text if len(text) <= width else text[: width - 1] + "…"


def short(text: str) -> str:
    """A number in as few characters as say it: 0.00123456 as 1.2e-03."""
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:.1e}" if number and abs(number) < 0.01 else f"{number:g}"  # noqa: PLR2004


def duration(hours: float) -> str:
    """A time in the unit that a reader would choose: 1.4 s, 12 min, 3.5 h."""
    seconds = hours * HOUR_S
    if seconds < MINUTE_S:
        return f"{seconds:.1f} s"
    return f"{seconds / MINUTE_S:.1f} min" if seconds < HOUR_S else f"{hours:.2f} h"
