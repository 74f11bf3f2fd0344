"""How rows of one dataset are laid out: typed, so that they decode quickly, and how each becomes messages.

A layout takes fewer rows than `formats` does, and of what it takes `formats` makes the same. What it can't tell
by itself is told by `blank`, `quotes` and the order of roles, which the quick path looks at.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, ClassVar, Final, NamedTuple, get_args

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType

from dropforge_core.dataset.rows.decoding import is_deep, many_levels
from dropforge_core.dataset.rows.messages import (
    Assistant,
    Message,
    System,
    User,
    encode,
    encode_lines,
    encode_sorted,
)

Talk = list[Message]
Row = Any
"""A struct that was made for the dataset."""

_Text = str | UnsetType | None
"""A field that may be null or missing."""


class _Turn(Struct, tag_field="from", forbid_unknown_fields=True, gc=False):
    value: str


class _TurnSystem(_Turn, tag="system"):
    pass


class _TurnHuman(_Turn, tag="human"):
    pass


class _TurnUser(_Turn, tag="user"):
    pass


class _TurnGpt(_Turn, tag="gpt"):
    pass


class _TurnAssistant(_Turn, tag="assistant"):
    pass


class _TurnModel(_Turn, tag="model"):
    pass


class _TurnChatgpt(_Turn, tag="chatgpt"):
    pass


class _TurnBot(_Turn, tag="bot"):
    pass


_SENDERS: Final[dict[type, Callable[[str], Message]]] = {
    _TurnSystem: System,
    _TurnHuman: User,
    _TurnUser: User,
    _TurnGpt: Assistant,
    _TurnAssistant: Assistant,
    _TurnModel: Assistant,
    _TurnChatgpt: Assistant,
    _TurnBot: Assistant,
}
_AnyTurn = (
    _TurnSystem | _TurnHuman | _TurnUser | _TurnGpt | _TurnAssistant | _TurnModel | _TurnChatgpt | _TurnBot
)


def _may_lack(of: Any) -> bool:
    return UnsetType in get_args(of)


_AnyMessage = System | User | Assistant


def count_quotes(text: bytes) -> int:
    """Quotation marks in some bytes."""
    return int(np.count_nonzero(np.frombuffer(text, np.uint8) == ord('"')))


class Became(NamedTuple):
    """What rows of a layout become."""

    talks: list[Talk]
    """The messages of each row; of a pair those that end in the chosen answer."""
    rejected: list[Message] | None = None
    """Of pairs the rejected answers."""
    refused: frozenset[int] = frozenset()
    """Rows to be read thoroughly, for a reason of the format's own."""


class Others(NamedTuple):
    """The other fields of rows."""

    metas: list[bytes]
    """Canonical JSON; empty where a row has none."""
    texts: list[bytes]
    """JSON of those that have text."""
    deep: set[int]
    """Rows in which they have too many levels."""


_WITHOUT_TEXT: Final = frozenset({int, float, bool, type(None)})


class Layout:
    """One format, and which other fields its rows may have.

    Args:
        extras: names of the other fields, in any order.
    """

    form: ClassVar[str]
    fields: ClassVar[dict[str, Any]]
    """Name to type of the format's own fields; those of type `_Text` may be missing."""
    judged: ClassVar = False
    """Whether the order of roles has to be looked at; it is right by construction otherwise."""

    def __init__(self, extras: Sequence[str] = ()) -> None:
        self.extras = tuple(extras)
        self._meta = "meta" in self.extras
        self._names = tuple(name for name in self.extras if name != "meta")
        # Names that are no identifiers can't be attributes.
        attributes = tuple(f"extra_{at}" for at in range(len(self._names)))
        self.attributes = dict(zip(self._names, attributes, strict=True))
        """Name of another field to the attribute of rows that has its value."""
        kind = msgspec.defstruct(
            f"{self.form}_row",
            [
                *((name, of, UNSET) if _may_lack(of) else (name, of) for name, of in self.fields.items()),
                *((attribute, Any, UNSET) for attribute in attributes),
                *((("meta", dict[str, Any] | UnsetType | None, UNSET),) if self._meta else ()),
            ],
            rename=dict(zip(attributes, self._names, strict=True)),
            forbid_unknown_fields=True,
            kw_only=True,
            gc=False,
        )
        self.decode: Callable[[bytes], Row] = msgspec.json.Decoder(kind).decode
        # Of one name, `attrgetter` makes no tuple.
        self._values = attrgetter(*attributes, *attributes[:1]) if attributes else None

    def become(self, rows: Sequence[Row]) -> Became:
        """What rows become."""
        raise NotImplementedError

    def blank(self, row: Row) -> bool:
        """Whether a text that must have content has none."""
        raise NotImplementedError

    def texts(self, _row: Row) -> list[tuple[str, str]] | None:
        """(path, text) of all texts in the row's own order, where that can be told."""
        return None

    def expected(self, rows: Sequence[Row], _canonical: int) -> int:
        """How many quotation marks rows have that name no field twice.

        Args:
            rows: some rows.
            canonical: quotation marks in the canonical JSON of what the rows became.
        """
        return count_quotes(encode_lines(rows))

    def metas(self, rows: Sequence[Row]) -> Others | None:
        """The other fields of each row; None where there are none."""
        if not self.extras:
            return None
        metas: list[bytes] = []
        texts: list[bytes] = []
        deep: set[int] = set()
        for at, row in enumerate(rows):
            values = self._values(row) if self._values else ()
            meta: dict[str, Any] = dict(zip(self._names, values, strict=False))
            if UNSET in values:
                meta = {name: value for name, value in meta.items() if value is not UNSET}
            if self._meta and row.meta:
                meta |= row.meta
            metas.append(encode_sorted(meta) if meta else b"")
            wordy = [value for value in meta.values() if type(value) not in _WITHOUT_TEXT]
            written = encode(wordy) if wordy else b""
            texts.append(written)
            # One level more than the row itself where they come from `meta`.
            if many_levels(written) and any(type(value) is not str and is_deep(value, 3) for value in wordy):
                deep.add(at)
        return Others(metas, texts, deep)

    def _more(self, rows: Sequence[Row]) -> int:
        """Quotation marks of what is in rows and not in the canonical JSON: the name of the field `meta`."""
        return 2 * sum(row.meta is not UNSET for row in rows) if self._meta else 0


