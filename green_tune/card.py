"""The green card of an adapter: its README.md, as the Hugging Face hub and a person read it.

Owns what a card says and in which order. The block of metadata is huggingface_hub's own, of which
this is a door; `co2_eq_emissions` is in grams there, while everything of ours is in kilograms.
Every figure is given: nothing is read from a store and nothing measured. Whatever comes from a
store, such as a model's name, is harmless on the page and in the commands.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from green_tune.cells import duration
from green_tune.document import plain, web_address
from green_tune.facts import (
    CardFacts,
    digits,
    energy,
    hardware,
    how_known,
    line,
    mass,
    reproduce,
    words,
)
from green_tune.footprint import GRAMS_PER_KG, PHASES
from green_tune.looks import ENERGY, MASS, unit
from green_tune.points import intensities, is_assumed
from green_tune.report import QUALITY
from green_tune.results import REUSED, STOPPED_EARLY, STOPPED_WHY
from green_tune.sci import ASSUMED, Sci
from green_tune.tasks import TASKS

PARTS = {"cpu": "CPU", "gpu": "GPU", "ram": "memory"}
# The hub's names: of what a task is, of what a metric is, of what a number is stored as.
TASK_TYPES = {
    "qa": "question-answering", "summarization": "summarization", "sentiment": "text-classification"
}  # fmt: skip
METRIC_TYPES = {"rouge1": "rouge", "rouge2": "rouge", "rougeL": "rouge"}
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
NO_COUNTRY = ("given",)  # an intensity that was typed as a number has no country
BOUNDS = (
    "The bounds are of bias, no confidence interval: from what sensors have seen with half of what "
    "was modelled, to the largest published distance of CodeCarbon from a wall meter."
)
ON_THE_WAY = (
    "Energy and time of this adapter are its run's by its share of the emissions (modelled); parts "
    "and phases are of the whole run."
)
FORMULA = (
    "SCI = ((E x I) + M) per R, with M = TE x (TiR / EL) x (RR / ToR), by ISO/IEC 21031:2024. What "
    "it took to make the hardware is assumed throughout."
)
LIMITS = (
    "The intensity is an average of a year, not of the hours of the training.",
    "Fans, power supply, disks and network are what no software meter sees.",
    "Not counted: making the base model, downloads, storage, and the tracking server.",
    "Differences of a few percent are noise; rankings hold better than absolute figures.",
)
LABEL_TOKENS = 8  # generated where a task only weighs labels: enough for a word


def make(facts: CardFacts) -> str:
    """The README.md: the metadata, then sections for a reader. Beside it lies `label.png`."""
    body = [
        f"# {plain(line(facts.model_name))}",
        _what(facts),
        f"![{plain(words(facts))}](label.png)",
        *_section("Use it", _use(facts)),
        *_section("What it cost", _cost(facts)),
        *_section("Software Carbon Intensity", _sci(facts)),
        *_section("Quality", _quality(facts)),
        *_section("Data", _data(facts)),
        *_section("Hyperparameters", _hyperparameters(facts)),
        *_section("Reproduce it", _reproduce(facts)),
        *_section("Limits", _limits(facts)),
    ]
    return f"---\n{metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(filter(None, body)) + "\n"


def metadata(facts: CardFacts) -> ModelCardData:
    """What the hub reads; emissions in grams, a base model and a data set only if it has them."""
    base, data = facts.recipe["base"], _hub_data(facts)
    more = {"base_model": base["place"], "base_model_relation": "adapter"}
    return ModelCardData(
        language="en",
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "green-tune", facts.task],
        datasets=[data] if data else None,
        metrics=list(dict.fromkeys(_metric_type(name) for name in facts.measured)) or None,
        model_name=line(facts.model_name),
        eval_results=_results(facts),
        co2_eq_emissions=_emissions(facts),
        **(more if base["kind"] == "hub" else {}),
    )


def _metric_type(name: str) -> str:
    return METRIC_TYPES.get(name, name)


def _hub_data(facts: CardFacts) -> str:
    task = TASKS.get(facts.recipe["task"])
    return task.hub.id if task and facts.record.params.get("data") == "hub" else ""


def _data_name(facts: CardFacts) -> str:
    asked = line(facts.record.params.get("data", "")) or "unknown"
    named = {"sample": "the sample built into green-tune", "hub": _hub_data(facts)}
    return named.get(asked) or asked.rstrip("/").rpartition("/")[2]


def _results(facts: CardFacts) -> list[EvalResult]:
    """The loss, and the task metrics; those of the base model are none of this model's."""
    rows = [("loss", "validation loss (nats per completion token)", facts.val_loss, "validation")]
    split = facts.quality.split if facts.quality else ""
    for name, value in facts.measured.items():
        rows.append((_metric_type(name), QUALITY.get(name, name), value, split))
    return [
        EvalResult(
            task_type=TASK_TYPES.get(facts.task, "text-generation"),
            task_name=facts.task,
            dataset_type=_hub_data(facts) or "other",
            dataset_name=_data_name(facts),
            dataset_split=line(split),
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value, split in rows
    ]


def _emissions(facts: CardFacts) -> dict[str, Any]:
    """What the hub shows as a model's emissions: the adapter's own, in grams, with companions."""
    tags = facts.record.tags
    version = tags.get("version.green_tune", "")
    zone = line(tags.get("intensity_zone", ""))
    stated = zone and zone not in NO_COUNTRY and not is_assumed([facts.record])
    known = [f"{name} {line(tags.get(f'energy_{part}_method', 'unknown'))}"
             for part, name in PARTS.items()]  # fmt: skip
    source = [
        f"green-tune {line(version)}".strip(),
        "energy: " + "; ".join(known),
        _intensity(facts),
    ]
    return {
        "emissions": facts.emissions_kg * GRAMS_PER_KG,
        "source": ". ".join(source),
        "training_type": "fine-tuning",
        "geographical_location": zone if stated else "not stated",
        "hardware_used": hardware(facts),
    }


def _intensity(facts: CardFacts) -> str:
    tags = facts.record.tags
    source = line(tags.get("intensity_source", "unknown source"))
    note = line(intensities([facts.record]))
    pue = "" if " x PUE " in note else ", PUE 1"
    return f"Carbon intensity {note}{pue} ({source})"


def _what(facts: CardFacts) -> str:
    kept = "" if facts.step is None else f", as it was at step {facts.step} of its training"
    return (
        f"A LoRA adapter on {plain(facts.base)} for {plain(facts.task)}{kept}: "
        f"{mass(facts.emissions_kg)} CO2e, validation loss {facts.val_loss:.4g}. Made with "
        "green-tune, which measures what a fine-tuning costs."
    )


def _section(title: str, parts: Iterable[str]) -> list[str]:
    return [f"## {title}", *parts]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], figures: int = 0) -> str:
    """The last `figures` columns stand right; every cell is one line of plain text."""
    marks = ["---"] * (len(headings) - figures) + ["---:"] * figures
    cells = [headings, marks, *([plain(line(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _code(language: str, text: str) -> str:
    """A block that ends where it should, whatever is in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _use(facts: CardFacts) -> Iterable[str]:
    local = facts.recipe["base"]["kind"] != "hub"
    place = f"path/to/{facts.base}" if local else facts.recipe["base"]["place"]
    yield "With MLflow alone, from the model registry; green-tune need not be installed:"
    yield _code("python", _registered(facts, place if local else ""))
    yield "With peft and transformers alone, where `adapter` is the folder of this file:"
    yield _code("python", _plainly(facts, place))
    if local:
        yield f"The base model {plain(facts.base)} is not on the hub: say where its folder is."


def _registered(facts: CardFacts, place: str) -> str:
    address = f"models:/{facts.model_name}" + (f"@{facts.alias}" if facts.alias else "/latest")
    given = f", model_config={json.dumps({'base': place})}" if place else ""
    example = dict.fromkeys(facts.recipe["fields"], "...")
    return (
        "import mlflow\n\n"
        f"model = mlflow.pyfunc.load_model({json.dumps(address)}{given})\n"
        f"print(model.predict([{json.dumps(example)}]))"
    )


def _plainly(facts: CardFacts, place: str) -> str:
    """The prompt is tokenised apart from the start token, as it was in the training."""
    recipe = facts.recipe
    revision = recipe["base"]["revision"]
    pinned = ", revision=revision" if revision else ""
    head, body, tail = recipe["template"]
    lines = (
        "import torch",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"base = {json.dumps(place)}",
        *[f"revision = {json.dumps(revision)}"] * bool(revision),
        f"tokenizer = AutoTokenizer.from_pretrained(base{pinned})",
        f"dtype = torch.{DTYPES[recipe['precision']]}",
        f"model = AutoModelForCausalLM.from_pretrained(base{pinned}, dtype=dtype)",
        'model = PeftModel.from_pretrained(model, "adapter").eval()',
        "",
        *(f'{name} = "..."' for name in recipe["fields"]),
        f"prompt = {json.dumps(head)} + {body} + {'f' * ('{' in tail)}{json.dumps(tail)}",
        'ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]',
        "if tokenizer.bos_token_id is not None:",
        "    ids = [tokenizer.bos_token_id, *ids]",
        f"new = {recipe['max_new_tokens'] or LABEL_TOKENS}  # tokens at most",
        "found = model.generate(torch.tensor([ids]), max_new_tokens=new, do_sample=False)",
        "print(tokenizer.decode(found[0, len(ids):], skip_special_tokens=True))",
    )
    return "\n".join(lines)


def _cost(facts: CardFacts) -> Iterable[str]:
    yield _table(["what", "energy", "emissions"], _sums(facts), 2)
    yield (
        f"On {plain(hardware(facts))}, in {duration(facts.runtime_h)}. {plain(_intensity(facts))}. "
        f"Energy: {how_known(facts.modelled_share)}."
    )
    yield _table(["part", "energy", "how it is known"], _by_part(facts))
    yield _by_phase(facts)
    yield from _remarks(facts)


def _sums(facts: CardFacts) -> Iterable[Sequence[str]]:
    metrics = facts.record.metrics
    yield "this adapter", energy(facts.energy_kwh), mass(facts.emissions_kg)
    if facts.emissions_low_kg is not None and facts.emissions_high_kg is not None:
        low, high = mass(facts.emissions_low_kg), mass(facts.emissions_high_kg)
        kwh = [energy(metrics.get(f"energy_{end}_kwh", math.nan)) for end in ("low", "high")]
        yield "its bounds", " to ".join(kwh), f"{low} to {high}"
    if facts.step is not None:
        whole = (metrics.get(name, math.nan) for name in ("energy_kwh", "emissions_kg"))
        yield "its whole run", energy(next(whole)), mass(next(whole))
    if facts.study:
        study = facts.study
        name = f"the whole sweep {study.name}, {study.trials} trials"
        yield name, energy(study.energy_kwh), mass(study.emissions_kg)


def _by_part(facts: CardFacts) -> Iterable[Sequence[str]]:
    for part, name in PARTS.items():
        kwh = facts.record.metrics.get(f"energy_{part}_kwh", math.nan)
        yield name, energy(kwh), facts.record.tags.get(f"energy_{part}_method", "unknown")


def _by_phase(facts: CardFacts) -> str:
    """In one unit, since phases are read against each other."""
    metrics = facts.record.metrics
    phases = [phase for phase in PHASES if f"{phase}/energy_kwh" in metrics]
    if not phases:
        return ""
    kwh = [metrics[f"{phase}/energy_kwh"] for phase in phases]
    kg = [metrics.get(f"{phase}/emissions_kg", math.nan) for phase in phases]
    (energy_unit, per_kwh), (mass_unit, per_kg) = unit(kwh, ENERGY), unit(kg, MASS)
    rows = [
        (phase, digits(e * per_kwh), digits(m * per_kg))
        for phase, e, m in zip(phases, kwh, kg, strict=True)
    ]
    return _table(["phase of the run", f"energy ({energy_unit})", f"CO2e ({mass_unit})"], rows, 2)


def _remarks(facts: CardFacts) -> Iterable[str]:
    """What a reader must know of the figures above."""
    tags = facts.record.tags
    if facts.emissions_low_kg is not None:
        yield BOUNDS
    if facts.step is not None:
        yield ON_THE_WAY
    if facts.study:
        yield "The sweep is what finding this adapter took, failed and discarded trials included."
    if sessions := tags.get("green_tune.sessions"):
        yield f"Trained in {plain(line(sessions))} sessions, all of which are in the figures."
    if earlier := tags.get(REUSED):
        yield f"The figures were measured in an earlier, equal run, {plain(line(earlier))}."
    if flags := tags.get("energy_flags"):
        yield f"Flagged by the meter: {plain(line(flags))}."


def _sci(facts: CardFacts) -> Iterable[str]:
    yield FORMULA
    if facts.sci is None:
        yield "Not known for this adapter: its run does not say what it spent, or where."
    else:
        yield from _scored(facts.sci, how_known(facts.modelled_share))
    if facts.predictions is None:
        yield "Per 1,000 predictions: not measured. This does it, and the quality with it:"
        yield _code("sh", _evaluate(facts))
    else:
        share, count = facts.predictions.modelled_share, facts.predictions.count
        yield from _scored(facts.predictions.sci, f"{how_known(share)}, on {count} predictions")
    yield "What is assumed:"
    rows = [(f"{one.value:g}", one.unit, one.source) for one in ASSUMED.values()]
    yield _table(["value", "of", "source"], rows)


def _scored(found: Sci, how: str) -> Iterable[str]:
    parts = (found.per_unit_g, found.operational_g / found.units, found.embodied_g / found.units)
    whole, operational, embodied = (mass(grams / GRAMS_PER_KG) for grams in parts)
    said = f"{operational} operational, {embodied} embodied"
    yield f"**{whole} CO2e per {found.unit}** ({said}):"
    yield _table(["term", "what", "value", "how it is known"], found.terms(how))


def _evaluate(facts: CardFacts) -> str:
    which = f"@{facts.alias}" if facts.alias else ""
    return f"mlflow run . -e evaluate -P {shlex.quote(f'adapter={facts.model_name}{which}')}"


def _quality(facts: CardFacts) -> Iterable[str]:
    found = facts.quality
    losses = facts.val_loss, facts.record.metrics.get("start_val_loss")
    rows = [("validation loss (nats per completion token)", *map(_cell, losses))]
    for name, value in facts.measured.items():
        before = found.base.get(name) if found else None
        rows.append((QUALITY.get(name, name), _cell(value), _cell(before)))
    yield _table(["", "adapter", "base model"], rows, 2)
    if found:
        split = plain(line(found.split))
        yield f"Task metrics from 0 to 1, on {found.examples} examples of the {split} split."
    else:
        yield "No task metrics were measured. This does it:"
        yield _code("sh", _evaluate(facts))


def _cell(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _data(facts: CardFacts) -> Iterable[str]:
    count = f", {facts.examples} training examples" if facts.examples else ""
    digest = plain(line(facts.record.tags.get("data_digest", "unknown")))
    name = plain(_data_name(facts))
    yield f"Trained on {name}{count}. Digest of every prompt and completion: {digest}."


def _hyperparameters(facts: CardFacts) -> Iterable[str]:
    params = facts.record.params
    rows = [(name, text) for name, text in params.items() if not name.startswith("plan.")]
    yield _table(["hyperparameter", "value"], rows)
    if reasons := params.get("plan.reasons"):
        yield f"What the device made of them: {plain(line(reasons))}."


def _reproduce(facts: CardFacts) -> Iterable[str]:
    tags, own = facts.record.tags, plain(line(facts.record.run_id))
    yield _code("sh", reproduce(facts.record))
    if STOPPED_EARLY in tags:
        where = plain(
            line(f"{tags[STOPPED_EARLY]} ({tags.get(STOPPED_WHY, 'no reason is known')})")
        )
        yield f"The run ended early, {where}; by itself the command may go on longer."
    if facts.step is not None:
        yield f"A sweep kept the adapter of step {facts.step}; the command alone keeps the last."
    address = web_address(facts.link)
    yield f"[The run in MLflow]({address}): {own}." if address else f"The run in MLflow: {own}."


def _limits(facts: CardFacts) -> Iterable[str]:
    assumed = "The carbon intensity is assumed: nobody has said where the power was made."
    yield "\n".join(f"- {one}" for one in (*[assumed] * is_assumed([facts.record]), *LIMITS))
