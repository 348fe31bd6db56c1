"""The meter: every joule that is spent for a command goes to one account and one phase of it.

It reads its instruments at every edge of a phase, and once a second between edges. Each reading
ends a segment; phases, totals and the time series are sums of segments, so they agree by
construction. What an instrument is, `emissions` and `nvml` know; when a figure is to be trusted,
`gates`.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, Self

from green_tune import emissions, gates, heartbeat
from green_tune.clock import Clock, Watch
from green_tune.footprint import SECONDS_PER_HOUR, Basis, Measurement, Segment, appended
from green_tune.hardware import Device
from green_tune.job import Job
from green_tune.nvml import GpuEnergy
from green_tune.presence import Presence, Shares
from green_tune.results import SHARED

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
NO_GPU = "none: no GPU was used"
SPLIT = f"{SHARED}, split equally,"
OTHERS = 0.1  # of the CPUs, used by other programs, is said


class Machine(Protocol):
    """What reads CPUs and memory; its figures are those of the whole machine."""

    methods: dict[str, str]

    def start(self) -> None:
        """From now on."""

    def spent(self, seconds: float) -> dict[str, float]:
        """Energy since the call before, that many seconds ago, in kWh by segment field."""


class Account:
    """What one run spends, or what belongs to none."""

    def __init__(self, check: emissions.CrossCheck | None = None) -> None:
        self.check = check
        self.others_s = 0.0  # that other programs used of the CPUs meanwhile
        self.phase = "setup"  # until the first phase has ended
        self.segments: list[Segment] = []
        self.unsaved: list[Segment] = []
        self.run_id = ""
        self.emitted_kg = 0.0
        self.faults: list[str] = []
        self.remarks: dict[str, float] = {}  # seconds for which each holds

    def add(self, segment: Segment, kg: float) -> None:
        """Takes a segment in."""
        self.segments = appended(self.segments, segment)
        self.unsaved.append(segment)
        self.emitted_kg += kg

    def remark(self, what: str, seconds: float) -> None:
        """Notes for how long something holds that a reader of the figures must know."""
        if seconds:
            self.remarks[what] = self.remarks.get(what, 0.0) + seconds

    def fault(self, *reasons: str) -> None:
        """Notes why the figures cannot be trusted; each reason once, however often it is met."""
        self.faults = list(dict.fromkeys([*self.faults, *reasons]))

    @property
    def flags(self) -> list[str]:
        """The remarks as text."""
        return [f"{what} for {seconds:.1f} s" for what, seconds in list(self.remarks.items())]


class Meter:
    """Measures inside of a with block; a reading counts for the account that was opened last.

    All readings happen in one thread, one after the other: whatever a signal interrupts in the
    main thread, no reading is torn.
    """

    def __init__(
        self,
        machine: Machine,
        gpus: GpuEnergy | None,
        basis: Basis,
        *,
        alone: bool = True,
        clock: Any = Clock,
        interval_s: float = INTERVAL_S,
    ) -> None:
        methods = machine.methods | (gpus.methods if gpus else {"gpu": NO_GPU})
        self.basis = replace(basis, methods=methods)
        self._machine = machine
        self._gpus = gpus
        self._alone = alone  # else other processes of this node are this run's as well
        self._watch = Watch(clock, interval_s)
        self._interval_s = interval_s
        self._presence = Presence(gpus.uuids if gpus else (), clock=clock.monotonic)
        self._nobody = Account()  # for what is read before the first account and after the last
        self._accounts: list[Account] = []
        self.spent_kwh = 0.0  # by all accounts together, at the last reading
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="meter")
        self._ended = threading.Event()
        self._writing = threading.Lock()
        self._warned = False
        self._others_s = 0.0

    @classmethod
    def of(cls, job: Job) -> Self:
        """The meter for a job's node; finding the hardware takes 1 to 3 s, not measured yet.

        Raises:
            MeasurementError: CodeCarbon did not start.
            HardwareMismatch: the GPU is cut into parts (MIG).
        """
        basis = Basis(g_per_kwh=job.intensity.g_per_kwh, pue=job.config.pue)
        return cls.on(job.devices, basis, alone=job.rank.here == 1)

    @classmethod
    def on(cls, devices: Sequence[Device], basis: Basis, *, alone: bool = True) -> Self:
        """The meter for devices of this machine; raises as `of`."""
        for line in (emissions.ignored_settings(os.environ), emissions.unreadable_rapl()):
            if line:
                log.warning(line)
        gpus = GpuEnergy(devices) if devices[0].kind == "cuda" else None
        return cls(emissions.Machine(), gpus, basis, alone=alone)

    def __enter__(self) -> Self:
        self._presence.enter()
        self._machine.start()
        if self._gpus:
            self._gpus.start()
        self._watch.stretch()
        threading.Thread(target=self._read_regularly, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._reader.shutdown()
        self._presence.leave()

    @property
    def emitted_kg(self) -> float:
        """By the current account so far, at the last reading."""
        return self._accounts[-1].emitted_kg

    @property
    def spent_kg(self) -> float:
        """By all accounts together, at the last reading."""
        return self.basis.kg(self.spent_kwh)

    def spent_in(self, name: str) -> tuple[float, float]:
        """Energy in kWh and time in h of one phase of the current account, at the last reading."""
        spent = [s for s in tuple(self._accounts[-1].segments) if s.phase == name]
        return sum(s.energy_kwh for s in spent), sum(s.runtime_h for s in spent)

    def open(self, *, checked: bool = True) -> None:
        """Opens an account; `checked` ones are compared with CodeCarbon's own total."""
        check = self._cross_check() if checked else None
        self._do(lambda: self._push(Account(check)))

    @contextmanager
    def account(self) -> Iterator[None]:
        """A block that spends for an account of its own; if it is not closed, for the outer one."""
        depth = len(self._accounts)
        try:
            self.open()
            yield
        finally:
            self._do(lambda: self._fold(depth))

    def keep(self, run_id: str) -> None:
        """Heartbeats of the current account are this run's; the first has all that was before.

        It is written at once: it holds the seconds of the imports.
        """
        self.read()
        self._accounts[-1].run_id = run_id
        self._beat(self._accounts[-1])

    @contextmanager
    def phase(self, name: str, sync: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Counts a block as a phase of the current account; a phase inside of it is taken out.

        `sync` waits until the device has done what it was given, so that the edge lies where
        the work ends and not where it was asked for.
        """
        account, outer = self._accounts[-1], self._accounts[-1].phase
        sync()
        try:
            self._switch(account, name)
            yield
            sync()
        finally:
            self._switch(account, "between" if outer == "setup" else outer)

    def close(self) -> tuple[Measurement, Any]:
        """Closes the current account: what it measured, judged, and CodeCarbon's own record.

        The record is None where CodeCarbon failed, or was not asked.
        """
        account = self._accounts[-1]
        self._do(self._pop)
        self._beat(account)  # for the next command, should the store be away
        record = account.check.stop() if account.check else None
        measurement = Measurement(
            segments=account.segments,
            basis=self.basis,
            flags=[*account.flags, *self._other_programs(account)],
            facts=(self._gpus.facts() if self._gpus else {})
            | (emissions.facts(record) if record else {}),
        )
        silent = (
            ["CodeCarbon gave no figure to compare with"] if account.check and not record else []
        )
        faults = [*account.faults, *self._unread(), *silent, *gates.failures(measurement)]
        return replace(measurement, faults=faults), record

    def _push(self, account: Account) -> None:
        self._note_others()
        self._accounts.append(account)

    def _pop(self) -> Account:
        self._note_others()
        return self._accounts.pop()

    def _fold(self, depth: int) -> None:
        """Gives the segments of accounts that are left open to the one that they were opened in."""
        while len(self._accounts) > depth:
            left = self._pop()
            if left.check:
                left.check.stop()
            for segment in left.segments:
                self._accounts[-1].add(segment, self.basis.kg(segment.energy_kwh))

    def read(self) -> None:
        """Ends a segment now."""
        self._do(lambda: None)

    def _cross_check(self) -> emissions.CrossCheck:
        indices = self._gpus.indices if self._gpus else ()
        return emissions.CrossCheck(self.basis.g_per_kwh, indices)

    def _switch(self, account: Account, phase: str) -> None:
        self._do(lambda: setattr(account, "phase", phase))

    def _do(self, change: Callable[[], object]) -> None:
        """Reads, then changes what the next reading counts for."""

        def step() -> None:
            self._read()
            change()

        self._reader.submit(step).result()

    def _read_regularly(self) -> None:
        """The body of a thread; writes to disk outside of the readings, which would wait for it."""
        while not self._ended.wait(self._interval_s):
            try:
                self.read()
            except RuntimeError:  # shut down since
                return
            for account in tuple(self._accounts):
                self._beat(account)

    def _beat(self, account: Account) -> None:
        """One heartbeat; what cannot be written stays for the next one."""
        with self._writing:
            segments = account.unsaved[:]
            if not account.run_id or not segments:
                return
            try:
                heartbeat.beat(account.run_id, self.basis, segments, account.flags, account.faults)
            except OSError as error:
                if not self._warned:
                    log.warning("what was spent so far could not be written down: %s", error)
                self._warned = True
            else:
                del account.unsaved[: len(segments)]

    def _read(self) -> None:
        stretch = self._watch.stretch()
        if not stretch.seconds:
            return
        account = self._accounts[-1] if self._accounts else self._nobody
        shares = self._presence.shares(stretch.start_s, stretch.end_s)
        segment = Segment(
            phase="paused" if stretch.paused else account.phase,
            started_s=stretch.started_s,
            runtime_h=stretch.seconds / SECONDS_PER_HOUR,
            **self._spent(stretch.seconds, shares, account),
        )
        account.add(segment, self.basis.kg(segment.energy_kwh))
        self.spent_kwh += segment.energy_kwh
        account.remark("paused", stretch.seconds * stretch.paused)
        account.remark(SPLIT, stretch.seconds * (shares.others > 0))
        account.remark("suspended (not counted)", stretch.suspended_s)
        account.remark("clock set, time stamps not corrected,", abs(stretch.jumped_s))
        if self._gpus:
            self._remark_gpus(self._gpus, account, stretch.seconds, shares.others)

    def _spent(self, seconds: float, shares: Shares, account: Account) -> dict[str, Any]:
        """Energy by segment field; a reading that fails is a fault, never a zero unseen."""
        spent: dict[str, Any] = {
            "energy_cpu_kwh": 0.0,
            "energy_gpu_kwh": 0.0,
            "energy_ram_kwh": 0.0,
        }
        try:
            machine = self._machine.spent(seconds)
            spent |= {name: kwh * shares.machine for name, kwh in machine.items()}
            if self._gpus:
                spent |= self._gpus.spent(seconds, shares.gpus)
                account.fault(*self._gpus.faults())
        except Exception as error:  # whatever the instruments' libraries raise
            account.fault(f"a reading failed: {type(error).__name__}: {error}")
        return spent

    def _note_others(self) -> None:
        """What other programs used of the CPUs goes to the account in whose time they did."""
        before, self._others_s = self._others_s, self._watch.others_s()
        (self._accounts or [self._nobody])[-1].others_s += self._others_s - before

    def _other_programs(self, account: Account) -> list[str]:
        hours = sum(segment.runtime_h for segment in account.segments)
        cpus_s = hours * SECONDS_PER_HOUR * (os.cpu_count() or 1)
        share = account.others_s / cpus_s if cpus_s else 0.0
        if share <= OTHERS or SPLIT in account.remarks or not self._alone:
            return []
        return [f"other programs used {share:.0%} of the CPUs, and their energy is in it"]

    def _remark_gpus(self, gpus: GpuEnergy, account: Account, seconds: float, others: int) -> None:
        account.remark(
            "GPU unreadable, made good by the next reading,", seconds * bool(gpus.unread())
        )
        account.remark(
            "GPU shared with other processes, whose energy is in it,",
            seconds * bool(gpus.strangers(others)),
        )

    def _unread(self) -> list[str]:
        gpus = self._gpus.unread() if self._gpus else []
        return [f"{gpu} could no longer be read at the end" for gpu in gpus]