def is_empty(text: str) -> bool:
    return not text or text.isspace()


def any_empty(messages: Sequence[Message]) -> bool:
    return any(is_empty(message.content) for message in messages)


def _optional(rows: Sequence[Row], name: str) -> int:
    """Quotation marks around an optional text and its name."""
    values = map(attrgetter(name), rows)
    return sum(4 if type(value) is str else 0 if value is UNSET else 2 for value in values)


_PER_MESSAGE: Final = 8
"""Quotation marks of a message with role and content, without those inside of its content."""


class Messages(Layout):
    """Chats without tools."""

    form = "messages"
    fields: ClassVar = {"messages": list[_AnyMessage]}
    judged = True

    def become(self, rows: Sequence[Row]) -> Became:
        return Became([row.messages for row in rows])

    def blank(self, row: Row) -> bool:
        return any_empty(row.messages)

    def texts(self, row: Row) -> list[tuple[str, str]] | None:
        if self.extras or any(message.name is not UNSET for message in row.messages):
            return None
        return [(f"messages[{at}].content", message.content) for at, message in enumerate(row.messages)]

    def expected(self, rows: Sequence[Row], canonical: int) -> int:
        return canonical + 2 * len(rows) + self._more(rows)


class ShareGpt(Layout):
    """Chats of `from` and `value`."""

    form = "sharegpt"
    fields: ClassVar = {"conversations": list[_AnyTurn], "system": _Text}
    judged = True

    def become(self, rows: Sequence[Row]) -> Became:
        talks: list[Talk] = [[_SENDERS[type(turn)](turn.value) for turn in row.conversations] for row in rows]
        for talk, row in zip(talks, rows, strict=True):
            if row.system and row.system.strip():
                talk.insert(0, System(row.system))
        return Became(talks)

    def blank(self, row: Row) -> bool:
        return any(is_empty(turn.value) for turn in row.conversations)

    def expected(self, rows: Sequence[Row], canonical: int) -> int:
        added = sum(bool(row.system and row.system.strip()) for row in rows)
        own = 2 * len(rows) + _optional(rows, "system") - _PER_MESSAGE * added
        return canonical + own + self._more(rows)


class _Texts(Layout):
    """Rows of a few texts, which become one message each."""

    required: ClassVar[tuple[str, ...]]
    messages: ClassVar = 2
    """Of a row without system message."""

    def blank(self, row: Row) -> bool:
        return any(is_empty(getattr(row, name)) for name in self.required)

    def expected(self, rows: Sequence[Row], canonical: int) -> int:
        own = 4 * len(self.required) * len(rows)
        own += sum(_optional(rows, name) for name, of in self.fields.items() if of is _Text)
        messages = self.messages * len(rows)
        if "system" in self.fields:
            messages += sum(bool(row.system) for row in rows)
        return canonical + own - _PER_MESSAGE * messages + self._more(rows)


