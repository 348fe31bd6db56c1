"""One fine-tuning run: planned, measured and tracked.

`run_experiment` is the whole story on one screen. Everything in it has a door of its own; what
happens here is only their order; that nothing which was spent goes unrecorded is `bill`'s affair.
"""

import logging
import platform
import shutil
import sys
import tempfile
from functools import partial
from importlib import metadata
from pathlib import Path

from tqdm import tqdm

from green_tune import __version__, nvml, training
from green_tune.bill import Bill
from green_tune.errors import StoreError
from green_tune.job import Job
from green_tune.meter import Meter
from green_tune.results import TrainResult
from green_tune.tracking import Run

LIBRARIES = (
    "torch", "transformers", "peft", "accelerate", "codecarbon", "mlflow", "optuna", "datasets",
)  # fmt: skip

log = logging.getLogger(__name__)


def run_experiment(job: Job, run: Run, bill: Bill) -> TrainResult:
    """Trains a job's adapter, phase by phase, and writes what came of it to `run`.

    Raises:
        RunFailed: it diverged or did not fit.
        UsageError: the base model or the data cannot be used after all.
    """
    phase = partial(bill.meter.phase, sync=training.synchronize)
    with phase("setup"):
        describe(job, run)
        run.log_params(job.config.to_params() | job.plan.to_params())
        tuner = training.load(job)
        _report_cuts(job, tuner)
    with _Bar(job, run, bill.meter, tuner.steps) as bar, phase("train"):
        result = tuner.fit(bar.update, phase)
    run.log_metrics(result.to_metrics(), step=result.steps)
    with phase("save"):
        _save_adapter(tuner, run)
    training.from_everywhere(None)  # all wait, and are measured, until it is saved
    bill.together = training.from_everywhere
    return result


def follow(job: Job, meter: Meter | None) -> None:
    """What the other processes of a distributed run do: train along, and measure their node."""
    phase = partial(meter.phase, sync=training.synchronize) if meter else training.unmeasured
    with phase("setup"):
        tuner = training.load(job)
    with phase("train"):
        tuner.fit(lambda progress: None, phase)
    training.from_everywhere(None)
    training.from_everywhere(meter.close()[0] if meter else None)


def describe(job: Job, run: Run) -> None:
    """What is known before the start: device, base model, data, versions and intensity."""
    tags = job.intensity.to_tags() | {
        "gpu_type": job.device.gpu_type,
        "device": str(job.device),
        "base_model": job.source.name,
        "base_model_commit": job.commit,
        "data_digest": job.data.digest,
    }
    run.set_tags({key: text for key, text in (tags | _versions()).items() if text})
    run.log_dataset(
        f"{job.task.name}-{job.data.name}", job.data.source, job.data.digest, "training"
    )


def _versions() -> dict[str, str]:
    """The versions of what shapes a result."""
    versions = {f"version.{name}": metadata.version(name) for name in LIBRARIES}
    versions |= {f"version.{name}": text for name, text in nvml.versions().items()}
    return versions | {
        "version.green_tune": __version__,
        "version.python": platform.python_version(),
        "version.cuda": training.cuda_version(),
    }


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


class _Bar:
    """The progress bar of one training; passes what is measured on to the run."""

    def __init__(self, job: Job, run: Run, meter: Meter, steps: int) -> None:
        self._run = run
        self._meter = meter
        self._unit = "g CO2e assumed" if job.intensity.assumed else "g CO2e"
        self._shown: dict[str, float] = {}
        self._bar = tqdm(
            desc=run.name.partition(" ")[0],  # of a trial its number
            total=steps,
            file=sys.stderr,
            leave=False,
            delay=0 if sys.stderr.isatty() else 30,  # a log file wants few lines
            mininterval=0.2 if sys.stderr.isatty() else 60,
            bar_format="{desc} {percentage:3.0f}%|{bar}|{n}/{total} {remaining}{postfix}",
            dynamic_ncols=True,
        )

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, progress: training.Progress) -> None:
        """Moves the bar to where the training is, and logs this step's metrics."""
        self._shown |= progress.metrics
        if progress.metrics:
            self._run.log_metrics(progress.metrics, step=progress.step)
        self._bar.set_postfix_str(self._postfix(), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def _postfix(self) -> str:
        shown = [
            form.format(self._shown[key])
            for key, form in (
                ("train_loss", "loss {:.3f}"),
                ("val_loss", "val {:.3f}"),
                ("tokens_per_s", "{:,.0f} tok/s"),
            )
            if key in self._shown
        ]
        return " ".join([*shown, f"{self._meter.emitted_kg * 1000:.3g} {self._unit}"])
