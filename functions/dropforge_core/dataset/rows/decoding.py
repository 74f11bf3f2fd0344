"""One row's bytes to one JSON object, with everything that JSON parsers let pass looked at.

msgspec refuses NaN, lone surrogates and bad UTF-8 by itself; duplicate keys, escaped NUL,
bidirectional controls and depth are looked for here. Rows without a suspicious byte pay for
a few substring searches only.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.messages import decode, encode

MAX_DEPTH: Final = 64
_BIDI_BYTES: Final = re.compile(rb"\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]")
_BIDI: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)
_BEYOND_JSON: Final = (b"NaN", b"Infinity", b"\\ud", b"\\uD")
"""One of these is in whatever Python's own parser takes and JSON does not."""
_AT_BYTE: Final = re.compile(r" \(byte (\d+)\)\Z")
_BOM: Final = b"\xef\xbb\xbf"
_TRAILING: Final = "trailing characters"
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _Repeated(Exception):
    """A name is twice in one object."""


def _refuse_repeated(items: list[tuple[str, Any]]) -> None:
    if len(dict(items)) == len(items):
        return
    names = [name for name, _ in items]
    raise _Repeated(next(name for name in names if names.count(name) > 1))


# Made once: that takes as long as reading a row does.
_WITHOUT_REPEATED: Final = json.JSONDecoder(object_pairs_hook=_refuse_repeated)


class RowBroken(Exception):
    """The row is no JSON object."""

    def __init__(self, fault: Fault, lines_down: int = 0) -> None:
        super().__init__(fault.code)
        self.fault = fault
        self.lines_down = lines_down
        """How many lines below the row's first one the fault lies."""


def decode_row(raw: bytes, faults: list[Fault]) -> dict[str, Any]:
    """The object; what is wrong with it but leaves it readable is added to `faults`.

    Raises:
        RowBroken: when there is no object to go on with.
    """
    return decode_and_write(raw, faults)[0]


def decode_and_write(raw: bytes, faults: list[Fault]) -> tuple[dict[str, Any], bytes]:
    """As `decode_row`, and the object's canonical JSON."""
    try:
        row = decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(raw, error) from None
    if type(row) is not dict:
        raise RowBroken(Fault("ROW_TYPE", "", describe(row)))
    if many_levels(raw) and is_deep(row):
        raise RowBroken(Fault("JSON_DEPTH", "", f"more than {MAX_DEPTH} levels"))
    written = encode(row)
    # A name that comes twice in an object takes its quotation marks along.
    if quotes_of(raw) != written.count(b'"'):
        faults.extend(_duplicate_keys(raw))
    if (b"\\u" in raw or not raw.isascii()) and (b"\\u" in raw or _BIDI_BYTES.search(raw)):
        faults.extend(_characters(row, ""))
    return row, written


def quotes_of(raw: bytes) -> int:
    r"""Quotation marks in JSON text, also those that are written as `\u0022`; -1 where that takes more than counting."""
    written = raw.count(b'"')
    if b"\\u0022" not in raw:
        return written
    # Behind a backslash this may be text about it.
    return -1 if b"\\\\u0022" in raw else written + raw.count(b"\\u0022")


def many_levels(raw: bytes) -> bool:
    """Whether there are about as many brackets and braces as a row that is too deep has, or more."""
    return raw.count(b"{") + raw.count(b"[") > MAX_DEPTH - 4


def is_deep(value: dict[str, Any] | list[Any], depth: int = 1) -> bool:
    """Whether an object or list that is `depth` levels deep has more than `MAX_DEPTH` of them."""
    if depth > MAX_DEPTH:
        return True
    inside = value.values() if type(value) is dict else value
    return any(is_deep(inner, depth + 1) for inner in inside if type(inner) is dict or type(inner) is list)


def describe(value: Any) -> str:
    """What a JSON value is, in words, without showing it."""
    names = {
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), "another value")


def _explain(raw: bytes, error: Exception) -> RowBroken:
    """Why the parser refused; the message never shows the row."""
    # Not by the error alone: how deep the parser goes before it gives up is the process's affair.
    if isinstance(error, RecursionError) or (many_levels(raw) and nesting(raw) > MAX_DEPTH):
        return RowBroken(Fault("JSON_DEPTH", "", f"more than {MAX_DEPTH} levels"))
    if isinstance(error, msgspec.ValidationError):
        return RowBroken(Fault("JSON_NUMBER", "", "a number beyond the range of a double"))
    return _explain_text(raw, error)


