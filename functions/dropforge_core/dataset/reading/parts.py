"""How each file of a dataset is read, told from its beginning, and how the dataset is divided into parts."""

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading import parquet
from dropforge_core.dataset.reading.compression import is_compressed, resumed, split_head, text_of
from dropforge_core.dataset.reading.delimited import separator_of
from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES
from dropforge_core.dataset.reading.source import Side, SourceFile, opened

Reading = Literal["lines", "array", "csv", "tsv", "parquet"]

BOM: Final = b"\xef\xbb\xbf"
_WHITE: Final = b" \t\r\n"
_HEADER: Final = re.compile(rb"""[\w\x80-\xff"' .,;\t-]{1,4096}""")
"""Names of columns, and nothing else."""
_INDENTED: Final = re.compile(rb'[ \t]+"')
"""How the second line of an object begins that was written for people."""
_TELLING_BYTES: Final = 262
"""Up to the mark of a tar archive (POSIX.1-1988, ustar)."""
_FOREIGN: Final = {
    b"%PDF-": "a PDF",
    b"SQLite format 3\0": "an SQLite database",
    b"ARROW1\0\0": "Arrow's own format (Feather)",
    b"Obj\x01": "Avro",
    b"\x89HDF\r\n": "HDF5",
    b"\xd0\xcf\x11\xe0": "an Office document",
}
"""Beginnings of files that people rename, or get by mistake."""
_HEAD_BYTES: Final = 4 * MAX_ROW_BYTES
"""Most text from which it is told how a file is read; holds any first row."""


class Part(msgspec.Struct, frozen=True):
    """A piece of a dataset that is read by itself. Can be written as JSON."""

    index: int
    """Place in the order of reading, from 0."""
    file: int
    """Index into the outlines of the files."""
    start: int
    end: int
    """`[start, end)` in the file's units. A line belongs to the part in which its first byte lies."""


class FileOutline(msgspec.Struct, frozen=True):
    """What the beginning of a file tells of it. Can be written as JSON."""

    name: str
    size: int
    """Bytes as stored."""
    side: Side
    reading: Reading | None
    """None where the file has a fault."""
    divisible: bool
    """Whether parts of it can be read by themselves."""
    units: int
    """Into what it can be divided: row groups of Parquet, bytes of all others."""
    fault: Fault | None = None
    """What keeps the file from being read; it gives no part then."""
    line: int | None = None
    """Where the fault lies."""


def outline_file(file: SourceFile) -> FileOutline:
    """How to read a file. Reads its beginning only, and the end of Parquet."""
    try:
        return _outline(file)
    except FileFault as fault:
        return FileOutline(
            file.name,
            file.size,
            file.side,
            None,
            divisible=False,
            units=0,
            fault=fault.fault,
            line=fault.line,
        )


