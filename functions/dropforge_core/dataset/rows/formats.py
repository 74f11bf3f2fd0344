"""The formats of rows, and how each becomes the canonical row.

Canonical: `messages` (role, content, and where they are there name, weight, tool_calls,
tool_call_id), `meta` (everything else that the row has), and for preference pairs `chosen` and
`rejected`: the two final messages, of which `messages` ends in the chosen one. A row of plain text
is one assistant message with nothing before it.
"""

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.renaming import renamed
from dropforge_core.dataset.rows.conversation import UNREADABLE, Conversation
from dropforge_core.dataset.rows.decoding import describe
from dropforge_core.dataset.rows.messages import encode, encode_sorted

_SHAREGPT_ROLES: Final = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}

Message = dict[str, Any]


class Canonical(NamedTuple):
    """A row that every later part understands."""

    messages: list[Message]
    meta: dict[str, Any]
    chosen: Message | None = None
    rejected: Message | None = None

    def encode(self, ident: str) -> bytes:
        """One line of a shard, without the line break. The order in which a row has its meta says nothing."""
        line = b'{"id":%b,"messages":%b,"meta":%b' % (
            encode(ident),
            encode(self.messages),
            encode_sorted(self.meta),
        )
        if self.chosen is not None:
            line += b',"chosen":%b,"rejected":%b' % (encode(self.chosen), encode(self.rejected))
        return line + b"}"

    @property
    def prompt(self) -> list[Message]:
        """Everything before the last message."""
        return self.messages[:-1]


def infer(row: dict[str, Any]) -> str | None:
    """The format whose telling fields the row has, or None."""
    if "chosen" in row and "rejected" in row:
        return "preference"
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    return "text" if "text" in row else None


def canonical(name: str, row: dict[str, Any], faults: list[Fault]) -> Canonical:
    """The canonical form of a row of format `name`; what is wrong is added to `faults`.

    The result means something only where no fault is an error.
    """
    return _READERS[name](row, faults)


def _meta(row: dict[str, Any], used: frozenset[str], faults: list[Fault]) -> dict[str, Any]:
    if len(row) == 1 and "meta" not in row:
        return {}
    rest = {name: value for name, value in row.items() if name not in used and name != "meta"}
    own = row.get("meta")
    if own is not None and type(own) is not dict:
        faults.append(Fault("FIELD_TYPE", "meta", describe(own), "an object"))
    return {**rest, **own} if type(own) is dict else rest


def tool_names(row: dict[str, Any], faults: list[Fault]) -> frozenset[str] | None:
    """Names of the tools that the row defines; None where it defines none."""
    tools = row.get("tools")
    if tools is None:
        return None
    if type(tools) is not list:
        faults.append(Fault("FIELD_TYPE", "tools", describe(tools), "a list of definitions"))
        return None
    names = set()
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if type(tool) is dict else None
        name = function.get("name") if type(function) is dict else None
        if type(name) is not str:
            faults.append(Fault("FIELD_TYPE", f"tools[{index}]", describe(tool), "a definition with a name"))
        else:
            names.add(name)
    # A call may be meant for the definition that can't be read.
    return frozenset(names) if len(names) == len(tools) else None


_MESSAGES: Final = frozenset({"messages"})


