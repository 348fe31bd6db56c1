"""A promotion: all that is known of a chosen adapter is put beside it, and registered with it.

The card, the label, the version's tags and its description say the same, from the same facts. Which
adapter it is, was `choice`'s to say; which alias it deserves, is `registry`'s.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from green_tune import adapters, card, label, packing, parcel
from green_tune.choice import Chosen
from green_tune.facts import CardFacts, Predictions, Quality, Study, words
from green_tune.footprint import GRAMS_PER_KG
from green_tune.query import Query
from green_tune.registry import Registry
from green_tune.results import KIND, STUDY, RunRecord
from green_tune.sci import per_thousand, site
from green_tune.versions import (
    ADAPTER_KIND,
    ADDRESS,
    FRONT_TAG,
    QUALITY_ON,
    RULES_TAG,
    SEAL,
    Version,
    name_for,
)

EVALUATION = "evaluate"  # the kind of a run that evaluated an adapter
SCORES, BASE_SCORES = "quality.", "start_quality."
COUNT = "examples"
PER_THOUSAND = "sci_g_per_1000_predictions"
TAG_LENGTH = 7500  # MLflow cuts tags at 8000
FROM_RUN = ("gpu_type", "device", "base_model", "data_digest", "intensity_g_per_kwh",
            "intensity_zone", "intensity_assumed", "intensity_source", "pue")  # fmt: skip

Find = Callable[[Query], Sequence[RunRecord]]
Evaluate = Callable[[Path, Mapping[str, Any]], RunRecord | None]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a chosen adapter is from: its run, and what else the store knows of it."""

    chosen: Chosen
    record: RunRecord
    link: str
    study: Study | None
    evaluation: RunRecord | None


def origin(chosen: Chosen, record: RunRecord, link: str, find: Find) -> Origin:
    """What the store knows of an adapter; `record` is its run's own, as it stands in the store."""
    evaluations = find(Query(kinds=(EVALUATION,), filter=f"tags.`{ADDRESS}` = '{chosen.address}'"))
    data = ("auto", record.params.get("data"))  # a card says which data its run had, no other
    own = [r for r in evaluations if r.status == "FINISHED" and r.params.get("data") in data]
    return Origin(
        chosen=chosen,
        record=record,
        link=link,
        study=_study(chosen.point.record, find),
        evaluation=own[-1] if own else None,
    )


def register(
    source: Origin, name: str, registry: Registry, evaluate: Evaluate, alias: str = ""
) -> Version:
    """The version of an adapter; the one that it has already, where it was promoted before.

    `evaluate` is asked for an evaluation where the store has none, and may give None. `alias` is
    the one by which its card calls it.

    Raises:
        AdapterError: the adapter is not there, not whole, or not to be trusted.
    """
    address = source.chosen.address
    if found := registry.of_adapter(name, address):
        return _chosen_by(source.chosen.rules, found, registry)
    with TemporaryDirectory(prefix="green-tune-promote-") as scratch:
        brought, folder = Path(scratch) / "run", Path(scratch) / "version"
        brought.mkdir()
        folder.mkdir()
        adapter = adapters.bring(adapters.find(address, registry), registry, brought)
        recipe = parcel.check_recipe(adapter)
        if not is_evaluated(source):
            source = replace(source, evaluation=evaluate(adapter, recipe))
        facts = replace(_facts(source, name, recipe), alias=alias)
        seal = packing.pack(adapter, card.make(facts), label.draw(facts), folder)
        made = registry.register(
            name,
            folder,
            source.chosen.run_id,
            tags=_tags(source, facts) | {SEAL: seal},
            description=_description(facts),
        )
    return _chosen_by(source.chosen.rules, made, registry)  # which another process may have made


def _chosen_by(rules: Sequence[str], version: Version, registry: Registry) -> Version:
    """The version, with rules that have chosen it besides those that it was known for."""
    if new := [rule for rule in rules if rule not in version.rules]:
        registry.set_tags(version, {RULES_TAG: ",".join([*version.rules, *new])})
        return registry.version(version.name, str(version.number))
    return version


