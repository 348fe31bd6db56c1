"""Secrets, taken out of what is said and refused where it would be logged.

A secret is known by where it was given (an environment variable), by its place in an address
(before an @, or in a query), or by its looks (a token of the hub). This module knows texts alone:
what is written where, and by whom, is its callers' affair.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import quote, quote_plus, unquote

HIDDEN = "***"
LEAST = 6  # characters: to leave out a shorter one wherever it stands would tell what it is
TOKEN_LENGTH = 20  # characters from which on a user's name without a password is taken for a token

NAMES = re.compile(
    r"(PASSWORD|PASSWD|TOKEN|SECRET|(API|ACCESS|SECRET)_KEY|KEY_ID|CONNECTION_STRING)$|^MYSQL_PWD$",
    re.IGNORECASE,
)
ADDRESSES = re.compile("(URI|URL|ENDPOINT|STORAGE|PROXY)$", re.IGNORECASE)
LOGIN = re.compile(r"(?<=://)[^/?#\s'\"<>]*@")
QUERY = re.compile(
    r"([?&;](?:[\w-]*(?:password|passwd|passphrase|token|secret|signature|credential)"
    r"|pass|pwd|sig|api_?key|access_?key|AWSAccessKeyId)=)([^&\s'\"<>#]+)",
    re.IGNORECASE,
)
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|(?:AKIA|ASIA)[A-Z0-9]{16})\b"
)


class Veil:
    """A text stream without secrets, whichever library writes to it, tracebacks included."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes what may be seen of a text; the length is that of all of it."""
        self._stream.write(hide(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """The same for several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide(text: str) -> str:
    """A text with `***` in place of each secret."""
    for secret in _known(frozenset(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    text = LOGIN.sub(f"{HIDDEN}@", text)
    text = QUERY.sub(rf"\1{HIDDEN}", text)
    return TOKEN.sub(HIDDEN, text)


def holds(text: str) -> bool:
    """Whether a secret is in a text."""
    return hide(text) != text


def hidden(tags: Mapping[str, str]) -> dict[str, str]:
    """Of some tags those that hold a secret, without it."""
    return {key: hide(text) for key, text in tags.items() if holds(text)}


@lru_cache(maxsize=1)
def _known(environment: frozenset[tuple[str, str]]) -> list[str]:
    """The secrets of an environment, in each form in which a library may repeat them.

    The longest come first, as one may be a part of another.
    """
    return sorted(set(_forms(environment)), key=len, reverse=True)


def _forms(environment: Iterable[tuple[str, str]]) -> Iterator[str]:
    for name, text in environment:
        for secret in _secrets(name, text):
            for form in (secret, secret.strip(), unquote(secret), repr(secret)[1:-1]):
                for written in (form, quote(form), quote(form, safe=""), quote_plus(form)):
                    if len(written) >= LEAST:
                        yield written


def _secrets(name: str, text: str) -> Iterator[str]:
    if NAMES.search(name):
        yield text
    if "://" in text or (ADDRESSES.search(name) and "@" in text):
        yield from (found[2] for found in QUERY.finditer(text))
        for login in _logins(name, text):
            user, colon, password = login.partition(":")
            if colon or len(user) >= TOKEN_LENGTH:
                yield from (login, password or user)


def _logins(name: str, text: str) -> Iterator[str]:
    """USER:PASSWORD of an address; up to the last @ where somebody has not written it as %40."""
    yield from (found[0][:-1] for found in LOGIN.finditer(text))
    if ADDRESSES.search(name) and not text.startswith(("sqlite", "file:")):
        yield text.rpartition("@")[0].rpartition("://")[2].lstrip("/")
