"""What a report of many runs says, and in which order: findings, advice, figures and tables.

It joins what `claims`, `advice`, `charts`, `scoreboard`, `tables` and others make of runs. How
it looks is `page`; which runs it is about, `selection`.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from green_tune import (
    advice,
    blocks,
    charts,
    claims,
    efficiency,
    forecasts,
    importance,
    marginal,
    outcomes,
    pictures,
    rates,
    report,
    responses,
    scatters,
    scoreboard,
    tables,
    trends,
    yields,
)
from green_tune.document import MARKS, Document, Finding, Picture, Section, Table, plain
from green_tune.looks import Drawn
from green_tune.results import RunRecord
from green_tune.selection import Selection, listed

Part = str | Table | Picture | Finding
Parts = Iterator[Part]

SHOWN = 4  # runs that a clause of advice names
FORECASTS = {"memory_estimate_gib": ("memory_peak_gib", "GiB")}  # with what came, and their unit
WHERE = "All of it, with figures and tables: `report.html` under Artifacts."


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a report is made from: the runs, where each can be opened, and a target loss in nats.

    Without a target, each model, task and data set has its own.
    """

    selection: Selection
    links: Mapping[str, str]
    target_loss: float | None = None

    @property
    def records(self) -> Sequence[RunRecord]:
        """The runs that are compared."""
        return self.selection.records

    @property
    def all(self) -> Sequence[RunRecord]:
        """Those that are compared, and those that are left out: a stopped run had a quote too."""
        out = (record for some in self.selection.left_out.values() for record in some)
        return [*self.selection.records, *out]


def make(case: Case) -> Document:
    """The whole report; a section of which nothing can be said of these runs is left out."""
    sections = [Section(title=title, parts=list(fill(case))) for title, fill in SECTIONS.items()]
    return Document(
        title=f"{_count(len(case.records), 'run')} compared",
        summary=[*_summary(case), *(_sentence(plain(note)) for note in case.selection.notes)],
        sections=[section for section in sections if section.parts],
        links=case.links,
    )


def in_short(document: Document, width: int = 80) -> str:
    """The summary, the findings and the advice of a report, for a terminal."""
    parts = [part for section in document.sections[:2] for part in section.parts]
    lines = [*(_spoken(line) for line in document.summary), ""]
    for part in parts:
        if isinstance(part, Finding):
            lines.append(f"{MARKS[part.answer]} {part.claim}: {part.answer}")
            lines.append(f"  {part.effect}")
            lines += [f"  To settle it: {part.settle}"] if part.settle else []
        elif isinstance(part, str):
            lines += ["", *_spoken(part).splitlines()]
    return "\n".join(_wrapped(line, width) for line in lines)


def to_tags(document: Document) -> dict[str, str]:
    """The answers and the whole in short, for the report's own run in MLflow."""
    parts = [part for section in document.sections for part in section.parts]
    answers = {f"finding.{p.name}": p.answer for p in parts if isinstance(p, Finding)}
    return answers | {"mlflow.note.content": f"```\n{in_short(document)}\n```\n\n{WHERE}"}


def _spoken(markdown: str) -> str:
    """Without what is only for a page: links and escapes."""
    return re.sub(r"\\([^\w\s])", r"\1", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown))


def _wrapped(line: str, width: int) -> str:
    indent = "  " if line.startswith(("  ", "- ", *MARKS.values())) else ""
    return textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False)


def _summary(case: Case) -> list[str]:
    records = case.records
    kinds = {
        "base model": {record.tags.get("base_model", "") for record in records},
        "task": {record.params.get("task", "") for record in records},
        "GPU": {blocks.gpu(record) for record in records},
    }
    of = ", ".join(_count(len(names), kind) for kind, names in kinds.items())
    out = sum(map(len, case.selection.left_out.values()))
    why = "; ".join(f"{len(some)} {why}" for why, some in case.selection.left_out.items())
    lines = [f"{_count(len(records), 'run')} of {of}: {plain(report.cost(records))}."]
    if out:
        lines.append(f"{_count(out, 'run')} left out: {plain(why)}.")
    if case.selection.unfit:
        lines.append(f"{_count(len(case.selection.unfit), 'cell')} of a grid did not fit.")
    if said := scoreboard.summary(case.all):
        lines.append(said)
    if len(records) == 1:
        lines.append("One run alone cannot be compared; what it cost is below.")
    return lines


