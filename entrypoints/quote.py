"""`mlflow run . -e quote`: what a run, a sweep or a grid would cost, here and on other GPUs."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from entrypoints import elsewhere
from entrypoints.elsewhere import NONE
from entrypoints.options import folder_for, options_of, run
from green_tune import bars
from green_tune import order as orders
from green_tune.config import GridConfig, Options, option
from green_tune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from green_tune.effort import Texts
    from green_tune.evidence import Known
    from green_tune.hardware import Device
    from green_tune.job import Found, Job
    from green_tune.meter import Meter
    from green_tune.offer import Market, Offer, Pair
    from green_tune.order import Order
    from green_tune.pace import Pace
    from green_tune.padding import Row
    from green_tune.run import Run
    from green_tune.tracking import Tracker

log = logging.getLogger(__name__)

LEAST_PROBE_S, ALL_PROBES_S = 1.5, 12.0


@dataclass(frozen=True, kw_only=True)
class QuoteConfig(Options):
    """What is quoted, and by what; beside the options of the command itself."""

    command: str = option("train", "What is quoted.", choices=orders.COMMANDS)
    probe: str = option(
        "auto",
        "Time some steps here for some seconds: auto where the store does not know better.",
        choices=("auto", "always", "never"),
    )
    probe_seconds: float = option(4.0, "How long a probe takes.", low=0.5, high=600.0)
    run: str = option(NONE, "Instead, project this measured run to gpu=, country=, pue= or start=.")
    trace: str = option(NONE, "For start=: a CSV of hourly intensities, as Electricity Maps' are.")
    start: str = option(NONE, "When the projected run would start: 2026-11-22T10:00 (UTC), best.")
    output: str = option(NONE, "Folder for the quote's tables and plots, which its run has anyway.")


def defaults() -> dict[str, str]:
    """The text of every option."""
    return orders.defaults() | QuoteConfig().to_params()


@click.command(
    help="What a command with these options would take, before it is run: memory, time, kWh and "
    "grams, on this machine and on GPUs that are not here. gpu=t4,l4,a100 sets them side by side; "
    "emissions_budget_kg= proposes what to leave out; run= projects a measured run elsewhere."
)
@options_of(GridConfig, QuoteConfig, defaults=defaults())
def quote(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _quote(asked))


def _quote(asked: dict[str, str]) -> None:
    ours = QuoteConfig().to_params()
    config = QuoteConfig.parse({name: text for name, text in asked.items() if name in ours})
    if config.run != NONE:
        elsewhere.project(config, asked)
        return
    for name in ("trace", "start"):
        if (text := getattr(config, name)) != NONE:
            raise ConfigError(f"{name}={text} is for a measured run, elsewhere: give run= as well")
    elsewhere.limits(asked)
    rest = {name: text for name, text in asked.items() if name not in ours}
    order = orders.read(config.command, rest | {"gpu": "auto"})

    from green_tune import job as jobs
    from green_tune import store

    devices = jobs.devices(asked["gpu"])
    found = _found(order)
    store.check_reachable(store.tracking_uri())
    folder = folder_for(config.output, "quote")
    asking = Asking(config=config, asked=rest, order=order, found=found, devices=devices)
    _offer(asking, asked, folder)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What was asked for, and what was found for it; devices with whether they are here."""

    config: QuoteConfig
    asked: Mapping[str, str]
    order: "Order"
    found: "Mapping[Pair, Found]"
    devices: "Sequence[tuple[Device, bool]]"

    @property
    def here(self) -> "Device | None":
        """The device of this machine among those that were asked for."""
        return next((device for device, here in self.devices if here), None)

    @property
    def one(self) -> "Found":
        """Any of the jobs, for what they share."""
        return next(iter(self.found.values()))


def _found(order: "Order") -> "dict[Pair, Found]":
    """What the runs need, each model and task once.

    Raises:
        UsageError: it cannot be had; or nothing can be said of a model.
    """
    from green_tune import job as jobs
    from green_tune.offer import pair

    found = {}
    for config in order.largest:
        one = jobs.find(config)
        if one.shape is None:
            raise ConfigError(
                f"model={config.model} cannot be quoted: its config.json does not tell its layers "
                "and widths, or it is a mixture of experts; run it once with few examples instead"
            )
        found[pair(config)] = one
    return found


def _offer(asking: Asking, asked: dict[str, str], folder: Path | None) -> None:
    """Makes the offers, in a run that has what finding them out has cost."""
    from green_tune import job, store
    from green_tune.footprint import GRAMS_PER_KG, Basis
    from green_tune.meter import Meter

    zone, pue = asking.one.intensity, asking.one.config.pue
    here = asking.here or job.device("cpu")  # which the quote itself is made on
    tags = {"gpu_type": here.gpu_type, "device": str(here)} | zone.to_tags()
    with Meter.on((here,), Basis(g_per_kwh=zone.g_per_kwh, pue=pue)) as meter:
        meter.open()  # from here on imports are measured: a run's own setup is foretold by them
        from green_tune import bill, views
        from green_tune.tracking import Tracker

        tracker = Tracker(store.tracking_uri())
        title = f"quote {asking.config.command}"
        with (
            tracker.run("quote", title, asked=asked, tags=tags) as current,
            bill.alone(current, meter),
        ):
            _show(asking, tracker, current, meter, folder)
    record = tracker.get(current.id)
    link = views.run_link(tracker.uri, current.experiment_id, current.id)
    grams = record.metrics["emissions_kg"] * GRAMS_PER_KG
    click.echo(f"\nthis quote itself took {grams:.2g} g CO2e")
    click.echo(views.where(tracker.uri, link))


