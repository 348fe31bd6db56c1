"""What a command, or a run that was measured, would take on a machine that this is not."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from entrypoints.options import folder_for
from green_tune.config import SweepConfig, TrainConfig
from green_tune.errors import ConfigError, HardwareMismatch, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrypoints.quote import QuoteConfig
    from green_tune.hardware import Gpu
    from green_tune.projection import Projection, Target
    from green_tune.results import RunRecord
    from green_tune.trace import Trace
    from green_tune.tracking import Tracker

NONE, RECORDED, BEST = "-", "world", "best"
LIMITS = ("emissions_budget_kg", "energy_budget_kwh", "timeout_h")  # of what is yet to be run
PROJECTED = ("t4", "l4", "a100-40", "a100-80", "h100")  # where nobody says which


@contextmanager
def quoted_elsewhere(command: str, asked: Mapping[str, str]) -> Iterator[None]:
    """A block that says what a command would take on the GPU that is not here, beside its error."""
    try:
        yield
    except HardwareMismatch as error:
        with suppress(UsageError):  # what else is wrong, it says where that GPU is
            if text := _elsewhere(command, asked):
                error.add_note(text)
        raise


def _elsewhere(command: str, asked: Mapping[str, str]) -> str:
    """By the table of GPUs alone, so that nothing has to be imported, loaded or asked for."""
    from green_tune import hardware, job, offer, order, quotation
    from green_tune.effort import Texts
    from green_tune.evidence import Known
    from green_tune.fit import as_device
    from green_tune.footprint import Basis
    from green_tune.tokens import Chunks, Encoder

    name = asked["gpu"].lower()
    rows = [row for row in hardware.GPUS if name in (row.name, row.family)]
    if not rows or asked["data"] == "hub":
        return ""
    wanted = order.read(command, {**asked, "gpu": "auto"})
    found = {offer.pair(config): job.find(config, ask_hub=False) for config in wanted.largest}
    if any(each.shape is None for each in found.values()):
        return ""
    texts = {
        pair: Texts.of(Encoder(Chunks(), each.max_seq_len), each.data)
        for pair, each in found.items()
    }
    zone, pue = next((each.intensity, each.config.pue) for each in found.values())
    market = offer.Market(
        order=wanted, found=found, texts=texts, basis=Basis(g_per_kwh=zone.g_per_kwh, pue=pue)
    )
    made = market.offer(as_device(rows[0]), Known(), here=False)
    text = quotation.brief(made, zone)
    if made.refusal:
        return text
    return (
        f"{text}\nTokens are taken to be of four characters; counted, and beside other GPUs, with\n"
        f"the same parameters and: mlflow run . -e quote -P command={command} -P gpu={name}"
    )


def project(config: "QuoteConfig", asked: Mapping[str, str]) -> None:
    """A measured run, elsewhere."""
    from green_tune import hardware, intensity, store
    from green_tune import trace as traces

    _refuse(config, asked)
    pue = _pue(asked)
    zone = None if asked["country"] == RECORDED else intensity.resolve(asked["country"])
    trace = None if config.trace == NONE else traces.read(config.trace)
    start = _start(config, trace)
    names = [name.strip() for name in asked["gpu"].lower().split(",")]
    for name in names:
        hardware.check_known(name)
    if "cpu" in names:
        raise ConfigError("gpu=cpu: a run is projected to GPUs of the table; quote it on a CPU")
    folder = folder_for(config.output, "quote")
    store.check_reachable(store.tracking_uri())

    from green_tune.projection import Target, rows
    from green_tune.tracking import Tracker

    tracker = Tracker(store.tracking_uri())
    if not tracker.has(config.run):
        raise ConfigError(f"run={config.run} is not in the store")
    when = start if trace else None
    target = Target(intensity=zone, trace=trace, start=when, pue=pue)
    with tracker.adopted("quote", f"quote of {config.run[:8]}", asked):
        found = _projected(tracker, config, target, names)
    if folder:
        (folder / "quote.json").write_text(json.dumps(rows(found), indent=2) + "\n")


def limits(asked: Mapping[str, str]) -> SweepConfig:
    """The most kg CO2e, kWh and hours that a command may take; 0 for no limit.

    Raises:
        ConfigError: one of them is no such figure.
    """
    return SweepConfig.parse({name: asked[name] for name in LIMITS})


def _refuse(config: "QuoteConfig", asked: Mapping[str, str]) -> None:
    """Looks for options that say nothing of a run that was measured.

    Raises:
        ConfigError: one of them was given, and is not at its default.
    """
    budgets = limits(asked)
    given = [name for name in LIMITS if getattr(budgets, name)]
    given = ["command"] * (config.command != "train") + given
    if given:
        name = given[0]
        raise ConfigError(f"{name}={asked[name]} is for what is yet to be run, not with run=")


def _pue(asked: Mapping[str, str]) -> float | None:
    """The PUE that was asked for; None for the run's own, as it is where nobody says which."""
    pue = TrainConfig.parse({"pue": asked["pue"]}).pue
    return None if pue == TrainConfig().pue else pue


