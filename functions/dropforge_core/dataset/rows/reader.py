"""From blocks of rows as bytes to the valid ones as columns, every fault told on the way. Both passes read through here."""

from collections.abc import Sequence
from typing import Final, Protocol

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.columns import RowBlock
from dropforge_core.dataset.rows.thorough import Form, Judge, ThoroughReader

__all__ = ["LOST_ROWS", "WELL_KNOWN_TOKENS", "Form", "Judge", "RowBlock", "RowReader"]

WELL_KNOWN_TOKENS: Final = frozenset(
    {
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|user|>",
        "<|assistant|>",
        "<|system|>",
        "<|end|>",
        "<start_of_turn>",
        "<end_of_turn>",
    }
)
"""Looked for where the base model's own tokenizer is not at hand."""

LOST_ROWS: Final = frozenset({"LINE_TOO_LONG", "CSV_FIELDS", "CSV_BROKEN", "UTF8_INVALID"})
"""What costs a row below the rows: what a file's reader tells of rows that it can't hand over."""


class Rows(Protocol):
    """Some rows that follow one another, as `reading.blocks.Block` has them."""

    @property
    def lines(self) -> Sequence[int]: ...
    @property
    def rows(self) -> Sequence[bytes]: ...
    @property
    def text(self) -> bytes: ...


class RowReader:
    """Reads the rows of one dataset, all of one format."""

    def __init__(self, judge: Judge, form: Form, special_tokens: frozenset[str] = WELL_KNOWN_TOKENS) -> None:
        self._thorough = ThoroughReader(judge, form, special_tokens)
        self._judge = judge

    @property
    def rows(self) -> int:
        """Rows read, faulty ones too."""
        return self._thorough.rows

    @property
    def faulty(self) -> int:
        """Rows with errors."""
        return self._thorough.faulty

    @property
    def private(self) -> dict[str, int]:
        """Rows by code of what private data they have."""
        return self._thorough.private

    @property
    def form(self) -> Form:
        """As given; or, where it came without a name, as the first row that shows it has it."""
        return self._thorough.form

    def below(self, line: int | None, fault: Fault) -> None:
        """Take what a file's reader tells; what cost a row counts as a faulty row."""
        if fault.code in LOST_ROWS:
            self._thorough.rows += 1
            self._thorough.faulty += 1
        if self._judge.severity[fault.code] != "off":
            self._judge.add(line, fault)

    def reject(self, line: int, fault: Fault) -> bool:
        """Tell what a later check found in a valid row; True where that makes it a faulty one."""
        return self._thorough.report(line, (fault,))

    def read(self, block: Rows) -> RowBlock:
        """The valid rows; what is wrong with others goes to the judge."""
        read = self._thorough.read
        return RowBlock.of(
            (line, row)
            for line, raw in zip(block.lines, block.rows, strict=True)
            if (row := read(line, raw)) is not None
        )
