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

MAX_DEPTH: Final = 64
_BIDI_BYTES: Final = re.compile(rb"\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]")
_BIDI: Final = re.compile("[\u202a-\u202e\u2066-\u2069]")
_SPACED: Final = re.compile(rb'"[ \t\r\n]+:')
_STRUCTURE: Final = re.compile(rb'"(?:[^"\\]|\\.)*"?|[][{}]', re.DOTALL)
_AT_BYTE: Final = re.compile(r" \(byte (\d+)\)")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_decode = msgspec.json.Decoder().decode


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
    try:
        row = _decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(raw, error) from None
    if type(row) is not dict:
        raise RowBroken(Fault("ROW_TYPE", "", describe(row)))
    keys = count_keys(row)
    if keys < 0:
        raise RowBroken(Fault("JSON_DEPTH", "", f"more than {MAX_DEPTH} levels"))
    if _may_repeat_keys(raw, keys):
        faults.extend(_duplicate_keys(raw))
    if (b"\\u" in raw or not raw.isascii()) and (b"\\u" in raw or _BIDI_BYTES.search(raw)):
        faults.extend(_characters(row, ""))
    return row


def _may_repeat_keys(raw: bytes, keys: int) -> bool:
    r"""Whether a row whose objects have so many keys may have written one of them twice.

    A key is followed by `":` unless white space parts the two; `\":` is inside a text. So without such
    white space, exactly as many `":` as keys, or as many as are not inside texts, rule it out.
    """
    if b'" :' in raw or ((b"\n" in raw or b"\t" in raw) and _SPACED.search(raw)):
        return True
    colons = raw.count(b'":')
    # An escaped backslash before a quote looks like an escaped quote.
    return colons != keys and (colons - raw.count(b'\\":') != keys or b'\\\\"' in raw)


def count_keys(value: Any, depth: int = 1) -> int:
    """Number of keys in an object and all below it; negative where it is deeper than `MAX_DEPTH`."""
    if depth > MAX_DEPTH:
        return -(1 << 60)
    if type(value) is dict:
        total = len(value)
        for inner in value.values():
            if type(inner) is dict or type(inner) is list:
                total += count_keys(inner, depth + 1)
        return total
    total = 0
    for inner in value:
        if type(inner) is dict or type(inner) is list:
            total += count_keys(inner, depth + 1)
    return total


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
    many = raw.count(b"{") + raw.count(b"[") > MAX_DEPTH
    if isinstance(error, RecursionError) or (many and nesting(raw) > MAX_DEPTH):
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
    reason = _AT_BYTE.sub("", said).removeprefix("JSON is malformed: ")
    if at is None:
        found = "a row that ends in the middle"
        return RowBroken(
            Fault("JSON_INVALID", "", found, "a whole JSON object without raw line breaks in its text")
        )
    offset = int(at[1])
    found = f"{reason} at byte {offset + 1}"
    expected = ""
    if raw[offset : offset + 1] == b"'" or reason.startswith("object keys must"):
        expected = 'JSON with double quotes ("), as json.dumps writes it'
    elif raw[offset : offset + 4] in (b"True", b"None") or raw[offset : offset + 5] == b"False":
        expected = "true, false or null, as json.dumps writes them"
    elif raw[offset : offset + 1] < b" ":
        expected = "control characters escaped (\\n, \\t) inside text"
    return RowBroken(Fault("JSON_INVALID", "", found, expected), raw.count(b"\n", 0, offset))


def _duplicate_keys(raw: bytes) -> Iterator[Fault]:
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in items]
        if len(set(names)) < len(names):
            found.append(next(name for name in names if names.count(name) > 1))

    json.loads(raw, object_pairs_hook=pairs)
    for name in found[:1]:
        # A key is structure, not text of a person; a long or odd one is cut and escaped all the same.
        yield Fault("JSON_DUPLICATE_KEY", "", f"the key {name[:40]!a} twice in one object")


def _characters(value: Any, path: str) -> Iterator[Fault]:
    if type(value) is str:
        if "\0" in value:
            yield Fault("NUL_CHARACTER", path, "U+0000")
        if bad := _BIDI.search(value):
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
