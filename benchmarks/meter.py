"""What the meter costs, in CPU seconds and in wall time, against the same without it.

Measured are a process that sleeps, with the whole meter and without (and, to compare, with
CodeCarbon's tracker alone); a real training, with the meter and without; and single acts of the
meter. Other work on the machine disturbs wall time and CPU seconds alike: so trainings come in
short pairs of changing order, and pairs beside which others kept the machine busy are left out.
What the meter does is also counted directly, which no other work disturbs much: CPU seconds of the
threads that it starts, and how long the training waits for it: together about the most it adds.
What polling a GPU costs is not measured here.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial

# As the commands do, before torch is imported; see entrypoints/options.py.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from codecarbon import OfflineEmissionsTracker

from benchmarks.record import Sample, facts, interval, say, table, threads, wall_s, write
from green_tune import emissions, heartbeat, training
from green_tune import job as jobs
from green_tune.config import TrainConfig
from green_tune.course import Watch
from green_tune.job import Job
from green_tune.meter import Meter

RUN_ID = f"benchmark-{os.getpid()}"  # its heartbeats lie where those of runs do: on a real disk
SETTLE_S = 0.5  # so that a tracker's start is left out, and its regular work lies in the window
BUSY = 0.05  # of a core: others that work more than this disturb a pair
ENOUGH = 10  # quiet pairs, to decide anything
BOUND = 0.5  # percent of a core, and of wall time
STARTS = 3  # fresh processes
GPU = "No GPU was polled: what that costs is not in these figures."
START = """
from time import perf_counter as now
begin = now()
from green_tune import emissions, meter
imported = now()
emissions.Machine()
print(imported - begin, now() - imported)
"""

Samples = dict[str, list[Sample]]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    window_s: float = 30.0  # a multiple of CodeCarbon's 15 s
    repeats: int = 3
    epochs: int = 8  # short, so that a disturbance spoils little; 12 edges of phases in them all
    pairs: int = 30  # with a quiet machine beside them
    limit_s: float = 300.0  # for all pairs, should quiet be rare
    calls: int = 300


QUICK = Size(window_s=1.5, repeats=1, epochs=1, pairs=1, limit_s=3.0, calls=20)


def main() -> None:
    """Measures, prints the page and, unless in a hurry, keeps it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.meter", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="some seconds; keeps no results")
    warnings.filterwarnings("ignore", category=FutureWarning)  # transformers'
    quick = parser.parse_args().quick
    size = QUICK if quick else Size()
    job = jobs.prepare(TrainConfig(gpu="cpu", epochs=size.epochs))
    known = facts(job.device) | {"torch_threads": str(torch.get_num_threads())}
    costs, idle, pairs = acts(job, size), sleeping(job, size), trainings(job, size)
    page = report(known, idle, pairs, costs)
    sys.stdout.write(page)
    if not quick:
        asked = {"facts": known, "size": asdict(size)}
        plain = {
            what: {name: [asdict(sample) for sample in samples] for name, samples in found.items()}
            for what, found in {"sleeping": idle, "trainings": pairs}.items()
        }
        write("meter", job.device.name, page, asked | plain | {"acts_wall_s": costs})


def sleeping(job: Job, size: Size) -> Samples:
    """A process that does nothing else, by what measures it."""
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "nothing": nullcontext,
        "the whole meter": partial(_metered, job),
        "CodeCarbon alone, every 15 s": partial(_codecarbon, 15.0),
        "CodeCarbon alone, every 1 s": partial(_codecarbon, 1.0),
    }
    samples: Samples = {name: [] for name in ways}
    for repeat in range(size.repeats):
        for name, way in ways.items():
            say(f"a sleeping process, {repeat + 1} of {size.repeats}: {name}")
            with way():
                time.sleep(SETTLE_S)
                samples[name].append(Sample.of(partial(time.sleep, size.window_s)))
    return samples


def trainings(job: Job, size: Size) -> Samples:
    """Pairs of the same training, without the meter and with it, in the order ABBA."""
    samples: Samples = {"without": [], "with": []}
    _train(job, metered=False)  # to warm up
    end = time.monotonic() + size.limit_s
    while not samples["with"] or (len(_quiet(samples)) < size.pairs and time.monotonic() < end):
        tried = len(samples["with"])
        say(f"pair {tried + 1} of trainings; quiet so far: {len(_quiet(samples))} of {size.pairs}")
        for name in list(samples)[:: -1 if tried % 2 else 1]:
            samples[name].append(_train(job, metered=name == "with"))
    return samples


def acts(job: Job, size: Size) -> dict[str, list[float]]:
    """Wall seconds of single acts of the meter."""
    say("single acts")
    command = [sys.executable, "-c", START]
    starts = [subprocess.check_output(command, text=True).split() for _ in range(STARTS)]
    seconds = {
        "import, in a fresh process": [float(start[0]) for start in starts],
        "finding the hardware, in a fresh process": [float(start[1]) for start in starts],
    }
    with Meter.of(job) as meter:
        for _ in range(10):
            seconds.setdefault("opening an account", []).extend(wall_s(meter.open, 1))
            seconds.setdefault("closing it", []).extend(wall_s(meter.close, 1))
        meter.open()
        seconds["a phase, entered and left"] = wall_s(lambda: _phase(meter), size.calls)
        seconds["a reading"] = wall_s(meter.read, size.calls)
        segments = meter.close()[0].segments[-1:]
    beat = partial(heartbeat.beat, RUN_ID, meter.basis, segments)
    seconds["a heartbeat, fsync included"] = wall_s(beat, size.calls)
    heartbeat.forget(RUN_ID)
    return seconds


