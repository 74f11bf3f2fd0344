"""The layout of chats with tools, and of chats whose messages have null for what they lack."""

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, ClassVar, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.formats import tool_names
from dropforge_core.dataset.rows.layouts import Became, Layout, Row, Talk
from dropforge_core.dataset.rows.messages import Assistant, Calling, Message, System, Tool, User

_Null = UnsetType | None
_Name = str | UnsetType | None


class _Function(Struct, forbid_unknown_fields=True, gc=False):
    name: str
    arguments: str


class _Call(Struct, forbid_unknown_fields=True, gc=False):
    """As the canonical message has it."""

    id: str
    type: Literal["function"]
    function: _Function


class _Asking(Struct, forbid_unknown_fields=True, gc=False, tag_field="role"):
    content: str
    name: _Name = UNSET
    weight: _Null = UNSET
    tool_calls: _Null = UNSET
    tool_call_id: _Null = UNSET


class _System(_Asking, tag="system"):
    pass


class _User(_Asking, tag="user"):
    pass


class _Tool(Struct, forbid_unknown_fields=True, gc=False, tag_field="role", tag="tool"):
    content: str
    tool_call_id: str
    name: _Name = UNSET
    weight: _Null = UNSET
    tool_calls: _Null = UNSET


class _Assistant(Struct, forbid_unknown_fields=True, gc=False, tag_field="role", tag="assistant"):
    content: str | UnsetType | None = UNSET
    name: _Name = UNSET
    weight: Literal[0, 1] | UnsetType | None = UNSET
    tool_calls: list[_Call] | UnsetType | None = UNSET
    tool_call_id: _Null = UNSET


_AnyMessage = _System | _User | _Tool | _Assistant
_parse: Final = msgspec.json.Decoder(dict[str, Any]).decode
"""Raises what `_NO_OBJECT` has where the arguments of a call are none."""
_NO_OBJECT: Final = (msgspec.MsgspecError, UnicodeError, RecursionError)


class Chats(Layout):
    """Chats that may call tools."""

    form = "messages"
    fields: ClassVar = {"messages": list[_AnyMessage]}

    def __init__(self, extras: Sequence[str] = ()) -> None:
        super().__init__(extras)
        self._tools = attrgetter(self.attributes["tools"]) if "tools" in self.attributes else None

    def become(self, rows: Sequence[Row]) -> Became:
        talks: list[Talk] = []
        refused: list[int] = []
        for at, row in enumerate(rows):
            tools: frozenset[str] | None = None
            faults: list[Fault] = []
            if self._tools and (defined := self._tools(row)) is not UNSET:
                tools = tool_names({"tools": defined}, faults)
            talk = [] if faults else _Talk(tools).read(row.messages)
            if not talk:
                refused.append(at)
            talks.append(talk)
        return Became(talks, None, frozenset(refused))

    def blank(self, row: Row) -> bool:
        for message in row.messages:
            content = message.content
            if type(content) is not str or (content and not content.isspace()):
                continue
            if type(message) is not _Assistant or not message.tool_calls:
                return True
        return False


class _Talk:
    """Follows one talk; what is not plainly right is left to `Conversation`."""

    def __init__(self, tools: frozenset[str] | None) -> None:
        self._tools = tools
        self._answered: dict[str, bool] = {}
        self._open = 0
        """Calls without an answer."""

    def read(self, messages: Sequence[Any]) -> Talk:
        """Canonical messages; none where the talk is not for the quick path."""
        talk: Talk = []
        before = ""
        for message in messages:
            kind = type(message)
            name = message.name if type(message.name) is str else UNSET
            made: Message | None
            if kind is _User:
                role = "user" if before in ("", "system", "assistant") else ""
                made = User(message.content, name)
            elif kind is _Assistant:
                ready = before == "user" or (before == "tool" and not self._open)
                made = self._answer(message, name) if ready else None
                role = "call" if type(made) is Calling else "assistant"
            elif kind is _Tool:
                placed = before in ("call", "tool") and not self._answered.get(message.tool_call_id, True)
                role = "tool" if placed else ""
                self._answered[message.tool_call_id] = True
                self._open -= 1
                made = Tool(message.content, name, message.tool_call_id)
            else:
                role = "" if talk else "system"
                made = System(message.content, name)
            if made is None or not role:
                return []
            before = role
            talk.append(made)
        return talk if before in ("assistant", "call") else []

    def _answer(self, message: Any, name: str | UnsetType) -> Message | None:
        weight = UNSET if message.weight is None else message.weight
        if not message.tool_calls:
            return Assistant(message.content, name, weight) if type(message.content) is str else None
        self._open = 0
        for call in message.tool_calls:
            if call.id in self._answered or not self._fits(call.function):
                return None
            self._answered[call.id] = False
            self._open += 1
        return Calling(message.content or "", name, weight, message.tool_calls)

    def _fits(self, function: _Function) -> bool:
        if self._tools is not None and function.name not in self._tools:
            return False
        try:
            _parse(function.arguments)
        except _NO_OBJECT:
            return False
        return True
