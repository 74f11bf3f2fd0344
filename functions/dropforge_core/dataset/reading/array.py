"""One JSON array: its elements, each with the line on which it begins.

Most of an array is cut by a guess: what stood between two elements stands between the next ones too. A stretch up to
the last such place is an array by itself where the guess is right, and then the JSON parser gives its elements at
once. Where it is none (a row is no JSON, or rows vary), elements are cut one by one at the array's own commas, whatever
lies between them: what is wrong there is for the reader of the row to say.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from dropforge_core.dataset.faults import Fault, FileFault
from dropforge_core.dataset.reading.shapes import MAX_ROW_BYTES, Block, Report, blocks, place_of, too_long

_TOKEN: Final = re.compile(rb'"(?:[^"\\]*+(?:\\.[^"\\]*+)*+"())?|[\]\[{},]', re.DOTALL)
"""A sign of structure or a string; group 1 is set where the string's end is there."""
_IN_STRING: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_GAP: Final = re.compile(rb"[ \t\r\n,]*+")
_TAIL: Final = re.compile(rb'"?[\]}]+\Z')
_HEAD: Final = re.compile(rb'[\[{][ \t\r\n]*+(?:"[^"\\]{0,60}"[ \t\r\n]*+:?|[\[{])?')
_ERROR_AT: Final = re.compile(r"\(byte (\d+)\)\Z")
_WHITE: Final = b" \t\r\n"
_REST_BYTES: Final = 1 << 16
"""Cut one by one before the next guess where the last one found no place; bounds what guessing in vain costs."""

_elements: Final = msgspec.json.Decoder(list[msgspec.Raw])


class _Separator(NamedTuple):
    """What stands between two elements, with the end of the one and the beginning of the other."""

    text: bytes
    end: int
    """Where in the text the first element ends."""
    after: int
    """Where in the text the comma ends."""


