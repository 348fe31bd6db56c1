"""What to use: the cheapest config whose loss is as good as the best, and the cheapest GPU.

It speaks where several seeds prove it, and is silent elsewhere; `why_silent` says what is missing.
Pure functions over records of any kind, whose kilograms must be at one carbon intensity. Texts are
plain: they hold names from a store, and know nothing of Markdown.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import permutations
from statistics import fmean, variance

from green_tune import blocks, cells
from green_tune.blocks import HYPERPARAMETERS, Block, Panel
from green_tune.config import TrainConfig, read, to_text
from green_tune.errors import ConfigError
from green_tune.results import RunRecord

SEEDS = 3  # of a config on a GPU: with fewer nobody knows what seeds alone vary
SAME_LOSS = 2.0  # seed deviations: a mean loss that is surely less than that above counts as equal
WORTHWHILE = 0.95  # of the emissions: who saves less than 5 % is not worth an advice
# The chance that some advice of a whole report is wrong, 5 %, and how it is shared: emissions
# scatter little between seeds, so they leave the larger part to losses.
LOSS_RISK, EMISSIONS_RISK = 0.04, 0.01
UNREST = 0.1  # of the F-test below: how rarely a group is refused that scatters no more
LEVEL = 0.95  # of the intervals that are shown, all of a report's together
MANY_TIMES = 0.5  # of the emissions: below it, a saving is said as a factor
SPECS = {spec.name: spec for spec in fields(TrainConfig)}
PHRASES = {
    "batch_size": "batch {}",
    "accumulation_steps": "accumulation {}",
    "learning_rate": "learning rate {}",
    "warmup_steps": "{} warm-up steps",
    "epochs": "{} epochs",
    "lora_rank": "rank {}",
}


@dataclass(frozen=True, kw_only=True)
class Clause:
    """A part of an advice, with the ids of the runs that it rests on."""

    text: str
    runs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use, what that saves, and what it does to the loss."""

    clauses: tuple[Clause, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs that are alike but for their seeds, at least `SEEDS` of them, on one type of GPU."""

    block: Block
    config: tuple[str, ...]
    gpu: str
    records: Sequence[RunRecord]

    @cached_property
    def losses(self) -> list[float]:
        """In nats per token, one for each seed: a seed that was run twice is no further chance."""
        return [fmean(r.metrics["val_loss"] for r in alike) for alike in self._by_seed()]

    @cached_property
    def logs(self) -> list[float]:
        """Logarithms of kg CO2e, one for each seed."""
        return [
            fmean(math.log(r.metrics["emissions_kg"]) for r in all_) for all_ in self._by_seed()
        ]

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids."""
        return tuple(record.run_id for record in self.records)

    def _by_seed(self) -> list[list[RunRecord]]:
        return list(blocks.group(self.records, _seed).values())


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A group that may be advised, and the one that it is compared with."""

    one: Group
    other: Group

    def ratio(self, risk: float = 0.5) -> float:
        """Emissions of one over the other's; surely less, but for that one-sided risk.

        Welch's interval (Biometrika 34, 1947) of the difference of mean logarithms.
        """
        from scipy import special  # type: ignore[import-untyped]  # a fifth of a second

        difference = fmean(self.one.logs) - fmean(self.other.logs)
        parts = [variance(group.logs) / len(group.logs) for group in (self.one, self.other)]
        if not all(parts):
            return math.inf  # figures that do not scatter are not measured
        sizes = [len(group.logs) - 1 for group in (self.one, self.other)]
        df = sum(parts) ** 2 / sum(p**2 / n for p, n in zip(parts, sizes, strict=True))
        return math.exp(difference - float(special.stdtrit(df, risk)) * math.sqrt(sum(parts)))

    @property
    def worse(self) -> float:
        """The mean loss of one above the other's, in nats per token."""
        return fmean(self.one.losses) - fmean(self.other.losses)

    @property
    def deviation(self) -> float:
        """What seeds alone vary the loss: the pooled standard deviation of both groups."""
        squares = [variance(g.losses) * (len(g.losses) - 1) for g in (self.one, self.other)]
        return math.sqrt(sum(squares) / (len(self.one.losses) + len(self.other.losses) - 2))

    def is_as_good(self, risk: float) -> bool:
        """True where the loss is surely less than `SAME_LOSS` deviations above the other's.

        The t-test for standardised differences (Wellek, Testing Statistical Hypotheses of
        Equivalence and Noninferiority, 2010, ch. 6): at that distance the statistic has a
        noncentral t distribution, which knows that the deviation is an estimate, too. Not for a
        group that scatters more (F-test): its own unrest would make it equal to anything.
        """
        from scipy import special

        one, other = (variance(group.losses) for group in (self.one, self.other))
        n, m = len(self.one.losses), len(self.other.losses)
        if not one or not other or special.fdtrc(n - 1, m - 1, one / other) < UNREST:
            return False
        root = math.sqrt(1 / n + 1 / m)
        statistic = self.worse / self.deviation / root
        return bool(special.nctdtr(n + m - 2, SAME_LOSS / root, statistic) < risk)


@dataclass(frozen=True, kw_only=True)
class _Evidence:
    """All that was compared, and what came of it."""

    usable: int
    groups: Sequence[Group]
    rivals: Sequence[Pair]  # see `_rivals`
    cheaper: Sequence[Pair]
    equal: Sequence[Pair]  # cheaper ones
    twins: Sequence[Pair]  # one config on two GPUs, each way
    greener: Sequence[Pair]

    @property
    def risk(self) -> float:
        """Of each interval that is shown, at its upper and at its lower end."""
        return (1 - LEVEL) / 2 / max(1, len(self.rivals) + len(self.twins))


def advise(records: Sequence[RunRecord]) -> list[Advice]:
    """What to use instead of the config with the lowest loss, block by block; often nothing.

    A config is advised where its mean loss is as low within what seeds vary (`Pair.is_as_good`)
    and it emits at least 5 % less; the cheapest such one of its block. Besides, the GPU on which
    one and the same config emitted least. All comparisons of a report share one chance of 5 %
    that any of its advice is wrong (Bonferroni), and so do the intervals.
    """
    found = _evidence(records)
    named = blocks.titles(records)
    configs = [_use_config(pair, found, named) for pair in _foremost(found.equal)]
    return configs + [_use_gpu(pair, found, named) for pair in _foremost(found.greener)]


def why_silent(records: Sequence[RunRecord]) -> str:
    """What is missing for an advice, in one sentence; empty where there is one."""
    found = _evidence(records)
    if found.equal or found.greener:
        return ""
    if not found.usable:
        return "no run of known hyperparameters ran to its end with a loss and emissions"
    if not found.groups:
        return (
            f"no config was run on {SEEDS} seeds; "
            f"-P repeats={SEEDS} of a sweep, or as many seeds of a grid, give them"
        )
    if not found.rivals and not found.twins:
        return (
            f"nothing to compare: for one model, task and data set only one config was run on "
            f"{SEEDS} seeds"
        )
    if not found.cheaper:
        return (
            "no config surely emits 5 % less than the one with the lowest loss, "
            "and no GPU 5 % less than another"
        )
    return "what emits less has a higher loss, or too few seeds to show that it has not"


def _evidence(records: Sequence[RunRecord]) -> _Evidence:
    usable = [record for record in records if _is_usable(record)]
    groups = [group for group in _groups(usable) if len(group.losses) >= SEEDS]
    parts = [[g for g in groups if g.block == b] for b in dict.fromkeys(g.block for g in groups)]
    rivals = [pair for part in parts for pair in _rivals(part)]
    twins = [pair for part in parts for pair in _twins(part)]
    risk = EMISSIONS_RISK / max(1, len(rivals) + len(twins))
    cheaper = [pair for pair in rivals if pair.ratio(risk) < WORTHWHILE]
    greener = [pair for pair in twins if pair.ratio(risk) < WORTHWHILE]
    return _Evidence(
        usable=len(usable),
        groups=groups,
        rivals=rivals,
        cheaper=cheaper,
        # Losses scatter on their own, so only those that emissions have left over count here.
        equal=[pair for pair in cheaper if pair.is_as_good(LOSS_RISK / len(cheaper))],
        twins=twins,
        greener=[pair for pair in greener if pair.worse <= SAME_LOSS * pair.deviation],
    )


def _is_usable(record: RunRecord) -> bool:
    """It ran to its end, its figures hold, and what was asked of it is known."""
    loss, kg = (record.metrics.get(name, math.nan) for name in ("val_loss", "emissions_kg"))
    return (
        record.status == "FINISHED"
        and not record.ended_early
        and record.tags.get("energy_valid") != "false"
        and math.isfinite(loss)
        and 0 < kg < math.inf
        and record.params.keys() >= HYPERPARAMETERS.keys()
    )


def _groups(records: Iterable[RunRecord]) -> list[Group]:
    alike: dict[tuple[Block, tuple[str, ...], str], list[RunRecord]] = {}
    for record in records:
        key = blocks.block(record), blocks.config(_whole(record)), blocks.gpu(record)
        alike.setdefault(key, []).append(record)
    return [
        Group(block=block, config=config, gpu=gpu, records=records)
        for (block, config, gpu), records in alike.items()
    ]


def _whole(record: RunRecord) -> RunRecord:
    """With each option that it lacks at its default, and 2e-4 as 0.0002, however it was typed."""
    typed = {name: _spelt(name, text) for name, text in record.params.items()}
    return replace(record, params=TrainConfig().to_params() | typed)


@lru_cache(maxsize=100_000)
def _spelt(name: str, text: str) -> str:
    try:
        return to_text(read(SPECS[name], text)) if name in SPECS else text
    except ConfigError:
        return text


def _rivals(groups: Sequence[Group]) -> list[Pair]:
    """Each other config with the one of the lowest loss; and that with the next lowest.

    Of two equal configs the cheaper one has the lowest loss in every second store.
    """
    best, *others = sorted(groups, key=lambda group: fmean(group.losses))
    others = [group for group in others if group.config != best.config]
    return [
        *(Pair(one=group, other=best) for group in others),
        *(Pair(one=best, other=group) for group in others[:1]),
    ]


def _twins(groups: Sequence[Group]) -> list[Pair]:
    """The config with the lowest loss of those that ran on several GPUs, on each two of them."""
    configs = [group.config for group in groups]
    several = [group for group in groups if configs.count(group.config) > 1]
    if not several:
        return []
    best = min(several, key=lambda group: fmean(group.losses)).config
    same = [group for group in several if group.config == best]
    return [Pair(one=one, other=other) for one, other in permutations(same, 2)]


def _foremost(pairs: Iterable[Pair]) -> list[Pair]:
    """In each block the one that advises what emits least, beside what emits most."""
    best: dict[Block, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (fmean(pair.one.logs), pair.ratio())):
        best.setdefault(pair.one.block, pair)
    return list(best.values())


def _use_config(pair: Pair, found: _Evidence, panels: Mapping[Panel, str]) -> Advice:
    block = pair.one.block
    several = len({group.gpu for group in found.groups if group.block == block}) > 1
    use, not_that = (
        _named(*sides) + f" on {sides[0].gpu.upper()}" * several
        for sides in ((pair.one, pair.other), (pair.other, pair.one))
    )
    rank = "lowest" if pair.worse >= 0 else "next lowest"
    saving = f"{_saving(pair, found.risk)} than {not_that}, which has the {rank} loss"
    how = "equal" if pair.worse >= 0 else "no higher"
    loss = f"loss {_loss(pair)}, {how} within the spread of {_seeds(pair)} (sd {_deviation(pair)})"
    return _advice(pair, f"For {_where(block, panels)} use {use}", saving, loss)


def _use_gpu(pair: Pair, found: _Evidence, panels: Mapping[Panel, str]) -> Advice:
    block = pair.one.block
    use = f"For {_where(block, panels)} use the same config on {pair.one.gpu.upper()}"
    saving = f"{_saving(pair, found.risk)} than on {pair.other.gpu.upper()}"
    loss = f"loss {_loss(pair)}, where {_seeds(pair)} spread with sd {_deviation(pair)}"
    return _advice(pair, use, saving, loss)


def _advice(pair: Pair, use: str, saving: str, loss: str) -> Advice:
    both = pair.one.runs + pair.other.runs
    clauses = (use, pair.one.runs), (saving, both), (loss, both)
    return Advice(clauses=tuple(Clause(text=text, runs=runs) for text, runs in clauses))


def _where(block: Block, panels: Mapping[Panel, str]) -> str:
    return f"{panels[Panel(block.task, block.data)]} on {block.model}"


def _named(one: Group, other: Group) -> str:
    """What one has otherwise than the other, the usual hyperparameters first."""
    mine, theirs = (dict(part.split("=", 1) for part in g.config) for g in (one, other))
    names = dict.fromkeys([*HYPERPARAMETERS, *mine, *theirs])
    return ", ".join(
        _phrase(name, mine.get(name, "none"))
        for name in names
        if mine.get(name) != theirs.get(name)
    )


def _phrase(name: str, text: str) -> str:
    phrase = PHRASES.get(name, name + " {}").format(cells.short(text))
    return phrase.removesuffix("s") if text == "1" and phrase.startswith("1 ") else phrase


def _saving(pair: Pair, risk: float) -> str:
    """The saving with its interval: in percent, or as a factor where it is large."""
    ratios = [pair.ratio(), pair.ratio(risk), pair.ratio(1 - risk)]
    if ratios[0] < MANY_TIMES:
        best, low, high = (f"{1 / ratio:.1f}" for ratio in ratios)
        return f"{best} x less emissions (95 % interval {low} to {high})"
    best, low, high = (f"{100 * (1 - r):.0f}" for r in ratios)
    return f"{best} % less emissions (95 % interval {low} to {high})"


def _seeds(pair: Pair) -> str:
    fewest, most = sorted(len(group.losses) for group in (pair.one, pair.other))
    return f"{fewest} seeds" if fewest == most else f"{fewest} and {most} seeds"


def _decimals(pair: Pair) -> int:
    """As many as show the first digit of the spread, and at least two."""
    return max(2, math.ceil(-math.log10(pair.deviation))) if pair.deviation else 2


def _loss(pair: Pair) -> str:
    return f"{pair.worse:+.{_decimals(pair)}f}"


def _deviation(pair: Pair) -> str:
    return f"{pair.deviation:.{_decimals(pair)}f}"


def _seed(record: RunRecord) -> str:
    return record.params.get("seed", "")
