"""The text in a file, whatever compresses it. Compression is told by content, not by name."""

import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.source import READ_BYTES, SourceFile

MAX_RATIO: Final = 200
"""Text may be this many times its compressed size. Chat data compresses 3-12 times; a bomb 1,000 times."""

RATIO_FREE_BYTES: Final = 16 << 20
"""The ratio is not looked at below this size of text, where it can do no harm."""

GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
"""Bytes 2 to 4 of a skippable frame; the first is 0x50 to 0x5F (RFC 8878, 3.1.2)."""
_ZSTD_WINDOW: Final = 1 << 27
"""What `zstd --long` writes; more must be asked for by name on both sides."""
_FEED: Final = 1 << 16
_ZSTD_FEED: Final = 1024
"""A run of one byte takes 4 bytes for 128 KiB, and one call gives all there is: feed little."""

_OTHERS: Final = {b"PK\x03\x04": "a zip file", b"BZh": "bzip2", b"\xfd7zX": "xz"}


def is_compressed(head: bytes) -> bool:
    """Whether a file with these first four bytes is gzip or zstd."""
    skippable = head[1:4] == _ZSTD_SKIPPABLE and 0x50 <= head[0] <= 0x5F
    return head.startswith((GZIP, ZSTD)) or skippable


def split_head(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes (fewer where there are no more), and the whole stream again."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= size:
            break
    return head[:size], resumed(head, chunks)


def resumed(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """A stream from whose beginning something was taken already."""
    if head:
        yield head
    yield from rest


def text_of(file: SourceFile, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The decompressed bytes of a file's stream, in pieces of about 1 MiB.

    Raises:
        FileFault: FILE_KIND, COMPRESSION_BROKEN or COMPRESSION_RATIO.
    """
    head, whole = split_head(chunks, 4)
    if is_compressed(head):
        unpack = _gunzip if head.startswith(GZIP) else _unzstd
        yield from _gathered(_within_ratio(unpack(_even(whole)), file.size))
        return
    for magic, kind in _OTHERS.items():
        if head.startswith(magic):
            raise FileFault(Fault("FILE_KIND", "", kind))
    if head and file.name.lower().endswith((".gz", ".zst")):
        raise FileFault(
            Fault(
                "COMPRESSION_BROKEN",
                "",
                "a name that says compressed, and bytes that are not",
                mend="Rename the file, or compress it.",
            )
        )
    yield from whole


def _even(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one length: how much a broken stream gives must not depend on how it is cut."""
    held = b""
    for chunk in chunks:
        held += chunk
        whole = len(held) - len(held) % _FEED
        for at in range(0, whole, _FEED):
            yield held[at : at + _FEED]
        held = held[whole:]
    if held:
        yield held


def _gathered(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Larger pieces; what came before a fault is handed on before the fault."""
    parts: list[bytes] = []
    held = 0
    try:
        for chunk in chunks:
            parts.append(chunk)
            held += len(chunk)
            if held >= READ_BYTES:
                yield b"".join(parts)
                parts, held = [], 0
    except FileFault:
        yield b"".join(parts)
        raise
    if held:
        yield b"".join(parts)


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
                    if data[0] != GZIP[0]:
                        raise _broken("something else behind the end of a gzip stream")
                    engine = zlib.decompressobj(wbits=31)
                yield engine.decompress(data, READ_BYTES)
                data = engine.unused_data if engine.eof else engine.unconsumed_tail
        yield engine.flush()
    except zlib.error as error:
        raise _broken(f"a gzip stream that is broken ({error})") from None
    if not engine.eof:
        raise _broken("a gzip stream that ends too early")


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Zstd, frames one after another, skippable ones (`pzstd`, seekable zstd) among them."""
    # Only readers of zstd files need the library.
    import zstandard  # noqa: PLC0415

    frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    engine = frames.decompressobj()
    try:
        for chunk in chunks:
            at = 0
            while at < len(chunk):
                if engine.eof:
                    engine = frames.decompressobj()
                piece = chunk[at : at + _ZSTD_FEED]
                yield engine.decompress(piece)
                at += len(piece) - len(engine.unused_data)
    except zstandard.ZstdError as error:
        if "too much memory" in str(error):
            raise _broken(
                "a zstd frame that refers back by more than 128 MiB", "zstd --long=27 at most"
            ) from None
        raise _broken(f"a zstd stream that is broken ({error})") from None
    if not engine.eof:
        raise _broken("a zstd stream that ends too early")


def _broken(found: str, expected: str = "") -> FileFault:
    return FileFault(Fault("COMPRESSION_BROKEN", "", found, expected))
