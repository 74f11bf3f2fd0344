"""From blocks of rows as bytes to the valid ones as columns, every fault told on the way. Both passes read through here."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import msgspec

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.columns import RowBlock, all_but
from dropforge_core.dataset.rows.formats import Canonical, infer
from dropforge_core.dataset.rows.layouts import Layout
from dropforge_core.dataset.rows.messages import decode
from dropforge_core.dataset.rows.quick import QuickReader, Taken
from dropforge_core.dataset.rows.shapes import learn
from dropforge_core.dataset.rows.thorough import Draft, Form, Judge, ThoroughReader

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

LOST_ROWS: Final = frozenset({"LINE_TOO_LONG", "CSV_FIELDS", "CSV_BROKEN", "UTF8_INVALID", "PARQUET_VALUE"})
"""What costs a row below the rows: what a file's reader tells of rows that it can't hand over."""


class Rows(Protocol):
    """Some rows that follow one another, as `reading.blocks.Block` has them."""

    @property
    def lines(self) -> Sequence[int]: ...
    @property
    def rows(self) -> Sequence[bytes]: ...
    @property
    def text(self) -> bytes: ...


_SAMPLE: Final = 64
"""Rows from which a layout is learnt."""
_MOST: Final = 0.9
"""With less than this share of rows taken quickly, the layout is learnt anew."""
_HALF: Final = 0.5
"""With less than this share of rows taken quickly, trying costs more than it saves."""
_LONGEST_PAUSE: Final = 64


class RowReader:
    """Reads the rows of one dataset, all of one format. Not for two threads at once.

    Args:
        judge: is told of every fault.
        form: the dataset's format.
        special_tokens: that texts must not have.
    """

    def __init__(self, judge: Judge, form: Form, special_tokens: frozenset[str] = WELL_KNOWN_TOKENS) -> None:
        self._thorough = ThoroughReader(judge, form, special_tokens)
        self._quick = QuickReader(self._thorough.scanner)
        self._judge = judge
        self._layout: Layout | None = None
        self._stale = True
        """Whether the layout is to be learnt after the pause."""
        self._pause = 0
        """Blocks for which things stay as they are."""
        self._next_pause = 1

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
        """The valid rows; what is wrong with others goes to the judge, in the order of the rows."""
        added: dict[int, tuple[int, Canonical]] = {}
        total, start = len(block.lines), 0
        while self.form.name is None and start < total:
            self._read_thoroughly(block, start, added)
            start += 1
        layout = self._layout_for(block.rows[start:]) if start < total else None
        if layout is None:
            for place, draft in self._drafts(block, range(start, total)).items():
                if (row := self._thorough.finish(draft)) is not None:
                    added[place] = (draft.line, row)
            return RowBlock.of(added.values())
        rows = block.rows[start:] if start else block.rows
        taken = self._quick.read(layout, rows, b"\n".join(rows) if start else block.text)
        self._look_back(len(taken.places) - len(taken.refused), len(rows))
        places = [start + place for place in taken.places] if start else taken.places
        gone = self._settle(block, start, places, taken, added)
        found = RowBlock(
            all_but(block.lines[start:] if start else block.lines, taken.missing),
            taken.encoded,
            taken.talks,
            taken.metas,
            taken.rejected,
        ).without(gone)
        if not added:
            return found
        left = [place for at, place in enumerate(places) if at not in gone]
        return found.joined(left, RowBlock.of(added.values()), list(added))

    def _read_thoroughly(self, block: Rows, place: int, added: dict[int, tuple[int, Canonical]]) -> None:
        line = block.lines[place]
        row = self._thorough.read(line, block.rows[place])
        if row is not None:
            added[place] = (line, row)

    def _drafts(self, block: Rows, places: Sequence[int]) -> dict[int, Draft]:
        drafts = self._thorough.drafts((block.lines[place], block.rows[place]) for place in places)
        return dict(zip(places, drafts, strict=True))

    def _settle(
        self,
        block: Rows,
        start: int,
        places: Sequence[int],
        taken: Taken,
        added: dict[int, tuple[int, Canonical]],
    ) -> set[int]:
        """Read what was not taken, and look at what has signs; answers what of the taken is no valid row, by index."""
        gone = set(taken.refused)
        self._thorough.rows += len(places) - len(gone)
        untaken = [places[at] for at in gone]
        untaken += [start + place for place in taken.missing]
        drafts = self._drafts(block, sorted(untaken))
        signed = {places[at]: at for at in taken.signs}
        for place in sorted((*drafts, *signed)):
            if place in drafts:
                draft = drafts[place]
                if (row := self._thorough.finish(draft)) is not None:
                    added[place] = (draft.line, row)
                continue
            at = signed[place]
            line, raw = block.lines[place], block.rows[place]
            if not self._thorough.look(line, raw, taken.signs[at], taken.texts.get(at)):
                gone.add(at)
        return gone

    def _layout_for(self, rows: Sequence[bytes]) -> Layout | None:
        """None where the quick path is not worth trying."""
        if self._pause:
            self._pause -= 1
        elif self._stale:
            step = -(-len(rows) // _SAMPLE)
            sample = [row for raw in rows[::step] if (row := _decoded(raw)) and infer(row) == self.form.name]
            self._layout = learn(str(self.form.name), sample) if sample else None
            self._stale = self._layout is None
        return self._layout

    def _look_back(self, taken: int, rows: int) -> None:
        """Learn from how many rows were taken quickly."""
        if taken >= _MOST * rows:
            return
        if taken < _HALF * rows:
            self._layout = None
        if not self._pause:
            self._stale = True
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)


def _decoded(raw: bytes) -> dict[str, Any] | None:
    try:
        row = decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return row if type(row) is dict else None
