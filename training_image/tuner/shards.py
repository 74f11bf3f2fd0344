"""Safetensors read once, from the first byte to the last: every tensor in file order, the file's sha256 on the way.

The library maps files into memory, which is right for random access. A base model is read whole and once, perhaps
from a network file system, and its hash must be known as well: mapping would read everything twice, and what is
mapped counts as the process's memory until it is let go.
"""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors import SafetensorError
from torch import Tensor

CHUNK: Final = 8 * 1024 * 1024
HEADER_LIMIT: Final = 100_000_000
"""Bytes; the library's own limit."""

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a shard. `start` and `end` are bytes after the header."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class Shard:
    """One safetensors file, read in its own order.

    Raises:
        SafetensorError: where the header is not one, or its tensors don't fill the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        size = path.stat().st_size
        with path.open("rb", buffering=0) as stream:
            self._head = stream.read(8)
            length = int.from_bytes(self._head, "little")
            if len(self._head) < 8 or not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise SafetensorError(f"{path.name} has no header that fits into its {size} bytes")
            header = _read(stream, length)
        self._head += header
        self.entries = entries_of(path.name, header)
        if not self.entries or self.entries[-1].end != size - len(self._head):
            raise SafetensorError(f"{path.name} ends early: its tensors don't fill its {size} bytes")
        self.digest = ""
        """sha256 hex of the whole file, once `tensors` has come to its end."""

    def tensors(self) -> Iterator[tuple[Entry, Tensor]]:
        """Every tensor on the host; the next one is read while this one is used.

        At most two of them are held here. What came out counts only when `digest` is the expected one.
        """
        hasher = hashlib.sha256(self._head)
        with (
            self.path.open("rb", buffering=0) as stream,
            ThreadPoolExecutor(1, thread_name_prefix="shard") as reader,
        ):
            stream.seek(len(self._head))
            ahead = reader.submit(_tensor, stream, self.entries[0], hasher)
            for number, entry in enumerate(self.entries, start=1):
                tensor = ahead.result()
                if number < len(self.entries):
                    ahead = reader.submit(_tensor, stream, self.entries[number], hasher)
                yield entry, tensor
                del tensor
        self.digest = hasher.hexdigest()


def entries_of(name: str, header: bytes) -> tuple[Entry, ...]:
    """The tensors that a header lists, in file order.

    Raises:
        SafetensorError: where it can't be read, or its tensors don't follow one another.
    """
    try:
        document = json.loads(header)
        entries = sorted(
            (
                Entry(key, DTYPES[value["dtype"]], tuple(value["shape"]), *value["data_offsets"])
                for key, value in document.items()
                if key != "__metadata__"
            ),
            key=lambda entry: (entry.start, entry.end),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafetensorError(f"the header of {name} can't be read ({type(error).__name__})") from None
    place = 0
    for entry in entries:
        if entry.start != place or entry.end - entry.start != prod(entry.shape) * entry.dtype.itemsize:
            raise SafetensorError(f"{name}: {entry.name} does not lie where its shape says")
        place = entry.end
    return tuple(entries)


def _read(stream: Any, length: int) -> bytes:
    parts = []
    while length and (part := stream.read(length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _tensor(stream: BinaryIO, entry: Entry, hasher: Any) -> Tensor:
    raw = torch.empty(entry.end - entry.start, dtype=torch.uint8)
    view = memoryview(raw.numpy())  # type: ignore[arg-type]
    place = 0
    while place < len(view):
        count = stream.readinto(view[place : place + CHUNK])  # type: ignore[attr-defined]  # unbuffered
        if not count:
            raise SafetensorError(f"the file ends within {entry.name}")
        hasher.update(view[place : place + count])
        place += count
    return raw.view(entry.dtype).reshape(entry.shape)