class ArrayReader:
    """The elements of one array, those beyond `MAX_ROW_BYTES` reported and passed over.

    Args:
        chunks: the text.
        report: told of elements that are too long.

    Raises:
        FileFault: ARRAY_BROKEN where brackets or commas don't fit.
    """

    def __init__(self, chunks: Iterable[bytes], report: Report) -> None:
        self.lines = 0
        """Lines of the text, after the iteration."""
        self._chunks = chunks
        self._report = report
        self._buffer = b""
        self._begin = 0
        """Where the next element begins, or white space before it."""
        self._line = 1
        """Line of `_begin`."""
        self._at = 0
        """How far the next element was looked at."""
        self._depth = 0
        self._in_string = False
        self._too_long = False
        self._state = "before"
        self._found: list[tuple[int, bytes, int]] = []
        """Line, text and number of elements that were cut."""
        self._number = 0
        """Of the next element."""
        self._line_before = 0
        """Of the last element that was handed on."""
        self._separator: _Separator | None = None
        self._last_end = b""
        """The end of the last element that was cut by itself, to its comma."""
        self._no_guess = 0
        """Bytes to cut one by one before the next guess."""

    def __iter__(self) -> Iterator[Block]:
        last = b""
        try:
            for chunk in self._chunks:
                if chunk:
                    self.lines += chunk.count(b"\n")
                    last = chunk
                    yield from self._blocks(chunk, final=False)
        except FileFault:
            if self._found:
                yield from self._handed_on(held=0)
            raise
        self.lines += bool(last) and not last.endswith(b"\n")
        yield from self._blocks(b"", final=True)

    def _blocks(self, chunk: bytes, *, final: bool) -> Iterator[Block]:
        self._buffer = self._buffer[self._begin :] + chunk
        self._at -= self._begin
        self._begin = 0
        broken: FileFault | None = None
        try:
            self._cut(final=final)
        except FileFault as fault:
            broken = fault
        # Whether the last one shares its line is known when the next one is there.
        goes_on = self._state == "rows" and not final and broken is None
        if len(self._found) > goes_on:
            yield from self._handed_on(held=int(goes_on))
        if broken is not None:
            raise broken

    def _handed_on(self, held: int) -> Iterator[Block]:
        """What was cut, but for so many elements at its end."""
        lines, rows, numbers = zip(*self._found, strict=True)
        count = len(lines) - held
        self._found = self._found[count:]
        places = self._places(lines, numbers)[:count]
        self._line_before = lines[count - 1]
        yield from blocks(places, rows[:count], self._report)

    def _places(self, lines: Sequence[int], numbers: Sequence[int]) -> Sequence[int]:
        """The lines, each with its element's number where another one begins on it."""
        if self._line_before < lines[0] and len(set(lines)) == len(lines):
            return lines
        if lines[0] == lines[-1] == self._line_before:
            return [place_of(lines[0], number) for number in numbers]
        around = (self._line_before, *lines, 0)
        return [
            place_of(line, number) if line in (around[at], around[at + 2]) else line
            for at, (line, number) in enumerate(zip(lines, numbers, strict=True))
        ]

    def _cut(self, *, final: bool) -> None:
        if self._state == "before":
            self._skip_white()
            self._state = "first" if self._begin < len(self._buffer) else "before"
            self._move_to(min(self._begin + 1, len(self._buffer)))
        while self._state in ("first", "rows") and self._cut_some(final=final):
            pass
        if self._state == "after":
            self._skip_white()
            if self._begin < len(self._buffer):
                raise self._broken("more text after the closing ']'")
        elif final:
            self._move_to(max(len(self._buffer.rstrip(_WHITE)), self._begin))
            raise self._broken("an array that ends in the middle")

    def _cut_some(self, *, final: bool) -> bool:
        """Cut one element or many. False where more text is needed."""
        separator = self._separator
        if separator and self._at == self._begin and self._no_guess <= 0 and not self._too_long:
            places, cut = self._guess(separator)
            if cut:
                return True
            if not places:
                if not final and len(self._buffer) - self._begin <= MAX_ROW_BYTES:
                    return False
                self._no_guess = _REST_BYTES
        return self._step()

    def _skip_white(self) -> None:
        self._move_to(len(self._buffer) - len(self._buffer[self._begin :].lstrip(_WHITE)))

    def _guess(self, separator: _Separator) -> tuple[bool, bool]:
        """Cut all up to the last place where the separator is right.

        Returns:
            Whether the separator was found at all, and whether anything was cut.
        """
        buffer, begin = self._buffer, self._begin
        limit, found = len(buffer), False
        while (place := buffer.rfind(separator.text, begin, limit)) >= 0:
            limit = begin + (place - begin) // 2
            try:
                # The parser refuses a stretch that ends inside a string or an element: no wrong guess passes.
                rows = _elements.decode(b"[%b]" % buffer[begin : place + separator.end])
            except msgspec.DecodeError as error:
                if not found and (told := _ERROR_AT.search(str(error))):
                    # Up to the row that is no JSON all is well.
                    limit = min(begin + int(told[1]), place + len(separator.text)) - 1
            except RecursionError:
                pass
            else:
                self._emit(rows, place + separator.end)
                self._move_to(place + separator.after)
                self._state = "rows"
                return True, True
            found = True
        return found, False

    def _emit(self, rows: list[msgspec.Raw], end: int) -> None:
        buffer, at, line = self._buffer, self._begin, self._line
        numbers = range(self._number, self._number + len(rows))
        self._number += len(rows)
        if buffer.find(b"\n", at, end) < 0:
            self._found += [(line, bytes(row), number) for row, number in zip(rows, numbers, strict=True)]
            return
        for raw, number in zip(rows, numbers, strict=True):
            row = bytes(raw)
            gap = _GAP.match(buffer, at)
            start = gap.end() if gap else at
            line += buffer.count(b"\n", at, start)
            self._found.append((line, row, number))
            line += row.count(b"\n")
            at = start + len(row)

    def _step(self) -> bool:
        """Cut one element by counting its brackets. False where its end is not there yet."""
        buffer = self._buffer
        if self._in_string:
            inside = _IN_STRING.match(buffer, self._at)
            end = inside.end() if inside else self._at
            self._in_string = buffer[end : end + 1] != b'"'
            self._at = end + (not self._in_string)
        if not self._in_string:
            for token in _TOKEN.finditer(buffer, self._at):
                sign = buffer[token.start()]
                if sign == 0x22:
                    if token[1] is None:
                        self._in_string, self._at = True, token.end()
                        return self._step()
                elif sign in b"[{":
                    self._depth += 1
                elif self._depth and sign != 0x2C:
                    self._depth -= 1
                elif not self._depth:
                    self._end_element(token.start(), sign)
                    return True
            self._at = len(buffer)
        self._bound()
        return False

    def _bound(self) -> None:
        """Hold no more of an element than it may be long."""
        held = self._buffer[self._begin : self._at]
        if not self._too_long and len(held.lstrip(_WHITE)) > MAX_ROW_BYTES:
            self._too_long = True
            self._report(*too_long(self._line + _blank_lines(held)))
        if self._too_long:
            at = self._at
            self._move_to(at)

    def _end_element(self, at: int, sign: int) -> None:
        element = self._buffer[self._begin : at]
        body = element.strip(_WHITE)
        if sign == 0x7D:
            self._move_to(at)
            raise self._broken("a '}' that closes nothing")
        if self._too_long:
            self._too_long = False
        elif len(element.lstrip(_WHITE)) > MAX_ROW_BYTES:
            self._report(*too_long(self._line + _blank_lines(element)))
        elif body:
            self._found.append((self._line + _blank_lines(element), body, self._number))
            self._learn(element, body)
        elif sign == 0x2C or self._state == "rows":
            self._move_to(at)
            raise self._broken("a comma with nothing beside it")
        self._number += 1
        self._state = "rows" if sign == 0x2C else "after"
        self._no_guess -= len(element)
        self._move_to(at + 1)

    def _learn(self, element: bytes, body: bytes) -> None:
        head = _HEAD.match(body)
        if self._last_end and head:
            blank = element[: len(element) - len(element.lstrip(_WHITE))]
            tail = len(self._last_end.rstrip(b", \t\r\n"))
            self._separator = _Separator(self._last_end + blank + head[0], tail, len(self._last_end))
        end = _TAIL.search(body)
        self._last_end = end[0] + element[len(element.rstrip(_WHITE)) :] + b"," if end else b""

    def _move_to(self, end: int) -> None:
        self._line += self._buffer.count(b"\n", self._begin, end)
        self._begin = self._at = end

    def _broken(self, found: str) -> FileFault:
        return FileFault(Fault("ARRAY_BROKEN", "", found), self._line)


def _blank_lines(element: bytes) -> int:
    """Lines before the first thing that is not white space."""
    return element.count(b"\n", 0, len(element) - len(element.lstrip(_WHITE)))
