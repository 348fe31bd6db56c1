"""The padding X-ray: how many tokens would be padding, by how batches are made and how large.

It counts the real examples, for the usual ways to make batches and for those of this program, and
says what the padding costs. That is operations rather than tokens, since padded rows attend over
all of their width. What an operation emits is handed in, one price for all: a model, in which a
device computes padding as fast as anything else. What a job computes in all is `effort`'s.
"""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from green_tune import cells, effort, workload
from green_tune.batches import Batching, Schedule
from green_tune.config import TrainConfig
from green_tune.effort import GIGA, Adapter, Texts
from green_tune.fit import CPU_TOKENS
from green_tune.plan import Plan
from green_tune.shapes import Shape
from green_tune.workload import Counts

# From what pads most to what pads least; `padded` is there for a job that asks for it.
METHODS = {
    "max_length": "each row to max_seq_len",
    "longest": "random batches, to their longest: usual",
    "grouped": "batches of like length: group_by_length",
    "padded": "this program's rows, sorted within a step",
    "flat": "no padding: this program's",
    "tree": "shared prompts once: this program's",
}
USUAL = "longest"
SIZES = (1, 2, 4, 8, 16, 32, 64)  # examples of a forward pass
SAMPLED = 3000  # examples of which trees are cut, at batch sizes that are not the job's
MEGABATCHES, MOST_BATCHES = 4, 50  # of transformers' sampler: fewest of the one, most in each
THOUSAND = 1000
MASS = {"kg": 1e-3, "g": 1.0, "mg": 1e3, "µg": 1e6}  # of a gram
WORK = {"EFLOP": 1e-9, "PFLOP": 1e-6, "TFLOP": 1e-3, "GFLOP": 1.0}  # of a GFLOP


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method at one batch size, over all epochs of a training on one device.

    Tokens are `useful` and `processed` as in `workload.Counts`; `flat_gflop` is what the same
    examples take without padding, in 1e9 floating-point operations as `gflop` is. `mine` marks what
    the job does. `emissions_g` is g CO2e, None where the price of a GFLOP is not known.
    """

    method: str
    batch_size: int
    useful: float
    processed: float
    gflop: float
    flat_gflop: float
    emissions_g: float | None
    mine: bool

    @property
    def padding(self) -> float:
        """The share, 0 to 1, of processed tokens that nobody asked for; trees' is below 0."""
        return 1 - self.useful / self.processed

    @property
    def spent(self) -> float:
        """What the training emits, g CO2e; where that is not known, what it computes, GFLOP."""
        return self.gflop if self.emissions_g is None else self.emissions_g

    @property
    def spent_flat(self) -> float:
        """The same without padding, and with nothing shared."""
        return self.spent * (self.flat_gflop / self.gflop)

    @property
    def extra(self) -> float:
        """What padding adds to `spent`; below 0 where sharing takes more from it."""
        return self.spent * round(1 - self.flat_gflop / self.gflop, 9)


def xray(  # noqa: PLR0913 - each decides a part of it
    texts: Texts,
    shape: Shape,
    config: TrainConfig,
    plan: Plan,
    *,
    max_seq_len: int,
    g_per_gflop: float | None = None,
    sizes: Sequence[int] = SIZES,
) -> list[Row]:
    """Each method at each batch size, and at the job's own, as many rows as there are pairs.

    `max_seq_len` is in tokens. One epoch is counted, in the order of the config's seed, and taken
    for all. Counts are exact, from lengths; trees are cut, those of the job's own size from up to
    `workload.COUNTED` examples and the others from `SAMPLED`, and the rest is taken to be alike.
    10,000 examples of 400 tokens took about a second on a CPU core.
    """
    epoch = _Epoch(texts=texts, config=config, plan=plan, max_seq_len=max_seq_len)
    adapter = Adapter.of(config, plan)
    fitting = {size for size in sizes if size <= len(texts.train)} | {config.batch_size}

    def row(method: str, size: int) -> Row:
        counts = epoch.counts(method, size) * config.epochs
        flat = epoch.counts("flat", size) * config.epochs
        gflop = effort.training(shape, counts, adapter) / GIGA
        return Row(
            method=method,
            batch_size=size,
            useful=counts.useful,
            processed=counts.processed,
            gflop=gflop,
            flat_gflop=effort.training(shape, flat, adapter) / GIGA,
            emissions_g=None if g_per_gflop is None else g_per_gflop * gflop,
            mine=(method, size) == (plan.batching, config.batch_size),
        )

    names = [name for name in METHODS if name != "padded" or plan.batching == "padded"]
    return [row(name, size) for name in names for size in sorted(fitting)]


