"""The valid rows of one block, column by column. Nothing is made before it is asked for."""

from collections.abc import Collection, Iterable, Sequence
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.dataset.rows.messages import (
    Message,
    System,
    decode,
    encode,
    encode_sorted,
    from_dicts,
    to_dicts,
)

_T = TypeVar("_T")

_LAST_ANSWER: Final = b',{"role":"assistant"'
"""What stands before the last message, if anything does. Quotes inside texts are escaped."""
_REJECTED: Final = b']{"role":"assistant"'
"""What stands where the rejected answer begins, behind the messages."""


def all_but(values: Sequence[_T], gone: Iterable[int]) -> list[_T]:
    """The values without those at some indices, ascending."""
    kept: list[_T] = []
    begin = 0
    for at in gone:
        kept += values[begin:at]
        begin = at + 1
    kept += values[begin:]
    return kept


class RowBlock:
    """Rows without errors, in the order of the file."""

    __slots__ = ("_sizes", "encoded", "lines", "others", "rejected", "talks")

    def __init__(
        self,
        lines: list[int],
        encoded: list[bytes],
        talks: list[list[Message]],
        metas: list[bytes] | None = None,
        rejected: list[Message] | None = None,
    ) -> None:
        self.lines = lines
        """Line on which each row begins, from 1."""
        self.encoded = encoded
        """Canonical JSON of what makes a row what it is: its messages, and behind them the rejected answer."""
        self.talks = talks
        """Messages of each row; of a pair those that end in the chosen answer."""
        self.others = metas
        """As `metas`; None where no row has any."""
        self.rejected = rejected
        """Of pairs."""
        self._sizes: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, rows: Iterable[tuple[int, Canonical]]) -> "RowBlock":
        """From (line, canonical row)."""
        lines: list[int] = []
        talks: list[list[Message]] = []
        metas: list[bytes] = []
        rejected: list[Message] = []
        for line, row in rows:
            lines.append(line)
            talks.append(from_dicts(row.messages))
            metas.append(encode_sorted(row.meta) if row.meta else b"")
            if row.rejected is not None:
                rejected += from_dicts([row.rejected])
        encoded = [encode(talk) for talk in talks]
        if rejected:
            encoded = [left + encode(right) for left, right in zip(encoded, rejected, strict=True)]
        return cls(lines, encoded, talks, metas if any(metas) else None, rejected or None)

    def __len__(self) -> int:
        return len(self.lines)

    def sizes(self) -> NDArray[np.int64]:
        """Bytes of each row's canonical JSON."""
        if self._sizes is None:
            self._sizes = np.fromiter(map(len, self.encoded), np.int64, len(self.encoded))
        return self._sizes

    def prompts(self) -> list[bytes]:
        """Canonical JSON of everything before the last message; empty where nothing is."""
        cuts = [encoded.rfind(_LAST_ANSWER) for encoded in self.encoded]
        return [
            encoded[:cut] + b"]" if cut > 0 else b"" for encoded, cut in zip(self.encoded, cuts, strict=True)
        ]

    def asked(self) -> list[str]:
        r"""Contents of all messages before the last one but the system message, joined by `\n`.

        Of a row without them, its text.
        """
        return [
            talk[0].content
            if len(talk) <= 2
            else "\n".join([message.content for message in talk[:-1] if type(message) is not System])
            for talk in self.talks
        ]

    def answers(self) -> list[str]:
        """Content of each row's last message."""
        return [talk[-1].content for talk in self.talks]

    def metas(self) -> list[bytes]:
        """Canonical JSON of the fields that are no part of the talk; empty where there are none."""
        return self.others if self.others is not None else [b""] * len(self.lines)

    def row(self, index: int) -> Canonical:
        """One row as every later part understands it."""
        messages = to_dicts(self.talks[index])
        meta = decode(self.others[index]) if self.others and self.others[index] else {}
        if self.rejected is None:
            return Canonical(messages, meta)
        return Canonical(messages, meta, messages[-1], to_dicts(self.rejected[index : index + 1])[0])

    def without(self, indices: Collection[int]) -> "RowBlock":
        """The same rows but some, given by their index in this block."""
        if not indices:
            return self
        gone = sorted(indices)
        return RowBlock(
            all_but(self.lines, gone),
            all_but(self.encoded, gone),
            all_but(self.talks, gone),
            all_but(self.others, gone) if self.others is not None else None,
            all_but(self.rejected, gone) if self.rejected is not None else None,
        )

    def joined(self, places: Sequence[int], other: "RowBlock", others: Sequence[int]) -> "RowBlock":
        """These rows and others, in the order of their places, each given for one of the two."""
        order = sorted(range(len(places) + len(others)), key=[*places, *others].__getitem__)

        def both(left: list[_T], right: list[_T]) -> list[_T]:
            values = left + right
            return [values[at] for at in order]

        metas = both(self.metas(), other.metas()) if self.others or other.others else None
        rejected = both(self.rejected or [], other.rejected or []) if other.rejected else None
        return RowBlock(
            both(self.lines, other.lines),
            both(self.encoded, other.encoded),
            both(self.talks, other.talks),
            metas,
            rejected,
        )

    def lines_of(self, idents: Sequence[str]) -> list[bytes]:
        """Each row's line of a shard, without the line break: what `Canonical.encode` gives."""
        rows = zip(idents, self.encoded, self.metas(), strict=True)
        if self.rejected is None:
            return [
                b'{"id":%b,"messages":%b,"meta":%b}' % (encode(ident), encoded, meta or b"{}")
                for ident, encoded, meta in rows
            ]
        lines = []
        for ident, encoded, meta in rows:
            end = encoded.rfind(_REJECTED) + 1
            chosen = encoded.rfind(_LAST_ANSWER, 0, end)
            lines.append(
                b'{"id":%b,"messages":%b,"meta":%b,"chosen":%b,"rejected":%b}'
                % (encode(ident), encoded[:end], meta or b"{}", encoded[chosen + 1 : end - 1], encoded[end:])
            )
        return lines