def _show(
    asking: Asking, tracker: "Tracker", current: "Run", meter: "Meter", folder: Path | None
) -> None:
    with meter.phase("setup"):
        market, assumed = _market(asking, tracker, meter)
        knowing = _known(asking, tracker)
    if asking.here:
        knowing[asking.here.gpu_type] = _probed(asking, market, knowing, meter, tracker, current)
    offers = _offers(asking, market, knowing)
    rows = _xrays(market, offers)
    _tell(asking, market, offers, rows, assumed)
    _tell_limits(asking, market, offers, knowing)
    _leave(offers, rows, current, folder)


def _known(asking: Asking, tracker: "Tracker") -> "dict[str, Known]":
    """What the store holds of each device, in two searches for however many there are."""
    from green_tune.evidence import Known

    here = asking.here
    elsewhere = Known(records=tracker.newest() if len(asking.devices) > bool(here) else ())
    found = {device.gpu_type: elsewhere for device, _ in asking.devices}
    return found | ({here.gpu_type: Known(records=tracker.newest(here.gpu_type))} if here else {})


def _market(asking: Asking, tracker: "Tracker", meter: "Meter") -> "tuple[Market, bool]":
    """All that the offers share; and whether the number of tokens is assumed."""
    from green_tune import training
    from green_tune.experiment import fingerprint
    from green_tune.offer import Market
    from green_tune.query import Query
    from green_tune.results import SESSION_KINDS

    sessions = tracker.find(Query(kinds=SESSION_KINDS, newest=50)) if asking.order.shared else []
    texts, assumed = {}, False
    for key, found in asking.found.items():
        texts[key], guessed = training.texts_of(found)
        assumed = assumed or guessed
    return (
        Market(
            order=asking.order,
            found=asking.found,
            texts=texts,
            basis=meter.basis,
            fingerprint=fingerprint,
            sessions=sessions,
        ),
        assumed,
    )


