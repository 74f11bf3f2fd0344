"""What may be wrong with a row or a file, before it has a place in a report."""

from typing import NamedTuple


class Fault(NamedTuple):
    """One thing wrong: a code of `codes.CODES`, the JSON path, and what was found (no private text)."""

    code: str
    path: str
    found: str
    expected: str = ""
    """Where it can be said more exactly than `codes.CODES` does."""
    mend: str = ""
    """As `expected`: a finished sentence."""


class FileFault(Exception):
    """The rest of the file can't be read."""

    def __init__(self, fault: Fault, line: int | None = None) -> None:
        super().__init__(f"{fault.code}: {fault.found}")
        self.fault = fault
        self.line = line
