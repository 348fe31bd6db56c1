"""Who is at work: an identity for this process, and whether the one of another still lives.

Written beside runs and trials when they start, so that what a killed process left open can be
closed by the next command.
"""

import os
import socket
from pathlib import Path

STARTED_FIELD = 19  # of /proc/PID/stat behind the name; process ids are used again, this is not


def this() -> str:
    """place:pid:start of this process."""
    return f"{_place()}:{os.getpid()}:{_started(os.getpid())}"


def is_dead(identity: str) -> bool:
    """True only when the process was in this place and is gone; others are not ours to judge."""
    place, pid, started = identity.rsplit(":", 2) if identity.count(":") > 1 else ("", "", "")
    return place == _place() and _started(pid) != started


def is_alive(identity: str) -> bool:
    """True only when the process is in this place and at work."""
    return identity.rsplit(":", 2)[0] == _place() and not is_dead(identity)


def _place() -> str:
    """Machine and container: within one, a process id means one process."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino if namespace.exists() else 0}"


def _started(pid: int | str) -> str:
    """When a process started, in clock ticks since boot; empty where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[STARTED_FIELD]
