"""One fine-tuning run: planned, measured and tracked.

`run_experiment` is the whole story on one screen. Everything in it has a door of its own; what
happens here is only their order; that nothing which was spent goes unrecorded is `bill`'s affair.
"""

import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from green_tune import __version__, bars, earlier, nvml, quality, quote, recipe, stop, training
from green_tune.bill import Bill
from green_tune.checkpoint import Checkpoint
from green_tune.course import Phase, Progress, Watch, unmeasured
from green_tune.errors import ConfigError, Stopped, StoreError
from green_tune.evidence import FAMILY, Known
from green_tune.footprint import GRAMS_PER_KG
from green_tune.job import Job
from green_tune.meter import Meter
from green_tune.peers import from_everywhere, from_everywhere_at_last
from green_tune.results import (
    EVALUATIONS,
    FINGERPRINT,
    PROCESSES,
    STOPPED_EARLY,
    STOPPED_WHY,
    Course,
    Evaluation,
    TrainResult,
    to_tag,
)
from green_tune.run import Run
from green_tune.tracking import NOTE
from green_tune.training import Bench, FineTuner

LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "codecarbon", "mlflow", "optuna", "datasets",
)  # fmt: skip

SECONDS_PER_MINUTE = 60
CHECKPOINTS = "checkpoints"  # the artifact folder of adapters on the way

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who decides about a training under way, by its validations so far.

    `ends` gives a reason to end it, or ""; `keeps` says whether the adapter of a validation is
    worth keeping.
    """

    ends: Callable[[Course], str] = lambda course: ""
    keeps: Callable[[Course], bool] = lambda course: False


UNJUDGED = Judge()


def run_experiment(  # noqa: PLR0913 - what a run has from others, each by its name
    job: Job,
    run: Run,
    bill: Bill,
    checkpoint: Checkpoint | None = None,
    *,
    bench: Bench | None = None,
    judge: Judge = UNJUDGED,
    known: Known | None = None,
) -> TrainResult:
    """Trains a job's adapter, phase by phase, and writes what came of it to `run`.

    With a checkpoint it goes on where an earlier session was stopped, and can be gone on with. On
    a bench it uses what trainings before it have loaded. By what is `known` of earlier runs it is
    quoted before it starts.

    Raises:
        RunFailed: it diverged or did not fit.
        UsageError: the base model or the data cannot be used after all.
    """
    phase = partial(bill.meter.phase, sync=training.synchronize)
    with phase("setup"):
        describe(job, run)
        run.set_tags({NOTE: _sentence(job)})
        run.log_params(job.config.to_params() | job.plan.to_params())
        quality.prepare(job)
        tuner = (bench or Bench()).load(job)
        _report_cuts(job, tuner)
        keeper = _Keeper(job, run, checkpoint, phase)
        kept = keeper.earlier(tuner.steps)
        if not kept:
            _quote(tuner, run, bill, known or Known(), "trial" if bench else "train")
    if not kept:
        before = _quality(tuner, phase)
        run.log_metrics({f"start_{name}": value for name, value in before.items()})
    with _Shelf(run, judge, phase) as shelf:
        warmed = bench is not None
        with _Bar(job, run, bill, tuner.steps, warmed=warmed) as bar, phase("train"):
            result = tuner.fit(
                Watch(
                    on_progress=bar.update,
                    phase=phase,
                    spent_g=lambda: (run.spent_kg + bill.meter.emitted_kg) * GRAMS_PER_KG,
                    kept=kept,
                    keep=keeper.keep,
                    due=keeper.due,
                    ends=judge.ends,
                    shelve=shelf.put,
                )
            )
        run.log_metrics(result.to_metrics(), step=result.steps)
        _note_end(result, run)
        try:
            with phase("save"):
                _save_adapter(tuner, run)
                shelf.hand_over(result)
            from_everywhere(None)  # all wait, and are measured, until it is saved
            run.log_metrics(_quality(tuner, phase), step=result.steps)
        except Stopped:
            with stop.held():
                keeper.keep(tuner.state)  # the next session has only this to do again
            raise
    bill.together = from_everywhere_at_last
    bill.as_quoted = result.steps == result.steps_planned
    return result


def _quote(tuner: FineTuner, run: Run, bill: Bill, known: Known, kind: str) -> None:
    """What the run is expected to take is in it before it starts."""
    job, texts = tuner.job, tuner.texts
    try:
        made = quote.foretell(job, texts, known, bill.meter.basis, fingerprint(job), kind=kind)
    except ConfigError:  # a GPU that is not in the table: with safe settings, and unquoted
        return
    if made:
        work, bill.quote = made
        run.log_metrics(work.to_metrics() | bill.quote.to_metrics())
        run.set_tags(bill.quote.to_tags())


def _note_end(result: TrainResult, run: Run) -> None:
    """Its course; where it ended early, and whose adapter it is: those losses are written last."""
    run.set_tags({EVALUATIONS: to_tag(result.course)})
    if result.steps < result.steps_planned:
        where = f"after step {result.steps} of {result.steps_planned}"
        run.set_tags({STOPPED_EARLY: where, STOPPED_WHY: result.ended_because})
    if result.adapter_step < result.steps:
        run.set_tags({"adapter_step": str(result.adapter_step)})
        losses = {"val_loss": result.val_loss, "val_bits_per_byte": result.val_bits_per_byte}
        run.log_metrics(losses, step=result.steps + 1)


def follow(job: Job, meter: Meter | None) -> None:
    """What the other processes of a distributed run do: train along, and measure their node."""
    phase = partial(meter.phase, sync=training.synchronize) if meter else unmeasured
    with phase("setup"):
        tuner = training.load(job)
    _quality(tuner, phase)
    with phase("train"):
        tuner.fit(Watch(phase=phase))
    from_everywhere(None)
    _quality(tuner, phase)
    from_everywhere_at_last(meter.close()[0] if meter else None)


def _quality(tuner: FineTuner, phase: Phase) -> dict[str, float]:
    """Task metrics of the adapter as it is: one process measures them, and all wait for it."""
    if not tuner.job.config.quality_examples:
        return {}
    with phase("quality"):
        return from_everywhere(quality.measure(tuner))[0]  # type: ignore[no-any-return]


def describe(job: Job, run: Run) -> None:
    """What is known before the start: device, base model, data, versions and intensity."""
    versions = _versions()
    tags = job.intensity.to_tags() | {
        "gpu_type": job.device.gpu_type,
        "device": str(job.device),
        "gpu_count": str(job.rank.world) if job.device.kind == "cuda" else "",
        PROCESSES: str(job.rank.world) if job.rank.world > 1 else "",
        "base_model": job.source.name,
        "base_model_commit": job.commit,
        "base_digest": recipe.base_digest(job),
        FAMILY: job.family,
        "data_digest": job.data.digest,
        FINGERPRINT: earlier.fingerprint(job, versions),
    }
    run.set_tags({key: text for key, text in {**tags, **versions}.items() if text})
    run.log_dataset(
        f"{job.task.name}-{job.data.name}", job.data.source, job.data.digest, "training"
    )


def _sentence(job: Job) -> str:
    """What a reader of the run's page, or of a tooltip in MLflow's charts, wants to know first."""
    asked = job.config
    return (
        f"LoRA of rank {asked.lora_rank} on {job.source.name} for {job.task.name} "
        f"({job.data.name}), on {job.device.gpu_type}: batch {asked.batch_size} x "
        f"{asked.accumulation_steps}, learning rate {asked.learning_rate:g}, "
        f"{asked.warmup_steps} warm-up steps, {asked.epochs} epochs, seed {asked.seed}"
    )


def fingerprint(job: Job) -> str:
    """What `describe` notes of a job: equal for runs that differ by chance alone."""
    return earlier.fingerprint(job, _versions())


@cache
def _versions() -> Mapping[str, str]:
    """The versions of what shapes a result."""
    versions = {f"version.{name}": metadata.version(name) for name in LIBRARIES}
    versions |= {f"version.{name}": text for name, text in nvml.versions().items()}
    own = {
        "version.green_tune": __version__,
        "version.python": platform.python_version(),
        "version.cuda": training.cuda_version(),
    }
    return MappingProxyType(versions | own)


def _report_cuts(job: Job, tuner: training.FineTuner) -> None:
    for split, fit in tuner.fits.items():
        if fit.cut or fit.dropped:
            log.warning(
                "%s: %d of %d examples are longer than max_seq_len=%d tokens: %d lose the end of "
                "their text, %d are left out, as their answer alone is too long",
                split, fit.cut + fit.dropped, fit.total, tuner.max_seq_len, fit.cut, fit.dropped,
            )  # fmt: skip


def _save_adapter(tuner: training.FineTuner, run: Run) -> None:
    """Hands the adapter to the store; keeps it on disk and says where when the store is away."""
    folder = Path(tempfile.mkdtemp(prefix="green-tune-adapter-"))
    tuner.save(folder)
    try:
        run.log_folder(folder, "adapter")
    except StoreError as error:
        raise StoreError(f"{error}; the adapter is kept in {folder}") from error
    shutil.rmtree(folder)


class _Shelf:
    """Adapters of validations on the way that are results of their own, until the run has them."""

    def __init__(self, run: Run, judge: Judge, phase: Phase) -> None:
        self._run = run
        self._judge = judge
        self._phase = phase
        self._course: list[Evaluation] = []
        self._folder: Path | None = None

    def __enter__(self) -> "_Shelf":
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder:
            shutil.rmtree(self._folder)

    def put(self, evaluation: Evaluation, save: Callable[[Path], None]) -> None:
        """Keeps the adapter as it is now, if it is worth it; the last one the run has anyway."""
        self._course.append(evaluation)
        if evaluation.progress < 1 and self._judge.keeps(self._course):
            self._folder = self._folder or Path(tempfile.mkdtemp(prefix="green-tune-shelf-"))
            with self._phase("save"):
                save(self._folder / f"step-{evaluation.step}")

    def hand_over(self, result: TrainResult) -> None:
        """Gives the run what was kept."""
        if not self._folder:
            return
        last = self._folder / f"step-{result.steps}"
        if last.exists():
            shutil.rmtree(last)
        if any(self._folder.iterdir()):
            self._run.log_folder(self._folder, CHECKPOINTS)


class _Keeper:
    """Keeps a training's state, and what of its metrics the store may not have by then."""

    def __init__(self, job: Job, run: Run, checkpoint: Checkpoint | None, phase: Phase) -> None:
        self._run = run
        self._checkpoint = checkpoint
        self._phase = phase
        self._every_s = job.config.checkpoint_minutes * SECONDS_PER_MINUTE
        self._kept_s = time.monotonic()

    def earlier(self, steps: int) -> dict[str, Any] | None:
        """The state to go on from; None where the training begins."""
        data = self._checkpoint.read() if self._checkpoint else None
        if data is None:
            return None
        state = training.from_bytes(data)
        self._run.write_again(state["unwritten"])
        log.warning(
            "goes on with run %s (%s) at step %d of %d (resume=never starts anew)",
            self._run.name, self._run.id, state["step"], steps,
        )  # fmt: skip
        return state

    def due(self) -> bool:
        """Whether it is time for the next checkpoint."""
        waited_s = time.monotonic() - self._kept_s
        return bool(self._checkpoint and self._checkpoint.wanted and waited_s >= self._every_s)

    def keep(self, make_state: Callable[[], dict[str, Any]]) -> None:
        """Writes a checkpoint, unless none are wanted."""
        if not self._checkpoint or not self._checkpoint.wanted:
            return
        with self._phase("save"):
            state = make_state() | {"unwritten": self._run.unwritten}
            self._checkpoint.write(self._run.id, training.to_bytes(state))
        self._kept_s = time.monotonic()


