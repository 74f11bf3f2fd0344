"""Whether a list of messages is a conversation that a model can learn from."""

import json
from typing import Any, Final

import msgspec

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.decoding import describe, field

ROLES: Final = frozenset({"system", "user", "assistant", "tool"})

_RENAMED: Final = {
    "developer": "system",
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "ai": "assistant",
    "observation": "tool",
}
"""What other formats call the roles."""
_OLD_CALL: Final = "function_call"
"""What the chat completions API had before `tool_calls`, with the role `function` for the answer."""

_NEXT: Final = {
    "": ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("tool", "assistant"),
    "?": ("system", "user", "assistant", "tool"),
}
"""Which role may follow which; `call` is an assistant's message with tool calls, `?` one that can't be read."""

UNREADABLE: Final = object()
"""Stands for a message of which it was told already that it can't be read."""

_KNOWN: Final = frozenset({"role", "content", "name", "weight", "tool_calls", "tool_call_id"})


class Conversation:
    """Reads messages one after another; `messages` is the canonical form, `faults` what is wrong."""

    def __init__(self, faults: list[Fault], tools: frozenset[str] | None = None) -> None:
        self.messages: list[dict[str, Any]] = []
        self.faults = faults
        self._path = ""
        self._last = 0
        self._tools = tools
        self._before = ""
        self._calls: dict[str, bool] = {}
        """Tool call id to whether it was answered."""
        self._open: set[str] = set()
        self._strays = 0
        """Answers to none of the open calls; each may be meant for one of them, which is told as one fault."""
        self._unread = False
        self._learns = False

    def read(self, value: Any, path: str) -> None:
        """Take all messages of a JSON value that should be a list; may be called for one part after another."""
        self._path = path
        if type(value) is not list:
            self._fault("FIELD_TYPE", "", describe(value), "a list of messages")
            self._pass_over()
            return
        if not value:
            self._fault("MESSAGES_EMPTY", "", "an empty list")
            self._pass_over()
        for index, message in enumerate(value):
            self._read_one(message, index)
            self._last = index

    def end(self) -> None:
        """Check what can only be told at the end."""
        if not self.messages:
            return
        if self._before not in ("assistant", "call", "?"):
            self._fault("LAST_NOT_ASSISTANT", f"[{self._last}].role", f"role '{self._before}' at the end")
        elif not self._learns and not self._unread:
            self._fault("NOTHING_TO_LEARN", "", "weight 0 on every answer")

    def _fault(self, code: str, path: str, found: str, expected: str = "", mend: str = "") -> None:
        self.faults.append(Fault(code, self._path + path, found, expected, mend))

    def _pass_over(self) -> None:
        """What can't be read may have been anything: what follows from that is no fault of its own."""
        self._before = "?"
        self._unread = True
        self._open.clear()

    def _read_one(self, message: Any, index: int) -> None:
        if message is UNREADABLE:
            self._pass_over()
            return
        if type(message) is not dict:
            self._fault("FIELD_TYPE", f"[{index}]", describe(message), "an object with role and content")
            self._pass_over()
            return
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or role not in ROLES:
            self._role_unknown(message, role, index)
            self._text(message, content, index)
            self._pass_over()
            return
        out: dict[str, Any] = {"role": role}
        if type(content) is str and content and not content.isspace():
            out["content"] = content
        else:
            out["content"] = self._text(message, content, index)
        follows = "call" if role == "assistant" and message.get("tool_calls") else role
        placed = self._follow(role, follows, index)
        if len(message) > 2 or follows in ("tool", "call") or _OLD_CALL in message:
            self._extras(message, out, index, placed=placed)
        if role == "assistant" and out.get("weight", 1) != 0:
            self._learns = True
        self.messages.append(out)

    def _role_unknown(self, message: dict[str, Any], role: Any, index: int) -> None:
        if "role" not in message:
            is_other = "from" in message and self._path == "messages"
            mend = "Rename messages to conversations: from and value are of sharegpt." if is_other else ""
            self._fault("FIELD_MISSING", f"[{index}].role", "no role", mend=mend)
        elif type(role) is not str:
            self._fault("FIELD_TYPE", f"[{index}].role", describe(role), "text")
        else:
            self._fault("ROLE_UNKNOWN", f"[{index}].role", f"role {role[:20]!a}", mend=_role_mend(role))

    def _text(self, message: dict[str, Any], content: Any, index: int) -> str:
        path = f"[{index}].content"
        if type(content) is list:
            content = self._joined(content, path)
        if content is None and (message.get("tool_calls") or message.get(_OLD_CALL)):
            return ""
        if "content" not in message:
            self._fault("FIELD_MISSING", path, "no content")
        elif type(content) is not str:
            self._fault("FIELD_TYPE", path, describe(content), "text")
        elif (not content or content.isspace()) and not message.get("tool_calls"):
            self._fault("CONTENT_EMPTY", path, "only white space" if content else "no text")
        return content if type(content) is str else ""

    def _joined(self, parts: list[Any], path: str) -> str | None:
        texts = []
        for number, part in enumerate(parts):
            text = part.get("text") if type(part) is dict and part.get("type") == "text" else None
            if type(text) is not str:
                self._fault("CONTENT_PART", f"{path}[{number}]", "a part that is no text")
                # The one fault says it all; the message is not called empty as well.
                return "-"
            texts.append(text)
        return "".join(texts)

    def _extras(self, message: dict[str, Any], out: dict[str, Any], index: int, *, placed: bool) -> None:
        role: str = out["role"]
        for name, value in message.items():
            if name in _KNOWN or value in (None, [], {}):
                continue
            if name == _OLD_CALL:
                mend = (
                    "Write it as tool_calls with an id, and its answer as role tool with that tool_call_id."
                )
                self._fault("TOOL_CALL_INVALID", f"[{index}].{name}", name, mend=mend)
            else:
                self._fault(
                    "FIELD_IGNORED", f"[{index}].{field(name)}", "a field that no chat template reads"
                )
        if type(message.get("name")) is str:
            out["name"] = message["name"]
        if message.get("weight") is not None:
            weight = message["weight"]
            if type(weight) not in (int, float) or weight not in (0, 1) or role != "assistant":
                what = f"a weight on role '{role}'" if role != "assistant" else "a weight other than 0 and 1"
                self._fault("WEIGHT_INVALID", f"[{index}].weight", what)
            else:
                out["weight"] = int(weight)
        if role == "tool" and placed:
            self._answer(message, out, index)
        if message.get("tool_calls"):
            if role != "assistant":
                self._fault("TOOL_CALL_INVALID", f"[{index}].tool_calls", f"tool_calls on role '{role}'")
            else:
                self._call(message["tool_calls"], out, index)

    def _follow(self, role: str, follows: str, index: int) -> bool:
        """Check a message's place; whether it may be there."""
        if role == "system" and self.messages:
            place = len(self.messages) + 1
            self._fault("SYSTEM_PLACEMENT", f"[{index}].role", f"a system message as message {place}")
            return False
        placed = role in _NEXT[self._before]
        if not placed:
            before = {"": "the beginning", "call": "a tool call"}.get(self._before, f"role '{self._before}'")
            wanted = " or ".join(_NEXT[self._before])
            if self._before == "call":
                self._fault("TOOL_UNANSWERED", f"[{index}].role", f"role '{role}' after a tool call", wanted)
            elif role == "tool":
                self._fault("TOOL_ID_UNKNOWN", f"[{index}].role", f"a tool message after {before}", wanted)
            else:
                self._fault(
                    "ROLE_ORDER", f"[{index}].role", f"role '{role}' after {before}", f"role {wanted}"
                )
        elif role == "assistant" and len(self._open) > self._strays:
            count = len(self._open) - self._strays
            self._fault("TOOL_UNANSWERED", f"[{index}].role", f"{count} tool call(s) without an answer")
        if role != "tool":
            self._strays = 0
            if follows != "call":
                self._open.clear()
        self._before = follows
        return placed

    def _answer(self, message: dict[str, Any], out: dict[str, Any], index: int) -> None:
        ident = message.get("tool_call_id")
        path = f"[{index}].tool_call_id"
        if type(ident) is not str:
            self._fault(
                "FIELD_MISSING" if ident is None else "FIELD_TYPE", path, describe(ident), "the call's id"
            )
            self._strays += 1
            return
        out["tool_call_id"] = ident
        if self._calls.get(ident, True):
            what = "an id that was answered before" if ident in self._calls else "an id that no call has"
            self._fault("TOOL_ID_UNKNOWN", path, what)
            self._strays += 1
        self._calls[ident] = True
        self._open.discard(ident)

    def _call(self, calls: Any, out: dict[str, Any], index: int) -> None:
        path = f"[{index}].tool_calls"
        if type(calls) is not list:
            self._fault("TOOL_CALL_INVALID", path, describe(calls), "a list")
            return
        out["tool_calls"] = []
        self._open.clear()
        for number, call in enumerate(calls):
            here = f"{path}[{number}]"
            function = call.get("function") if type(call) is dict else None
            ident = call.get("id") if type(call) is dict else None
            if type(function) is not dict or type(ident) is not str or type(function.get("name")) is not str:
                self._fault("TOOL_CALL_INVALID", here, "a call without id, function or name")
                continue
            if ident in self._calls:
                self._fault("TOOL_ID_REPEATED", f"{here}.id", "an id that another call has")
            self._calls[ident] = False
            self._open.add(ident)
            name = function["name"]
            if self._tools is not None and name not in self._tools:
                self._fault("TOOL_UNDEFINED", f"{here}.function.name", "a name that `tools` does not define")
            arguments = self._arguments(function.get("arguments", "{}"), f"{here}.function.arguments")
            out["tool_calls"].append(
                {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
            )

    def _arguments(self, value: Any, path: str) -> str:
        """Always the JSON text, as the chat completions API has it."""
        if type(value) is dict:
            return json.dumps(value, ensure_ascii=False)
        if type(value) is not str:
            self._fault("TOOL_ARGUMENTS", path, describe(value))
            return "{}"
        try:
            parsed = msgspec.json.decode(value)
        except (msgspec.MsgspecError, RecursionError):
            self._fault("TOOL_ARGUMENTS", path, "text that does not parse as JSON")
            return "{}"
        if type(parsed) is not dict:
            self._fault("TOOL_ARGUMENTS", path, describe(parsed))
        return value


def _role_mend(role: str) -> str:
    name = role.strip().lower()
    if name == "function":
        return "Write it as role tool with the tool_call_id of its call, and the call as tool_calls."
    known = name if name in ROLES else _RENAMED.get(name)
    return f"Rename the role to {known}." if known else ""