def _with_systems(talks: list[Talk], rows: Sequence[Row]) -> list[Talk]:
    for talk, row in zip(talks, rows, strict=True):
        if row.system:
            talk.insert(0, System(row.system))
    return talks


class PromptCompletion(_Texts):
    """Prompts and completions as text."""

    form = "prompt_completion"
    fields: ClassVar = {"prompt": str, "completion": str, "system": _Text}
    required = ("prompt", "completion")

    def become(self, rows: Sequence[Row]) -> Became:
        return Became(_with_systems([[User(row.prompt), Assistant(row.completion)] for row in rows], rows))


class PromptTalk(Layout):
    """Prompts of messages, and completions as text or as messages."""

    form = "prompt_completion"
    fields: ClassVar = {
        "prompt": list[_AnyMessage],
        "completion": str | list[_AnyMessage],
        "system": _Text,
    }
    judged = True

    def become(self, rows: Sequence[Row]) -> Became:
        talks: list[Talk] = []
        refused: list[int] = []
        for at, row in enumerate(rows):
            answer = row.completion
            if not row.prompt or not answer:
                refused.append(at)
            talks.append(row.prompt + ([Assistant(answer)] if type(answer) is str else answer))
        return Became(_with_systems(talks, rows), None, frozenset(refused))

    def blank(self, row: Row) -> bool:
        texts = [text for text in (row.system, row.completion) if text and type(text) is str]
        turns = row.prompt if type(row.completion) is str else row.prompt + row.completion
        return any(map(is_empty, texts)) or any_empty(turns)


class Alpaca(_Texts):
    """Instructions, with what they are about."""

    form = "alpaca"
    fields: ClassVar = {"instruction": str, "output": str, "input": _Text, "system": _Text}
    required = ("instruction", "output")

    def become(self, rows: Sequence[Row]) -> Became:
        talks: list[Talk] = [
            [
                User(
                    f"{row.instruction}\n\n{row.input}"
                    if row.input and row.input.strip()
                    else row.instruction
                ),
                Assistant(row.output),
            ]
            for row in rows
        ]
        return Became(_with_systems(talks, rows))


class Text(_Texts):
    """Text without roles."""

    form = "text"
    fields: ClassVar = {"text": str}
    required = ("text",)
    messages = 1

    def become(self, rows: Sequence[Row]) -> Became:
        return Became([[Assistant(row.text)] for row in rows])


class Pairs(_Texts):
    """Preference pairs of a prompt and two answers as text."""

    form = "preference"
    fields: ClassVar = {"prompt": str, "chosen": str, "rejected": str, "system": _Text}
    required = ("prompt", "chosen", "rejected")
    messages = 3

    def become(self, rows: Sequence[Row]) -> Became:
        return Became(
            _with_systems([[User(row.prompt), Assistant(row.chosen)] for row in rows], rows),
            [Assistant(row.rejected) for row in rows],
            frozenset(at for at, row in enumerate(rows) if row.chosen == row.rejected),
        )

    def blank(self, row: Row) -> bool:
        return super().blank(row) or (bool(row.system) and is_empty(row.system))


class TalkPairs(Layout):
    """Preference pairs of two conversations, with or without what they share as a prompt."""

    form = "preference"
    fields: ClassVar = {
        "chosen": list[_AnyMessage],
        "rejected": list[_AnyMessage],
        "prompt": str | list[_AnyMessage] | UnsetType,
        "system": _Text,
    }
    judged = True

    def become(self, rows: Sequence[Row]) -> Became:
        talks: list[Talk] = []
        rejected: list[Message] = []
        refused: list[int] = []
        for at, row in enumerate(rows):
            before: Talk = [System(row.system)] if row.system else []
            if type(row.prompt) is str:
                before.append(User(row.prompt))
            elif row.prompt is not UNSET:
                before += row.prompt
            good, bad = (_behind(before, answer) for answer in (row.chosen, row.rejected))
            if not row.chosen or not row.rejected or not _are_pair(good, bad):
                refused.append(at)
            talks.append(good)
            rejected.append(bad[-1] if bad else Assistant(""))
        return Became(talks, rejected, frozenset(refused))

    def blank(self, row: Row) -> bool:
        texts = [text for text in (row.system, row.prompt) if text and type(text) is str]
        turns = row.chosen + row.rejected + (row.prompt if type(row.prompt) is list else [])
        return any(map(is_empty, texts)) or any_empty(turns)


def _are_pair(good: Talk, bad: Talk) -> bool:
    return good[:-1] == bad[:-1] and good[-1] != bad[-1] and type(bad[-1]) is Assistant


def _behind(before: Talk, answer: Talk) -> Talk:
    """An answer with what comes before it, unless it repeats that itself."""
    return answer if answer[: len(before)] == before else before + answer
