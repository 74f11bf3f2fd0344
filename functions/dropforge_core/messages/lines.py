"""Lines in words: where a fault is, and where else."""

from collections.abc import Sequence
from typing import Final

LINES_NAMED: Final = 10


def place(file: str, line: int | None) -> str:
    """`train.jsonl:7`, as editors and terminals know it."""
    return file if line is None else f"{file}:{line}"


def also_on(lines: Sequence[int], count: int) -> str:
    """Where a fault is besides its first line; empty where that is all.

    Args:
        lines: all lines that are known, the first one of them the fault's own; not all of `count`.
        count: how many there are.
    """
    if count < 2:
        return ""
    named = [f"{line}" for line in lines[1 : LINES_NAMED + 1]]
    left = count - 1 - len(named)
    if not named:
        return f"And {left:,} more like it."
    more = f" and {left:,} more" if left else ""
    return f"Also on line{'s'[: len(named) > 1 or left > 0]} {', '.join(named)}{more}."