def _from_messages(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    talk = Conversation(faults, tool_names(row, faults) if len(row) > 1 else None)
    talk.read(row["messages"], "messages")
    talk.end()
    return Canonical(talk.messages, _meta(row, _MESSAGES, faults))


_TURN: Final = re.compile(r"conversations\[(\d+)\]\.(role|content)$")


def _from_sharegpt(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    turns = row["conversations"]
    found: list[Fault] = []
    talk = Conversation(found)
    if type(row.get("system")) is str and row["system"].strip():
        talk.read([{"role": "system", "content": row["system"]}], "system")
    if type(turns) is list:
        talk.read([_renamed(turn, index, faults) for index, turn in enumerate(turns)], "conversations")
    else:
        talk.read(turns, "conversations")
    talk.end()
    faults += [_in_own_words(fault, turns) for fault in found]
    return Canonical(talk.messages, _meta(row, frozenset({"conversations", "system"}), faults))


def _renamed(turn: Any, index: int, faults: list[Fault]) -> Any:
    """A turn as a message."""
    if type(turn) is not dict:
        return turn
    out: dict[str, Any] = {}
    for name, own in (("role", _own(turn, "role")), ("content", _own(turn, "content"))):
        if own in turn:
            out[name] = turn[own]
    sender = out.get("role")
    if type(sender) is str:
        if sender not in _SHAREGPT_ROLES:
            wanted = "system, human or gpt; rows with tools in the messages format"
            path = f"conversations[{index}].{_own(turn, 'role')}"
            faults.append(Fault("ROLE_UNKNOWN", path, ascii(sender[:20]), wanted))
            return UNREADABLE
        out["role"] = _SHAREGPT_ROLES[sender]
    return out


def _own(turn: dict[str, Any], name: str) -> str:
    """What a turn calls a message's field."""
    usual = "from" if name == "role" else "value"
    return name if name in turn and usual not in turn else usual


def _in_own_words(fault: Fault, turns: Any) -> Fault:
    """The same fault, its path as the row has it."""
    at = _TURN.match(fault.path)
    if at is None or type(turns[int(at[1])]) is not dict:
        return fault
    return fault._replace(path=f"conversations[{at[1]}].{_own(turns[int(at[1])], at[2])}")


def _text_field(row: dict[str, Any], name: str, faults: list[Fault], *, required: bool = True) -> str:
    value = row.get(name)
    if value is None and not required:
        return ""
    if type(value) is not str:
        missing = name not in row
        faults.append(
            Fault(
                "FIELD_MISSING" if missing else "FIELD_TYPE",
                name,
                "nothing" if missing else describe(value),
                "text",
            )
        )
        return ""
    if required and (not value or value.isspace()):
        faults.append(Fault("CONTENT_EMPTY", name, "only white space" if value else "no text"))
    return value


def _turns(*pairs: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in pairs if content]


def _from_prompt_completion(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    used = frozenset({"prompt", "completion", "system"})
    system = _text_field(row, "system", faults, required=False)
    if type(row["prompt"]) is list:
        talk = Conversation(faults, tool_names(row, faults))
        if system:
            talk.read(_turns(("system", system)), "system")
        talk.read(row["prompt"], "prompt")
        talk.read(_as_answer(row, "completion", faults), "completion")
        talk.end()
        return Canonical(talk.messages, _meta(row, used, faults))
    prompt = _text_field(row, "prompt", faults)
    completion = _text_field(row, "completion", faults)
    return Canonical(
        _turns(("system", system), ("user", prompt), ("assistant", completion)), _meta(row, used, faults)
    )


def _from_alpaca(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    system = _text_field(row, "system", faults, required=False)
    instruction = _text_field(row, "instruction", faults)
    about = _text_field(row, "input", faults, required=False)
    output = _text_field(row, "output", faults)
    user = f"{instruction}\n\n{about}" if about.strip() else instruction
    used = frozenset({"instruction", "input", "output", "system"})
    return Canonical(
        _turns(("system", system), ("user", user), ("assistant", output)), _meta(row, used, faults)
    )


def _from_text(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    text = _text_field(row, "text", faults)
    return Canonical(_turns(("assistant", text)), _meta(row, frozenset({"text"}), faults))


def _as_answer(row: dict[str, Any], name: str, faults: list[Fault]) -> Any:
    """An answer given as text is one assistant message; anything else is judged as a conversation."""
    if type(row[name]) is not str:
        return row[name]
    return [{"role": "assistant", "content": _worded(row, name, faults)}]


def _worded(row: dict[str, Any], name: str, faults: list[Fault]) -> str:
    """A text field; something in its place where it is empty, so that this is told once."""
    text = _text_field(row, name, faults)
    return "-" if not text or text.isspace() else text


def _from_preference(row: dict[str, Any], faults: list[Fault]) -> Canonical:
    used = frozenset({"prompt", "chosen", "rejected", "system"})
    before: list[Any] = _turns(("system", _text_field(row, "system", faults, required=False)))
    if type(row.get("prompt")) is list:
        before += row["prompt"]
    elif "prompt" in row:
        before += _turns(("user", _worded(row, "prompt", faults)))
    elif type(row["chosen"]) is str or type(row["rejected"]) is str:
        wanted = renamed(row) or "the prompt that both are answers to"
        faults.append(Fault("FIELD_MISSING", "prompt", "answers as text, and no prompt", wanted))
        before.append(UNREADABLE)
    tools = tool_names(row, faults)
    chosen, rejected = (_one_side(row, name, before, tools, faults) for name in ("chosen", "rejected"))
    if any(not CODES[fault.code].adjustable for fault in faults):
        return Canonical(chosen, _meta(row, used, faults))
    if chosen[:-1] != rejected[:-1]:
        faults.append(
            Fault("PREFERENCE_PROMPT", "rejected", "conversations that part before the last answer")
        )
    elif chosen[-1] == rejected[-1]:
        faults.append(Fault("PREFERENCE_SAME", "rejected", "the same answer as chosen"))
    return Canonical(chosen, _meta(row, used, faults), chosen[-1], rejected[-1])


def _one_side(
    row: dict[str, Any], name: str, before: list[Any], tools: frozenset[str] | None, faults: list[Fault]
) -> list[Message]:
    answer = _as_answer(row, name, faults)
    # What is wrong with the prompt is told once, with the chosen side.
    talk = Conversation(faults if name == "chosen" else [], tools)
    # An answer given as a whole conversation repeats the prompt; it is not put before it twice.
    if before and not (type(answer) is list and answer[: len(before)] == before):
        talk.read(before, "prompt")
    talk.faults = faults
    talk.read(answer, name)
    talk.end()
    return talk.messages


_READERS: Final[dict[str, Callable[[dict[str, Any], list[Fault]], Canonical]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "text": _from_text,
}
FORMATS: Final = tuple(_READERS)