def _probed(
    asking: Asking,
    market: "Market",
    knowing: "Mapping[str, Known]",
    meter: "Meter",
    tracker: "Tracker",
    current: "Run",
) -> "Known":
    """What is known of this machine: by the store, or else by timing it now."""
    from green_tune import evidence
    from green_tune.offer import first, pair

    here = asking.here
    assert here is not None
    known = knowing[here.gpu_type]
    offer = market.offer(here, known, here=True)
    if asking.config.probe == "never" or not offer.parts:
        return known
    poor: dict[Pair, list[Job]] = {}
    for part in offer.parts:
        if asking.config.probe == "always" or part.quote.evidence.layer == "table":
            poor.setdefault(pair(part.unit.config), []).append(part.job)
    setup = meter.spent_in("setup")
    seconds = min(asking.config.probe_seconds, max(LEAST_PROBE_S, ALL_PROBES_S / (len(poor) or 1)))
    sounded = dict(known.sounded)
    with bars.bar("probe", parts=poor.values()) as bar:
        for alike in bar:  # of a sweep, one whose steps are neither the smallest nor the largest
            job = sorted(alike, key=lambda one: one.plan.examples)[len(alike) // 2]
            texts = first(market.texts[pair(job.config)], job.config.max_train_examples)
            if found := _sounded(job, texts, meter, seconds, setup, tracker, current):
                sounded[evidence.sounded(job)] = found
    return replace(known, sounded=sounded, insists=asking.config.probe == "always")


def _sounded(  # noqa: PLR0913, PLR0917 - what is timed, by what, and where it goes
    job: "Job",
    texts: "Texts",
    meter: "Meter",
    seconds: float,
    setup: tuple[float, float],
    tracker: "Tracker",
    current: "Run",
) -> "tuple[Pace, str] | None":
    """A pace that is timed now, and left in a run of its own for quotes to come."""
    from green_tune import evidence, sounding, training
    from green_tune.errors import OutOfMemory, UsageError

    phase = partial(meter.phase, sync=training.synchronize)
    busy = meter.spent_in("train")
    try:
        with phase("setup"):
            sketch = sounding.sketch(job, texts)
        found = sounding.sound(sketch, phase, seconds)
    except (UsageError, OutOfMemory) as error:
        log.warning("no probe: %s", error)
        return None
    after = meter.spent_in("train")
    pace = sounding.paced(
        found,
        evidence.table(job),
        setup=setup,
        busy=(after[0] - busy[0], after[1] - busy[1]),
    )
    tags = evidence.tags_of_probe(job, found.note)
    name = f"probe {job.source.name} {job.task.name}"
    with tracker.run("probe", name, tags=tags, parent=current) as run:
        run.log_metrics(pace.to_metrics())
    return pace, f"a probe: {found.note}"


def _offers(asking: Asking, market: "Market", knowing: "Mapping[str, Known]") -> "list[Offer]":
    with bars.bar("devices", parts=asking.devices) as bar:
        return [market.offer(device, knowing[device.gpu_type], here=here) for device, here in bar]


def _chosen(offers: "Sequence[Offer]") -> "Offer | None":
    """The one that is here, or else the first that has room."""
    fitting = [offer for offer in offers if offer.parts]
    return next((offer for offer in fitting if offer.here), next(iter(fitting), None))


def _xrays(market: "Market", offers: "Sequence[Offer]") -> "dict[Pair, list[Row]]":
    """The padding of each model and task, at the price of the device that is here, or the first."""
    from green_tune import padding
    from green_tune.offer import first, pair

    chosen = _chosen(offers)
    found: dict[Pair, list[Row]] = {}
    for part in chosen.parts if chosen else ():
        config, shape = part.unit.config, part.job.shape
        assert shape is not None
        if pair(config) in found:
            continue
        found[pair(config)] = padding.xray(
            first(market.texts[pair(config)], config.max_train_examples),
            shape,
            config,
            part.job.plan,
            max_seq_len=market.found[pair(config)].max_seq_len,
            g_per_gflop=part.g_per_gflop,
        )
    return found


def _tell(
    asking: Asking,
    market: "Market",
    offers: "Sequence[Offer]",
    xrays: "Mapping[Pair, Sequence[Row]]",
    assumed: bool,
) -> None:
    """The whole answer, on the screen."""
    from green_tune import padding, quotation

    width = max(shutil.get_terminal_size().columns, 80)
    click.echo(quotation.report(asking.order, offers, asking.one.intensity, width))
    click.echo("")
    click.echo(quotation.tokens(market.texts, offers, assumed, width))
    chosen = _chosen(offers)
    device = chosen.device.gpu_type if chosen else ""
    for (model, task), rows in xrays.items():
        click.echo(f"\nPadding, {model} on {task}:\n{padding.report(rows, width, device)}")


def _tell_limits(
    asking: Asking, market: "Market", offers: "Sequence[Offer]", knowing: "Mapping[str, Known]"
) -> None:
    """Whether it stays within each budget; what to leave out is sought for emissions alone."""
    from green_tune import quotation

    limits, chosen = elsewhere.limits(asking.asked), _chosen(offers)
    if limits.emissions_budget_kg:
        click.echo("\n" + _trimmed(asking, market, offers, knowing, limits.emissions_budget_kg))
    if chosen:
        for line in quotation.limits(chosen, limits.energy_budget_kwh, limits.timeout_h):
            click.echo(f"\n{line}")


def _trimmed(
    asking: Asking,
    market: "Market",
    offers: "Sequence[Offer]",
    knowing: "Mapping[str, Known]",
    budget_kg: float,
) -> str:
    """What of the order would stay within the budget, on this machine or the first with room."""
    from green_tune import quotation, trim

    chosen = _chosen(offers)
    if not chosen:
        return "nothing to trim: it fits on none of these"
    known = knowing[chosen.device.gpu_type]
    if chosen.amount.emissions_kg <= budget_kg:
        return quotation.trimmed((), chosen, budget_kg, "")

    def takes(order: "Order") -> float:
        other = replace(market, order=order)
        offer = other.offer(chosen.device, known, here=chosen.here)
        if not offer.parts:
            raise ConfigError(offer.refusal)
        return offer.amount.emissions_kg

    examples = max(len(texts.train) for texts in market.texts.values())
    asked = {**asking.asked, "gpu": "auto"}
    found = trim.proposals(asking.config.command, asked, takes, budget_kg, examples)
    return quotation.trimmed(found, chosen, budget_kg, quotation.cheaper(offers, budget_kg))


def _leave(
    offers: "Sequence[Offer]",
    xrays: "Mapping[Pair, Sequence[Row]]",
    current: "Run",
    folder: Path | None,
) -> None:
    """Leaves the quote in its run and, where asked, in a folder: a table, and plots of padding."""
    from green_tune import quotation, xray

    rows = quotation.rows(offers)
    current.log_table(rows, "quote.json")
    if folder:
        (folder / "quote.json").write_text(json.dumps(rows, indent=2) + "\n")
    for (model, task), padded in xrays.items():
        drawn = xray.xray_figure(padded, f"{Path(model).name} on {task}")
        if drawn:
            name = f"padding-{Path(model).name}-{task}.png"
            current.log_figure(drawn[0], name)
            if folder:
                drawn[0].savefig(folder / name)
    chosen = next((offer for offer in offers if offer.here and offer.parts), None)
    if chosen and len(chosen.parts) == 1:
        current.log_metrics(chosen.parts[0].quote.to_metrics())


if __name__ == "__main__":
    quote()
