"""Files as streams of bytes, whatever compresses them."""

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from dropforge_core.dataset.faults import Fault, FileFault

READ_BYTES: Final = 1 << 20
"""Size of the pieces in which decompressed text is handed on; bounds memory."""

MAX_RATIO: Final = 200
"""Text may be this many times its compressed size. Chat data compresses 3-12 times; a bomb 1,000 times."""

RATIO_FREE_BYTES: Final = 16 << 20
"""The ratio is not looked at below this size of text, where it can do no harm."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of a dataset. It is read twice: once to check, once to write what was checked."""

    name: str
    """Shown in problems; its suffix tells how to read it and its stem which side it is on."""
    open: Callable[[], Iterable[bytes]]
    """A new stream of byte chunks, from the beginning, at each call."""
    size: int
    """Bytes as stored."""

    @property
    def side(self) -> Literal["train", "eval"]:
        """`eval*`, `test*`, `valid*`, `val.*` and `holdout*` are for evaluation, everything else for training."""
        stem = PurePosixPath(self.name).name.lower()
        if stem.startswith(("eval", "test", "valid", "holdout", "val.", "val-", "val_")):
            return "eval"
        return "train"

    @property
    def kind(self) -> str:
        """The suffix without compression: `jsonl`, `json`, `csv`, `tsv` or another."""
        name = self.name.lower().removesuffix(".gz").removesuffix(".zst")
        return PurePosixPath(name).suffix.lstrip(".")

    @property
    def alone(self) -> "SourceFile":
        """The same file as the whole dataset: whatever its name, its rows are for training."""
        return _Alone(self.name, self.open, self.size)


class _Alone(SourceFile):
    __slots__ = ()

    @property
    def side(self) -> Literal["train", "eval"]:
        return "train"


def local_file(path: Path, name: str | None = None) -> SourceFile:
    """A file on this machine's disk, read in pieces."""

    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while chunk := file.read(READ_BYTES):
                yield chunk

    return SourceFile(name=name or path.name, open=chunks, size=path.stat().st_size)


def text_of(file: SourceFile) -> Iterator[bytes]:
    """The decompressed bytes, in pieces of about 1 MiB. Compression is told by content, not by name.

    Raises:
        FileFault: FILE_KIND, COMPRESSION_BROKEN, COMPRESSION_RATIO or ENCODING_UTF16.
    """
    chunks = iter(file.open())
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    rest = _chain(head, chunks)
    if head.startswith(b"\x1f\x8b"):
        yield from _refuse_utf16(_within_ratio(_gunzip(rest), file.size))
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        yield from _refuse_utf16(_within_ratio(_unzstd(rest), file.size))
    elif head.startswith((b"PAR1", b"PK\x03\x04", b"BZh", b"\xfd7zX")):
        kinds = {b"P": "a Parquet or zip file", b"B": "bzip2", b"\xfd": "xz"}
        raise FileFault(Fault("FILE_KIND", "", kinds[head[:1]]))
    elif file.name.lower().endswith((".gz", ".zst")) and head:
        raise FileFault(
            Fault("COMPRESSION_BROKEN", "", "a name that says compressed, and bytes that are not")
        )
    else:
        yield from _refuse_utf16(rest)


def _chain(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _refuse_utf16(chunks: Iterator[bytes]) -> Iterator[bytes]:
    first = True
    for chunk in chunks:
        if first and chunk.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise FileFault(Fault("ENCODING_UTF16", "", "the byte order mark of UTF-16"), line=1)
        first = False
        yield chunk


def _within_ratio(chunks: Iterator[bytes], compressed: int) -> Iterator[bytes]:
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > RATIO_FREE_BYTES and total > MAX_RATIO * max(compressed, 1):
            raise FileFault(
                Fault(
                    "COMPRESSION_RATIO",
                    "",
                    f"more than {MAX_RATIO} times the {compressed:,} compressed bytes",
                )
            )
        yield chunk


def _gunzip(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Gzip, members one after another as `cat a.gz b.gz` makes them; zero padding at the end is allowed."""
    engine = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if engine.eof:
                    if not (data := data.lstrip(b"\0")):
                        break
                    engine = zlib.decompressobj(wbits=31)
                yield engine.decompress(data, READ_BYTES)
                data = engine.unused_data if engine.eof else engine.unconsumed_tail
        yield engine.flush()
    except zlib.error as error:
        raise FileFault(Fault("COMPRESSION_BROKEN", "", f"a gzip stream that is broken ({error})")) from None
    if not engine.eof:
        raise FileFault(Fault("COMPRESSION_BROKEN", "", "a gzip stream that ends too early"))


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    # Only readers of zstd files need the library.
    import zstandard  # noqa: PLC0415

    frames = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    engine = frames.decompressobj()
    try:
        for chunk in chunks:
            at = 0
            while at < len(chunk):
                if engine.eof:
                    engine = frames.decompressobj()
                # A run of one byte takes 4 bytes for 128 KiB, and one call gives all there is: feed little.
                piece = chunk[at : at + 1024]
                yield engine.decompress(piece)
                at += len(piece) - len(engine.unused_data)
    except zstandard.ZstdError as error:
        raise FileFault(Fault("COMPRESSION_BROKEN", "", f"a zstd stream that is broken ({error})")) from None
    if not engine.eof:
        raise FileFault(Fault("COMPRESSION_BROKEN", "", "a zstd stream that ends too early"))