def split(files: Sequence[FileOutline], part_bytes: int) -> tuple[Part, ...]:
    """Parts of about `part_bytes` (stored) of each file that can be read, in the order of the files.

    Raises:
        ValueError: when `part_bytes` is less than 1.
    """
    if part_bytes < 1:
        raise ValueError("a part has at least one byte")
    parts: list[Part] = []
    for index, file in enumerate(files):
        if file.fault is not None:
            continue
        if not file.divisible:
            parts.append(Part(len(parts), index, 0, file.units))
            continue
        step = max(1, part_bytes * file.units // max(file.size, 1))
        for start in range(0, file.units, step):
            parts.append(Part(len(parts), index, start, min(start + step, file.units)))
    return tuple(parts)


def _outline(file: SourceFile) -> FileOutline:
    with opened(file) as stream:
        magic, whole = split_head(stream, 4)
        if file.kind not in ("jsonl", "json", "csv", "tsv", "parquet"):
            raise FileFault(
                Fault("FILE_KIND", "", f"a file of kind '{file.kind}'" if file.kind else "no suffix")
            )
        if magic not in (parquet.MAGIC, parquet.ENCRYPTED):
            return _outline_text(file, magic, whole)
    return FileOutline(
        file.name, file.size, file.side, "parquet", divisible=True, units=parquet.row_groups(file)
    )


def _outline_text(file: SourceFile, magic: bytes, whole: Iterator[bytes]) -> FileOutline:
    head, text = _peeked(text_of(file, whole))
    if foreign := _foreign(head):
        raise FileFault(foreign)
    begin = head[:4]
    if is_compressed(magic) and is_compressed(begin):
        raise FileFault(Fault("FILE_KIND", "", "a file that was compressed twice"))
    if begin == parquet.MAGIC:
        raise FileFault(
            Fault("FILE_KIND", "", "Parquet inside a compressed file", "Parquet as it is written")
        )
    if file.kind == "parquet" and begin:
        raise FileFault(Fault("PARQUET_BROKEN", "", "a name that says Parquet, and bytes that are not"))
    if wide := _wide(begin):
        raise FileFault(Fault("ENCODING_UTF16", "", wide), line=1)
    if not begin:
        raise FileFault(Fault("FILE_EMPTY", "", "no row"))
    reading = _reading(file.kind, text)
    divisible = reading == "lines" and not is_compressed(magic)
    return FileOutline(file.name, file.size, file.side, reading, divisible=divisible, units=max(file.size, 1))


def _peeked(text: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The text's beginning, and the whole of it again, up to where it breaks."""
    head = b""
    broken: FileFault | None = None
    try:
        for chunk in text:
            head += chunk
            if len(head) >= _TELLING_BYTES:
                break
    except FileFault as fault:
        if not head:
            raise
        broken = fault

    def again() -> Iterator[bytes]:
        yield from resumed(head, text)
        if broken is not None:
            raise broken

    return head, again()


def _foreign(head: bytes) -> Fault | None:
    """What is told of a file that is something else than any of our kinds."""
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        mend = "Fetch it: git lfs pull; in GitHub Actions `lfs: true` for actions/checkout."
        return Fault("FILE_KIND", "", "a Git LFS pointer", "the file that it stands for", mend)
    start = head.removeprefix(BOM).lstrip(_WHITE).lower()
    if start.startswith((b"<!doctype html", b"<html")):
        mend = "Download the file itself: this is what a site shows to browsers, often to sign in."
        return Fault("FILE_KIND", "", "a web page", mend=mend)
    kind = next((kind for magic, kind in _FOREIGN.items() if head.startswith(magic)), "")
    if head[257:262] == b"ustar":
        kind = "a tar archive"
    return Fault("FILE_KIND", "", kind) if kind else None


def _wide(begin: bytes) -> str:
    """What tells that text has two or four bytes a character; nothing where it has not.

    Without a mark by the zeros that the first two characters of JSON leave (RFC 4627, section 3).
    """
    if begin.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        return "the byte order mark of UTF-16 or UTF-32"
    zeros = tuple(not byte for byte in begin)
    if zeros in (
        (False, True, False, True),
        (True, False, True, False),
        (False, *3 * (True,)),
        (*3 * (True,), False),
    ):
        return "zeros as UTF-16 or UTF-32 has them"
    return ""


def _reading(kind: str, text: Iterator[bytes]) -> Reading:
    if kind == "csv":
        return "csv"
    if kind == "tsv":
        return "tsv"
    head = _head(text)
    if head is None:
        return "lines"
    if not head:
        raise FileFault(Fault("FILE_EMPTY", "", "no row"))
    first, _, rest = head.partition(b"\n")
    if first.startswith(b"["):
        # A stray array on the first of many lines is a bad row, not a file of another kind.
        return "lines" if kind == "jsonl" and rest.strip(_WHITE) and _is_json(first) else "array"
    separator = separator_of(first.decode("utf-8", "replace")) if _may_be_header(first) else None
    if separator is not None:
        wanted = "a name that ends in .tsv" if separator == "\t" else "a name that ends in .csv"
        raise FileFault(
            Fault("FILE_KIND", "", "a table with a header line", wanted, "Rename the file."), line=1
        )
    if kind == "json" and first.strip(_WHITE) == b"{":
        raise FileFault(Fault("ARRAY_BROKEN", "", "one object over several lines"), line=1)
    if kind == "json" and first.startswith(b"{") and len(first) > MAX_ROW_BYTES:
        raise FileFault(Fault("ARRAY_BROKEN", "", "one object, longer than any row"), line=1)
    if first.strip(_WHITE) == b"{" and _INDENTED.match(rest):
        found, mend = "objects over several lines", "Write each on one line: jq -c . FILE."
        raise FileFault(Fault("ARRAY_BROKEN", "", found, "one object a line", mend), line=1)
    return "lines"


def _head(text: Iterator[bytes]) -> bytes | None:
    """The first line that is not blank and, where there is more than white space behind it, some of that.

    At most `_HEAD_BYTES`, and the same however the stream is cut; None where so much is blank.
    """
    head = b""
    blank = 0
    try:
        for number, chunk in enumerate(text):
            more = chunk.removeprefix(BOM) if not number else chunk
            if not head:
                blank += len(more)
                more = more.lstrip(_WHITE)
                if blank - len(more) > _HEAD_BYTES:
                    return None
            head += more
            line, found, rest = head.partition(b"\n")
            telling = line[:1] != b"[" and line.strip(_WHITE) != b"{"
            if len(head) > _HEAD_BYTES or (found and (telling or rest.strip(_WHITE))):
                break
    except FileFault:
        # The part that reads up to there tells of it, and of the rows before it.
        if not head:
            raise
    return head[:_HEAD_BYTES]


def _may_be_header(line: bytes) -> bool:
    return _HEADER.fullmatch(line.strip(_WHITE)) is not None and not _is_json(line)


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
