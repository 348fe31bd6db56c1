"""The request to end: Ctrl-C and SIGTERM raise `Stopped`, once, wherever the program is.

Python drops an exception that a signal raises inside of a destructor. So the request is kept as
well, and long loops ask for it. A signal is a matter of the whole process, and so is this state.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from green_tune.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_asked: list[int] = []
_held: list[object] = []


def listen() -> None:
    """Turns signals into `Stopped`, those excepted that the caller ignores, as nohup does."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


def check() -> None:
    """Raises Stopped when the process was asked to stop."""
    if _asked:
        raise Stopped(_asked[0])


@contextmanager
def held() -> Iterator[None]:
    """Lets a block end that writes down what is there nowhere else; a request waits until then."""
    before = len(_asked)
    _held.append(None)
    try:
        yield
    finally:
        _held.pop()
    if not before and not _held:
        check()


def _ask(number: int, _: object) -> None:
    """Further signals change nothing: runs are being closed by then."""
    _asked.append(number)
    if len(_asked) == 1 and not _held:
        check()
