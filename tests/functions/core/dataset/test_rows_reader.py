"""Reading blocks of rows: what is valid comes out as columns, what is not is told."""

import msgspec
import pytest
from rows_cases import ROWS, read

from dropforge_core.dataset.faults import Fault


@pytest.mark.parametrize("name", ROWS)
def test_columns_agree_with_the_canonical_row(name):
    """Each column is what the canonical row says, whatever the format."""
    found, judge, reader = read(ROWS[name], ROWS[name])
    assert not judge.heard
    assert (len(found), reader.rows, reader.faulty) == (2, 2, 0)
    row = found.row(1)
    encoded = msgspec.json.encode(row.messages)
    prompt = row.prompt
    assert found.lines == [1, 2]
    assert found.encoded[1] == encoded + (msgspec.json.encode(row.rejected) if row.rejected else b"")
    assert found.prompts()[1] == (msgspec.json.encode(prompt) if prompt else b"")
    assert found.answers()[1] == row.messages[-1]["content"]
    asked = [m["content"] for m in prompt or row.messages if m["role"] != "system"]
    assert found.asked()[1] == "\n".join(asked)
    assert msgspec.json.decode(found.metas()[1] or b"{}") == row.meta
    assert found.lines_of(["a", 'b"'])[1] == row.encode('b"')
    assert msgspec.json.decode(row.encode("x")) == {
        "id": "x",
        "messages": row.messages,
        "meta": row.meta,
        **({"chosen": row.chosen, "rejected": row.rejected} if row.chosen else {}),
    }
    rest = found.without({0})
    assert (rest.lines, rest.row(0)) == ([2], row)


def test_a_row_of_another_format_names_the_first_place():
    """The format comes from outside with the place where it was seen; a row that differs says so."""
    _, judge, _ = read({"text": "x"}, form="messages")
    assert judge.heard == [
        (1, "FORMAT_MIXED", "", "format 'text', but line 1 of a.jsonl is 'messages'", "", "")
    ]


def test_without_a_format_the_first_row_that_shows_one_decides():
    """What is broken or unknown decides nothing."""
    found, judge, reader = read(b"{", {"x": 1}, ROWS["text"], ROWS["alpaca"])
    assert judge.codes == ["JSON_INVALID", "FORMAT_UNKNOWN", "FORMAT_MIXED"]
    assert (reader.form.name, reader.form.first) == ("text", "line 3 of a.jsonl")
    assert found.lines == [3]


def test_what_a_files_reader_lost_counts_as_faulty_rows():
    """A row too long to be handed over is a faulty row; a byte order mark is none."""
    _, judge, reader = read()
    reader.below(1, Fault("BOM", "", "one"))
    reader.below(3, Fault("LINE_TOO_LONG", "", "long"))
    assert judge.codes == ["BOM", "LINE_TOO_LONG"]
    assert (reader.rows, reader.faulty) == (1, 1)


def test_a_later_check_may_refuse_a_row():
    """A refusal is told, and counts where its code is an error."""
    _, judge, reader = read(ROWS["text"])
    assert reader.reject(1, Fault("OVER_LENGTH", "", "900 tokens"))
    assert not reader.reject(1, Fault("OVER_LENGTH_ESTIMATED", "", "900 tokens"))
    assert judge.codes == ["OVER_LENGTH", "OVER_LENGTH_ESTIMATED"]
    assert reader.faulty == 1


def test_what_is_off_is_not_told():
    """A code that is off is heard of nowhere, and counted nowhere."""
    row = {"text": "write to jo@acme-mail.com <|im_end|>"}
    _, judge, reader = read(row, b"", PII_EMAIL="off", RESERVED_TOKEN="off", BLANK_LINE="off")
    assert not judge.heard
    assert (reader.rows, reader.private) == (1, {})
    _, judge, reader = read(row, b"")
    assert judge.codes == ["PII_EMAIL", "RESERVED_TOKEN", "BLANK_LINE"]
    assert (reader.rows, reader.faulty, reader.private) == (1, 1, {"PII_EMAIL": 1})