def at_own_size(rows: Sequence[Row]) -> dict[str, Row]:
    """Each method as it would be at the job's batch size."""
    own = next(row.batch_size for row in rows if row.mine)
    return {row.method: row for row in rows if row.batch_size == own}


def by_length(order: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[int]:
    """Examples in batches of like length, the longest first, from a random order of them.

    What transformers does under group_by_length (`LengthGroupedSampler`): long stretches of the
    order are sorted by length, each of them many batches.
    """
    most = min(len(lengths) // (batch_size * MEGABATCHES), MOST_BATCHES)
    stretches = [
        sorted(part, key=lambda one: lengths[one], reverse=True)
        for part in _parts(order, max(1, most) * batch_size)
    ]
    longest = max(stretches, key=lambda part: lengths[part[0]])
    stretches[0][0], longest[0] = longest[0], stretches[0][0]
    return [one for part in stretches for one in part]


def report(rows: Sequence[Row], width: int = 80, device: str = "") -> str:
    """Shares of padding as a table on a terminal of so many columns, and what they come to.

    `device` is the one whose price it is, where there may be several.
    """
    own = at_own_size(rows)
    mine = next(row for row in rows if row.mine)
    unit, factor = unit_of(rows)
    marks = [f"{size}{'*' * (size == mine.batch_size)}" for size in _sizes(rows)]
    table = cells.new_table("", *marks, f"{unit} of padding*", gap=2)
    for method, row in own.items():
        shares = [str(round(100 * each.padding)) for each in rows if each.method == method]
        table.add_row(f"{method}{'*' * row.mine}", *shares, figure(row.extra * factor))
    below = "\nbelow 0 where examples share a prompt, which is computed once"
    head = "padding, % of processed tokens, by examples of a forward pass (* this job's)"
    head += below * any(round(100 * row.padding) < 0 for row in rows)
    filled = textwrap.fill(sentence(rows, device), width, break_on_hyphens=False)
    return "\n".join([head, cells.to_text(table, width), filled])


def _sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row.batch_size for row in rows})


def sentence(rows: Sequence[Row], device: str = "") -> str:
    """What the job's training comes to, and what the best and the usual method would.

    In CO2e, or in operations where the price of one is not known.
    """
    own = at_own_size(rows)
    mine, usual = next(row for row in rows if row.mine), own[USUAL]
    best = min(own.values(), key=lambda row: row.spent)
    clauses = [f"At batch size {mine.batch_size} this job's training ({mine.method}) comes to"
               f" {_amount(mine, rows)}{device and f' at the price of {device}'}"]  # fmt: skip
    if best.spent < mine.spent:
        clauses.append(f"{best.method} would take least, {_beside(best, mine, rows)}")
    else:
        clauses[0] += ", and no other way takes less"
    if mine is not usual:
        as_usual = _beside(usual, mine, rows)
        clauses.append(f"padded to the longest of a batch, as is usual, {as_usual}")
    known = mine.emissions_g is not None
    return "; ".join(clauses) + f". Modelled{', at one price for each GFLOP' * known}."


def unit_of(rows: Sequence[Row]) -> tuple[str, float]:
    """The unit that a reader would choose for what the job's training comes to.

    And how many of it make one of what rows have in `spent`.
    """
    mine = next(row for row in rows if row.mine)
    units = list((WORK if mine.emissions_g is None else MASS).items())
    return next((each for each in units if mine.spent * each[1] >= 1), units[-1])