def is_evaluated(source: Origin) -> bool:
    """Whether the task metrics of exactly this adapter are known."""
    return _quality(source, "checkpoints" in source.chosen.address) is not None


def evaluation_tags(record: RunRecord) -> dict[str, str]:
    """What a version's tags say of a later evaluation; its card stays as it was sealed."""
    made, where = record.metrics, site(record.tags)
    scored = [n for n in made if n.startswith((SCORES, BASE_SCORES)) and n != BASE_SCORES + COUNT]
    tags = {n: repr(made[n]) for n in scored} | {QUALITY_ON: record.tags.get(QUALITY_ON, "unknown")}
    if where and made.get("predictions"):
        per = per_thousand(
            made["predictions/energy_kwh"],
            made["predictions/runtime_h"],
            int(made["predictions"]),
            where,
        )
        tags |= {PER_THOUSAND: repr(per.per_unit_g)}
    return tags


def name_of(record: RunRecord) -> str:
    """The registered model that adapters of a run's base model and task belong to."""
    return name_for(record.tags.get("base_model", ""), record.params.get("task", ""))


def _facts(source: Origin, name: str, recipe: Mapping[str, Any]) -> CardFacts:
    point, record = source.chosen.point, source.record
    on_the_way = "checkpoints" in source.chosen.address
    own = record.metrics
    return CardFacts(
        model_name=name,
        recipe=recipe,
        record=record,
        val_loss=point.val_loss,
        emissions_kg=_emissions_kg(source),
        emissions_low_kg=None if on_the_way else own.get("emissions_low_kg"),
        emissions_high_kg=None if on_the_way else own.get("emissions_high_kg"),
        step=point.step if on_the_way else None,
        place=source.chosen.address,
        study=source.study,
        quality=_quality(source, on_the_way),
        predictions=_predictions(source, on_the_way),
        gpus=int(record.tags.get("gpu_count", "1")),
        link=source.link,
    )


def _emissions_kg(source: Origin) -> float:
    """By the run's own intensity; a comparison may have put it at another."""
    if "checkpoints" not in source.chosen.address:
        return source.record.metrics["emissions_kg"]
    step = source.chosen.point.step
    return next(e.emissions_kg for e in source.record.course if e.step == step)


def _study(record: RunRecord, find: Find) -> Study | None:
    """The whole sweep that a trial was one of, if its sums are known."""
    name = record.tags.get(STUDY, "")
    if record.kind != "trial" or not name:
        return None
    sweeps = [r for r in find(Query(kinds=("sweep",), study=name)) if "trials" in r.metrics]
    if not sweeps or "emissions_kg" not in sweeps[-1].metrics:
        return None
    sums = sweeps[-1].metrics
    return Study(
        name=name,
        emissions_kg=sums["emissions_kg"],
        energy_kwh=sums["energy_kwh"],
        trials=int(sums["trials"]),
    )


def _quality(source: Origin, on_the_way: bool) -> Quality | None:
    """Task metrics of exactly this adapter: of its evaluation, or measured by its run."""
    record = source.evaluation or (None if on_the_way else source.record)
    scores = _scores(record, SCORES) if record else {}
    if not record or not scores:
        return None
    return Quality(
        adapter={name: value for name, value in scores.items() if name != COUNT},
        base={n: v for n, v in _scores(record, BASE_SCORES).items() if n != COUNT},
        examples=int(scores.get(COUNT, 0)),
        split=_split(_scored_on(source)),
    )


def _scores(record: RunRecord, prefix: str) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in record.metrics.items()
        if name.startswith(prefix)
    }


