"""Names that people give to the fields of a known format, and what they are called here."""

from collections.abc import Collection, Sequence
from typing import Final

_ASKED: Final = ("prompt", "instruction", "question", "query", "problem", "input", "user", "human", "request")
_ANSWERED: Final = (
    "completion",
    "output",
    "answer",
    "response",
    "reply",
    "solution",
    "assistant",
    "gpt",
    "target",
)
_TALKS: Final = ("conversation", "dialogue", "dialog", "chat", "turns")
_CHOSEN: Final = ("chosen", "chosen_response", "response_chosen", "preferred", "accepted")
_REJECTED: Final = ("rejected", "rejected_response", "response_rejected", "dispreferred", "non_preferred")


def renamed(names: Collection[str]) -> str:
    """How fields become those of a format, such as "prompt and completion: rename question to prompt".

    Args:
        names: of all fields. Only those of the lists above are ever named in the answer.

    Returns:
        Nothing where it can't be told.
    """
    known = {name.strip().lower(): name.strip() for name in names if len(name) < 40}
    asked, answered = _first(_ASKED, known), _first(_ANSWERED, known)
    chosen, rejected = _first(_CHOSEN, known), _first(_REJECTED, known)
    if {"input", "preferred_output", "non_preferred_output"} <= known.keys():
        return "prompt, chosen and rejected: the messages of input, preferred_output and non_preferred_output"
    if chosen and rejected:
        pairs = [*([(asked, "prompt")] if asked else []), (chosen, "chosen"), (rejected, "rejected")]
    elif asked and answered:
        ours = ("instruction", "output") if asked.lower() == "instruction" else ("prompt", "completion")
        pairs = list(zip((asked, answered), ours, strict=True))
    elif talk := _first(_TALKS, known):
        return f"messages of role and content: rename {talk}"
    else:
        return ""
    moves = [f"{own} to {ours}" for own, ours in pairs if own != ours]
    target = " and ".join(ours for _, ours in pairs)
    return f"{target}: rename {' and '.join(moves)}" if moves else ""


def _first(candidates: Sequence[str], known: dict[str, str]) -> str:
    return next((known[name] for name in candidates if name in known), "")
