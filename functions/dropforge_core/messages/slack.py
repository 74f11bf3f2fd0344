"""The card as Slack blocks. Nothing that a person uploaded is ever read as markup.

Limits are Slack's (Block Kit reference): header 150 characters, section text 3,000, field 2,000, ten
fields a section.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from dropforge_core.events import DetailType, RunEvent
from dropforge_core.messages.card import RunCard, facts_of
from dropforge_core.messages.wording import next_step, phrase, tone

HEADER_MAX: Final = 150
TEXT_MAX: Final = 3000
FIELD_MAX: Final = 2000
FIELDS_MAX: Final = 10

ICONS: Final = MappingProxyType(
    {
        "working": ":hourglass_flowing_sand:",
        "waiting": ":raised_hand:",
        "good": ":white_check_mark:",
        "doubtful": ":large_yellow_circle:",
        "bad": ":x:",
    }
)

REPLIES: Final = frozenset(
    {"DatasetRejected", "RunPlanned", "ApprovalRequested", "RunDiagnosed", "GateDecided", "RunEnded"}
)
"""Events that also get a line in the run's thread; the others only edit the message."""


def escape(value: str) -> str:
    """Slack's three control characters as entities: no mention, link or channel can be forged."""
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def cut(value: str, limit: int) -> str:
    """At most `limit` characters, the end replaced by an ellipsis where something was lost."""
    return value if len(value) <= limit else value[: limit - 1] + "…"


def plain(value: str, limit: int = TEXT_MAX) -> dict[str, Any]:
    """A text object that Slack shows as it is."""
    return {"type": "plain_text", "text": cut(value, limit) or " ", "emoji": False}


def headline(card: RunCard) -> str:
    """One line for notifications and the list of channels, safe as mrkdwn."""
    return cut(escape(f"{card.model}: {phrase(card.status)}"), HEADER_MAX)


def blocks(card: RunCard) -> list[dict[str, Any]]:
    """The run's one message; it is edited in place as the card grows."""
    shown: list[dict[str, Any]] = [
        {
            "type": "section",
            "text": {"type": "mrkdwn", "text": f"{ICONS[tone(card.status)]} *{headline(card)}*"},
        }
    ]
    if card.message:
        shown.append({"type": "section", "text": plain(card.message)})
    if card.facts:
        shown.append({"type": "section", "fields": _fields(list(card.facts.items()))})
    if card.faults:
        shown.append({"type": "section", "text": plain(_faults(card))})
    footer = [f"run {card.run_id}"]
    if step := next_step(card.status, card.run_id):
        footer.append(step)
    shown.append({"type": "context", "elements": [plain("   ".join(footer))]})
    return shown


def _fields(facts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"type": "mrkdwn", "text": cut(f"*{escape(label)}*\n{escape(value)}", FIELD_MAX)}
        for label, value in facts[:FIELDS_MAX]
    ]


def _faults(card: RunCard) -> str:
    lines = [str(fault) for fault in card.faults]
    left = card.error_count - len(lines)
    return "\n".join([*lines, *([f"and {left} more"] if left > 0 else [])])


def reply(kind: DetailType, event: RunEvent, card: RunCard) -> dict[str, Any] | None:
    """Body of the thread's line for this event, or None where the edit says it all."""
    if kind not in REPLIES:
        return None
    lines = [event.message or phrase(event.status)]
    lines += [f"{label}: {value}" for label, value in facts_of(kind, event.data).items()]
    if kind == "DatasetRejected" and card.faults:
        lines.append(_faults(card))
    said = "\n".join(lines)
    return {
        "text": cut(escape(lines[0]), TEXT_MAX),
        "blocks": [{"type": "section", "text": plain(said)}],
    }


def message(card: RunCard) -> dict[str, Any]:
    """Body of the run's message: blocks, and the text that a phone shows."""
    return {"text": headline(card), "blocks": blocks(card), "unfurl_links": False, "unfurl_media": False}
