"""What the names of columns mean, in every format that has columns."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

COLUMNS: Final = frozenset(
    {
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "output",
        "chosen",
        "rejected",
        "text",
    }
)
"""A table that has one of these is one of a known format."""

OPTIONAL: Final = frozenset({"input", "system", "tools", "meta"})
"""Empty is absent."""

_JSON: Final = frozenset({"messages", "conversations", "tools", "meta"})
_TEXT_OR_TALK: Final = frozenset({"prompt", "completion", "chosen", "rejected"})


def recognised(names: Sequence[str]) -> list[str]:
    """The names, in lower case those that mean something."""
    return [name.lower() if name.lower() in COLUMNS | OPTIONAL else name for name in names]


def holds_json(name: str) -> bool:
    """Whether text in this column may be JSON."""
    return name in _JSON or name in _TEXT_OR_TALK


def parsed(name: str, text: str) -> str | msgspec.Raw:
    """What a cell holds: JSON as it is written there, or the text itself.

    A prompt may be JSON and text all the same, unless it is a talk.
    """
    if text[:1] not in ("[", "{") or not holds_json(name):
        return text
    try:
        if name in _TEXT_OR_TALK and not _is_talk(msgspec.json.decode(text)):
            return text
        # As it is written: what is wrong with it, such as a key given twice, is told where rows are read.
        return msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        return text


def _is_talk(value: Any) -> bool:
    return type(value) is list and bool(value) and all(type(m) is dict and "role" in m for m in value)
