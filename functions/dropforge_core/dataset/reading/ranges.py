"""A file that can be read at any place, made of streams from an offset on: what Parquet needs, also of S3."""

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Final

from dropforge_core.dataset.reading.source import SourceFile, opened

_ELSEWHERE_BYTES: Final = 1 << 16
"""Read at a time outside the zones: footers."""


class RangedFile:
    """What `pyarrow.PythonFile` takes as a file. Each zone keeps what was read last of it and a stretch behind.

    Args:
        file: opened anew, at the place in question, for each stretch.
        watch: told of every range (start, end) before it is given to the reader; may raise.
    """

    closed = False
    mode = "rb"

    def __init__(self, file: SourceFile, watch: Callable[[int, int], None] = lambda *_: None) -> None:
        self.failure: Exception | None = None
        """What kept bytes from being given; the reader may have made something else of it."""
        self._file = file
        self._watch = watch
        self._position = 0
        self._ends: list[int] = []
        self._starts: list[int] = []
        self._ahead = _ELSEWHERE_BYTES
        self._kept: dict[int, tuple[int, bytes]] = {}

    def zones(self, zones: Sequence[tuple[int, int]], memory: int) -> None:
        """Ranges that are read from their beginning to their end, at the same time, with `memory` bytes for all."""
        ordered = sorted(zones)
        self._starts = [start for start, _ in ordered]
        self._ends = [end for _, end in ordered]
        self._ahead = memory // max(len(ordered), 1)
        self._kept = {}

    def at(self, start: int, size: int) -> bytes:
        """The bytes there; fewer at the file's end."""
        zone = bisect_right(self._starts, start) - 1
        inside = zone >= 0 and start < self._ends[zone]
        key = zone if inside else -1
        begin, kept = self._kept.get(key, (start, b""))
        if not begin <= start <= start + size <= begin + len(kept):
            kept = kept[start - begin :] if begin <= start else b""
            ahead = min(self._ahead, self._ends[zone] - start) if inside else _ELSEWHERE_BYTES
            kept += self._read(start + len(kept), max(size, ahead) - len(kept))
            begin = start
            self._kept[key] = begin, kept
        return kept[start - begin : start - begin + size]

    def _read(self, start: int, size: int) -> bytes:
        pieces: list[bytes] = []
        try:
            with opened(self._file, start) as stream:
                for piece in stream:
                    pieces.append(piece[:size])
                    size -= len(pieces[-1])
                    if size <= 0:
                        break
        except Exception as error:
            self.failure = error
            raise
        return b"".join(pieces)

    def read(self, size: int = -1) -> bytes:
        """As of `io.RawIOBase`."""
        start = self._position
        if size < 0:
            size = max(self._file.size - start, 0)
        data = self.at(start, size) if size else b""
        self._position = start + len(data)
        try:
            self._watch(start, self._position)
        except Exception as error:
            self.failure = error
            raise
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of `io.RawIOBase`."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def tell(self) -> int:
        """As of `io.RawIOBase`."""
        return self._position

    def readable(self) -> bool:
        """As of `io.RawIOBase`."""
        return True

    def seekable(self) -> bool:
        """As of `io.RawIOBase`."""
        return True

    def close(self) -> None:
        """Nothing is held open between two reads."""
        self._kept = {}