def _predictions(source: Origin, on_the_way: bool) -> Predictions | None:
    """What predictions took: of its evaluation, or in the quality phase of its run."""
    if record := source.evaluation:
        kwh, hours = (record.metrics.get(f"predictions/{n}") for n in ("energy_kwh", "runtime_h"))
        count = record.metrics.get("predictions", 0.0)
    else:
        record = source.record
        kwh, hours = (record.metrics.get(f"quality/{name}") for name in ("energy_kwh", "runtime_h"))
        counts = (record.metrics.get(p + COUNT, 0.0) for p in (SCORES, BASE_SCORES))
        count = 0.0 if on_the_way else sum(counts)  # the base model's took about as long
    where = site(record.tags)
    if not count or kwh is None or hours is None or where is None:
        return None
    return Predictions(
        energy_kwh=kwh,
        runtime_h=hours,
        count=int(count),
        site=where,
        modelled_share=record.metrics.get("energy_modelled_share", math.nan),
    )


def _tags(source: Origin, facts: CardFacts) -> dict[str, str]:
    record, base = source.record, facts.recipe["base"]
    figures = {
        "val_loss": facts.val_loss,
        "emissions_kg": facts.emissions_kg,
        "energy_kwh": facts.energy_kwh,
        "runtime_h": facts.runtime_h,
        "emissions_low_kg": facts.emissions_low_kg,
        "emissions_high_kg": facts.emissions_high_kg,
        "energy_modelled_share": record.metrics.get("energy_modelled_share"),
        "val_bits_per_byte": _bits_per_byte(record, facts.val_loss),
        "study_emissions_kg": facts.study.emissions_kg if facts.study else None,
        PER_THOUSAND: facts.predictions.sci.per_unit_g if facts.predictions else None,
    }
    if facts.quality:
        figures |= {SCORES + COUNT: float(facts.quality.examples)}
        figures |= {SCORES + name: value for name, value in facts.quality.adapter.items()}
        figures |= {BASE_SCORES + name: value for name, value in facts.quality.base.items()}
    texts = {name: record.tags[name] for name in FROM_RUN if name in record.tags} | {
        KIND: ADAPTER_KIND,
        "task": facts.task,
        "base_revision": base["revision"] or base["digest"],
        "base_place": base["place"],
        STUDY: record.tags.get(STUDY, ""),
        ADDRESS: source.chosen.address,
        RULES_TAG: ",".join(source.chosen.rules),
        FRONT_TAG: _front(source.chosen),
        "run_link": source.link,
        QUALITY_ON: _scored_on(source) if facts.quality else "",
    }
    known = {n: repr(v) for n, v in figures.items() if v is not None and math.isfinite(v)}
    return known | {name: text for name, text in texts.items() if text}


def _split(examples: str) -> str:
    """The split in "sample test", or the name of a file."""
    last = examples.rsplit(maxsplit=1)[-1]
    return Path(last).stem if last.endswith(".jsonl") else last


def _scored_on(source: Origin) -> str:
    """The examples that task metrics are of: of an evaluation, or of the run itself."""
    if source.evaluation:
        return source.evaluation.tags.get(QUALITY_ON, "unknown")
    return f"{source.record.params.get('data', 'unknown')} validation"


def _bits_per_byte(record: RunRecord, val_loss: float) -> float | None:
    """Of any of a run's validations: they are all of the same tokens and bytes."""
    own, loss = (record.metrics.get(name) for name in ("val_bits_per_byte", "val_loss"))
    return own * val_loss / loss if own and loss else None


def _front(chosen: Chosen) -> str:
    """The front as a tag, every second point left out for as long as it would be cut."""
    pairs = [[float(f"{loss:.9g}"), float(f"{kg:.9g}")] for loss, kg in chosen.front]
    while len(json.dumps(pairs)) > TAG_LENGTH:
        pairs = [*pairs[:-1:2], pairs[-1]]
    return json.dumps(pairs)


def _description(facts: CardFacts) -> str:
    """What the registry's page shows of a version."""
    grams = facts.emissions_kg * GRAMS_PER_KG
    said = [
        words(facts),
        f"Training: {grams:.6g} g CO2e, {facts.energy_kwh:.6g} kWh, {facts.runtime_h:.6g} h; "
        f"data digest {facts.record.tags.get('data_digest', 'unknown')}.",
        f"[Its run]({facts.link}). Its card is `adapter/README.md`, among the artifacts of the "
        "source model.",
    ]
    return "\n\n".join(said)
