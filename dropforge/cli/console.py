"""Where words go: one JSON document on stdout where it is asked for, everything for people on stderr.

Without `--json` the result itself (a table, a plan) is what people asked for and goes to stdout; progress,
hints and errors always go to stderr.
"""

import io
import json
import sys
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from dropforge_core.messages.wording import phrase, tone

OK: Final = 0
INVALID: Final = 1
USAGE: Final = 2
REJECTED: Final = 3
GATE_SAID_NO: Final = 4
RUN_FAILED: Final = 5

_PIPE_WIDTH: Final = 500

TONES: Final[Mapping[str, str]] = {
    "working": "cyan",
    "waiting": "yellow",
    "good": "green",
    "doubtful": "yellow",
    "bad": "red",
}
MARKS: Final[Mapping[str, str]] = {
    "working": "…",
    "waiting": "?",
    "good": "✓",
    "doubtful": "~",
    "bad": "✗",
}


class CommandFailed(Exception):
    """What a person must hear before the command ends.

    Args:
        message: what happened and how to mend it.
        code: the exit status.
    """

    def __init__(self, message: str, code: int = USAGE) -> None:
        super().__init__(message)
        self.code = code


class Terminal:
    """The two streams of a command."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = Console(file=sys.stdout, highlight=False)
        self.err = Console(file=sys.stderr, highlight=False)

    def result(self, document: BaseModel | Mapping[str, Any] | list[Any], *shown: Any) -> None:
        """The command's answer: the document where JSON is asked for, else `shown`, one renderable a line."""
        if self.as_json:
            plain = document.model_dump(mode="json") if isinstance(document, BaseModel) else document
            sys.stdout.write(json.dumps(plain, ensure_ascii=True, default=str) + "\n")
            sys.stdout.flush()
            return
        for renderable in shown:
            if isinstance(renderable, str):  # whole, so that it can be copied
                self.out.print(said(renderable), soft_wrap=True)
            elif self.out.is_terminal:
                self.out.print(renderable)
            else:
                # A pipe or a file has no width to fit: no line of a table is broken, or filled with spaces.
                wide = Console(file=io.StringIO(), highlight=False, width=_PIPE_WIDTH)
                with wide.capture() as captured:
                    wide.print(renderable)
                sys.stdout.writelines(line.rstrip() + "\n" for line in captured.get().splitlines())

    def note(self, text: str, style: str = "") -> None:
        """A line for people on stderr; nothing in it is read as markup."""
        self.err.print(said(text, style), soft_wrap=True)

    @property
    def is_live(self) -> bool:
        """Whether stderr is a terminal that can redraw lines."""
        return self.err.is_terminal


def said(text: str, style: str = "") -> Text:
    """Text as it is: no markup, and no control character that could move a terminal's cursor."""
    return Text(clean(text), style=style)


def clean(text: str) -> str:
    """Text without control characters, line breaks and tabs aside."""
    return "".join(c if c in "\n\t" or not unicodedata.category(c).startswith("C") else "�" for c in text)


def status_text(status: str) -> Text:
    """A status in words and colour."""
    mood = tone(status)
    return Text(f"{MARKS[mood]} {phrase(status)}", style=TONES[mood])
