"""Rows with one fault each, and the paths at which it must be told."""

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from planted.containers import BAD_BYTE, SEPARATOR
from planted.rows import SENDER, Row, Seed, call, calling, definition, good, message, talk

JSON_TEXT = frozenset({"jsonl", "array"})
"""Containers in which a row is JSON text, and can be broken as such."""
TEXTUAL = JSON_TEXT | {"csv"}
EVERYWHERE = TEXTUAL | {"parquet"}

TALKS = frozenset({"messages", "tools", "weights"})


class Made(NamedTuple):
    """A row with a fault: an object, or bytes where no writer would write them."""

    body: Row | bytes
    told: tuple[tuple[str, str], ...]
    """(code, path) of everything that must be said of the row."""


class Plant(NamedTuple):
    """One way of doing one thing wrong."""

    name: str
    code: str
    forms: frozenset[str] | None
    """None for all."""
    containers: frozenset[str]
    make: Callable[[str, Seed], Made]


PLANTS: list[Plant] = []


def _plant(
    name: str,
    code: str,
    make: Callable[[str, Seed], Row | bytes | tuple[Row, str] | tuple[Row, tuple[str, ...]]],
    forms: frozenset[str] | set[str] | None = None,
    containers: frozenset[str] = EVERYWHERE,
    *,
    path: str = "",
) -> None:
    """Note a plant; its path is the one given, or comes with the row. There are several for a repeated text."""

    def whole(form: str, seed: Seed) -> Made:
        made = make(form, seed)
        body, at = made if isinstance(made, tuple) else (made, path)
        return Made(body, tuple((code, one) for one in (at if isinstance(at, tuple) else (at,))))

    PLANTS.append(
        Plant(f"{code}: {name}", code, frozenset(forms) if forms is not None else None, containers, whole)
    )


# --- conversations, in two spellings


def _conversation(
    name: str,
    code: str,
    spoil: Callable[[list[Any], Seed], tuple[list[Any], str]],
    *,
    spellings: tuple[str, ...] = ("messages", "sharegpt"),
    containers: frozenset[str] = EVERYWHERE,
) -> None:
    """Plant a fault in a good conversation; `spoil` answers it and the path within, such as `[1].role`."""

    def in_messages(_form: str, seed: Seed) -> tuple[Row, str]:
        said, path = spoil(talk(seed), seed)
        return {"messages": said}, f"messages{path}"

    def in_sharegpt(_form: str, seed: Seed) -> tuple[Row, str]:
        said, path = spoil(talk(seed), seed)
        turns = [_renamed(turn) for turn in said]
        more = {}
        if seed.style % 4 == 2:
            # A system message beside the conversation does not move the places of its turns.
            more = {"system": seed.says("x")}
        at = path.replace(".role", ".from").replace(".content", ".value")
        return {"conversations": turns, **more}, f"conversations{at}"

    if "messages" in spellings:
        _plant(name, code, in_messages, TALKS, containers)
    if "sharegpt" in spellings:
        _plant(f"{name} (sharegpt)", code, in_sharegpt, {"sharegpt"}, containers)