def figure(number: float) -> str:
    """In three digits, or whole where that is more."""
    return f"{number:,.0f}" if abs(number) >= THOUSAND else f"{number:.3g}"


def _amount(row: Row, rows: Sequence[Row]) -> str:
    unit, factor = unit_of(rows)
    return f"{figure(row.spent * factor)} {unit}{' CO2e' * (unit in MASS)}"


def _beside(row: Row, mine: Row, rows: Sequence[Row]) -> str:
    """An amount, and by how much it differs from the job's."""
    more = row.spent / mine.spent - 1
    return f"{_amount(row, rows)} ({more:+,.0%})" if round(more, 2) else "the same"


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    """The examples of one epoch, and how many there are to compute by each method."""

    texts: Texts
    config: TrainConfig
    plan: Plan
    max_seq_len: int

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each example."""
        return [len(example["input_ids"]) for example in self.texts.train]

    @cached_property
    def order(self) -> list[int]:
        """The examples as the job shuffles them where none belong together."""
        return self.schedule("flat", len(self.lengths)).step(0)

    @cached_property
    def plain(self) -> Counts:
        """Without padding; a loss is taken at the same places by all methods."""
        return Counts(
            useful=sum(self.lengths),
            processed=sum(self.lengths),
            pairs=sum(length * (length + 1) / 2 for length in self.lengths),
            labels=sum(example["labelled"] for example in self.texts.train),
        )

    def counts(self, method: str, size: int) -> Counts:
        """What a method makes of it at a batch size."""
        if method == "flat":
            return self.plain
        if method == "tree":
            return self._tree(size)
        return self._padded(self._batches(method, size), method == "max_length")

    def schedule(self, batching: Batching, examples: int) -> Schedule:
        """Steps of so many examples, in the order in which the job takes them."""
        return Schedule(
            self.texts.groups, size=examples, epochs=1, seed=self.config.seed, batching=batching
        )

    def _batches(self, method: str, size: int) -> Iterator[Sequence[int]]:
        step = size * self.config.accumulation_steps
        if method == "grouped":  # as transformers does: alike within a step, not within a batch
            return _parts(by_length(self.order, self.lengths, step), size)
        if method == "padded":
            return self._sorted(step, min(size, self._most_rows))
        return _parts(self.order, size)

    @property
    def _most_rows(self) -> int:
        """Rows that the memory leaves room for, where it has to be asked."""
        rows = self.plan.micro_batch_size
        return rows if rows < self.config.batch_size else len(self.lengths)

    def _sorted(self, step: int, rows: int) -> Iterator[Sequence[int]]:
        for part in _parts(self.order, step):
            yield from _parts(sorted(part, key=self.lengths.__getitem__), rows)

    def _padded(self, batches: Iterable[Sequence[int]], full: bool) -> Counts:
        processed, pairs = 0, 0.0
        for batch in batches:
            width = self.max_seq_len if full else max(self.lengths[one] for one in batch)
            processed += len(batch) * width
            pairs += len(batch) * width * (width + 1) / 2
        return replace(self.plain, processed=processed, pairs=pairs)

    def _tree(self, size: int) -> Counts:
        step = size * self.config.accumulation_steps
        most = workload.COUNTED if size == self.config.batch_size else SAMPLED
        schedule = self.schedule("tree", step)
        cut = Counts()
        for number in range(min(schedule.steps, max(1, most // step))):
            examples = [self.texts.train[one] for one in schedule.step(number)]
            cut += workload.of_step(examples, "tree", tokens=self._tokens(step))
        times = self.plain.useful / cut.useful
        return replace(self.plain, processed=times * cut.processed, pairs=times * cut.pairs)

    def _tokens(self, step: int) -> int:
        """Of a micro-batch: the plan's, or more for longer steps if the plan's is a whole one."""
        planned = self.plan.micro_batch_tokens
        if self.config.micro_batch_tokens or planned < self.plan.examples * self.max_seq_len:
            return planned
        return max(planned, min(step * self.max_seq_len, CPU_TOKENS))


def _parts(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[at : at + size] for at in range(0, len(items), size))