def report(
    known: dict[str, str], idle: Samples, pairs: Samples, costs: dict[str, list[float]]
) -> str:
    """The page: Markdown that reads well in a terminal."""
    lines = [f"# The meter's cost: {known['machine']}", ""]
    lines += [f"- {name}: {text}" for name, text in known.items() if name != "machine"]
    spent = {name: _middle([1000 * s for s in seconds]) for name, seconds in costs.items()}
    lines += ["", *_of_sleep(idle), *_of_trainings(pairs), "Single acts of the meter:", ""]
    lines += table(("ms of wall time", "median", "least", "most"), _rows(spent, "{:.2f}"))
    return "\n".join([*lines, GPU, ""])


def _of_sleep(idle: Samples) -> list[str]:
    """Percent of a core by what measures; all but the first above it."""
    core = {name: [100 * s.cpu_s / s.wall_s for s in samples] for name, samples in idle.items()}
    base = statistics.median(core["nothing"])
    above = {
        name: _middle([percent - base * (name != "nothing") for percent in percents])
        for name, percents in core.items()
    }
    return [
        "A process that sleeps, by what measures it; the others above `nothing`:",
        "",
        *table(("% of a core", "median", "least", "most"), _rows(above, "{:.3f}")),
        _verdict("of a core", above["the whole meter"][1:]),
        "",
    ]


def _of_trainings(pairs: Samples) -> list[str]:
    """What the meter adds to a training: by the pairs' ratios, and by direct count."""
    tried, quiet = _paired(pairs), _quiet(pairs)
    enough = len(quiet) >= ENOUGH
    used = quiet if enough else tried
    seconds = min(sample.wall_s for sample in pairs["without"])
    percents = {
        "wall time, by pairs": [100 * (on.wall_s / off.wall_s - 1) for off, on in used],
        "CPU seconds, by pairs": [100 * (on.cpu_s / off.cpu_s - 1) for off, on in used],
        "threads begun without a meter, of a core": _begun(pairs["without"]),
        "threads begun with it, of a core": _begun(pairs["with"]),
        "waits at edges of phases, of wall time": [
            100 * sample.waited_s / seconds for sample in pairs["with"]
        ],
    }
    more = {name: (statistics.median(p), *interval(p)) for name, p in percents.items()}
    bound = [100 * (s.begun_cpu_s / s.wall_s + s.waited_s / seconds) for s in pairs["with"]]
    return [
        f"The same training, {seconds:.1f} s at best, with the whole meter over without a meter:",
        f"{len(tried)} pairs, {len(quiet)} of them with a quiet machine beside them"
        + (", which alone are compared." if enough else "."),
        "",
        *table(("%", "median", "95 % from", "to"), _rows(more, "{:+.3f}")),
        _verdict("of wall time, by pairs", more["wall time, by pairs"][1:], enough=enough),
        _verdict("of wall time, by its threads and waits", interval(bound)),
        "",
    ]


def _begun(samples: Sequence[Sample]) -> list[float]:
    """Percent of a core that threads used which were not there before."""
    return [100 * sample.begun_cpu_s / sample.wall_s for sample in samples]


def _verdict(what: str, bounds: tuple[float, ...], *, enough: bool = True) -> str:
    low, high = bounds
    word = "holds" if high <= BOUND else "does not hold" if low > BOUND else "is not decided"
    word = word if enough else "is not decided"
    return f"- At most {BOUND:g} % {what}: {word} ({low:.2f} to {high:.2f} %)."


def _rows(figures: Mapping[str, Sequence[float]], form: str) -> list[tuple[str, ...]]:
    return [(name, *map(form.format, row)) for name, row in figures.items()]


def _middle(samples: list[float]) -> tuple[float, float, float]:
    return statistics.median(samples), min(samples), max(samples)


def _paired(pairs: Samples) -> list[tuple[Sample, Sample]]:
    return list(zip(pairs["without"], pairs["with"], strict=True))


def _quiet(pairs: Samples) -> list[tuple[Sample, Sample]]:
    """Those beside which others did next to nothing."""
    return [pair for pair in _paired(pairs) if max(sample.others for sample in pair) <= BUSY]


def _train(job: Job, *, metered: bool) -> Sample:
    tuner, known = training.load(job), threads()
    if not metered:
        return Sample.of(tuner.fit, known)
    waits: list[float] = []
    with _metered(job) as meter:
        phase = partial(_timed_phase, meter, waits)

        def fit() -> None:
            with phase("train"):
                tuner.fit(Watch(phase=phase))

        return replace(Sample.of(fit, known), waited_s=sum(waits))


@contextmanager
def _timed_phase(meter: Meter, waits: list[float], name: str) -> Iterator[None]:
    """A phase whose two edges are timed."""
    edge = meter.phase(name, sync=training.synchronize)
    waits += wall_s(edge.__enter__, 1)
    yield
    waits += wall_s(lambda: edge.__exit__(None, None, None), 1)


@contextmanager
def _metered(job: Job) -> Iterator[Meter]:
    """All that a run has: readings, CodeCarbon beside them, presence, heartbeats on disk."""
    with Meter.of(job) as meter:
        meter.open()
        meter.keep(RUN_ID)
        yield meter
        measurement, _ = meter.close()
    heartbeat.forget(RUN_ID)
    if not measurement.valid:
        raise SystemExit(f"the meter did not work: {'; '.join(measurement.faults)}")


@contextmanager
def _codecarbon(every_s: float) -> Iterator[None]:
    settings = emissions.EVERY_OTHER_SETTING | {"measure_power_secs": every_s}
    tracker = OfflineEmissionsTracker(force_carbon_intensity_g_co2e_kwh=475.0, **settings)
    tracker.start()
    yield
    tracker.stop()


def _phase(meter: Meter) -> None:
    with meter.phase("eval"):
        pass


if __name__ == "__main__":
    main()
