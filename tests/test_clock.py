"""Time as it really is on this machine; made-up clocks are in test_meter."""

import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from green_tune.clock import Clock, Watch

ROOT = Path(__file__).parents[1]
WATCHED = """
import sys, time
from green_tune.clock import Clock, Watch
watch = Watch(Clock, 0.2)
print("ready", flush=True)
until = time.monotonic() + 4
while time.monotonic() < until:
    time.sleep(0.05)
    stretch = watch.stretch()
    if stretch.paused:
        print(stretch.seconds, flush=True)
        break
"""


def test_stretches_follow_one_another_without_a_gap_and_carry_utc() -> None:
    watch = Watch(Clock, 1.0)
    before = time.time()
    stretches = []
    for _ in range(4):
        time.sleep(0.02)
        stretches.append(watch.stretch())
    assert all(a.end_s == b.start_s for a, b in pairwise(stretches))
    assert all(stretch.seconds >= 0.02 for stretch in stretches)
    assert before - 1 < stretches[0].started_s < time.time()
    for a, b in pairwise(stretches):
        assert b.started_s - a.started_s == pytest.approx(a.seconds, abs=1e-3)
    assert not any(s.paused or s.suspended_s or s.jumped_s for s in stretches)


def test_a_stopped_process_notices_that_it_was() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.5)
    os.kill(process.pid, signal.SIGCONT)
    output, _ = process.communicate(timeout=20)
    assert float(output) >= 1.4


def test_what_others_use_of_the_cpus_is_what_is_busy_and_not_ours() -> None:
    watch = Watch(Clock, 1.0)
    busy_s, others_s, worked_s = Clock.busy(), watch.others_s(), time.process_time()
    until = time.process_time() + 0.5
    while time.process_time() < until:
        sum(range(10_000))
    grown = Clock.busy() - busy_s
    assert grown >= 0.45  # jiffies of 10 ms
    ours = time.process_time() - worked_s
    assert watch.others_s() - others_s == pytest.approx(grown - ours, abs=0.1)
