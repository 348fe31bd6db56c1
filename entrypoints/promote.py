"""`mlflow run . -e promote`: the best adapters of a study, as versions in the registry."""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from entrypoints.options import found, options_of, run
from green_tune.config import Options, option
from green_tune.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from green_tune.choice import Chosen
    from green_tune.promotion import Origin
    from green_tune.registry import Registry
    from green_tune.results import RunRecord
    from green_tune.tracking import Tracker
    from green_tune.versions import Version

log = logging.getLogger(__name__)

ALL, AUTO, NONE = "all", "auto", "none"
RUN_ID = re.compile(r"[0-9a-f]{32}")
NAME = re.compile(r"\w[\w. -]{0,199}")
ALIAS = re.compile(r"(?!latest$|v?\d+$)[a-z0-9_-]{1,200}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class PromoteConfig(Options):
    """Which runs, which of their adapters, and what these are called."""

    study: str = option(ALL, "Study of a sweep or a grid, or all.")
    model: str = option(ALL, "Base model, as in train, or all.")
    task: str = option(ALL, "Task, or all.")
    gpu: str = option(ALL, "GPU that was found (t4, a100, cpu), or all.")
    filter: str = option(ALL, "Besides, a filter in MLflow's grammar: params.epochs = '1'.")
    rule: str = option(
        "best,greenest,balanced",
        "best (lowest loss), greenest (least emissions near it), balanced (the knee), or a run id.",
    )
    within_percent: float = option(
        5.0, "How far from the best loss the greenest may be.", low=0.0, high=1000.0
    )
    name: str = option(AUTO, "Registered model; auto: base model and task, such as gemma-2b-qa.")
    alias: str = option(AUTO, "Alias; auto: that of the rule; none.")
    examples: int = option(
        64, "Score what is new on its first n validation examples, if it was not; 0: not.", low=0
    )
    force: bool = option(False, "Move an alias even to a version that is no better.")


@click.command(help="Register the best adapters, with their card, and move the aliases to them.")
@options_of(PromoteConfig)
def promote(**asked: str) -> None:
    """Checks what was asked, and only then imports what is heavy."""
    run(lambda: _promote(asked))


def _promote(asked: dict[str, str]) -> None:
    config = PromoteConfig.parse(asked)
    rules = _rules(config)
    _check_names(config)

    from green_tune import store

    store.check_reachable(store.tracking_uri())

    from green_tune.registry import Registry
    from green_tune.tracking import Tracker

    tracker, registry = Tracker(store.tracking_uri()), Registry(store.tracking_uri())
    with tracker.adopted("promote", "promote", asked):
        chosen = list(_chosen(config, rules, tracker, registry))
        promoted = [_promoted(one, config, tracker, registry) for one in chosen]
    click.echo(_table(promoted))
    _say_next(promoted, tracker)


def _rules(config: PromoteConfig) -> tuple[str, ...]:
    """The rules that were asked for; none for a run id.

    Raises:
        ConfigError: an unknown rule, or an alias that nothing would have.
    """
    from green_tune.choice import RULES

    if RUN_ID.fullmatch(config.rule):
        return ()
    rules = tuple(dict.fromkeys(rule.strip() for rule in config.rule.split(",")))
    for rule in rules:
        if rule not in RULES:
            raise ConfigError(f"rule={rule} is unknown; known: {', '.join(RULES)}, or a run id")
    if config.alias not in (AUTO, NONE) and len(rules) > 1:
        raise ConfigError(f"alias={config.alias} is for one adapter: give one rule=, or a run id")
    return rules


def _check_names(config: PromoteConfig) -> None:
    """Refuses what could not be pulled by its name, before anything is uploaded for it."""
    if not NAME.fullmatch(config.name) or RUN_ID.fullmatch(config.name):
        raise ConfigError(
            f"name={config.name!r} cannot be: up to 200 letters, digits, dots, _, - and spaces, "
            "and no run id"
        )
    if not ALIAS.fullmatch(config.alias):
        raise ConfigError(
            f"alias={config.alias!r} cannot be: up to 200 letters, digits, _ and -, and neither "
            "latest nor a version's number"
        )


def _chosen(
    config: PromoteConfig, rules: Sequence[str], tracker: "Tracker", registry: "Registry"
) -> "Iterator[Chosen]":
    """The adapters that are asked for, of each base model and task."""
    from green_tune import choice, parcel, points

    def is_kept(address: str) -> bool:
        return parcel.WEIGHTS in registry.files(registry.place(address))

    if not rules:
        record = _usable([_run(config.rule, tracker)])[0]
        point = points.every([record])[-1]
        yield choice.Chosen(point=point, rules=(), front=(point.pair,))
        return
    for records in choice.groups(_usable(_found(config, tracker))).values():
        yield from choice.choose(
            records, rules, within_percent=config.within_percent, is_kept=is_kept
        )


def _run(run_id: str, tracker: "Tracker") -> "RunRecord":
    from green_tune.query import RESULTS
    from green_tune.results import STUDY

    if not tracker.has(run_id):
        raise ConfigError(f"rule={run_id}: there is no such run, or it was deleted")
    record = tracker.get(run_id)
    if record.kind not in RESULTS:
        study = f": give study={record.tags[STUDY]}" if STUDY in record.tags else ""
        raise ConfigError(f"rule={run_id} is a run of {record.kind}, without an adapter{study}")
    return record


def _found(config: PromoteConfig, tracker: "Tracker") -> "list[RunRecord]":
    from green_tune.query import Query

    asked = {name: "" if text == ALL else text for name, text in config.to_params().items()}
    query = Query(
        study=asked["study"],
        model=asked["model"],
        task=asked["task"],
        gpu=asked["gpu"],
        filter=asked["filter"],
        parts=True,
    )
    return found(query, tracker)


def _usable(records: "Sequence[RunRecord]") -> "list[RunRecord]":
    """Those that are results; an error says why none of them is."""
    from green_tune import selection

    selected = selection.select(records)
    for note in selected.notes:
        log.warning(note)
    if not selected.records:
        why = "; ".join(f"{len(some)} {why}" for why, some in selected.left_out.items())
        raise ConfigError(f"no run has an adapter to promote: {why or 'none of them is a result'}")
    return list(selected.records)


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A version, from which run, and who now has the aliases that it was promoted for."""

    version: "Version"
    chosen: "Chosen"
    holders: "dict[str, Version]"


def _promoted(
    chosen: "Chosen", config: PromoteConfig, tracker: "Tracker", registry: "Registry"
) -> Promoted:
    from green_tune import promotion, views
    from green_tune.choice import RULES
    from green_tune.query import EXPERIMENT

    if config.alias in RULES:  # later promotions must know that it stands for this one as well
        chosen = replace(chosen, rules=tuple(dict.fromkeys([*chosen.rules, config.alias])))
    record = tracker.get(chosen.run_id)
    link = views.run_link(tracker.uri, record.tags[EXPERIMENT], record.run_id)
    source = promotion.origin(chosen, record, link, tracker.find)
    name = promotion.name_of(record) if config.name == AUTO else config.name

    def evaluate(folder: Path, recipe: "Mapping[str, Any]") -> "RunRecord | None":
        return _evaluated(folder, recipe, source, config.examples, tracker)

    aliases = {AUTO: chosen.rules, NONE: ()}.get(config.alias, (config.alias,))
    version = promotion.register(source, name, registry, evaluate, "".join(aliases[:1]))
    holders = {
        alias: registry.move(
            alias, version, within_percent=config.within_percent, force=config.force
        )
        for alias in aliases
    }
    mine = tuple(alias for alias, holder in holders.items() if holder.number == version.number)
    return Promoted(version=replace(version, aliases=mine), chosen=chosen, holders=holders)


def _evaluated(
    folder: Path,
    recipe: "Mapping[str, Any]",
    source: "Origin",
    examples: int,
    tracker: "Tracker",
) -> "RunRecord | None":
    """An evaluation as its own run, at the intensity of the training; None where none can be had.

    A sweep measures no task metrics: a card would lack them, and what a prediction costs.
    """
    if not examples:
        return None

    from green_tune import data, evaluation, intensity, job, tasks

    task, labels = tasks.resolve(recipe["task"]), recipe["labels"]
    device, params = job.device("auto"), source.record.params
    if why := evaluation.obstacle(recipe, device):
        log.warning("%s is not scored: %s", source.chosen.address, why)
        return None
    try:
        split, train = data.to_evaluate(
            task, params["data"], "validation", most=examples, labels=labels
        )
        case = evaluation.Case(
            name=source.chosen.address,
            folder=folder,
            address=source.chosen.address,
            split=split,
            train=train,
            zone=intensity.resolve(params["country"]),
            pue=float(params["pue"]),
            device=device,
        )
        asked = {"adapter": case.address, "data": params["data"], "split": "validation"}
        return evaluation.run(case, {**asked, "examples": str(examples)}, tracker)[1]
    except (DataError, ModelError) as error:
        log.warning("%s is not scored: %s", source.chosen.address, error)
        return None


def _table(promoted: Sequence[Promoted]) -> str:
    from green_tune import cells, facts, points

    table = cells.new_table("alias", "version", "val loss", "g CO2e", "from")
    for one in promoted:
        loss, kg = one.version.pair
        for alias in one.version.aliases or ("none",):
            label = points.label(one.chosen.point)
            table.add_row(alias, str(one.version), f"{loss:.4f}", f"{1000 * kg:.3g}", label)
    lines = [cells.to_text(table, max(shutil.get_terminal_size().columns, 80))]
    versions = [one.version for one in promoted]
    lines += dict.fromkeys(
        facts.basis(version.tags, version.figure("energy_modelled_share")) for version in versions
    )
    for one in promoted:
        for alias, holder in one.holders.items():
            if holder.number != one.version.number:
                lines.append(_stays(alias, holder, one.version))
    return "\n".join(lines)


def _stays(alias: str, holder: "Version", mine: "Version") -> str:
    from green_tune.choice import RULES

    loss, kg = holder.pair
    if alias not in RULES:
        why = "as only a rule's alias moves by itself"
    elif holder.terms != mine.terms:
        why = "which has other data or another base model, so losses cannot be compared"
    else:
        why = f"which is no worse: loss {loss:.4f} for {1000 * kg:.3g} g"
    return f"{alias} stays at version {holder.number} of {holder.name}, {why} (force=true moves it)"


def _say_next(promoted: Sequence[Promoted], tracker: "Tracker") -> None:
    from green_tune import views

    version = promoted[0].version
    name = f"{version.name}@{version.aliases[0]}" if version.aliases else str(version)
    click.echo(f"\nNext: mlflow run . -e pull -P adapter={name}")
    click.echo(views.where(tracker.uri, views.model_link(tracker.uri, version.name)))


if __name__ == "__main__":
    promote()