def _findings(case: Case) -> Parts:
    if len(case.records) > 1:
        yield "What the study behind green-tune found, on these runs:"
        yield from claims.claims(case.records)


def _advice(case: Case) -> Parts:
    found = advice.advise(case.records)
    if not found:
        silent = advice.why_silent(case.records)
        if silent and len(case.records) > 1:
            yield f"No advice: {plain(silent)}"
        return
    yield "\n".join(_linked(each, case.links) for each in found)


def _linked(each: advice.Advice, links: Mapping[str, str]) -> str:
    """The first clause says what to use, those below why; each with the runs that it rests on."""
    lines = [f"{plain(clause.text)} ({_runs(clause.runs, links)})" for clause in each.clauses]
    return "\n".join([f"- {lines[0]}", *(f"  - {line}" for line in lines[1:])])


def _runs(ids: Sequence[str], links: Mapping[str, str]) -> str:
    named = [f"[{run_id[:8]}]({links[run_id]})" for run_id in ids[:SHOWN] if run_id in links]
    more = len(ids) - len(named)
    return ", ".join([*named, *([f"{more} more"] if more else [])])


def _costs(case: Case) -> Parts:
    links, records = case.links, case.records
    alike, note = _alike(records)
    yield from _picture("emissions", charts.emissions_figure(alike, "", links),
                        "Emissions by model and GPU", note)  # fmt: skip
    yield from _picture("tasks", charts.tasks_figure(records, "", links), "Emissions by task")
    yield from _picture("rates", rates.rates_figure(records, "", links),
                        "Emissions rate against total emissions and runtime")  # fmt: skip
    yield tables.costs(records)


def _fronts(case: Case) -> Parts:
    found = scatters.front_figure(case.records, "", case.links)
    yield from _picture("front", found, "What a lower loss costs")
    found = scatters.fronts_figure(case.records, "", case.links)
    yield from _picture("fronts", found, "The same for each model and task")
    yield tables.fronts(case.records, case.links)


def _hyperparameters(case: Case) -> Parts:
    records = responses.whole(case.records)
    names = responses.varied(records)
    if not names:
        return
    losses = responses.targets(records, case.target_loss)
    ways = {
        "run": ("Per run", responses.per_run(records)),
        "tokens": ("At equal numbers of tokens", responses.at_tokens(records)),
        "target": (
            "To a target loss",
            {responses.EMISSIONS: responses.to_target(records, losses)},
        ),
    }
    correlated = {}
    for key, (title, values) in ways.items():
        correlated[title] = responses.correlations(records, values, names)
        drawn = trends.trends_figure(records, values, correlated[title], "", case.links)
        yield from _picture(f"effects_per_{key}", drawn, title, _explained(key, losses))
    found = importance.explained(records, names)
    remark = importance.explained_remark(records, names)
    if figure := pictures.importance_figure(found, "", remark):
        words = "; ".join(f"{i.name} {i.share:.0%} of {i.objective}" for i in found[:4])
        yield Picture(name="importance", title="Importance", figure=figure, words=words)
    elif remark:
        yield f"Importance: {plain(remark)}."
    yield yields.effects(correlated, found)


def _explained(key: str, losses: Mapping[blocks.Block, float]) -> str:
    if key == "run":
        return "Spearman's rho with the other hyperparameters held, and its bootstrap interval."
    if key == "tokens":
        return (
            "Each run where it had trained on as many tokens as nearly all of its block: at that "
            "point a longer schedule still has a higher learning rate."
        )
    ends = sorted(losses.values())
    span = " to ".join(dict.fromkeys(f"{loss:.4g}" for loss in (ends[0], ends[-1]))) if ends else ""
    return (
        f"Emissions until the validation loss first was at its target ({span} nats): what at least "
        "three quarters of a block's runs reach, unless target_loss says otherwise. Runs that "
        "never were there are left out."
    )


def _prices(case: Case) -> Parts:
    names = _names(case.records)
    found = blocks.group(case.records, blocks.block)
    prices = {names[block]: marginal.front_per_hundredth(alike) for block, alike in found.items()}
    knees = {names[block]: marginal.knee(alike) for block, alike in found.items()}
    bends = {name: (p.val_loss, p.emissions_kg * tables.KG_TO_G) for name, p in knees.items() if p}
    drawn = trends.marginal_figure(
        {name: [(p.loss, p.grams) for p in some] for name, some in prices.items() if some},
        bends,
        "",
    )
    title = "What the next 0.01 nats cost"
    yield from _picture("marginal", drawn, title, "Along each front; a mark where it bends most.")
    losses = responses.targets(case.records, case.target_loss)
    yield yields.marginals(case.records, losses)