def _renamed(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    names = {"role": "from", "content": "value"}
    found = {names[name]: value for name, value in turn.items()}
    if isinstance(turn.get("role"), str):
        found["from"] = SENDER.get(turn["role"], turn["role"])
    return found


def _last(said: list[Any], role: str) -> int:
    return max(index for index, one in enumerate(said) if one["role"] == role)


def _with(said: list[Any], index: int, **change: Any) -> list[Any]:
    return [*said[:index], {**said[index], **change}, *said[index + 1 :]]


def _without(said: list[Any], index: int, field: str) -> list[Any]:
    rest = {name: value for name, value in said[index].items() if name != field}
    return [*said[:index], rest, *said[index + 1 :]]


def _two_questions(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, "assistant")
    return [*said[:at], message("user", seed.says("w")), *said[at:]], f"[{at}].role"


def _two_answers(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    return [*said, message("assistant", seed.says("w"))], f"[{len(said)}].role"


def _answer_first(_said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    return [message("assistant", seed.says("w")), *talk(seed, 1)[-2:]], "[0].role"


def _late_system(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, "assistant")
    return [*said[:at], message("system", seed.says("w")), *said[at:]], f"[{at}].role"


def _second_system(_said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    two = [message("system", seed.says("w")), message("system", seed.says("x"))]
    return [*two, *talk(Seed(seed.number, 0), 1)], "[1].role"


def _question_last(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    return [*said, message("user", seed.says("w"))], f"[{len(said)}].role"


def _no_answer(said: list[Any], _seed: Seed) -> tuple[list[Any], str]:
    return said[:-1], f"[{len(said) - 2}].role"


def _system_alone(_said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    return [message("system", seed.says("w"))], "[0].role"


def _nothing_said(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = seed.style % len(said)
    return _with(said, at, content=seed.pick("", " ", "\n\t ", "\u3000\u00a0")), f"[{at}].content"


def _content_missing(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = seed.style % len(said)
    return _without(said, at, "content"), f"[{at}].content"


def _content_type(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = seed.style % len(said)
    return _with(said, at, content=seed.pick(7, True, {"text": "x"}, None, 1.5)), f"[{at}].content"


def _turn_type(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    return [*said[:-1], seed.pick("text", 7, None, []), said[-1]], f"[{len(said) - 1}]"


def _role_unknown(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, seed.pick("user", "assistant"))
    return _with(said, at, role=seed.pick("humane", "", "User ", "function", "🤖")), f"[{at}].role"


def _role_missing(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, seed.pick("user", "assistant"))
    return _without(said, at, "role"), f"[{at}].role"


def _role_type(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, seed.pick("user", "assistant"))
    return _with(said, at, role=seed.pick(7, None, ["user"], {})), f"[{at}].role"


_conversation("two questions in a row", "ROLE_ORDER", _two_questions)
_conversation("two answers in a row", "ROLE_ORDER", _two_answers)
_conversation("an answer first", "ROLE_ORDER", _answer_first)
_conversation("a system message in the middle", "SYSTEM_PLACEMENT", _late_system)
_conversation("two system messages", "SYSTEM_PLACEMENT", _second_system, spellings=("messages",))
_conversation("a question last", "LAST_NOT_ASSISTANT", _question_last)
_conversation("no answer", "LAST_NOT_ASSISTANT", _no_answer)
_conversation("a system message alone", "LAST_NOT_ASSISTANT", _system_alone, spellings=("messages",))
_conversation("nothing said", "CONTENT_EMPTY", _nothing_said)
_conversation("no content", "FIELD_MISSING", _content_missing, containers=TEXTUAL)
_conversation("content of another type", "FIELD_TYPE", _content_type, containers=TEXTUAL)
_conversation("a turn that is no object", "FIELD_TYPE", _turn_type, containers=TEXTUAL)
_conversation("an unknown role", "ROLE_UNKNOWN", _role_unknown)
_conversation("no role", "FIELD_MISSING", _role_missing, containers=TEXTUAL)
_conversation("a role of another type", "FIELD_TYPE", _role_type, containers=TEXTUAL)
_conversation("no turn at all", "MESSAGES_EMPTY", lambda _said, _seed: ([], ""))

_plant(
    "no list of messages",
    "FIELD_TYPE",
    lambda _form, seed: {"messages": seed.pick("hello there", 7, None, {"role": "user", "content": "x"})},
    TALKS,
    JSON_TEXT,
    path="messages",
)
_plant(
    "no list of turns",
    "FIELD_TYPE",
    lambda _form, seed: {"conversations": seed.pick("hello there", 7, None, {"from": "gpt"})},
    {"sharegpt"},
    JSON_TEXT,
    path="conversations",
)


# --- conversations with more than text


def _talk_plant(
    name: str,
    code: str,
    spoil: Callable[[list[Any], Seed], tuple[list[Any], str]],
    containers: frozenset[str] = TEXTUAL,
) -> None:
    _conversation(name, code, spoil, spellings=("messages",), containers=containers)


def _picture(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, "user")
    other = seed.pick({"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "text", None)
    return _with(said, at, content=[{"type": "text", "text": "look"}, other]), f"[{at}].content[1]"


def _odd_weight(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, "assistant")
    return _with(said, at, weight=seed.pick(0.5, 2, -1, "1", True, [1])), f"[{at}].weight"


def _weight_of_a_question(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = _last(said, "user")
    return _with(said, at, weight=seed.pick(0, 1)), f"[{at}].weight"


def _no_weight(said: list[Any], _seed: Seed) -> tuple[list[Any], str]:
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in said], ""


def _odd_field(said: list[Any], seed: Seed) -> tuple[list[Any], str]:
    at = seed.style % len(said)
    return _with(said, at, mood="merry"), f"[{at}].mood"


_talk_plant("a picture", "CONTENT_PART", _picture)
_talk_plant("an odd weight", "WEIGHT_INVALID", _odd_weight)
_talk_plant("a weight on a question", "WEIGHT_INVALID", _weight_of_a_question)
_talk_plant("weight 0 everywhere", "NOTHING_TO_LEARN", _no_weight)
_talk_plant("a field that nothing reads", "FIELD_IGNORED", _odd_field)


def _tool_plant(name: str, code: str, spoil: Callable[[list[Any], int, Seed], tuple[list[Any], str]]) -> None:
    """Plant a fault in a conversation with tools; `spoil` is given the place of its first question."""

    def make(_form: str, seed: Seed) -> tuple[Row, str]:
        before = talk(seed, seed.style % 3)
        said, path = spoil([*before, *calling(seed)], len(before), seed)
        return {"messages": said, "tools": [definition("look_up"), definition("add_up")]}, f"messages{path}"

    _plant(name, code, make, TALKS, TEXTUAL)


def _recalled(said: list[Any], at: int, calls: Any) -> list[Any]:
    return _with(said, at + 1, tool_calls=calls)


def _one_unanswered(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    gone = at + seed.pick(2, 3)
    return [*said[:gone], *said[gone + 1 :]], f"[{at + 3}].role"


def _all_unanswered(said: list[Any], at: int, _seed: Seed) -> tuple[list[Any], str]:
    return [*said[: at + 2], said[-1]], f"[{at + 2}].role"


def _question_after_call(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    more = [message("user", seed.says("w")), message("assistant", seed.says("x"))]
    return [*said[: at + 2], *more], f"[{at + 2}].role"


def _answer_to_nothing(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    more = message("tool", seed.says("w"), tool_call_id="call_9")
    return [*said[: at + 4], more, said[-1]], f"[{at + 4}].tool_call_id"


def _answered_twice(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    more = message("tool", seed.says("w"), tool_call_id="call_2")
    return [*said[: at + 4], more, said[-1]], f"[{at + 4}].tool_call_id"


def _unasked_tool(_said: list[Any], _at: int, seed: Seed) -> tuple[list[Any], str]:
    said = talk(seed, 1)
    said.insert(-1, message("tool", seed.says("w"), tool_call_id="call_1"))
    return said, f"[{len(said) - 2}].role"


def _no_call_id(said: list[Any], at: int, _seed: Seed) -> tuple[list[Any], str]:
    return _without(said, at + 3, "tool_call_id"), f"[{at + 3}].tool_call_id"


def _call_id_type(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    return _with(said, at + 3, tool_call_id=seed.pick(1, ["call_1"])), f"[{at + 3}].tool_call_id"


def _odd_arguments(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    odd = seed.pick("{place: north}", "[1]", '"x"', "", "{", 7, None, [], "NaN", "{} {}", '{"a": NaN}')
    calls = [call("call_1", "look_up"), call("call_2", "add_up", odd)]
    return _recalled(said, at, calls), f"[{at + 1}].tool_calls[1].function.arguments"


def _odd_call(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    odd = seed.pick(
        {"id": "call_3"},
        {"id": "call_3", "function": {}},
        {"function": {"name": "look_up"}},
        {"id": 3, "function": {"name": "look_up"}},
        {"id": "call_3", "function": {"name": 4}},
        "look_up",
        None,
    )
    calls = [call("call_1", "look_up"), odd, call("call_2", "add_up")]
    return _recalled(said, at, calls), f"[{at + 1}].tool_calls[1]"


def _calls_type(_said: list[Any], _at: int, seed: Seed) -> tuple[list[Any], str]:
    said = talk(seed, 1)
    said[-1] = {**said[-1], "tool_calls": seed.pick("look_up", {"id": "call_1"}, 7)}
    return said, f"[{len(said) - 1}].tool_calls"


def _call_of_a_question(_said: list[Any], _at: int, seed: Seed) -> tuple[list[Any], str]:
    said = talk(seed, 1)
    said[-2] = {**said[-2], "tool_calls": [call("call_1")]}
    return said, f"[{len(said) - 2}].tool_calls"


def _same_id(said: list[Any], at: int, seed: Seed) -> tuple[list[Any], str]:
    more = [call("call_1"), call("call_2"), call("call_1", seed.pick("look_up", "add_up"))]
    return _recalled(said, at, more), f"[{at + 1}].tool_calls[2].id"


def _undefined(said: list[Any], at: int, _seed: Seed) -> tuple[list[Any], str]:
    calls = [call("call_1", "look_down"), call("call_2", "add_up")]
    return _recalled(said, at, calls), f"[{at + 1}].tool_calls[0].function.name"


_tool_plant("one call without answer", "TOOL_UNANSWERED", _one_unanswered)
_tool_plant("calls without answer", "TOOL_UNANSWERED", _all_unanswered)
_tool_plant("a question after a call", "TOOL_UNANSWERED", _question_after_call)
_tool_plant("an answer to no call", "TOOL_ID_UNKNOWN", _answer_to_nothing)
_tool_plant("a call answered twice", "TOOL_ID_UNKNOWN", _answered_twice)
_tool_plant("an answer without any call", "TOOL_ID_UNKNOWN", _unasked_tool)
_tool_plant("an answer without id", "FIELD_MISSING", _no_call_id)
_tool_plant("an id that is no text", "FIELD_TYPE", _call_id_type)
_tool_plant("arguments that are no object", "TOOL_ARGUMENTS", _odd_arguments)
_tool_plant("a call without id or name", "TOOL_CALL_INVALID", _odd_call)
_tool_plant("calls that are no list", "TOOL_CALL_INVALID", _calls_type)
_tool_plant("a question that calls", "TOOL_CALL_INVALID", _call_of_a_question)
_tool_plant("two calls of one id", "TOOL_ID_REPEATED", _same_id)
_tool_plant("a tool that is not defined", "TOOL_UNDEFINED", _undefined)


def _odd_definition(_form: str, seed: Seed) -> tuple[Row, str]:
    odd = seed.pick({"type": "function"}, "look_up", {"function": {"name": 3}}, None)
    return {"messages": talk(seed), "tools": [definition(), odd]}, "tools[1]"


_plant("a definition without name", "FIELD_TYPE", _odd_definition, TALKS, TEXTUAL)
_plant(
    "definitions that are no list",
    "FIELD_TYPE",
    lambda _form, seed: {"messages": talk(seed), "tools": seed.pick("look_up", 7, definition())},
    TALKS,
    JSON_TEXT,
    path="tools",
)


def _odd_meta(form: str, seed: Seed) -> Row:
    return {**good(form, seed), "meta": seed.pick("web", 7, ["web"], True)}


_plant("meta that is no object", "FIELD_TYPE", _odd_meta, None, JSON_TEXT, path="meta")


# --- fields of text

_TEXTS = {
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "preference": ("prompt", "chosen", "rejected"),
    "text": ("text",),
}


def _empty_field(form: str, seed: Seed) -> tuple[Row, str]:
    name = seed.pick(*_TEXTS[form])
    return {**good(form, seed), name: seed.pick("", "  ", "\n", "\u3000")}, name


def _field_type(form: str, seed: Seed) -> tuple[Row, str]:
    name = seed.pick(*_TEXTS[form])
    # A list may be a conversation; an object is none.
    return {**good(form, seed), name: seed.pick(7, None, {"a": "b"}, True)}, name


def _optional_type(form: str, seed: Seed) -> tuple[Row, str]:
    name = "input" if form == "alpaca" and seed.style % 2 else "system"
    return {**good(form, seed), name: seed.pick(7, ["x"], {"a": "b"}, True)}, name


_plant("an empty field", "CONTENT_EMPTY", _empty_field, set(_TEXTS))
_plant("a field of another type", "FIELD_TYPE", _field_type, set(_TEXTS) - {"preference"}, JSON_TEXT)
_plant(
    "an optional field of another type",
    "FIELD_TYPE",
    _optional_type,
    {"prompt_completion", "alpaca", "preference"},
    JSON_TEXT,
)


# --- preference pairs


def _same_answers(form: str, seed: Seed) -> Row:
    row = good(form, seed)
    return {**row, "rejected": row["chosen"]}


def _parted(_form: str, seed: Seed) -> Row:
    said = talk(seed, 2)
    other = [*said[:-2], message("user", seed.says("w")), message("assistant", seed.says("x"))]
    return {"chosen": said, "rejected": other}


def _longer(_form: str, seed: Seed) -> Row:
    said = talk(seed, 2)
    return {"chosen": said, "rejected": said[:-2]}


def _pair_order(_form: str, seed: Seed) -> tuple[Row, str]:
    said = talk(seed, 2)
    bad = [*said[:-1], message("user", seed.says("w")), message("assistant", seed.says("x"))]
    return {"chosen": said, "rejected": bad}, f"rejected[{len(said) - 1}].role"


def _pair_empty(_form: str, seed: Seed) -> tuple[Row, str]:
    before = talk(seed)[:-1]
    pair = {"chosen": [message("assistant", seed.says("w"))], "rejected": [message("assistant", " ")]}
    return {"prompt": before, **pair}, "rejected[0].content"


def _pair_last(_form: str, seed: Seed) -> tuple[Row, str]:
    said = talk(seed, 2)
    return {"chosen": said, "rejected": said[:-1]}, f"rejected[{len(said) - 2}].role"


def _pair_field(_form: str, seed: Seed) -> tuple[Row, str]:
    before = talk(seed)[:-1]
    good_one = message("assistant", seed.says("w"), mood="merry")
    return {
        "prompt": before,
        "chosen": [good_one],
        "rejected": [message("assistant", seed.says("x"))],
    }, "chosen[0].mood"


def _pair_tools(_form: str, seed: Seed) -> tuple[Row, str]:
    before = talk(seed)[:-1]
    pair = {
        "chosen": [message("assistant", seed.says("w"))],
        "rejected": [message("assistant", seed.says("x"))],
    }
    return {"prompt": before, **pair, "tools": [definition(), {"function": {}}]}, "tools[1]"


def _pair_prompt(_form: str, seed: Seed) -> tuple[Row, str]:
    said = talk(seed)
    before = [*said[:-1], message("user", seed.says("w"))]
    answers = [message("assistant", seed.says("x"))], [message("assistant", seed.says("y"))]
    return {"prompt": before, "chosen": answers[0], "rejected": answers[1]}, f"prompt[{len(said) - 1}].role"


_plant("the same answer twice", "PREFERENCE_SAME", _same_answers, {"preference"}, path="rejected")
_plant(
    "the same conversation twice",
    "PREFERENCE_SAME",
    _same_answers,
    {"preference_messages"},
    TEXTUAL,
    path="rejected",
)
_plant(
    "conversations that part", "PREFERENCE_PROMPT", _parted, {"preference_messages"}, TEXTUAL, path="rejected"
)
_plant(
    "one conversation ends earlier",
    "PREFERENCE_PROMPT",
    _longer,
    {"preference_messages"},
    TEXTUAL,
    path="rejected",
)
_plant("two questions in the worse one", "ROLE_ORDER", _pair_order, {"preference_messages"}, TEXTUAL)
_plant("an empty worse answer", "CONTENT_EMPTY", _pair_empty, {"preference_messages"}, TEXTUAL)
_plant("no worse answer", "LAST_NOT_ASSISTANT", _pair_last, {"preference_messages"}, TEXTUAL)
_plant("two questions in the prompt", "ROLE_ORDER", _pair_prompt, {"preference_messages"}, TEXTUAL)
_plant(
    "a field that nothing reads, in a pair", "FIELD_IGNORED", _pair_field, {"preference_messages"}, TEXTUAL
)
_plant("a definition without name, in a pair", "FIELD_TYPE", _pair_tools, {"preference_messages"}, TEXTUAL)


# --- what may be in any text


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}[{index}]")


_CONTENT = ("content", "value", "text", "prompt", "completion", "instruction", "output", "chosen", "rejected")


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        return new if value == old else value
    if isinstance(value, dict):
        return {name: _replaced(inner, old, new) for name, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, old, new) for inner in value]
    return value


def put_into(row: Row, seed: Seed, insert: str) -> tuple[Row, tuple[str, ...]]:
    """The row with something in one of its texts, and the paths of that; a pair may repeat its prompt."""
    texts = [text for path, text in _leaves(row, "") if path.endswith(_CONTENT) and text]
    text = texts[seed.style % len(texts)]
    written = seed.pick(f"{text} {insert}", f"{insert} {text}", f"{text}\n{insert}\n{text}")
    return _replaced(row, text, written), tuple(path for path, found in _leaves(row, "") if found == text)


def _inserting(*inserts: str) -> Callable[[str, Seed], tuple[Row, tuple[str, ...]]]:
    return lambda form, seed: put_into(good(form, seed), seed, inserts[(seed.style // 3) % len(inserts)])


TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<start_of_turn>", "<|assistant|>")
_plant("a control token", "RESERVED_TOKEN", _inserting(*TOKENS))
_plant("a NUL character", "NUL_CHARACTER", _inserting("a\0b", "\0"))
_plant("an override", "BIDI_CONTROL", _inserting("a\u202eb", "\u202a", "\u202d", "\u2066", "\u2069\u2069"))

_KEY = "b3Bl" + "bnNzaC1r" + "ZXktdjEA"
SECRETS: dict[str, tuple[str, ...]] = {
    "PII_EMAIL": ("jane.roe+news@acme-mail.co.uk", "j_r@mail.firm.museum", "<roe@acme-mail.com>"),
    "PII_PHONE": ("+1 (415) 555-2671", "415-555-2671", "+44 20 7946 0958", "(415) 555-2671"),
    "PII_CARD": ("4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"),
    "PII_IBAN": ("DE89370400440532013000", "GB82 WEST 1234 5698 7654 32"),
    "SECRET_AWS": ("AKIA" + "Q2R3" * 4, "ASIA" + "Z7Y6" * 4),
    "SECRET_GCP": ("AIza" + "Sy-9_" * 7,),
    "SECRET_AZURE": ("AccountKey=" + "k9+/" * 21 + "ab==", "SharedAccessKey=" + "Zm9v" * 10 + "YmFy="),
    "SECRET_TOKEN": (
        "ghp_" + "a1B2" * 9,
        "xoxb-" + "12345-" + "abcdeFGHIJ",
        "sk-" + "proj-" + "q1W2" * 8,
        "hf_" + "Abcd" * 8 + "Ef",
        "sk_" + "live_" + "51Hx" * 5,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkw.SflKxwRJSMeKKF2QT4fw",
    ),
    "SECRET_PRIVATE_KEY": ("-----BEGIN " + f"PRIVATE KEY-----\n{_KEY}\n-----END " + "PRIVATE KEY-----",),
}
"""What must be found, and must not be in any report."""

for _code, _secrets in SECRETS.items():
    _plant("in a text", _code, _inserting(*_secrets))


def _secret_in_meta(form: str, seed: Seed) -> Row:
    return {**good(form, seed), "meta": {"note": f"ask {SECRETS['PII_EMAIL'][0]}"}}


_plant("beside the text", "PII_EMAIL", _secret_in_meta, None, JSON_TEXT, path="meta.note")


# --- another row than the others


def _other_fields(_form: str, seed: Seed) -> Row:
    return seed.pick(
        {"question": seed.says("w"), "answer": seed.says("x")},
        {},
        {"prompt": seed.says("w")},
        {"output": "x"},
    )


def _other_format(form: str, seed: Seed) -> Row:
    own = good(form, seed)
    other = {"text": seed.says("w")}
    return other if "text" not in own else {"prompt": seed.says("w"), "completion": seed.says("x")}


_plant("fields of no format", "FORMAT_UNKNOWN", _other_fields, None, JSON_TEXT)
_plant("another format", "FORMAT_MIXED", _other_format, None, JSON_TEXT)


# --- rows that are no JSON object


def _dumps(row: Row) -> bytes:
    return json.dumps(row).encode()


def _bytes(code: str, name: str, *bodies: bytes, containers: frozenset[str] = JSON_TEXT) -> None:
    _plant(name, code, lambda _form, seed: seed.pick(*bodies), None, containers)


_bytes("ROW_TYPE", "a value that is no object", b"7", b'"text"', b"null", b"true", b"-1.5e3")
_bytes(
    "JSON_INVALID",
    "what is no JSON",
    b'{"text": "a",}',
    b"{'text': 'a'}",
    b'{"text" "a"}',
    b"{text: 1}",
    b'{"text": tru}',
    b'{"text": None}',
    b'{"text": 01}',
    b'{"text": "\\x41"}',
    b'{"text": "a\tb"}',
    b'{"text": .5}',
    b'{"text": "\\u12g4"}',
    b"text",
    b"{1: 2}",
)
_bytes(
    "JSON_INVALID",
    "what breaks off",
    b'{"messages": [',
    b'{"text": "a',
    b"{",
    b'{"text": "a"} {"text": "b"}',
    b'{"text": "a"}}',
    b'{"text": "a"},',
    b'"',
    containers=frozenset({"jsonl"}),
)
_bytes(
    "JSON_NAN",
    "NaN or Infinity",
    b'{"text": "a", "score": NaN}',
    b'{"text": [1, -Infinity]}',
    b'{"score": Infinity}',
)
_bytes(
    "JSON_SURROGATE",
    "half a pair",
    b'{"text": "\\ud83d"}',
    b'{"text": "\\ude00 a"}',
    b'{"text": "\\ud83d\\ud83d"}',
    b'{"\\udc00": 1}',
)
_bytes("JSON_NUMBER", "a number too large", b'{"text": 1e999}', b'{"text": "a", "n": [-1e400]}')
_bytes("NUL_CHARACTER", "a NUL byte", b'{"text": "a\0b"}', b'{"text"\0: 1}', b"\0", b"\0\0\0\0")
_bytes(
    "UTF8_INVALID",
    "bytes of another encoding",
    b'{"text": "caf\xe9"}',
    b'{"text": "\xc0\xaf"}',
    b'{"text": "\xed\xa0\x80"}',
    b'{"text": "\xf5\x80\x80\x80"}',
    b'{"text": "\xe2\x82"}',
    b'{"text": "a"}\xff',
)


def _deep(_form: str, seed: Seed) -> bytes:
    levels = 64 + seed.style % 2000
    return (
        b'{"text": "a", "meta": '
        + seed.pick(b"[" * levels + b"]" * levels, b'{"a":' * levels + b"1" + b"}" * levels)
        + b"}"
    )


_plant("too deep", "JSON_DEPTH", _deep, None, JSON_TEXT)


def _twice(form: str, seed: Seed) -> bytes:
    row = good(form, seed)
    first = json.dumps(next(iter(row))).encode()
    body = _dumps(row)
    return seed.pick(
        b"{" + first + b": 1, " + body[1:],
        b"{" + first + b' :{"a": [1]},' + body[1:],
        b'{"\\u%04x' % ord(first.decode()[1]) + first[2:] + b": 1, " + body[1:],
        b'{"meta": {"a": {"b": {"c": 1, "c": 1}}}, ' + body[1:],
        b'{"a": [{"x": 1, "y": "\\":", "x": 2}], ' + body[1:],
    )


_plant("a key twice", "JSON_DUPLICATE_KEY", _twice, None, JSON_TEXT)


# --- lines that are no CSV


def _wrong_byte(form: str, seed: Seed) -> Row:
    row, _ = put_into(good(form, seed), seed, f"caf{BAD_BYTE}")
    return row


def _too_many(_form: str, seed: Seed) -> bytes:
    return SEPARATOR.join([seed.says("w").split()[0].encode()] * 12)


def _stray_quote(_form: str, seed: Seed) -> bytes:
    return seed.pick(b'"a"b', b'"a" ', b'"a""b"c') + SEPARATOR + b"d"


_CSV = frozenset({"csv"})
_plant("a byte of another encoding", "UTF8_INVALID", _wrong_byte, None, _CSV)
_plant("fields that the header lacks", "CSV_FIELDS", _too_many, None, _CSV)
_plant("text after the closing quote", "CSV_BROKEN", _stray_quote, None, _CSV)
