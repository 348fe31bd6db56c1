"""An offer: what an order takes on one device, run by run, or why it has no room there.

It joins what was found for the runs with a device, which need not be in this machine, and with what
is known of it. What to leave out for a budget, `trim` looks for; how it is told, `quotation`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from statistics import median

from green_tune import effort, evidence, fit, memory, pace
from green_tune import quote as quotes
from green_tune.budget import ZERO, Amount
from green_tune.config import TrainConfig
from green_tune.conformal import Width
from green_tune.effort import Texts, Work
from green_tune.errors import ConfigError, DoesNotFit
from green_tune.evidence import LAYERS, Known, Layer
from green_tune.footprint import GRAMS_PER_KG, OVERHEAD, SECONDS_PER_HOUR, Basis
from green_tune.hardware import Device
from green_tune.job import Found, Job
from green_tune.memory import Estimate
from green_tune.order import Order, Unit
from green_tune.pace import Pace
from green_tune.quote import Quote
from green_tune.results import RunRecord

Pair = tuple[str, str]  # model and task, as they were asked for

COUNTED_OF_MANY = 500  # examples whose steps are cut, where many configs are
# Between two runs of a session, and at its end, with figures and summary: assumed, and measured on
# one CPU as about that, until the store holds a session on such a device.
BETWEEN_S, CLOSING_S = 0.5, 4.0
UNDECIDING = ("learning_rate", "warmup_steps", "lr_scheduler", "weight_decay", "max_grad_norm",
              "lora_alpha", "country", "pue", "gpu", "resume", "checkpoint_minutes",
              "min_gain_per_g", "precision", "quantization")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Part:
    """One unit of an order on a device."""

    unit: Unit
    job: Job
    work: Work
    quote: Quote

    @property
    def g_per_gflop(self) -> float:
        """What training emits for 1e9 operations, in g CO2e."""
        kwh = self.quote.evidence.phases["train"].energy_kwh
        return self.quote.basis.kg(kwh) * GRAMS_PER_KG / self.work.train_gflop


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What an order takes on a device; `refusal` says why it does not, and is empty where it does.

    `session` is what lies between its runs, and before the first. `memory` is of the config that
    takes the most, or the least that is needed where that has no room. `unfit` are base models of a
    grid that have no room while others have: their cells are not run.
    """

    device: Device
    here: bool
    memory: Estimate | None
    how: str  # the plan in a few words
    parts: tuple[Part, ...] = ()
    session: Amount = ZERO
    refusal: str = ""
    unfit: tuple[str, ...] = ()

    @cached_property
    def _sum(self) -> tuple[Amount, Width, Width]:
        return quotes.together([(part.quote, part.unit.times) for part in self.parts])

    @property
    def runs(self) -> Amount:
        """What its runs take together."""
        return self._sum[0]

    @property
    def amount(self) -> Amount:
        """What all of it takes."""
        return self.runs + self.session

    @property
    def runtime(self) -> Width:
        """How far off its hours may be."""
        return self._sum[1]

    @property
    def energy(self) -> Width:
        """How far off its kWh, and its kg CO2e, may be."""
        return self._sum[2]

    @property
    def layer(self) -> Layer:
        """The least of what its parts rest on."""
        return max((part.quote.evidence.layer for part in self.parts), key=LAYERS.index)

    @property
    def note(self) -> str:
        """What it rests on, in words, the least of it first."""
        ordered = sorted(self.parts, key=lambda part: -LAYERS.index(part.quote.evidence.layer))
        return "; ".join(dict.fromkeys(part.quote.evidence.note for part in ordered))

    @property
    def work(self) -> Work:
        """All runs' work together, of so many layers as the first."""
        names = [spec.name for spec in fields(Work) if spec.name != "layers"]
        sums = {
            name: sum(getattr(part.work, name) * part.unit.times for part in self.parts)
            for name in names
        }
        return Work(layers=self.parts[0].work.layers, **sums)


