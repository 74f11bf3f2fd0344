"""JSON Lines: one row a line, of a whole file or of any range of its bytes."""

from collections.abc import Iterable, Iterator
from typing import Final

from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES, Block, Report, blocks, too_long
from dropforge_core.dataset.reading.source import READ_BYTES

_NO_END: Final = 1 << 62


class LineReader:
    """The lines that begin within a range of bytes, each to its end, wherever that lies.

    A line beyond `MAX_ROW_BYTES` is reported by the range in which it begins, and passed over without being held.

    Args:
        chunks: the bytes; of a range that does not begin the file, from one byte before it on: only that
            tells whether a line begins with the range.
        report: told of lines that are too long.
        inside: whether the stream begins with that one byte before.
        size: bytes of the range; None reads to the end of the stream.
    """

    def __init__(
        self, chunks: Iterable[bytes], report: Report, *, inside: bool = False, size: int | None = None
    ) -> None:
        self.lines = 0
        """Lines so far that begin in the range, also blank ones and those passed over."""
        self._chunks = chunks
        self._report = report
        self._skipping = inside
        """Whether the stream is in a line that is not for us."""
        self._left = (_NO_END if size is None else size) + inside
        """Bytes of the range yet to come; below 0 where its last line goes on."""
        self._held: list[bytes] = []
        """The beginning of a line whose end is yet to come."""
        self._length = 0

    def __iter__(self) -> Iterator[Block]:
        for chunk in _pieces(self._chunks):
            yield from self._taken(chunk)
            self._left -= len(chunk)
            if self._left <= 0 and not self._held:
                return
        if self._held:
            self.lines += 1
            row = b"".join(self._held)
            yield Block((self.lines,), (row,), row)

    def _taken(self, chunk: bytes) -> Iterator[Block]:
        """The lines of a chunk that begin in the range, but for one that goes on behind the chunk."""
        begin = 0
        if self._skipping:
            begin = chunk.find(b"\n") + 1
            self._skipping = not begin
        # A line break from here on ends the last line that begins in the range.
        last = self._left - 1
        if self._skipping or (begin > last and not self._held):
            return
        stop = chunk.find(b"\n", max(begin, last))
        cut = stop if stop >= 0 else chunk.rfind(b"\n", begin)
        if cut >= 0:
            # One copy of the text, whatever is held of its first line.
            text = b"".join((*self._held, memoryview(chunk)[begin:cut]))
            self._held.clear()
            rows = text.split(b"\n")
            first = self.lines + 1
            self.lines += len(rows)
            yield from blocks(range(first, first + len(rows)), rows, self._report, text)
            begin = cut + 1
        if stop < 0 and begin < len(chunk):
            self._hold(chunk[begin:])

    def _hold(self, beginning: bytes) -> None:
        self._length = self._length + len(beginning) if self._held else len(beginning)
        self._held.append(beginning)
        if self._length > MAX_ROW_BYTES:
            self.lines += 1
            self._report(*too_long(self.lines))
            self._held.clear()
            self._skipping = True


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Chunks of at most twice `READ_BYTES`, so that blocks stay small whatever the source gives."""
    for chunk in chunks:
        if len(chunk) <= 2 * READ_BYTES:
            yield chunk
        else:
            yield from (chunk[at : at + READ_BYTES] for at in range(0, len(chunk), READ_BYTES))