def _machines(case: Case) -> Parts:
    alike, note = _alike(case.records)
    drawn = charts.ranking_figure(alike, "")
    yield from _picture("ranking", drawn, "GPU alone, and the whole machine", note)
    yield tables.machines(alike)
    values: dict[tuple[str, str], list[float]] = {}
    for record in case.records:
        if (found := marginal.mj_per_token_per_billion(record)) is not None:
            at = (record.tags.get("base_model", ""), blocks.gpu(record))
            values.setdefault(at, []).append(found)
    floors = marginal.FLOOR_MJ_PER_TOKEN_PER_BILLION
    drawn = efficiency.efficiency_figure(values, floors, "")
    note = (
        "Lines: MLPerf Training's LoRA of Llama-2-70B, at the wall, by experts. Small models and "
        "short runs lie far above it, since what does not grow with the model weighs more."
    )
    yield from _picture("efficiency", drawn, "Energy per token and billion parameters", note)
    if values:
        yield yields.efficiency(values, floors)


def _forecasts(case: Case) -> Parts:
    yield from _quotes(case)
    rows = [
        (record.tags.get("base_model", ""), record.metrics[name], record.metrics[came], unit)
        for record in case.records
        for name, (came, unit) in FORECASTS.items()
        if record.metrics.get(name) and record.metrics.get(came)
    ]
    if rows:
        errors = [abs(came / said - 1) for _, said, came, _ in rows]
        note = f"On average {fmean(errors):.0%} apart."
        drawn = forecasts.forecast_figure(rows, "")
        yield from _picture("forecast", drawn, "Memory: forecast against actual", note)


def _quotes(case: Case) -> Parts:
    """How right the quotes were; nothing where no run has one and its error."""
    if not (texts := scoreboard.in_words(case.all)):
        return
    yield from texts
    yield scoreboard.table(case.all)
    known = {figure: outcomes.known(case.all, figure) for figure in outcomes.UNITS}
    drawn = forecasts.quotes_figure(known, "", case.links)
    yield from _picture("quotes", drawn, "Quoted against actual")
    rolling = {figure: scoreboard.rolling(case.all, figure) for figure in outcomes.UNITS}
    drawn = forecasts.rolling_figure(rolling, "")
    yield from _picture("quotes_rolling", drawn, "How far off, one after the other")


def _every_run(case: Case) -> Parts:
    yield tables.runs(case.records, case.links)
    if case.selection.unfit:
        yield tables.unfit(case.selection.unfit)
    if case.selection.left_out:
        yield tables.left_out(case.selection.left_out, case.links)


SECTIONS: Mapping[str, Callable[[Case], Parts]] = {
    "Findings": _findings,
    "Advice": _advice,
    "What runs cost": _costs,
    "Loss against emissions": _fronts,
    "Hyperparameters": _hyperparameters,
    "The price of a lower loss": _prices,
    "The machine": _machines,
    "Forecasts": _forecasts,
    "The runs": _every_run,
}


def _alike(records: Sequence[RunRecord]) -> tuple[Sequence[RunRecord], str]:
    """The runs by which GPUs are compared, and what of them are not, or not alike."""
    alike, apart = blocks.shared(records)
    notes = []
    if len(alike) < len(records):
        notes.append(
            f"Of the configs that all GPUs of a model and task have run: {len(alike)} of "
            f"{_count(len(records), 'run')}."
        )
    if apart:
        names = _names(records)
        named = listed([plain(names[block]) for block in apart])
        notes.append(f"No config is common to all GPUs, and means are of different ones: {named}.")
    return alike, " ".join(notes)


def _picture(name: str, drawn: Drawn | None, title: str, note: str = "") -> Parts:
    if drawn:
        figure, words = drawn
        yield Picture(name=name, title=title, figure=figure, words=plain(words), note=note)


def _sentence(line: str) -> str:
    return line[:1].upper() + line[1:] + "." * (not line.endswith("."))


def _names(records: Sequence[RunRecord]) -> dict[blocks.Block, str]:
    """How each block is called: by its model and task, and its data where a task has several."""
    titles = blocks.titles(records)
    found = {blocks.block(record): titles[blocks.panel(record)] for record in records}
    return {block: f"{block.model} {title}" for block, title in found.items()}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
