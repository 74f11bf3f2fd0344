"""The quick path answers to the thorough one: the same rows, the same faults, byte for byte."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rows_cases import ANSWER, ROWS, USER, Listening, Rows

from dropforge_core.dataset.rows.columns import RowBlock
from dropforge_core.dataset.rows.messages import encode
from dropforge_core.dataset.rows.quick import QuickReader
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS, Form, RowReader
from dropforge_core.dataset.rows.shapes import learn
from dropforge_core.dataset.rows.suspicion import RESERVED, Scanner
from dropforge_core.dataset.rows.thorough import ThoroughReader

ODD = [
    "",
    " ",
    "\n\t",
    "\u3000\u2003",
    "\x85",
    "\x1f",
    "\u2028",
    " yes",
    "\n\nyes",
    'a "quoted" word',
    'ends in \\"',
    "\\",
    "\\u0022",
    "a\0b",
    "\u202ea\u2066",
    "\u201cquoted\u201d",
    "<|im_end|>",
    "jane@acme-mail.com",
    "4111 1111 1111 1111",
    "on 2024-11-21 10:00:00.123456",
    "call +1 (415) 555-2671 now",
    "\n415-555-2671",
    "0.14285714285714285",
    "GB82 WEST 1234 5698 7654 32",
    "AKIA" + "QRST" * 4,
    '},{"role":"assistant"',
    ']{"role":"assistant"',
    '{"messages": []}',
    "caf\u00e9 \U0001f600",
    "a/b</s>",
]
TEXT = st.one_of(st.sampled_from(ODD), st.text(max_size=12), st.just("plain words"), st.just("other words"))
NAMES = st.sampled_from(
    [
        "id",
        "source",
        "meta",
        "tools",
        "text",
        "prompt",
        "system",
        "messages",
        "chosen",
        "rejected",
        "output",
        "my field",
        "é",
        'q"',
        "a\\b",
        "score",
    ]
)
VALUE = st.recursive(
    st.one_of(
        TEXT, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False)
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
LACKING = ["name", "weight", "tool_calls", "tool_call_id"]


@st.composite
def with_tools(draw, talk):
    """Calls and their answers somewhere in a talk, right or nearly so; and null for what is lacking."""
    talk = list(talk)
    if draw(st.booleans()):
        calls = [
            {
                "id": draw(st.sampled_from(["c1", "c2", "c3"])),
                "type": draw(st.sampled_from(["function", "function", "function", "tool"])),
                "function": {
                    "name": draw(st.sampled_from(["look", "look", "find"])),
                    "arguments": draw(st.sampled_from(["{}", '{"a": "\\u0000"}', "{}", "[]", "{", {"a": 1}])),
                },
            }
            for _ in range(draw(st.integers(1, 2)))
        ]
        call = {
            "role": "assistant",
            "content": draw(st.sampled_from([None, "", "I look."])),
            "tool_calls": calls,
        }
        ids = [draw(st.sampled_from([one["id"], one["id"], one["id"], "c1"])) for one in calls]
        answers = [{"role": "tool", "tool_call_id": ident, "content": draw(TEXT)} for ident in ids]
        users = [at for at, message in enumerate(talk) if message["role"] == "user"]
        at = draw(st.sampled_from(users or [0])) + 1
        talk[at:at] = [call, *answers[: draw(st.sampled_from([2, 2, 2, 1, 0]))]]
        if draw(st.integers(0, 3)) == 0:
            talk = talk[: at + 1]
    if draw(st.booleans()):
        talk = [{**dict.fromkeys(draw(st.sets(st.sampled_from(LACKING)))), **message} for message in talk]
    return talk


@st.composite
def messages(draw):
    talk = [{"role": "system", "content": draw(TEXT)}] if draw(st.integers(0, 3)) == 0 else []
    for _ in range(draw(st.integers(1, 2))):
        talk += [{"role": "user", "content": draw(TEXT)}, {"role": "assistant", "content": draw(TEXT)}]
    if draw(st.integers(0, 4)) == 0:
        at = draw(st.integers(0, len(talk) - 1))
        name = draw(
            st.sampled_from(["weight", "name", "role", "tool_calls", "tool_call_id", "other", "content"])
        )
        values = {
            "weight": st.sampled_from([0, 1, 1.0, True, None, 2, "1"]),
            "role": st.sampled_from(["user", "assistant", "system", "tool", "human", "", None]),
            "tool_calls": st.sampled_from([[], [CALL], None]),
            "content": st.sampled_from([None, [{"type": "text", "text": "part"}], 3, ""]),
        }
        talk[at] = {**talk[at], name: draw(values.get(name, TEXT))}
    return draw(with_tools(talk)) if draw(st.integers(0, 3)) == 0 else talk


LOOK = {"type": "function", "function": {"name": "look"}}
DEFINED = st.sampled_from(
    [{}, {}, {}, {"tools": [LOOK]}, {"tools": None}, {"tools": [{"name": "find"}]}, {"tools": [1]}]
)


@st.composite
def rows(draw, form):
    prompt = draw(messages())[:-1]
    row = {
        "messages": lambda: {"messages": draw(messages()), **draw(DEFINED)},
        "sharegpt": lambda: {
            "conversations": [
                {
                    "from": draw(
                        st.sampled_from(["human", "user"] if at % 2 == 0 else ["gpt", "bot", "model"])
                    ),
                    "value": draw(TEXT),
                }
                for at in range(draw(st.sampled_from([0, 2, 2, 3, 4])))
            ]
        },
        "alpaca": lambda: {
            "instruction": draw(TEXT),
            "input": draw(st.none() | TEXT),
            "output": draw(TEXT),
        },
        "prompt_completion": lambda: draw(
            st.sampled_from(
                [
                    {"prompt": draw(TEXT), "completion": draw(TEXT)},
                    {"prompt": prompt, "completion": draw(TEXT)},
                    {"prompt": prompt, "completion": draw(messages())[-1:]},
                ]
            )
        ),
        "preference": lambda: draw(
            st.sampled_from(
                [
                    {"prompt": draw(TEXT), "chosen": draw(TEXT), "rejected": draw(TEXT)},
                    {
                        "chosen": [*prompt, *draw(messages())[-1:]],
                        "rejected": [*prompt, *draw(messages())[-1:]],
                    },
                    {"prompt": prompt, "chosen": draw(messages())[-1:], "rejected": draw(messages())[-1:]},
                    {
                        "prompt": prompt[0]["content"],
                        "chosen": [*prompt, *draw(messages())[-1:]],
                        "rejected": draw(messages()),
                    },
                ]
            )
        ),
        "text": lambda: {"text": draw(TEXT)},
    }[form]()
    if draw(st.integers(0, 5)) == 0:
        row["system"] = draw(TEXT | st.none())
    if draw(st.booleans()):
        row = {**draw(st.dictionaries(NAMES, VALUE, max_size=3)), **row}
    if draw(st.integers(0, 3)) == 0:
        row["meta"] = draw(st.none() | st.dictionaries(NAMES, VALUE, max_size=2) | VALUE)
    return row


@st.composite
def written(draw, row):
    """JSON of a row, in one of the many ways, or something near it."""
    style = draw(st.integers(0, 3))
    text = json.dumps(
        row,
        ensure_ascii=draw(st.booleans()),
        separators=[(",", ":"), (", ", ": "), (" ,", " :"), (",\t", ":\t")][style],
        indent=draw(st.sampled_from([None, None, None, 1])),
    )
    damage = draw(st.integers(0, 14))
    if damage == 0:
        text = text.replace('\\"', "\\u0022")
    elif damage == 1:
        # The same name twice, its loss made up for by quotation marks written as escapes.
        at = draw(st.integers(0, max(text.count('{"') - 1, 0)))
        parts = text.split('{"')
        key = draw(
            st.sampled_from(['"role":"user",', '"content":"",', '"x":1,', '"text":"a",', '"messages":[],'])
        )
        text = '{"'.join(parts[: at + 1]) + "{" + key + '"' + '{"'.join(parts[at + 1 :])
        text = text.replace("plain", draw(st.sampled_from(["plain", "\\u0022" * 4, "\\u0022" * 2])))
    elif damage == 2:
        text = text.replace("o", "\\u006f", draw(st.integers(1, 9)))
    elif damage == 3:
        text += draw(st.sampled_from([" ", "\r", " {}", text, "}", ",", "\r\n"]))
    elif damage == 4:
        text = draw(st.sampled_from(["", " ", "\r", "[", "null", '"a"', "[1]", "{}", '{"messages": [']))
    body = text.encode()
    if draw(st.integers(0, 9)) == 0 and body:
        at = draw(st.integers(0, len(body) - 1))
        new = draw(
            st.sampled_from([b"", b"\xff", b'"', b"{", b"\\", b" ", b"\n", b"\xe2\x80\xae", b"0", b"NaN"])
        )
        body = body[:at] + new + body[at + draw(st.integers(0, 2)) :]
    return body


@st.composite
def blocks(draw):
    form = draw(
        st.sampled_from(["messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text"])
    )
    found = []
    for _ in range(draw(st.integers(1, 3))):
        block = [draw(written(draw(rows(form)))) for _ in range(draw(st.integers(1, 6)))]
        if draw(st.booleans()):
            block *= draw(st.integers(1, 4))
        if draw(st.integers(0, 2)):
            # As from lines, where a row has no line break.
            block = [line for row in block for line in row.split(b"\n")]
        found.append(block)
    return draw(st.sampled_from([form, None])), found


def contents(block):
    """All that is in a block of rows."""
    return (
        block.lines,
        block.encoded,
        block.prompts(),
        block.asked(),
        block.answers(),
        block.metas(),
        [block.row(at) for at in range(len(block))],
        block.lines_of([str(at) for at in range(len(block))]),
    )


@settings(max_examples=120, deadline=None)
@given(
    blocks(), st.sampled_from([{}, {"PII_EMAIL": "error", "BIDI_CONTROL": "off"}, {"RESERVED_TOKEN": "off"}])
)
def test_the_quick_path_agrees_with_the_thorough_one_in_everything(case, checks):
    """Whatever the rows: the same are valid, their columns are the same bytes, and the same faults come in one order."""
    form, given_blocks = case
    agree(form, given_blocks, checks)


def agree(form, given_blocks, checks):
    first = "line 1 of a.jsonl" if form else "a.jsonl"
    quick_judge, thorough_judge = Listening(**checks), Listening(**checks)
    quick = RowReader(quick_judge, Form(form, first), WELL_KNOWN_TOKENS)
    thorough = ThoroughReader(thorough_judge, Form(form, first), WELL_KNOWN_TOKENS)
    line = 1
    for block in given_blocks:
        lines = range(line, line + len(block))
        line += len(block)
        found = quick.read(Rows(lines, block, b"\n".join(block)))
        wanted = [(at, row) for at, raw in zip(lines, block, strict=True) if (row := thorough.read(at, raw))]
        assert contents(found) == contents(RowBlock.of(wanted))
        assert [row.encode("1") for _, row in wanted] == found.lines_of(["1"] * len(found))
    assert quick_judge.heard == thorough_judge.heard
    assert (quick.rows, quick.faulty, quick.private) == (thorough.rows, thorough.faulty, thorough.private)
    assert (quick.form.name, quick.form.first) == (thorough.form.name, thorough.form.first)


@pytest.mark.parametrize("levels", range(58, 68))
@pytest.mark.parametrize("around", ['{"text":"x","a":%s}', '{"text":"x","meta":{"a":%s}}'])
def test_depth_is_judged_alike(around, levels):
    """At the limit of levels both paths say the same, wherever in a row the levels are."""
    value = "[" * levels + '"a"' + "]" * levels
    agree("text", [[b'{"text":"y","a":1,"meta":{}}', (around % value).encode()] * 2], {})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "system", "content": "no"}]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [USER]},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": []},
        {"prompt": "a", "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no", "weight": 0}]},
        {"prompt": "a", "chosen": [ANSWER], "rejected": [ANSWER]},
        {"prompt": [], "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "no"}]},
    ],
)
def test_pairs_that_are_nearly_right_are_judged_alike(row):
    """An answer that is none, or the same, or not learnt, is told by both paths."""
    good = {"prompt": "a", "chosen": [ANSWER], "rejected": [{**ANSWER, "content": "no"}]}
    agree("preference", [[json.dumps(one).encode() for one in (good, row, good, row)]], {})


ORDINARY = {
    **ROWS,
    "null for what lacks": {
        "messages": [{**dict.fromkeys(LACKING), **message} for message in ROWS["tools"]["messages"]],
        "tools": [LOOK],
    },
    "prompt as a talk": {"prompt": [{"role": "user", "content": "a"}], "completion": "b"},
    "pairs with a prompt apart": {
        "prompt": "a",
        "chosen": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "rejected": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}],
        "score_chosen": 8.5,
    },
    "odd names": {"text": "x", "my field": 1, "é": None},
}


@pytest.mark.parametrize("style", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_rows_are_taken_quickly(name, style):
    """The law would hold as well if the quick path took nothing: of each format it takes the usual rows."""
    row = ORDINARY[name]
    form = {"text": "text", "prompt": "prompt_completion"}.get(next(iter(row)), name)
    form = "preference" if "chosen" in row else "messages" if "messages" in row else form
    raw = [json.dumps(row, separators=style).encode()] * 3
    reader = QuickReader(Scanner((), WELL_KNOWN_TOKENS))
    taken = reader.read(learn(form, [row]), raw, b"\n".join(raw))
    assert (list(taken.places), taken.refused, taken.signs) == ([0, 1, 2], set(), {})


def test_rows_that_the_quick_path_never_takes_are_read_all_the_same():
    """Hundreds of blocks of nothing but odd rows among ordinary ones: each row is judged once, and in its place."""
    random.seed(3)
    good = json.dumps(ROWS["messages"]).encode()
    odd = json.dumps({"messages": [{**ROWS["messages"]["messages"][1], "weight": None}, ANSWER]}).encode()
    judge = Listening()
    reader = RowReader(judge, Form("messages", "line 1"), WELL_KNOWN_TOKENS)
    line, faults = 1, []
    for number in range(120):
        share = (number // 20 % 3) / 2
        block = [odd if random.random() < share else good for _ in range(12)]
        block[random.randrange(12)] = b"{"
        faults.append(line + block.index(b"{"))
        found = reader.read(Rows(range(line, line + 12), block, b"\n".join(block)))
        assert [line + at for at, row in enumerate(block) if row != b"{"] == found.lines
        line += 12
    assert [at for at, *_ in judge.heard] == faults
    assert (reader.rows, reader.faulty) == (1440, 120)


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_every_reserved_token_has_its_sign(token, before, behind):
    """Whatever a tokenizer reserves, a text that has it is looked at."""
    rows = [encode(before + token + behind), encode("nothing")]
    found = Scanner((), [token]).suspects(b"\n".join((*rows, b"")), rows)
    assert found.get(0, 0) & RESERVED
