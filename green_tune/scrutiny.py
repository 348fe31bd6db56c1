"""Files that a stranger may have written: opened safely, read as plain data, held to rules.

It never imports, unpickles or executes what it reads, follows no link, waits for no pipe, and shows
nothing unescaped. What the files are for, and which rules they are held to, is `parcel`'s and
`weights`' affair.
"""

import json
import math
import os
import re
import reprlib
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any

from green_tune.errors import AdapterError

AGAIN = "download it again"
DISTRUST = "do not use it, and tell whoever made it"
JSON_BYTES = 2**20
YAML_BYTES = 2**16

Rule = tuple[str, Callable[[Any], bool]]  # what a value should be, and whether it is


def refused(where: Path | str, what: str, then: str = DISTRUST) -> AdapterError:
    """The error, to be raised: the file, what is wrong with it, and what to do."""
    return AdapterError(f"{where} {what}: {then}")


def shown(value: Any) -> str:
    """A stranger's value on one short line of ASCII, so that it can neither hide nor pretend."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 60
    try:
        return short.repr(value).encode("ascii", "backslashreplace").decode()
    except ValueError:  # Python writes out no number of over 4300 digits
        return "a number of thousands of digits"


def files(folder: Path, folders: Collection[str]) -> list[str]:
    """The names of the files in a folder and in those `folders` of it, with `/`.

    Raises:
        AdapterError: there is no such folder, or something in it is neither of them.
    """
    if not folder.is_dir():
        raise refused(folder, "is not there, or no folder", AGAIN)
    found = _listed(folder, "", folders)
    for name in folders:
        if (folder / name).exists():
            found += _listed(folder / name, f"{name}/", ())
    return found


def _listed(place: Path, prefix: str, folders: Collection[str]) -> list[str]:
    try:
        with os.scandir(place) as entries:
            found = {entry.name: entry.stat(follow_symlinks=False).st_mode for entry in entries}
    except OSError as error:
        raise refused(place, f"cannot be read ({error.strerror})", AGAIN) from None
    for name, mode in found.items():
        _check_kind(place, name, mode, folders)
    return [prefix + name for name, mode in found.items() if stat.S_ISREG(mode)]


def _check_kind(place: Path, name: str, mode: int, folders: Collection[str]) -> None:
    if name == "__pycache__":
        raise refused(place / name, "is compiled code that nobody has seen", "delete it")
    if not (stat.S_ISREG(mode) or (stat.S_ISDIR(mode) and name in folders)):
        raise refused(place, f"holds {shown(name)}, {_kind(mode)}: no part of an adapter")


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a link" if stat.S_ISLNK(mode) else "neither file nor folder"


def opened(path: Path) -> BufferedReader:
    """A regular file for reading, and nothing else: a link is not followed, a pipe not waited for.

    Raises:
        AdapterError: it is missing, not readable, or something else than a file.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise refused(path, "is missing", AGAIN) from None
    except OSError as error:
        raise refused(path, f"cannot be read ({error.strerror})", AGAIN) from None
    file = os.fdopen(number, "rb") if stat.S_ISREG(os.fstat(number).st_mode) else None
    if file is None:
        os.close(number)
        raise refused(path, "is no regular file")
    return file