def _projected(
    tracker: "Tracker", config: "QuoteConfig", target: "Target", names: "Sequence[str]"
) -> "list[Projection]":
    from green_tune import hardware, projection
    from green_tune.query import KINDS, Query

    record = tracker.get(config.run)
    moved = any(each is not None for each in (target.intensity, target.trace, target.pue))
    wanted = PROJECTED if names == ["auto"] and not moved else names
    rows: list[Gpu | None] = [row for row in hardware.GPUS if {row.name, row.family} & set(wanted)]
    runs = tracker.find(Query(kinds=KINDS, task=record.params.get("task", "")))
    found = []
    if target.trace and target.start and config.start == BEST:
        hours = record.metrics.get("runtime_h", 0.0)  # without one, `project` refuses the run
        day = (target.start, target.start + timedelta(days=1))
        best = projection.best_start(target.trace, hours, day)
        target = replace(target, start=best.at)
        click.echo(
            f"starting at {best.at:%Y-%m-%d %H:%M} UTC ({best.g_per_kwh:.0f} g/kWh) it would emit "
            f"{best.saved_of_now:.0%} less than at the trace's first hour, and "
            f"{best.saved_of_worst:.0%} less than at the worst hour of that day\n"
        )
    for row in rows or [None]:
        if row and (why := _no_room(record, row)):
            click.echo(why)
            continue
        found.append(projection.project(record, replace(target, gpu=row), runs))
    if found:
        click.echo(projection.report(found, record))
    return found


def _no_room(record: "RunRecord", row: "Gpu") -> str:
    """Why a run would not fit there; empty where it would, or where its base model is not known."""
    from green_tune import models, plan
    from green_tune.errors import ModelError
    from green_tune.shapes import Shape

    known = TrainConfig().to_params()
    config = TrainConfig.parse({k: text for k, text in record.params.items() if k in known})
    try:
        source = models.resolve(config.model)
        shape = models.shape_of(source) or Shape.of(models.config_of(source) or {})
    except ModelError:  # its folder was on another machine
        return ""
    if shape is None or plan.fits(config, shape, row):
        return ""
    return f"{config.model} does not fit on {row.name} with this run's parameters"


def _start(config: "QuoteConfig", trace: "Trace | None") -> datetime:
    """When a projected run starts; with `best`, from when on the best hour is sought."""
    if config.start != NONE and trace is None:
        raise ConfigError(f"start={config.start} needs trace=, hourly intensities")
    if config.start in (NONE, BEST):
        return datetime.fromtimestamp(trace.rows[0][0], UTC) if trace else datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(config.start)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        raise ConfigError(
            f"start={config.start} is no moment; write 2026-11-22T10:00 (UTC), or best"
        ) from None
