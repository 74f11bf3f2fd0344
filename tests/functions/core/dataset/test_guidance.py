"""What people bring most often instead of a known format is told with what to write in its place."""

import io
import tarfile

import pytest
from dataset_cases import as_lines, in_memory

from dropforge_core.dataset.renaming import renamed
from dropforge_core.dataset.validation import validate


def errors(body: bytes, name: str = "train.jsonl"):
    """Of a file that is nobody's evaluation, without what follows from having no valid row."""
    return [
        p for p in validate([in_memory(body, name)]).errors if p.code not in ("ROWS_TOO_FEW", "TRAIN_EMPTY")
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ("question answer", "prompt and completion: rename question to prompt and answer to completion"),
        ("input output", "prompt and completion: rename input to prompt and output to completion"),
        ("instruction input response", "instruction and output: rename response to output"),
        ("prompt response", "prompt and completion: rename response to completion"),
        ("Query Reply", "prompt and completion: rename Query to prompt and Reply to completion"),
        ("system question chosen rejected", "prompt and chosen and rejected: rename question to prompt"),
        (
            "input preferred_output non_preferred_output",
            "prompt, chosen and rejected: the messages of input, preferred_output and non_preferred_output",
        ),
        ("dialogue", "messages of role and content: rename dialogue"),
        ("body", ""),
        ("prompt completion", ""),
        ("x" * 50, ""),
    ],
)
def test_usual_names_are_told_their_names_here(fields, told):
    """Which field becomes which is said; where it can't be told, nothing is."""
    assert renamed(fields.split()) == told


def test_a_hint_stands_where_fields_are_unknown():
    """In JSON and in tables alike; never where the dataset has a format that the row should have."""
    (of_json,) = errors(as_lines({"question": "a", "answer": "b"}))
    (of_table,) = errors(b"question;answer\na;b\n", "train.csv")
    (mixed, *_) = errors(as_lines({"prompt": "a", "completion": "b"}, {"question": "a", "answer": "b"}))
    wanted = "prompt and completion: rename question to prompt and answer to completion"
    assert (of_json.code, of_json.expected) == ("FORMAT_UNKNOWN", wanted)
    assert (of_table.code, of_table.expected, of_table.found) == (
        "CSV_HEADER",
        wanted,
        "2 columns, none of them of a known format",
    )
    assert mixed.expected == "the fields of format 'prompt_completion'"


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("train.jsonl"))
    return out.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "body", "found"),
    [
        ("train.jsonl", b"prompt,completion\na,b\n", "a table with a header line"),
        ("train.json", b'"instruction"\t"output"\na\tb\n', "a table with a header line"),
        ("train.jsonl", LFS, "a Git LFS pointer"),
        ("train.csv", LFS, "a Git LFS pointer"),
        ("train.parquet", LFS, "a Git LFS pointer"),
        ("train.jsonl", b"\n <!DOCTYPE html><html>Sign in", "a web page"),
        ("train.jsonl", b"%PDF-1.7\n", "a PDF"),
        ("train.jsonl", _tar(), "a tar archive"),
        ("train.csv", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Office document"),
    ],
)
def test_a_file_of_another_kind_is_one_fault_and_not_one_a_line(name, body, found):
    """What is in a file of a wrong name is told once, for what it is."""
    (fault,) = errors(body, name)
    assert (fault.code, fault.found) == ("FILE_KIND", found)


def test_a_comment_is_a_line_that_is_wrong_and_no_header():
    """A first line that only speaks of columns costs itself, not the file."""
    (fault,) = errors(b"# fields: prompt, completion\n" + as_lines({"prompt": "a", "completion": "b"}))
    assert (fault.code, fault.line) == ("JSON_INVALID", 1)


def test_json_in_a_table_s_name_is_told():
    """JSON Lines that is called .csv: the name is what is wrong."""
    (fault,) = errors(as_lines({"prompt": "a", "completion": "b"}), "train.csv")
    assert (fault.code, fault.found, fault.mend) == ("CSV_HEADER", "JSON", "Rename the file.")


@pytest.mark.parametrize(
    ("name", "body", "found"),
    [
        ("train.jsonl", b'{\n  "text": "a"\n}\n{\n  "text": "b"\n}\n', "objects over several lines"),
        ("train.json", b'{\n  "data": []}', "one object over several lines"),
        ("train.json", b'{"data": ["' + b"x" * (2 << 20) + b'"]}', "one object, longer than any row"),
    ],
)
def test_objects_for_people_are_one_fault(name, body, found):
    """An object written over many lines, or all rows in one object, is not a fault on each of its lines."""
    (fault,) = errors(body, name)
    assert (fault.code, fault.line, fault.found) == ("ARRAY_BROKEN", 1, found)


