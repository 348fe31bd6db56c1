"""What a checkup finds, each with its fix: looks that run side by side, a screen, and JSON.

It knows no check. A look that raises, or gives no answer in time, is a finding like any other, so
that nothing that is broken can end the command; and nothing that is said here holds a secret.
"""

import shutil
import textwrap
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from green_tune.errors import GreenTuneError
from green_tune.secrecy import hide

WELL, WORTH, WRONG = "well", "worth knowing", "wrong"
MARKS = {WELL: "✓", WORTH: "!", WRONG: "✗"}
LIMIT_S = 5.0
NAME_WIDTH = 13
SKEW_S = 30.0  # workers judge each other's leases to a minute (storage.LEASE_S)
INSTALL = "activate the environment that `make install` makes, or pip install -e ."


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the screen: what was found, how bad it is, and what to do about it."""

    name: str
    what: str
    level: str = WELL
    fix: str = ""
    group: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One look at something. `fix` is what to do when it gives no answer in `limit_s`.

    `needs` are the libraries that it imports; the time of that is not in the limit. One that
    `writes` is waited for when the command is stopped, so that it can remove what it has written.
    """

    group: str
    name: str
    look: Callable[[], Iterable[Finding]]
    fix: str = ""
    needs: Sequence[str] = ()
    limit_s: float = LIMIT_S
    writes: bool = False


def examine(checks: Sequence[Check]) -> list[Finding]:
    """All that the checks find, in their order; they look at the same time, each in a thread."""
    looks = [_Look(check) for check in checks]
    for look in looks:
        look.prepare()
    try:
        for look in looks:
            look.start()
        found = [finding for look in looks for finding in look.findings()]
    except BaseException:
        for look in looks:
            look.tidy()
        raise
    return [_cleaned(finding) for finding in found]


class _Look:
    """A check that is under way."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._found: list[Finding] = []
        self._thread = threading.Thread(target=self._run, name=check.name, daemon=True)
        self._until = self._since = time.monotonic()

    def prepare(self) -> None:
        """Imports what the check needs: one after the other, since imports break one another."""
        for library in self._check.needs:
            try:
                import_module(library)
            except Exception as error:  # a broken library may raise anything
                library = getattr(error, "name", None) or library
                self._found.append(_no_library(self._check.name, library, error))
                return

    def start(self) -> None:
        self._since = time.monotonic()
        self._until = self._since + self._check.limit_s
        if not self._found:
            self._thread.start()

    def findings(self) -> list[Finding]:
        """What it has found when it is done, or when its time is over."""
        self._wait()
        found = [replace(finding, group=self._check.group) for finding in self._found]
        return [*found, self._late()] if self._thread.is_alive() else found

    def tidy(self) -> None:
        """Waits for one that writes, before the process ends."""
        if self._check.writes:
            self._wait()

    def _wait(self) -> None:
        if self._thread.is_alive():
            self._thread.join(max(0.0, self._until - time.monotonic()))

    def _late(self) -> Finding:
        return Finding(
            name=self._check.name,
            what=f"no answer within {self._check.limit_s:g} s",
            level=WRONG,
            fix=self._check.fix,
            group=self._check.group,
            seconds=self._check.limit_s,
        )

    def _run(self) -> None:
        try:
            for finding in self._check.look():
                self._note(finding)
        except ImportError as error:
            self._note(_no_library(self._check.name, str(error.name), error))
        except Exception as error:  # a fault of the look's own must not hide the others' findings
            what = f"this look failed itself: {type(error).__name__}: {first_line(error)}"
            fix = "tell whoever keeps green-tune; all other lines hold"
            self._note(Finding(name=self._check.name, what=what, level=WRONG, fix=fix))

    def _note(self, finding: Finding) -> None:
        now = time.monotonic()
        self._found.append(replace(finding, seconds=round(now - self._since, 3)))
        self._since = now


def _no_library(name: str, library: str, error: Exception) -> Finding:
    what = f"not looked at: {library} cannot be imported ({first_line(error)})"
    return Finding(name=name, what=what, level=WRONG, fix=INSTALL)


def first_line(error: object) -> str:
    """What an error says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cleaned(finding: Finding) -> Finding:
    return replace(finding, what=hide(finding.what), fix=hide(finding.fix))


def refused(name: str, error: GreenTuneError) -> Finding:
    """One of our own refusals, which says what is wrong and, behind a semicolon, what to do."""
    what, _, fix = str(error).partition("; ")
    return Finding(name=name, what=what, level=WRONG, fix=fix)


def off(name: str, whose: str, seconds: float) -> Iterator[Finding]:
    """A finding where two clocks are further apart than workers of a study should be."""
    if abs(seconds) > SKEW_S:
        what = f"this machine's clock and {whose} are {abs(seconds):.0f} s apart"
        yield Finding(name=name, what=what, level=WORTH, fix="keep both by NTP (timedatectl)")


def gone(name: str, stage: str) -> Iterator[Finding]:
    """A finding where an experiment of MLflow's is deleted."""
    if stage == "deleted":
        what = f"experiment {name} is deleted, and takes no runs"
        fix = "mlflow experiments restore -x ID, or another name in MLFLOW_EXPERIMENT_NAME"
        yield Finding(name="experiment", what=what, level=WRONG, fix=fix)


def ms(seconds: float) -> str:
    """A short time, as a screen shows it."""
    return f"{seconds * 1000:.0f} ms"


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.expanduser().absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def all_well(found: Sequence[Finding]) -> bool:
    """Whether nothing is wrong; what is worth knowing may be there."""
    return all(finding.level != WRONG for finding in found)


def summary(found: Sequence[Finding]) -> str:
    """How many are wrong, and how many worth knowing, in one line."""
    counts = {level: sum(finding.level == level for finding in found) for level in (WRONG, WORTH)}
    said = [f"{count} {level}" for level, count in counts.items() if count]
    return ", ".join(said) or "all well"


def screen(found: Sequence[Finding], width: int = 0) -> str:
    """The findings by group, at most that many columns wide; by itself the terminal's, 80 or more.

    A word that is wider, such as the path in a fix, stays whole.
    """
    width = width or max(shutil.get_terminal_size().columns, 80)
    lines: list[str] = []
    for group in dict.fromkeys(finding.group for finding in found):
        lines += ["", group] if lines else [group]
        for finding in (each for each in found if each.group == group):
            lines += _lines(finding, width)
    return "\n".join([*lines, "", summary(found)])


def _lines(finding: Finding, width: int) -> list[str]:
    head = f"  {MARKS[finding.level]} {finding.name:{NAME_WIDTH}} "
    said = _wrapped(finding.what, width, head, " " * len(head))
    arrow = " " * len(head) + "→ "
    return said + (_wrapped(finding.fix, width, arrow, " " * len(arrow)) if finding.fix else [])


def _wrapped(text: str, width: int, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=then,
        break_long_words=False,
        break_on_hyphens=False,
    )


def to_json(found: Sequence[Finding]) -> dict[str, Any]:
    """The same as a JSON object; `seconds` are those that a finding took."""
    return {
        "well": all_well(found),
        "summary": summary(found),
        "checks": [asdict(finding) for finding in found],
    }
