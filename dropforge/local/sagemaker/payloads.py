"""Batch transform's arithmetic: an input file to request bodies, answers to an output file. Pure."""

from collections.abc import Iterable, Iterator
from typing import Final, Literal

MEGABYTE: Final = 1024 * 1024


class RecordTooLarge(ValueError):
    """One record alone is more than MaxPayloadInMB."""


def payloads(
    lines: Iterable[bytes],
    split: Literal["None", "Line"],
    strategy: Literal["MultiRecord", "SingleRecord"],
    max_bytes: int,
) -> Iterator[bytes]:
    """Request bodies, in order.

    Without a split the file is one body. Split by line, SingleRecord gives each line a body and
    MultiRecord puts as many whole lines into one as `max_bytes` (0: no limit) allows. Lines keep
    their newline; blank ones are no records.

    Raises:
        RecordTooLarge: when a body can't be cut small enough.
    """
    if split == "None":
        body = b"".join(lines)
        _fits(body, max_bytes, 1)
        yield body
        return
    batch: list[bytes] = []
    size = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        _fits(line, max_bytes, number)
        full = bool(max_bytes) and size + len(line) > max_bytes
        if batch and (full or strategy == "SingleRecord"):
            yield b"".join(batch)
            batch, size = [], 0
        batch.append(line)
        size += len(line)
    if batch:
        yield b"".join(batch)


def assembled(answer: bytes, assemble: Literal["None", "Line"]) -> bytes:
    """One answer as it goes into the output file; `Line` ends it with exactly one newline of its own."""
    return answer if assemble == "None" or answer.endswith(b"\n") else answer + b"\n"


def _fits(body: bytes, max_bytes: int, number: int) -> None:
    if max_bytes and len(body) > max_bytes:
        raise RecordTooLarge(
            f"record {number} has {len(body)} bytes, more than MaxPayloadInMB allows ({max_bytes} bytes)"
        )
