"""Good rows of every format. The number of a row decides its words, its style everything else."""

import json
from dataclasses import dataclass
from typing import Any

from planted.texts import sentence

Row = dict[str, Any]

FORMS = (
    "messages",
    "tools",
    "weights",
    "sharegpt",
    "prompt_completion",
    "prompt_messages",
    "alpaca",
    "preference",
    "preference_messages",
    "text",
)
"""Formats, and those of their varieties that a whole dataset may be of."""

FORMAT = {
    "tools": "messages",
    "weights": "messages",
    "prompt_messages": "prompt_completion",
    "preference_messages": "preference",
}
"""The format of a report, where it has another name than the form."""


def format_of(form: str) -> str:
    """The format that the report names."""
    return FORMAT.get(form, form)


@dataclass(frozen=True)
class Seed:
    """What one row is made from."""

    number: int
    style: int = 0

    def says(self, salt: str) -> str:
        """A sentence of this row and of no other."""
        return sentence(self.number, salt, self.style // 7)

    def pick(self, *choices: Any) -> Any:
        """One of them, by the row's style."""
        return choices[self.style % len(choices)]

    @property
    def turns(self) -> int:
        """How many questions are asked."""
        return 1 + self.style % 3


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def talk(seed: Seed, turns: int | None = None) -> list[dict[str, Any]]:
    """A conversation: perhaps a system message, then questions and answers."""
    found = [message("system", seed.says("s"))] if seed.style % 2 else []
    for turn in range(seed.turns if turns is None else turns):
        salt = "abcdefgh"[turn]
        found += [message("user", seed.says(f"u{salt}")), message("assistant", seed.says(f"v{salt}"))]
    return found


def call(ident: str, name: str = "look_up", arguments: Any = '{"place": "north"}') -> dict[str, Any]:
    return {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}


def definition(name: str = "look_up") -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


def calling(seed: Seed) -> list[dict[str, Any]]:
    """A question, two calls at once, both answered in another order, and what follows from it."""
    arguments = seed.pick('{"place": "north"}', {"place": "south", "deep": {"er": [1, 2]}}, "{}")
    calls = [call("call_1", "look_up", arguments), call("call_2", "add_up", arguments)]
    return [
        message("user", seed.says("ca")),
        {"role": "assistant", **seed.pick({"content": None}, {"content": ""}, {}), "tool_calls": calls},
        message("tool", seed.says("cb"), tool_call_id="call_2"),
        message("tool", seed.says("cc"), tool_call_id="call_1"),
        message("assistant", seed.says("cd")),
    ]


def _messages(seed: Seed) -> Row:
    said = talk(seed)
    if seed.style % 5 == 4:
        parts = said[-1]["content"].partition(" ")
        said[-1]["content"] = [{"type": "text", "text": part} for part in parts]
    return {"messages": said, **seed.pick({}, {}, {"meta": {"source": "web"}}, {"topic": "weather"})}


def _tools(seed: Seed) -> Row:
    said = talk(seed, 1)[:-2] + calling(seed)
    if seed.style % 4 == 3:
        # A row may end in the call itself.
        said = said[:-3]
    return {"messages": said, "tools": [definition("look_up"), definition("add_up")]}


def _weights(seed: Seed) -> Row:
    said = talk(seed)
    for turn, one in enumerate(m for m in said if m["role"] == "assistant"):
        one["weight"] = int(turn == 0 or turn % 2)
    if seed.style % 3 == 0:
        said[-2]["name"] = "jo"
    return {"messages": said}


SENDER = {"system": "system", "user": "human", "assistant": "gpt"}


def as_sharegpt(said: list[Any]) -> list[Any]:
    """The same conversation in the other words."""
    return [{"from": SENDER.get(m["role"], m["role"]), "value": m["content"]} for m in said]


def _sharegpt(seed: Seed) -> Row:
    said = talk(seed)
    row: Row = {"conversations": as_sharegpt(said)}
    if seed.style % 2 and seed.style % 3:
        row = {"conversations": row["conversations"][1:], "system": said[0]["content"]}
    return row


def _prompt_completion(seed: Seed) -> Row:
    more = seed.pick({}, {"system": seed.says("s")})
    if seed.style % 11 == 5:
        # What people extract from is JSON; it is text all the same.
        asked = seed.pick({"ask": seed.says("p")}, [seed.says("p")])
        return {"prompt": json.dumps(asked), "completion": json.dumps({"answer": seed.says("q")}), **more}
    return {"prompt": seed.says("p"), "completion": seed.says("q"), **more}


def _prompt_messages(seed: Seed) -> Row:
    said = talk(seed)
    return {"prompt": said[:-1], "completion": seed.pick(said[-1:], said[-1]["content"])}


def _alpaca(seed: Seed) -> Row:
    more = seed.pick({}, {"input": seed.says("i")}, {"input": ""}, {"system": seed.says("s")})
    return {"instruction": seed.says("p"), "output": seed.says("q"), **more}


def _preference(seed: Seed) -> Row:
    more = seed.pick({}, {"system": seed.says("s")})
    return {"prompt": seed.says("p"), "chosen": seed.says("q"), "rejected": seed.says("r"), **more}


def _preference_messages(seed: Seed) -> Row:
    said = talk(seed)
    before, good, bad = said[:-1], said[-1], message("assistant", seed.says("r"))
    return seed.pick(
        {"prompt": before, "chosen": [good], "rejected": [bad]},
        {"chosen": [*before, good], "rejected": [*before, bad]},
        {"prompt": before, "chosen": [*before, good], "rejected": [*before, bad]},
        {"prompt": before, "chosen": good["content"], "rejected": bad["content"]},
    )


def _text(seed: Seed) -> Row:
    return {"text": seed.says("p"), **seed.pick({}, {"meta": {"page": 3}})}


_MAKERS = {
    "messages": _messages,
    "tools": _tools,
    "weights": _weights,
    "sharegpt": _sharegpt,
    "prompt_completion": _prompt_completion,
    "prompt_messages": _prompt_messages,
    "alpaca": _alpaca,
    "preference": _preference,
    "preference_messages": _preference_messages,
    "text": _text,
}


def good(form: str, seed: Seed) -> Row:
    """A row with nothing wrong, unlike the rows of every other number."""
    return _MAKERS[form](seed)
