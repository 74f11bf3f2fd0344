"""The card as Slack blocks. Nothing that a person uploaded is ever read as markup.

Limits are Slack's (Block Kit reference): header 150 characters, section text 3,000, field 2,000, ten
fields a section.
"""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, Final

from dropforge_core.events import DetailType, RunEvent
from dropforge_core.messages.card import Fault, RunCard, facts_of
from dropforge_core.messages.links import console_link
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


def blocks(card: RunCard, region: str = "") -> list[dict[str, Any]]:
    """The run's one message; it is edited in place as the card grows. `region` is that of the run bucket."""
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
    shown += _faults(card)
    shown += _link(card, region)
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


def _faults(card: RunCard) -> list[dict[str, Any]]:
    """The first faults as a list. Rich text is never parsed for markup, so that nothing needs escaping."""
    if not card.faults:
        return []
    items = [_section(_fault(fault)) for fault in card.faults]
    shown: list[dict[str, Any]] = [{"type": "rich_text_list", "style": "bullet", "elements": items}]
    if card.faults_left:
        shown.append(_section([_words(f"and {card.faults_left:,} more")]))
    return [{"type": "rich_text", "elements": shown}]


def _fault(fault: Fault) -> list[dict[str, Any]]:
    return [
        *([_words(fault.where, code=True), _words(" ")] if fault.where else []),
        *([_words(fault.code, bold=True), _words(" ")] if fault.code else []),
        _words(f"{fault.message} {fault.others}".strip() or "a fault"),
    ]


def _link(card: RunCard, region: str) -> list[dict[str, Any]]:
    """Where to read on; nothing while there is no page."""
    url = console_link(card.report_uri, region)
    if not url:
        return []
    told = f"All {card.error_count:,} faults, with their lines" if card.error_count > 1 else "The report"
    return [{"type": "rich_text", "elements": [_section([{"type": "link", "url": url, "text": told}])]}]


def _section(elements: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "rich_text_section", "elements": elements}


def _words(value: str, **style: bool) -> dict[str, Any]:
    return {"type": "text", "text": cut(value, TEXT_MAX), **({"style": style} if style else {})}


def reply(kind: DetailType, event: RunEvent, card: RunCard, region: str = "") -> dict[str, Any] | None:
    """Body of the thread's line for this event, or None where the edit says it all."""
    if kind not in REPLIES:
        return None
    lines = [event.message or phrase(event.status)]
    lines += [f"{label}: {value}" for label, value in facts_of(kind, event.data).items()]
    said: list[dict[str, Any]] = [{"type": "section", "text": plain("\n".join(lines))}]
    if kind == "DatasetRejected":
        said += _faults(card)
    if kind in ("DatasetRejected", "RunEnded"):
        said += _link(card, region)
    return {"text": cut(escape(lines[0]), TEXT_MAX), "blocks": said}


def message(card: RunCard, region: str = "") -> dict[str, Any]:
    """Body of the run's message: blocks, and the text that a phone shows."""
    return {
        "text": headline(card),
        "blocks": blocks(card, region),
        "unfurl_links": False,
        "unfurl_media": False,
    }