@pytest.mark.parametrize(
    ("line", "found", "expected"),
    [
        (
            b'{"text": "a"}}',
            "trailing characters at byte 14",
            "one JSON object on the line, and nothing behind it",
        ),
        (
            b'{"text": "a"} {}',
            "trailing characters at byte 15",
            "one JSON object on the line, and nothing behind it",
        ),
        (b'{"text": "a"}\r{}', "trailing characters at byte 15", "lines that end in \\n or \\r\\n"),
        (
            b'\xef\xbb\xbf{"text": "a"}',
            "a byte order mark inside the file",
            "UTF-8 without such marks, also where files are joined",
        ),
        (
            b'{"text": "a\tb"}',
            "invalid character at byte 12",
            "control characters escaped (\\n, \\t) inside text",
        ),
    ],
)
def test_what_is_no_json_is_told_by_what_is_wrong(line, found, expected):
    """The byte is the first that is wrong, and what is wanted is what is wanted there."""
    (fault,) = errors(as_lines({"text": "first"}) + line + b"\n")
    assert (fault.code, fault.line, fault.found, fault.expected) == ("JSON_INVALID", 2, found, expected)


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (b'"open\nb\n', "a quote that is never closed"),
        (b'"a"b\n', "text behind a closing quote"),
        (b"a\rb\n", "a carriage return without a line feed, outside of quotes"),
    ],
)
def test_what_is_no_csv_is_told_in_plain_words(rows, found):
    """Nobody has to know what Python's reader means."""
    (fault, *_) = errors(b"text\nfirst\n" + rows, "train.csv")
    assert (fault.code, fault.line, fault.found) == ("CSV_BROKEN", 3, found)


def test_the_index_of_pandas_is_told():
    """A column without a name is nearly always the index that pandas writes."""
    (fault,) = errors(b",prompt,completion\n0,a,b\n", "train.csv")
    assert (fault.code, "index=False" in fault.mend) == ("CSV_HEADER", True)


def test_pairs_without_a_prompt_are_told_to_have_none():
    """Not an order of roles that nobody wrote: the prompt is missing, and may have another name."""
    bare, named = ({"chosen": "a", "rejected": "b"}, {"question": "q", "chosen": "a", "rejected": "b"})
    (fault,) = errors(as_lines(bare, bare))
    assert (fault.code, fault.path, fault.lines) == ("FIELD_MISSING", "prompt", (1, 2))
    (fault,) = errors(as_lines(named))
    assert fault.expected == "prompt and chosen and rejected: rename question to prompt"


def talk(**answer):
    return {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", **answer}]}


def test_what_programs_write_of_nothing_is_nothing():
    """Fields of an answer that are null or empty, as API clients dump them, are not worth a word."""
    dumped = talk(content="hi", refusal=None, audio=None, function_call=None, tool_calls=None, annotations=[])
    report = validate([in_memory(as_lines(dumped))])
    assert not {p.code for p in report.warnings} & {"FIELD_IGNORED"}
    assert {p.code for p in report.errors} == {"ROWS_TOO_FEW"}
    assert "FIELD_IGNORED" in {
        p.code for p in validate([in_memory(as_lines(talk(content="hi", x=0)))]).warnings
    }


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": "I look."}])
def test_a_function_call_is_told_how_to_be_a_tool_call(content):
    """The older API's call and answer are one fault each, with the newer form; the call is no missing text."""
    row = talk(**content, function_call={"name": "f", "arguments": "{}"})
    row["messages"] += [
        {"role": "function", "name": "f", "content": "1"},
        {"role": "assistant", "content": "1"},
    ]
    answer, call = errors(as_lines(row))
    assert (call.code, call.path, "tool_calls" in call.mend) == (
        "TOOL_CALL_INVALID",
        "messages[1].function_call",
        True,
    )
    assert (answer.code, answer.path, "tool_call_id" in answer.mend) == (
        "ROLE_UNKNOWN",
        "messages[2].role",
        True,
    )


@pytest.mark.parametrize(
    ("role", "mend"),
    [
        ("developer", "Rename the role to system."),
        ("User", "Rename the role to user."),
        ("human", "Rename the role to user."),
        ("critic", "Rename the role."),
    ],
)
def test_a_role_of_another_name_is_told_its_name(role, mend):
    """What the role is called here is said where it can be."""
    (fault,) = errors(
        as_lines({"messages": [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]})
    )
    assert (fault.code, fault.mend) == ("ROLE_UNKNOWN", mend)


def test_turns_of_sharegpt_among_messages_are_told():
    """`from` and `value` under `messages` are the other format, one word away."""
    faults = errors(as_lines({"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}))
    assert any("Rename messages to conversations" in fault.mend for fault in faults)