class _Bar:
    """The progress bar of one training; passes what is measured on to the run."""

    def __init__(self, job: Job, run: Run, bill: Bill, steps: int, *, warmed: bool) -> None:
        self._run = run
        self._meter = bill.meter
        self._quote = bill.quote
        self._unit = "g CO2e assumed" if job.intensity.assumed else "g CO2e"
        self._shown: dict[str, float] = {}
        self._steps = steps
        self._validated = -1 if warmed else 0  # the first one of a trial is another's
        self._validations = min(job.config.evals, steps) + (not warmed)
        self._scored = 0.5 if job.config.quality_examples else 1.0  # again at the end
        name = run.name.partition(" ")[0]  # of a trial its number
        self._bar = bars.bar(name, total=steps, remarks=True)

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: Progress) -> None:
        """Moves the bar to where the training is, and logs this step's metrics."""
        self._shown |= progress.metrics
        metrics = dict(progress.metrics)
        if "val_loss" in metrics:
            self._validated += 1
            metrics["emissions_so_far_kg"] = self._spent_kg
            metrics |= self._expected(progress.step)
        if metrics:
            self._run.log_metrics(metrics, step=progress.step)
        self._bar.set_postfix_str(self._postfix(progress.step), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    @property
    def _spent_kg(self) -> float:
        return self._run.spent_kg + self._meter.emitted_kg

    def _expected(self, step: int) -> dict[str, float]:
        """Kilograms in the end, by what this run has spent so far and by its quote."""
        if not self._quote:
            return {}
        parts = {
            "train": step / self._steps,
            "eval": max(0, self._validated) / self._validations,
            "quality": self._scored,
            "save": 0.0,
        }
        spent = {phase: self._meter.spent_in(phase)[0] for phase in (*parts, "setup", "between")}
        kwh = quote.expected_kwh(self._quote.evidence.phases, spent, parts)
        return {"emissions_expected_kg": self._run.spent_kg + self._meter.basis.kg(kwh)}

    def _postfix(self, step: int) -> str:
        shown = [
            form.format(self._shown[key])
            for key, form in (
                ("train_loss", "loss {:.3f}"),
                ("val_loss", "val {:.3f}"),
                ("tokens_per_s", "{:,.0f} tok/s"),
            )
            if key in self._shown
        ]
        grams = f"{self._spent_kg * GRAMS_PER_KG:.3g}"
        for kg in self._expected(step).values():
            grams += f" of {kg * GRAMS_PER_KG:.3g}"
        return " ".join([*shown, f"{grams} {self._unit}"])
