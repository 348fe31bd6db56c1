"""`mlflow run . -e compare`: runs read back from the store, side by side, the front marked."""

import logging
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from entrypoints.options import folder_for, found, options_of, run
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
    study: str = option(ALL, "Study of a sweep or a grid, or all.")
    since: str = option(ALL, "Started at or after: 2026-11-22, 2026-11-22T10:00 (UTC), 12h, 7d.")
    until: str = option(ALL, "Started before; written like since.")
    filter: str = option(ALL, "Besides, a filter in MLflow's grammar: params.epochs = '1'.")
    country: str = option(
        RECORDED,
        "Derive kilograms anew for an ISO code (FRA), g/kWh (56) or a CSV of hourly intensities "
        "in UTC, as Electricity Maps has them; recorded leaves them.",
    )
    target_loss: float = option(
        0.0, "Validation loss to which grams are counted; 0: what most runs reach.", low=0.0
    )
    format: str = option(
        "report",
        "Findings, advice and figures as a page; or the runs alone.",
        choices=("report", "table", "csv", "json"),
    )
    output: str = option("-", "Folder for a report, which its run holds anyway; else a file.")


@click.command(help="Compare runs from the store: findings, advice, figures and tables.")
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

    from green_tune import selection
    from green_tune.query import KINDS, RESULTS, Query
    from green_tune.tracking import Tracker

    tracker = Tracker(store.tracking_uri())
    query = Query(
        model=chosen["model"],
        task=chosen["task"],
        gpu=chosen["gpu"],
        study=chosen["study"],
        filter=chosen["filter"],
        parts=True,
        since=since,
        until=until,
        kinds=RESULTS if config.format == "report" else KINDS,
    )
    records = [selection.legible(record) for record in found(query, tracker)]
    if given:
        records = _recomputed(records, given, tracker)
    if config.format == "report":
        _report(records, given, config, asked, tracker)
        return
    with tracker.adopted("compare", "compare", asked):
        _print(records, config)


def _print(records: "Sequence[RunRecord]", config: CompareConfig) -> None:
    from green_tune import report

    width = max(shutil.get_terminal_size().columns, 80)
    text = {
        "table": lambda: report.comparison(records, width),
        "csv": lambda: report.to_csv(records),
        "json": lambda: report.to_json(records),
    }[config.format]()
    _write(text, config.output)


def _report(
    records: "Sequence[RunRecord]",
    given: "Intensity | Trace | None",
    config: CompareConfig,
    asked: dict[str, str],
    tracker: "Tracker",
) -> None:
    """Makes the report, leaves it in a run of its own and, where asked, in a folder."""
    from green_tune import selection, views
    from green_tune.query import EXPERIMENT

    selected = selection.select(records, given)
    if not selected.records:
        why = "; ".join(f"{len(some)} {why}" for why, some in selected.left_out.items())
        raise ConfigError(f"no run can be compared: {why or 'none of them is a result'}")
    links = {
        record.run_id: views.run_link(tracker.uri, record.tags[EXPERIMENT], record.run_id)
        for record in records
    }

    folder = folder_for(config.output, "report")

    from green_tune import dossier, page  # matplotlib, scipy and Optuna, once it is worth it

    case = dossier.Case(selection=selected, links=links, target_loss=config.target_loss or None)
    with (
        tracker.run("compare", f"compare {len(selected.records)} runs", asked=asked) as current,
        TemporaryDirectory() as scratch,
    ):
        document = dossier.make(case)
        with click.progressbar(page.files(document), label="writing", file=sys.stderr) as files:
            for name, content in files:
                path = Path(scratch) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        current.log_folder(Path(scratch), "")
        copied = _copied(Path(scratch), folder) if folder else None
        current.set_tags(dossier.to_tags(document))
        out = sum(map(len, selected.left_out.values()))
        current.log_metrics({"runs_compared": len(selected.records), "runs_left_out": out})
        tracker.set_experiment_tags(views.usual_views())
    click.echo(dossier.in_short(document, max(shutil.get_terminal_size().columns, 80)))
    click.echo(f"\nreport: {copied or tracker.place(current.id)}/report.html")
    link = views.artifact_link(tracker.uri, current.experiment_id, current.id, "report.html")
    click.echo(views.where(tracker.uri, link))


def _copied(report: Path, folder: Path) -> Path | None:
    """Copies a report file by file, so that a folder keeps its permissions; says where it is.

    None, with a warning, where it has no room there: it is in its run all the same.
    """
    try:
        for path in sorted(path for path in report.rglob("*") if path.is_file()):
            to = folder / path.relative_to(report)
            to.parent.mkdir(exist_ok=True)
            to.write_bytes(path.read_bytes())
    except OSError as error:
        log.warning(f"{error.filename or folder} cannot be written: {error.strerror}")
        return None
    return folder


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
