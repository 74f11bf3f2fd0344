"""On which line of a row that is written over several lines something stands."""

import re
from collections.abc import Collection
from typing import Final

from dropforge_core.dataset.rows.decoding import field
from dropforge_core.dataset.rows.messages import decode

_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{},:]|[^][{},:"\s]+', re.DOTALL)


def lines_down(raw: bytes, paths: Collection[str]) -> dict[str, int]:
    """How many lines below the row's first one the value at each path begins.

    What is not there, such as a missing field, is where the nearest thing around it is.

    Args:
        raw: an object that parses.
        paths: as faults have them.
    """
    starts = _starts(raw)
    found: dict[str, int] = {}
    for path in paths:
        near = path
        while near and near not in starts:
            near = near[: max(near.rfind("."), near.rfind("["), 0)]
        found[path] = raw.count(b"\n", 0, starts[near]) if near else 0
    return found


def _starts(raw: bytes) -> dict[str, int]:
    """Path to the byte at which its value begins; of a name that comes twice the last one."""
    starts: dict[str, int] = {}
    inside: list[tuple[str, int]] = []
    """Of what is open its path, and how many elements it has so far; -1 for objects."""
    path, key = "", True
    for token in _TOKEN.finditer(raw):
        first = raw[token.start()]
        if first in b"]}":
            inside.pop()
        elif first == ord(","):
            key = inside[-1][1] < 0
        elif first == ord(":"):
            key = False
        elif key and inside:
            name = field(decode(token[0]))
            around = inside[-1][0]
            path = f"{around}.{name}" if around else name
        else:
            if inside and inside[-1][1] >= 0:
                around, count = inside[-1]
                inside[-1] = (around, count + 1)
                path = f"{around}[{count}]"
            starts[path] = token.start()
            if first in b"[{":
                inside.append((path, 0 if first == ord("[") else -1))
                key = first == ord("{")
    return starts
