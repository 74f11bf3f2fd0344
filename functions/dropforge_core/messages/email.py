"""The card as an e-mail through SNS: an ASCII subject under 100 characters, and plain text."""

import re
import unicodedata
from typing import Final

from dropforge_core.events import DetailType
from dropforge_core.messages.card import RunCard
from dropforge_core.messages.links import console_link
from dropforge_core.messages.wording import next_step, phrase
from dropforge_core.model import Frozen

SUBJECT_MAX: Final = 99
"""SNS Publish, Subject: ASCII, begins with a letter, digit or punctuation, no line break or control
character, *less than* 100 characters."""

BODY_MAX: Final = 200_000
"""Characters; SNS takes 256 KiB, and one character may be four bytes only in texts that never get so long."""

MAILED: Final = frozenset({"RunPlanned", "ApprovalRequested", "RunEnded"})
"""One when it is known what it costs, one when a person is needed, one at the end. A rejected dataset's
faults come in the last."""

_UNPRINTABLE: Final = re.compile(r"[^\x20-\x7e]+")


class Email(Frozen):
    subject: str
    body: str


def compose(kind: DetailType, card: RunCard, region: str = "") -> Email | None:
    """The e-mail for this event, or None where the event is not worth one. `region` is that of the run bucket."""
    if kind not in MAILED:
        return None
    lines = [card.message or f"{card.model}: {phrase(card.status)}.", ""]
    lines += [f"  {label + ':':<15}{value}" for label, value in card.facts.items()]
    if card.faults:
        first = f", the first {len(card.faults)}" if card.faults_left else ""
        lines += ["", f"Faults ({card.error_count:,}){first}:"]
        lines += [f"  {fault}" for fault in card.faults]
        lines += [f"  and {card.faults_left:,} more"] if card.faults_left else []
    if url := console_link(card.report_uri, region):
        lines += ["", f"{'All faults, with their lines' if card.faults else 'Report'}: {url}"]
    if step := next_step(card.status, card.run_id):
        lines += ["", step]
    lines += ["", f"Run {card.run_id} of model {card.model}."]
    return Email(subject=subject(kind, card), body=printable("\n".join(lines))[:BODY_MAX])


def subject(kind: DetailType, card: RunCard) -> str:
    """`[dropforge] support-bot: registered (ab12cd34)`."""
    news = (
        f"planned, {card.facts.get('Cost', 'cost unknown')}" if kind == "RunPlanned" else phrase(card.status)
    )
    said = f"[dropforge] {card.model}: {news} ({card.run_id[:8]})"
    folded = unicodedata.normalize("NFKD", said).encode("ascii", "ignore").decode("ascii")
    return _UNPRINTABLE.sub(" ", folded)[:SUBJECT_MAX]


def printable(body: str) -> str:
    """The text without control characters other than line breaks and tabs: no terminal escape survives."""
    return "".join(c for c in body if c in "\n\t" or not unicodedata.category(c).startswith("C"))
