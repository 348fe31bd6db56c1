"""Time as a meter needs it: how long, when, and whether the process or the machine stood still.

Durations come from the monotonic clock, which nobody can set. Time stamps are UTC as it was at the
start, plus the time since; a clock that is set later changes neither.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

LATE = 3  # intervals without a look at the watch: was the process stopped?
JUMP_S = 1.0  # of the wall clock, or of the clock that stands still in suspension
STAT = Path("/proc/stat")


class Clock:
    """The clocks of this machine, in seconds."""

    monotonic = staticmethod(time.monotonic)  # stands still while the machine is suspended
    utc = staticmethod(time.time)  # since 1970; somebody may set it
    worked = staticmethod(time.process_time)  # by all CPUs, for this process

    @staticmethod
    def busy() -> float:
        """By all CPUs, for all processes; nothing where Linux does not say."""
        if not STAT.exists():
            return 0.0
        text = STAT.read_text().split("\n", 1)[0]
        user, nice, system, _idle, _wait, irq, softirq = map(int, text.split()[1:8])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")

    @staticmethod
    def since_boot() -> float:
        """Time since boot, suspension included."""
        return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """The time between two looks at the watch.

    `paused` when the process was stopped in it; `suspended_s` the machine was asleep, which is not
    in `seconds`; `jumped_s` is by how much somebody has set the clock.
    """

    start_s: float  # monotonic
    end_s: float
    started_s: float  # UTC, since 1970
    paused: bool
    suspended_s: float
    jumped_s: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end_s - self.start_s


class Watch:
    """Cuts time into stretches, without a gap, from its making on."""

    def __init__(self, clock: Any, interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._last = _Moment.of(clock)
        self._utc_at_boot = self._last.utc - self._last.since_boot
        self._cpus = 1.0  # that were at work in the last stretch

    def stretch(self) -> Stretch:
        """The stretch since the call before."""
        before, now = self._last, _Moment.of(self._clock)
        self._last = now
        elapsed = now.since_boot - before.since_boot
        suspended = elapsed - (now.monotonic - before.monotonic)
        jumped = now.utc - before.utc - elapsed
        return Stretch(
            start_s=before.monotonic,
            end_s=now.monotonic,
            started_s=self._utc_at_boot + before.since_boot,
            paused=self._was_paused(now.monotonic - before.monotonic, now.worked - before.worked),
            suspended_s=suspended if suspended > JUMP_S else 0.0,
            jumped_s=jumped if abs(jumped) > JUMP_S else 0.0,
        )

    def others_s(self) -> float:
        """CPU seconds of all other programs, since the machine was started."""
        return float(self._clock.busy() - self._clock.worked())

    def _was_paused(self, seconds: float, worked: float) -> bool:
        """True when nobody looked for long, and the process did not work either.

        A library that holds Python's lock keeps everybody from looking as well, but works. One
        interval of work as before may lie ahead of a pause.
        """
        if seconds > LATE * self._interval_s:
            most = self._cpus * self._interval_s + (seconds - self._interval_s) / 2
            if worked < most:
                return True
        self._cpus = worked / seconds if seconds else self._cpus
        return False


class _Moment(NamedTuple):
    """All clocks at once."""

    monotonic: float
    utc: float
    worked: float
    since_boot: float

    @classmethod
    def of(cls, clock: Any) -> Self:
        return cls(*(getattr(clock, name)() for name in cls._fields))