def nesting(raw: bytes) -> int:
    """How many brackets and braces are open at most at once, outside texts; the row need not be whole."""
    deepest = depth = 0
    for token in _STRUCTURE.findall(raw):
        if token in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif token in b"]}":
            depth -= 1
    return deepest


def _explain_text(raw: bytes, error: Exception) -> RowBroken:
    try:
        text = raw.decode()
    except UnicodeDecodeError as bad:
        where = f"byte 0x{raw[bad.start]:02x} at byte {bad.start + 1} of the line"
        return RowBroken(Fault("UTF8_INVALID", "", where), raw.count(b"\n", 0, bad.start))
    if "\0" in text:
        return RowBroken(Fault("NUL_CHARACTER", "", f"a NUL byte at byte {raw.index(0) + 1} of the line"))
    if not any(sign in raw for sign in _BEYOND_JSON):
        return _malformed(raw, str(error))
    constants: list[str] = []
    try:
        json.loads(text, parse_constant=constants.append)
    except (ValueError, RecursionError):
        return _malformed(raw, str(error))
    if constants:
        return RowBroken(Fault("JSON_NAN", "", constants[0]))
    return RowBroken(Fault("JSON_SURROGATE", "", "half of a surrogate pair (\\ud800-\\udfff)"))


def _malformed(raw: bytes, said: str) -> RowBroken:
    at = _AT_BYTE.search(said)
    if at is None:
        found = "a row that ends in the middle"
        return RowBroken(
            Fault("JSON_INVALID", "", found, "a whole JSON object without raw line breaks in its text")
        )
    offset = int(at[1])
    reason = said[: at.start()].removeprefix("JSON is malformed: ")
    if reason == _TRAILING:
        # The parser tells the byte behind the first of them.
        offset -= 1
    if raw.startswith(_BOM):
        found, wanted = (
            "a byte order mark inside the file",
            "UTF-8 without such marks, also where files are joined",
        )
    else:
        found, wanted = f"{reason} at byte {offset + 1}", _instead(raw, offset, reason)
    return RowBroken(Fault("JSON_INVALID", "", found, wanted), raw.count(b"\n", 0, offset))


def _instead(raw: bytes, offset: int, reason: str) -> str:
    """What is wanted in the place where the parser stopped; nothing where that can't be told."""
    if reason == _TRAILING:
        if raw[:offset].rstrip(b" \t").endswith(b"\r"):
            return "lines that end in \\n or \\r\\n"
        return "one JSON object on the line, and nothing behind it"
    if raw[offset : offset + 1] == b"'" or reason.startswith("object keys must"):
        return 'JSON with double quotes ("), as json.dumps writes it'
    if raw[offset : offset + 4] in (b"True", b"None") or raw[offset : offset + 5] == b"False":
        return "true, false or null, as json.dumps writes them"
    if b"\0" <= raw[offset : offset + 1] < b" ":
        return "control characters escaped (\\n, \\t) inside text"
    return ""


def _duplicate_keys(raw: bytes) -> Iterator[Fault]:
    try:
        _WITHOUT_REPEATED.decode(raw.decode())
    except _Repeated as repeated:
        (name,) = repeated.args
        # A key is structure, not text of a person; a long or odd one is cut and escaped all the same.
        yield Fault("JSON_DUPLICATE_KEY", "", f"the key {name[:40]!a} twice in one object")


def _characters(value: Any, path: str) -> Iterator[Fault]:
    if type(value) is str:
        if "\0" in value:
            yield Fault("NUL_CHARACTER", path, "U+0000")
        if not value.isascii() and (bad := _BIDI.search(value)):
            yield Fault("BIDI_CONTROL", path, f"U+{ord(bad[0]):04X}")
    elif type(value) is dict:
        for name, inner in value.items():
            yield from _characters(inner, f"{path}.{field(name)}" if path else field(name))
    elif type(value) is list:
        for index, inner in enumerate(value):
            yield from _characters(inner, f"{path}[{index}]")


def field(name: str) -> str:
    """A key as a part of a path: as it is where it is an ordinary name, else escaped and cut."""
    return name if name.isidentifier() and name.isascii() and len(name) <= 40 else ascii(name[:40])
