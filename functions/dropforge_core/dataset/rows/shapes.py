"""Which layout fits the rows of a dataset."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from dropforge_core.dataset.rows.chats import Chats
from dropforge_core.dataset.rows.formats import infer
from dropforge_core.dataset.rows.layouts import (
    Alpaca,
    Layout,
    Messages,
    Pairs,
    PromptCompletion,
    PromptTalk,
    ShareGpt,
    TalkPairs,
    Text,
)
from dropforge_core.dataset.rows.messages import encode

_MAX_EXTRAS: Final = 32
"""Most other fields that a layout knows; rows with more are read thoroughly."""

_OF_ONE: Final[dict[str, type[Layout]]] = {"sharegpt": ShareGpt, "alpaca": Alpaca, "text": Text}
_PLAIN: Final = frozenset({"role", "content", "name", "weight"})


def learn(form: str, rows: Sequence[dict[str, Any]]) -> Layout:
    """The layout in which most of some rows are.

    Args:
        form: their format.
        rows: at least one.
    """
    kind = _kind(form, rows)
    extras: list[str] = []
    for name, _ in Counter(name for row in rows for name in row).most_common():
        # Definitions of tools are judged, a name that tells another format makes it that, and structs have no names
        # that must be escaped.
        telling = infer(dict.fromkeys((*kind.fields, *extras, name))) != form
        odd = (name == "tools" and kind is not Chats) or len(encode(name)) > len(name.encode()) + 2
        if not (telling or odd or name in kind.fields) and len(extras) < _MAX_EXTRAS:
            extras.append(name)
    return kind(extras)


def _kind(form: str, rows: Sequence[dict[str, Any]]) -> type[Layout]:
    if form == "messages":
        return Chats if any(map(_has_more, rows)) else Messages
    if form == "prompt_completion":
        return PromptTalk if _mostly_lists(rows, "prompt") else PromptCompletion
    if form == "preference":
        return TalkPairs if _mostly_lists(rows, "chosen") else Pairs
    return _OF_ONE[form]


def _mostly_lists(rows: Sequence[dict[str, Any]], name: str) -> bool:
    return 2 * sum(type(row.get(name)) is list for row in rows) > len(rows)


def _has_more(row: dict[str, Any]) -> bool:
    """Whether messages have tools, or null for what they lack."""
    messages = row["messages"]
    return "tools" in row or any(
        type(message) is dict and (None in message.values() or not _PLAIN.issuperset(message))
        for message in (messages if type(messages) is list else ())
    )
