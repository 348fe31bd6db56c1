"""Progress bars: how all long work shows how far it is, on a terminal and in a log file.

The door to tqdm. What is counted, and when, is the caller's affair.
"""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

COUNTED = "{desc} {percentage:3.0f}%|{bar}|{n_fmt}/{total_fmt} {remaining}"


def bar(
    desc: str, *, total: int | None = None, parts: Iterable[Any] | None = None,
    remarks: bool = False, in_bytes: bool = False,
) -> "tqdm[Any]":  # fmt: skip
    """A bar over `parts`, or up to `total`; with `remarks`, room for what is said behind it.

    A log file wants few lines: there it begins after half a minute, with one line a minute.
    """
    watched = sys.stderr.isatty()
    return tqdm(
        parts,
        desc=desc,
        total=total,
        file=sys.stderr,
        leave=False,
        delay=0 if watched else 30,
        mininterval=0.2 if watched else 60,
        bar_format=COUNTED + "{postfix}" * remarks,
        dynamic_ncols=True,
        unit_scale=in_bytes,
        unit="B" if in_bytes else "it",
    )