@dataclass(frozen=True, kw_only=True)
class Market:
    """What all offers for one order have in common.

    `fingerprint` tells whether a config was measured before; `sessions` are earlier sweeps' and
    grids' runs. Work is counted once for all devices that cut micro-batches alike.
    """

    order: Order
    found: Mapping[Pair, Found]
    texts: Mapping[Pair, Texts]
    basis: Basis
    fingerprint: Callable[[Job], str] = lambda job: ""
    sessions: Sequence[RunRecord] = ()
    _works: dict[object, Work] = field(default_factory=dict)

    def offer(self, device: Device, known: Known, *, here: bool) -> Offer:
        """What the order takes on a device, by what is known of it."""
        try:
            largest, unfit = self._largest(device, here=here)
        except ConfigError as error:
            return self._refused(device, error, here=here)
        parts = tuple(
            self._part(unit, self.job(_pinned(unit, largest), device, here=here), known)
            for unit in self.order.units
            if pair(unit.config) in largest
        )
        most = max(largest.values(), key=lambda job: job.plan.memory_gib)
        return Offer(
            device=device,
            here=here,
            memory=_estimate(most),
            how=_how(most),
            parts=parts,
            session=self._session(parts, known) if self.order.shared else ZERO,
            unfit=tuple(dict.fromkeys(model for model, _ in unfit)),
        )

    def _largest(self, device: Device, *, here: bool) -> tuple[dict[Pair, Job], dict[Pair, str]]:
        """The job of each model and task that takes the most memory; and why others have no room.

        Raises:
            ConfigError: none of them has, or what was asked is not supported there.
        """
        found, unfit = {}, {}
        for config in self.order.largest:
            try:
                found[pair(config)] = self.job(config, device, here=here)
            except DoesNotFit as error:
                unfit[pair(config)] = str(error)
        if not found:
            raise DoesNotFit(next(iter(unfit.values())))
        return found, unfit

    def job(self, config: TrainConfig, device: Device, *, here: bool) -> Job:
        """One run's job on a device.

        Raises:
            ConfigError: it has no room there, or what was asked is not supported.
        """
        found = replace(self.found[pair(config)], config=config)
        return found.on((device,), nf4=None if here else True)

    def _part(self, unit: Unit, job: Job, known: Known) -> Part:
        work = self._work(unit, job)
        mark = self.fingerprint(job) if known.records else ""
        found = evidence.find(job, work, known, mark, kind=unit.kind)
        quote = Quote.of(found, known, job, self.basis)
        return Part(unit=unit, job=job, work=work, quote=quote)

    def _work(self, unit: Unit, job: Job) -> Work:
        assert job.shape is not None  # whoever forecasts has looked
        params = job.config.to_params() | job.plan.to_params()
        left_out = (*UNDECIDING, "plan.reasons", "plan.memory_gib", "plan.attention",
                    "plan.precision", "plan.kernels", "plan.quantization")  # fmt: skip
        key = (unit.kind, job.device.kind, *(v for k, v in params.items() if k not in left_out))
        if key not in self._works:
            many = len(self.order.units) > 1
            self._works[key] = effort.work(
                job.config,
                job.plan,
                job.shape,
                first(self.texts[pair(job.config)], job.config.max_train_examples),
                kind=job.device.kind,
                warmed=unit.kind not in evidence.OWN,
                **({"counted": COUNTED_OF_MANY} if many else {}),
            )
        return self._works[key]

    def _session(self, parts: Sequence[Part], known: Known) -> Amount:
        """Setup once, what lies between runs, and the summary."""
        job, runs = parts[0].job, sum(part.unit.times for part in parts)
        start = evidence.usual(job, known)
        between_s = _between_s([r for r in self.sessions if evidence.is_of(r, job.device)], start)
        sweeps = self.order.sweeps * runs / self.order.runs
        took_s = start.setup_s + between_s * runs + CLOSING_S * max(1, sweeps)
        spent = pace.amount(took_s, start.loading_w)
        return replace(spent, emissions_kg=self.basis.kg(spent.energy_kwh))

    def _refused(self, device: Device, error: ConfigError, *, here: bool) -> Offer:
        """With the least memory that it would need, where that is why."""
        if not isinstance(error, DoesNotFit):
            return Offer(device=device, here=here, memory=None, how="refused", refusal=str(error))
        needs = [
            fit.smallest(config, device, shape)
            for config in self.order.largest
            if (shape := self.found[pair(config)].shape)
        ]
        most = max(needs, key=lambda each: each.total_gib, default=None)
        return Offer(device=device, here=here, memory=most, how="does not fit", refusal=str(error))


def pair(config: TrainConfig) -> Pair:
    """What examples in tokens belong to."""
    return config.model, config.task


def _pinned(unit: Unit, largest: Mapping[Pair, Job]) -> TrainConfig:
    """A trial has the precision and the bits that the largest of its sweep needs."""
    if unit.kind not in ("trial", "repeat"):
        return unit.config
    plan = largest[pair(unit.config)].plan
    fixed = {"precision": plan.precision, "quantization": plan.quantization}
    return replace(unit.config, **fixed)  # type: ignore[arg-type]


def first(texts: Texts, examples: int) -> Texts:
    """With the first so many training examples alone; 0 for all."""
    if not examples or examples >= len(texts.train):
        return texts
    return replace(texts, train=texts.train[:examples], groups=texts.groups[:examples])


def _estimate(job: Job) -> Estimate:
    plan = job.plan
    assert job.shape is not None
    choices = fit.adapted(
        job.config,
        job.device,
        precision=plan.precision,
        quantization=plan.quantization,
        tokens=plan.micro_batch_tokens,
        checkpointing=plan.checkpointing,
    )
    return memory.estimate(job.shape, choices)


def _how(job: Job) -> str:
    plan = job.plan
    weights = "nf4" if plan.quantization == "nf4" else plan.precision
    return f"{weights}, checkpointing" if plan.checkpointing else weights


def _between_s(sessions: Sequence[RunRecord], start: Pace) -> float:
    """Seconds for each run of a session, beside its setup; the median of those in the store."""
    found = []
    for record in sessions:
        hours, runs = record.metrics.get(f"{OVERHEAD}runtime_h"), record.params.get("trials", "")
        if hours and runs.isdigit() and int(runs) > 1:
            rest_s = hours * SECONDS_PER_HOUR - start.setup_s - CLOSING_S
            found.append(max(0.0, rest_s) / int(runs))
    return median(found) if found else BETWEEN_S
