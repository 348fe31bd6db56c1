"""`mlflow run . -e evaluate`: an adapter's task metrics and energy, beside its base model."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import click

from entrypoints.options import options_of, run
from green_tune.config import Options, option
from green_tune.errors import ConfigError

if TYPE_CHECKING:
    from green_tune.adapters import Named
    from green_tune.appraisal import Appraisal
    from green_tune.data import Split
    from green_tune.results import RunRecord
    from green_tune.tracking import Tracker

AUTO, NONE = "auto", "-"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Options):
    """Which adapter, on which examples."""

    adapter: str = option(
        NONE, "Run id, registered NAME, NAME@ALIAS or NAME/VERSION, or a folder; needed."
    )
    data: str = option(
        AUTO, "sample, hub, a folder, or a file of JSON lines; auto: what it was trained on."
    )
    split: str = option("test", "Split of the data: train, validation, test.")
    examples: int = option(256, "Predict only the first n; 0 for all.", low=0)
    gpu: str = option(AUTO, "auto, cpu, or a GPU of the table, such as t4, l4, a100.")
    country: str = option(
        "world",
        "Where the power is made: ISO code (FRA), g CO2e per kWh (56), or world (assumed).",
    )
    pue: float = option(1.0, "Power usage effectiveness of the data centre.", low=1.0, high=10.0)


@click.command(help="Score an adapter beside its base model; measure what predictions cost.")
@options_of(EvaluateConfig)
def evaluate(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _evaluate(asked))


def _evaluate(asked: dict[str, str]) -> None:
    config = EvaluateConfig.parse(asked)
    if config.adapter == NONE:
        raise ConfigError("adapter= is needed: a run id, a registered name, or a folder")

    from green_tune import intensity, job, store

    zone, device = intensity.resolve(config.country), job.device(config.gpu)
    store.check_reachable(store.tracking_uri())

    from green_tune import adapters, data, parcel, promotion, tasks
    from green_tune.registry import Registry
    from green_tune.tracking import Tracker

    tracker, registry = Tracker(store.tracking_uri()), Registry(store.tracking_uri())
    named = adapters.find(config.adapter, registry)
    with TemporaryDirectory(prefix="green-tune-evaluate-") as scratch:
        folder = adapters.bring(named, registry, Path(scratch))
        where = config.data if config.data != AUTO else _trained_on(named, tracker)
        recipe = parcel.check_recipe(folder)
        task, labels = tasks.resolve(recipe["task"]), recipe["labels"]
        split, train = data.to_evaluate(
            task, where, config.split, most=config.examples, labels=labels
        )

        from green_tune import evaluation  # and torch

        case = evaluation.Case(
            name=named.text,
            folder=folder,
            address=named.run_address,
            split=split,
            train=train,
            zone=zone,
            pue=config.pue,
            device=device,
        )
        found, record = evaluation.run(case, asked, tracker)
    if named.version:
        registry.set_tags(named.version, promotion.evaluation_tags(record))
    click.echo(_table(config.adapter, found, record, split))
    click.echo(_where(record, tracker))


def _trained_on(named: "Named", tracker: "Tracker") -> str:
    if not named.run_id:
        raise ConfigError("data= is needed: a folder with an adapter does not say its data")
    return tracker.get(named.run_id).params.get("data", "sample")


def _where(record: "RunRecord", tracker: "Tracker") -> str:
    from green_tune import views
    from green_tune.query import EXPERIMENT

    link = views.run_link(tracker.uri, record.tags[EXPERIMENT], record.run_id)
    return views.where(tracker.uri, link)


def _table(name: str, found: "Appraisal", record: "RunRecord", split: "Split") -> str:
    from green_tune import cells, facts, sci

    names = list(found.adapter.scores)
    table = cells.new_table("model", *names)
    rows = {"adapter": found.adapter.scores, "base model": found.base.scores}
    for label, scored in (rows | {found.trivial_name: found.trivial}).items():
        table.add_row(label, *(f"{scored[name]:.3f}" for name in names))
    where = sci.site(record.tags)
    lines = [
        f"{name} on {split.source}, {found.count} examples",
        cells.to_text(table, max(shutil.get_terminal_size().columns, 80)),
    ]
    for label, made in (("adapter", found.adapter), ("base model", found.base)):
        if where:
            per = sci.per_thousand(made.energy_kwh, made.runtime_h, found.count, where)
            lines.append(
                f"1,000 predictions of the {label}: "
                f"{facts.energy(made.energy_kwh / found.count * 1000)}, "
                f"{facts.mass(per.operational_g / per.units / 1000)} CO2e, "
                f"SCI {facts.mass(per.per_unit_g / 1000)}"
            )
    share = record.metrics["energy_modelled_share"]
    return "\n".join([*lines, facts.basis(record.tags, share)])


if __name__ == "__main__":
    evaluate()
