"""What benchmarks share: samples of work, their statistics, and a page of results per machine.

A page describes the machine by its CPU, memory and versions; it names no host, user or folder.
"""

import gc
import json
import os
import platform
import random
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Self

from green_tune import __version__
from green_tune.hardware import Device

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "peft", "codecarbon", "psutil")
RESAMPLES = 10_000
NANO = 1e9
PERCENTILES = (0.025, 0.975)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What some work took; `others` is how many cores other processes kept busy meanwhile."""

    wall_s: float
    cpu_s: float  # of all threads, and of children that have ended
    others: float
    begun_cpu_s: float  # of the threads that are not among the known ones
    waited_s: float = 0.0  # by the work, for what is measured

    @classmethod
    def of(cls, work: Callable[[], object], known: Sequence[Path] = ()) -> Self:
        """Does the work; `known` are threads of before, which must outlive it."""
        gc.collect()
        before = _clocks(known)
        work()
        after = _clocks(known)
        wall, own, old, machine = (now - then for now, then in zip(after, before, strict=True))
        others = max(0.0, machine - own) / wall
        return cls(wall_s=wall, cpu_s=own, others=others, begun_cpu_s=own - old)


def wall_s(work: Callable[[], object], times: int) -> list[float]:
    """The wall seconds of the work, one by one."""
    samples = []
    for _ in range(times):
        begin = time.perf_counter()
        work()
        samples.append(time.perf_counter() - begin)
    return samples


def threads() -> list[Path]:
    """Those of this process, by where the kernel counts their time."""
    return list(Path("/proc/self/task").glob("*/schedstat"))


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Between what and what the median lies, by a bootstrap at 95 %."""
    dice = random.Random(0)
    medians = sorted(
        statistics.median(dice.choices(samples, k=len(samples))) for _ in range(RESAMPLES)
    )
    low, high = (medians[int(part * RESAMPLES)] for part in PERCENTILES)
    return low, high


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns stand in line; numbers at the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    aligned = [
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in [head, *rows]
    ]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [f"| {' | '.join(cells)} |" for cells in [aligned[0], rule, *aligned[1:]]] + [""]


def facts(device: Device) -> dict[str, str]:
    """When and on what this is measured."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": str(device),
        "load_before": f"{os.getloadavg()[0]:.2f}",
        "system": platform.system(),
        "python": platform.python_version(),
        "green_tune": __version__,
        **versions,
    }


def write(name: str, machine: str, page: str, data: Mapping[str, object]) -> None:
    """Keeps a page and all samples behind it in results/, under the machine's name."""
    slug = "-".join(re.findall(r"[a-z0-9]+", re.sub(r"\(\w+\)|@", "", machine).lower()))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}-{slug}.md").write_text(page)
    (RESULTS / f"{name}-{slug}.json").write_text(json.dumps(data, indent=1) + "\n")


def say(line: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"{line}\n")


def _clocks(known: Sequence[Path]) -> tuple[float, float, float, float]:
    """Wall seconds; CPU seconds of this process, of its known threads, of the whole machine."""
    os.sched_yield()  # brings the kernel's books of this thread up to date
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    busy = sum(ticks) - ticks[3] - ticks[4]  # idle, and idle while a disk is awaited
    old = sum(int(path.read_text().split()[0]) for path in known) / NANO
    own = time.process_time() + children.ru_utime + children.ru_stime
    return time.perf_counter(), own, old, busy / os.sysconf("SC_CLK_TCK")
