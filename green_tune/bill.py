"""The bill of a run: what it spent is written to it, however it ends.

It joins the meter and the store, and knows nothing of training, so that it can be open before the
heavy imports are.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from green_tune import exports, heartbeat, stop
from green_tune.errors import MeasurementError
from green_tune.footprint import OVERHEAD, Measurement
from green_tune.job import Job
from green_tune.meter import Meter
from green_tune.quote import Quote
from green_tune.run import Run


class Bill:
    """What a run is spending; `measurement` is there once its block has ended.

    `together` hands in a measurement and gets those of all nodes; until it is set, a run of
    several nodes has its own alone, and says so. `quote` is what was expected of it, to be held
    against what it has spent where it went `as_quoted`: whole, and in one session.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.quote: Quote | None = None
        self.as_quoted = False
        self.together: Callable[[Any], list[Any]] | None = None
        self.measurement: Measurement | None = None


@contextmanager
def measured(job: Job, run: Run, meter: Meter) -> Iterator[Bill]:
    """A block whose spending, from where the meter's current account begins, is the run's.

    Raises:
        MeasurementError: it went well, but its figures cannot be trusted; they are written.
    """
    bill = Bill(meter)
    try:
        meter.keep(run.id)
        yield bill
    finally:
        with stop.held():
            bill.measurement = _close(job, run, bill)
    if not bill.measurement.valid:
        faults = "; ".join(bill.measurement.faults)
        raise MeasurementError(f"its figures cannot be trusted: {faults}")


@contextmanager
def alone(run: Run, meter: Meter) -> Iterator[None]:
    """A block whose spending is a run's, where nothing is trained: figures and time series."""
    try:
        meter.keep(run.id)
        yield
    finally:
        with stop.held():
            run.log_measurement(meter.close()[0])
            heartbeat.forget(run.id)


@contextmanager
def overhead(run: Run, meter: Meter, close: Callable[[], None]) -> Iterator[None]:
    """A block whose spending beside its trials is a sweep's; `close` makes the summary of it."""
    try:
        meter.keep(run.id)
        yield
    finally:
        with stop.held():
            run.log_measurement(meter.close()[0], OVERHEAD)
            heartbeat.forget(run.id)
            close()


def _close(job: Job, run: Run, bill: Bill) -> Measurement:
    """Ends the measurement and writes it down: figures, how they are known, and three files."""
    measurement, record = bill.meter.close()
    measurement = _of_all_nodes(job, measurement, bill.together)
    if run.sessions > 1:
        measurement = run.with_earlier(measurement)
    run.log_measurement(measurement)
    if bill.quote and bill.as_quoted and measurement.valid:
        run.log_metrics(bill.quote.errors(measurement.total))
    heartbeat.forget(run.id)
    if record:
        run.log_text(exports.emissions_csv(record), "emissions.csv")
    if record and measurement.valid:
        report = exports.boamps(job, measurement, record, run.id)
        run.log_text(json.dumps(report, indent=2), "boamps.json")
    return measurement


def _of_all_nodes(
    job: Job, mine: Measurement, together: Callable[[Any], list[Any]] | None
) -> Measurement:
    if together:
        return mine.with_nodes([other for other in together(mine)[1:] if other])
    nodes = job.rank.world // job.rank.here
    return mine.with_fault("the energy of the other nodes is missing") if nodes > 1 else mine
