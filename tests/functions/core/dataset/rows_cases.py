"""Blocks of rows, a judge that listens, and ordinary rows of every format."""

import json
from typing import NamedTuple

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS, Form, RowReader


class Rows(NamedTuple):
    """A block made by hand."""

    lines: list
    rows: list
    text: bytes


class Listening:
    """A judge that keeps all it hears."""

    def __init__(self, **checks):
        self.severity = {code: kind.severity for code, kind in CODES.items()} | checks
        self.heard = []

    def add(self, line, fault):
        self.heard.append((line, *fault))

    def is_error(self, code):
        return self.severity[code] == "error"

    @property
    def codes(self):
        return [code for _, code, *_ in self.heard]


def block(*rows):
    rows = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return Rows(list(range(1, len(rows) + 1)), rows, b"\n".join(rows))


def read(*rows, form=None, **checks):
    judge = Listening(**checks)
    reader = RowReader(judge, Form(form, "line 1 of a.jsonl" if form else "a.jsonl"), WELL_KNOWN_TOKENS)
    return reader.read(block(*rows)), judge, reader


USER = {"role": "user", "content": "what?"}
ANSWER = {"role": "assistant", "content": "that."}
SYSTEM = {"role": "system", "content": "Be kind."}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}

ROWS = {
    "messages": {"messages": [SYSTEM, USER, {**ANSWER, "weight": 0, "name": "Bo"}, USER, ANSWER]},
    "short": {"messages": [USER, ANSWER], "id": 7, "source": {"b": [1.5, None], "a": "é"}, "meta": {"z": 1}},
    "tools": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
            ANSWER,
        ]
    },
    "sharegpt": {
        "system": "Be.",
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    },
    "alpaca": {"instruction": "add", "input": "1 1", "output": "2"},
    "prompt_completion": {"prompt": "a", "completion": "b", "system": "c"},
    "preference": {"prompt": "a", "chosen": "b", "rejected": 'c"]{d', "meta": {"n": 1}},
    "pairs of talks": {"chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]},
    "text": {"text": "all of it"},
}