def read(path: Path, most_bytes: int) -> bytes:
    """All of a small file.

    Raises:
        AdapterError: it cannot be had, or is larger.
    """
    with opened(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise refused(path, f"has over {most_bytes} bytes")
    return data


def read_text(path: Path, most_bytes: int) -> str:
    """All of a small file in UTF-8.

    Raises:
        AdapterError: it cannot be had, is larger, or no text.
    """
    try:
        return read(path, most_bytes).decode()
    except UnicodeDecodeError:
        raise refused(path, "is no text in UTF-8") from None


def read_json(path: Path) -> dict[str, Any]:
    """A small file's JSON object.

    Raises:
        AdapterError: it cannot be had, is larger than 1 MiB, or `parsed` refuses it.
    """
    return parsed(path, read(path, JSON_BYTES))


def parsed(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in these bytes of `path`, which every reader reads alike.

    Raises:
        AdapterError: it is no object, has a key twice or a number that is none, or is too deep.
    """
    try:
        content = json.loads(
            data.decode(), object_pairs_hook=_once, parse_constant=_never, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise refused(path, f"cannot be read as JSON ({_reason(error)})") from None
    if not isinstance(content, dict):
        raise refused(path, "is no JSON object")
    return content


def read_yaml(path: Path) -> dict[Any, Any]:
    """A small file's YAML mapping; plain values only, tags make no objects.

    Raises:
        AdapterError: it cannot be had, is larger than 64 KiB, or no mapping.
    """
    import yaml

    text = read_text(path, YAML_BYTES)
    try:
        content = yaml.safe_load(text)
    except Exception as error:  # yaml's own, and whatever Python says to `!!bool x` or `!!int ""`
        raise refused(path, f"cannot be read as YAML ({_reason(error)})") from None
    if not isinstance(content, dict):
        raise refused(path, "is no YAML mapping")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key is there twice")
    return content


def _never(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    if math.isfinite(number := float(text)):
        return number
    raise ValueError("a number is too large")


def _reason(error: Exception) -> str:
    """The first line; what a decoder quotes of the file is escaped."""
    line = str(error).partition("\n")[0][:100]
    return "nested too deep" if isinstance(error, RecursionError) else ascii(line)[1:-1]


def check_rules(
    path: Path, content: Mapping[Any, Any], rules: Mapping[str, Rule], fixed: Mapping[str, Any]
) -> None:
    """Every key keeps its rule or has its `fixed` value; one that is in neither must be null.

    Raises:
        AdapterError: one does not.
    """
    for key, value in content.items():
        if key in rules:
            what, holds = rules[key]
            if not holds(value):
                raise refused(path, f"has {key}: {shown(value)}, not {what}")
        elif not same(value, fixed.get(key)):
            what = f"not {fixed[key]!r}" if key in fixed else "which is not known"
            raise refused(path, f"has {shown(key)}: {shown(value)}, {what}")


def check_keys(path: Path, content: Mapping[Any, Any], keys: Iterable[str]) -> None:
    """Whether these keys are there, whatever else is.

    Raises:
        AdapterError: one is not.
    """
    if missing := [key for key in keys if key not in content]:
        raise refused(path, f"lacks {', '.join(missing)}")


def same(value: Any, other: Any) -> bool:
    """Equal and of one type: in Python, 1 == True == 1.0."""
    return type(value) is type(other) and bool(value == other)


def is_text(value: Any, most: int, besides: str = "") -> bool:
    """A text, not empty, without control characters, marks of direction or half surrogate pairs."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= most
        and all(char.isprintable() or char in besides for char in value)
    )


def is_list(value: Any, most: int, holds: Callable[[Any], bool]) -> bool:
    """A list of at most so many values, for each of which `holds`."""
    return isinstance(value, list) and len(value) <= most and all(map(holds, value))


def is_whole(value: Any, low: int, high: int) -> bool:
    """A whole number within bounds, and no truth value."""
    return type(value) is int and low <= value <= high


def text(most: int) -> Rule:
    """A text of at most so many characters."""
    return f"a text of 1 to {most} characters", lambda value: is_text(value, most)


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds."""
    return f"a whole number from {low} to {high}", lambda value: is_whole(value, low, high)


def number(low: float, high: float) -> Rule:
    """A number within bounds."""
    return (
        f"a number from {low:g} to {high:g}",
        lambda value: type(value) in (int, float) and low <= value <= high,
    )


def one_of(*texts: str) -> Rule:
    """One of these texts."""
    return " or ".join(texts), lambda value: isinstance(value, str) and value in texts


def matching(what: str, pattern: str) -> Rule:
    """A text that a regular expression matches from end to end."""
    return what, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value))


def or_null(rule: Rule) -> Rule:
    """Null, or what the rule says."""
    what, holds = rule
    return f"null or {what}", lambda value: value is None or holds(value)


FLAG: Rule = ("true or false", lambda value: type(value) is bool)
