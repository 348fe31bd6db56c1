"""`mlflow run . -e compare`: runs read back from the store, side by side, the front marked."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from entrypoints.options import options_of, run
from green_tune.config import Options, option
from green_tune.errors import ConfigError

if TYPE_CHECKING:
    from green_tune.footprint import Segment
    from green_tune.intensity import Intensity
    from green_tune.results import RunRecord
    from green_tune.trace import Trace
    from green_tune.tracking import Tracker

log = logging.getLogger(__name__)

SEGMENTS = "energy.csv"
ALL, RECORDED = "all", "recorded"
UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Options):
    """Which runs, and in which form."""

    model: str = option(ALL, "Base model, as in train, or all.")
    task: str = option(ALL, "Task, or all.")
    gpu: str = option(ALL, "GPU that was found (t4, a100, cpu), or all.")
    study: str = option(ALL, "Study of a sweep, or all.")
    since: str = option(ALL, "Started at or after: 2026-11-22, 2026-11-22T10:00 (UTC), 12h, 7d.")
    until: str = option(ALL, "Started before; written like since.")
    country: str = option(
        RECORDED,
        "Derive kilograms anew for an ISO code (FRA), g/kWh (56) or a CSV of hourly intensities "
        "in UTC, as Electricity Maps has them; recorded leaves them.",
    )
    format: str = option("table", "Form of the output.", choices=("table", "csv", "json"))
    output: str = option("-", "File to write; - for the screen.")


@click.command(help="Print runs from the store side by side, the Pareto front marked.")
@options_of(CompareConfig)
def compare(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _compare(asked))


def _compare(asked: dict[str, str]) -> None:
    config = CompareConfig.parse(asked)
    chosen = {k: "" if v == ALL else v for k, v in config.to_params().items()}
    since, until = _moment(chosen["since"]), _moment(chosen["until"])

    from green_tune import store

    given = _given(config.country)
    store.check_reachable(store.tracking_uri())

    from green_tune import report
    from green_tune.query import Query
    from green_tune.tracking import Tracker

    tracker = Tracker(store.tracking_uri())
    query = Query(
        model=chosen["model"],
        task=chosen["task"],
        gpu=chosen["gpu"],
        study=chosen["study"],
        since=since,
        until=until,
    )
    with tracker.adopted("compare", "compare", asked):
        records = tracker.find(query)
        if given:
            records = _recomputed(records, given, tracker)
        width = max(shutil.get_terminal_size().columns, 80)
        text = {
            "table": lambda: report.comparison(records, width),
            "csv": lambda: report.to_csv(records),
            "json": lambda: report.to_json(records),
        }[config.format]()
        _write(text, config.output)


def _given(country: str) -> "Intensity | Trace | None":
    """What the kilograms are to be derived from; None for what was recorded."""
    from green_tune import intensity, trace

    if country == RECORDED:
        return None
    return trace.read(country) if _is_file(country) else intensity.resolve(country)


def _is_file(country: str) -> bool:
    try:
        return country.lower().endswith(".csv") or Path(country).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # too long for a path, or of no user
        return False


def _recomputed(
    records: "Sequence[RunRecord]", given: "Intensity | Trace", tracker: "Tracker"
) -> "list[RunRecord]":
    """The records with other kilograms; the store keeps its own."""
    from green_tune import recompute
    from green_tune.trace import Trace

    if not isinstance(given, Trace):
        return [recompute.with_intensity(record, given) for record in records]
    segments = {record.run_id: _segments(record, tracker) for record in records}
    for line in recompute.warnings(records, given, segments):
        log.warning(line)
    return [recompute.with_trace(record, given, segments[record.run_id]) for record in records]


def _segments(record: "RunRecord", tracker: "Tracker") -> "list[Segment]":
    """What the run spent when; none where it does not say so in a form that can be read."""
    from green_tune import footprint

    if "energy_kwh" not in record.metrics:
        return []
    try:
        return footprint.from_csv(tracker.read_text(record.run_id, SEGMENTS) or "")
    except ValueError:  # cut off, or somebody else's
        return []


def _write(text: str, place: str) -> None:
    if place == "-":
        click.echo(text.rstrip("\n"))
        return
    try:
        Path(place).write_text(text.rstrip("\n") + "\n")
    except OSError as error:
        raise ConfigError(f"output={place} cannot be written: {error.strerror}") from None
    click.echo(f"written to {place}", err=True)


def _moment(text: str) -> datetime | None:
    """A time in UTC from a date, a date with a time, or an age such as 7d."""
    if not text:
        return None
    try:
        if text[:-1].isdecimal() and text[-1] in UNITS:
            return datetime.now(UTC) - timedelta(**{UNITS[text[-1]]: int(text[:-1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text} is no time; write 2026-11-22, 2026-11-22T10:00 or an age: 12h, 7d, 2w"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


if __name__ == "__main__":
    compare()
