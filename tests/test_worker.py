import socket
import subprocess
import sys
from pathlib import Path

from green_tune import worker

ROOT = Path(__file__).parents[1]


def test_a_living_process_is_not_dead() -> None:
    assert not worker.is_dead(worker.this())


def test_a_process_that_has_ended_is_dead() -> None:
    code = "from green_tune import worker; print(worker.this())"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert worker.is_dead(ended)


def test_a_process_id_that_was_used_again_is_another_process() -> None:
    host, pid, started = worker.this().rsplit(":", 2)
    assert worker.is_dead(f"{host}:{pid}:{int(started) - 1}")


def test_other_machines_and_unknown_workers_are_left_alone() -> None:
    assert not worker.is_dead(f"not-{socket.gethostname()}:1:1")
    assert not worker.is_dead("")
