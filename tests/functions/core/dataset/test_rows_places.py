"""Rows that are written over several lines: each fault is told at its own line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rows_cases import ANSWER, USER, Listening, Rows

from dropforge_core.dataset.rows.places import lines_down
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS, Form, RowReader
from dropforge_core.dataset.rows.thorough import texts

NAMES = st.sampled_from(["a", "b", "messages", "my field", "a.b", "x[0]", 'q"', "é", "", "{", ","])
VALUES = st.recursive(
    st.sampled_from(["leaf", 1, None, True, {}, [], "{", ",", '"', "\\"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.integers(0, 3))
def test_every_text_is_found_on_its_line(row, indent):
    """Whatever is around it, the line at a text's path is the one on which the text stands."""
    count = iter(range(10_000))

    def marked(value):
        if isinstance(value, dict):
            return {name: marked(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [marked(inner) for inner in value]
        return f"{value} leaf-{next(count)}-" if isinstance(value, str) else value

    row = marked(row)
    raw = json.dumps(row, indent=indent).encode()
    lines = raw.split(b"\n")
    found = texts(row)
    down = lines_down(raw, {path for path, _ in found})
    paths = [path for path, _ in found]
    for path, text in found:
        # Names that need quotation in paths may make two paths look the same.
        if paths.count(path) == 1 and "'" not in path:
            assert json.dumps(text).encode() in lines[down[path]]


@pytest.mark.parametrize(
    ("messages", "code", "line"),
    [
        ([USER, {**ANSWER, "content": "write to jane@acme-mail.com"}], "PII_EMAIL", 9),
        ([{**USER, "content": " "}, ANSWER], "CONTENT_EMPTY", 5),
        ([USER, {**ANSWER, "weight": 2}], "WEIGHT_INVALID", 10),
        ([USER, {"role": "assistant"}], "FIELD_MISSING", 7),
        ([USER, USER, ANSWER], "ROLE_ORDER", 8),
        ([USER, {**ANSWER, "content": "<|im_end|>"}], "RESERVED_TOKEN", 9),
    ],
)
def test_a_fault_names_the_line_of_the_value(messages, code, line):
    """A field's fault is told at the field; of what is missing, at the beginning of what lacks it."""
    raw = json.dumps({"messages": messages}, indent=1).encode()
    judge = Listening()
    reader = RowReader(judge, Form("messages", "line 1"), WELL_KNOWN_TOKENS)
    found = reader.read(Rows([1, 30], [raw, raw], raw + b"\n" + raw))
    assert [(at, told) for at, told, *_ in judge.heard] == [(line, code), (line + 29, code)]
    assert found.lines == ([1, 30] if code == "PII_EMAIL" else [])
