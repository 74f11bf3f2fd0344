"""The card of a run: what is known from its events so far. One fold, however the events are ordered."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

from pydantic import Field, ValidationError

from dropforge_core.events import DetailType, RunEvent
from dropforge_core.ledger import Status, rank
from dropforge_core.messages.lines import place
from dropforge_core.messages.wording import known
from dropforge_core.model import Frozen, Tolerant

FAULTS_KEPT: Final = 5
"""Faults of a rejected dataset that are shown; the rest lie in validation.json."""


class Fault(Tolerant):
    """One fault of a rejected dataset, as `DatasetRejected` carries it."""

    file: str = ""
    line: int | None = None
    code: str = ""
    message: str = ""
    count: int = Field(1, ge=1)
    """Lines of this kind."""

    @property
    def where(self) -> str:
        """File and line."""
        return place(self.file, self.line)

    @property
    def others(self) -> str:
        """How many lines are like it; empty where there are none."""
        return f"(and {self.count - 1:,} more like it)" if self.count > 1 else ""

    def __str__(self) -> str:
        return "  ".join(filter(None, (self.where, self.code, self.message, self.others)))


class RunCard(Frozen):
    """Everything that one message about a run may show.

    `facts` maps a label to a finished text, in the order in which the facts became known.
    """

    run_id: str
    model: str
    status: str = Status.RECEIVED.value
    redrive: int = 0
    message: str = ""
    facts: Mapping[str, str] = {}
    faults: tuple[Fault, ...] = ()
    error_count: int = 0
    report_uri: str = ""
    """`s3://` of the page for people; it is there when the run has ended."""

    @property
    def faults_left(self) -> int:
        """Faulty lines that none of `faults` stands for."""
        return max(0, self.error_count - sum(fault.count for fault in self.faults))

    def after(self, kind: DetailType, event: RunEvent, redrive: int = 0) -> "RunCard":
        """The card once `event` is known.

        An event that arrives late adds its facts but never takes the headline back: status and message
        follow the ledger's order (`dropforge_core.ledger.rank`), a redrive counting above all before it.
        """
        newer = _rank(event.status, redrive) >= _rank(self.status, self.redrive)
        rejected = kind == "DatasetRejected"
        return RunCard(
            run_id=self.run_id,
            model=self.model,
            status=event.status if newer else self.status,
            redrive=redrive if newer else self.redrive,
            message=(event.message or self.message) if newer else self.message,
            facts={**self.facts, **facts_of(kind, event.data)},
            faults=_faults(event.data) if rejected else self.faults,
            error_count=int(number(event.data, "error_count") or 0) if rejected else self.error_count,
            report_uri=text(event.data, "report_uri") or self.report_uri,
        )


def _rank(status: str, redrive: int) -> int:
    found = known(status)
    return rank(found, redrive) if found else -1


def _faults(data: Mapping[str, Any]) -> tuple[Fault, ...]:
    listed = data.get("first")
    if not isinstance(listed, list | tuple):
        return ()
    found = []
    for entry in listed[:FAULTS_KEPT]:
        # Other programs may write events of their own.
        with suppress(ValidationError):
            found.append(Fault.model_validate(entry))
    return tuple(found)


def number(data: Mapping[str, Any], name: str) -> float | None:
    """A number of an event's data, which other programs may have written as text; None where it is none."""
    value = data.get(name)
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def text(data: Mapping[str, Any], name: str) -> str:
    """A short text of an event's data; empty where there is none."""
    value = data.get(name)
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def dollars(amount: float) -> str:
    """US dollars; cents below a hundred, a tenth of a cent below a cent."""
    if 0 < abs(amount) < 0.01:
        return f"${amount:.3f}"
    return f"${amount:,.2f}" if abs(amount) < 100 else f"${amount:,.0f}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float) -> str:
    """Bytes in decimal units: `812 B`, `380 kB`, `1.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def facts_of(kind: DetailType, data: Mapping[str, Any]) -> dict[str, str]:
    """Label and text of what one event tells; docs/events.md lists the fields."""
    told: dict[str, str] = {}
    match kind:
        case "RunReceived":
            told = {"Upload": _upload(data)}
        case "RunPlanned":
            told = {
                "Instance": text(data, "instance_type"),
                "Cost": _cost(data),
                "Time": _hours(data),
                "Rows": _rows(data),
                "Steps": text(data, "steps"),
            }
        case "ApprovalRequested":
            told = {"Decide before": text(data, "expires_at")}
        case "GateDecided":
            told = {"Gate": text(data, "summary") or text(data, "verdict")}
        case "ModelRegistered":
            told = {"Package": text(data, "package_arn"), "Approval": text(data, "approval_status")}
        case "RunEnded":
            spent = number(data, "cost_usd")
            told = {
                "Spent": dollars(spent) if spent is not None else "",
                "Package": text(data, "package_arn"),
                "Same as run": text(data, "duplicate_of"),
            }
        case "DatasetRejected" | "TrainingProgressed" | "RunDiagnosed":
            pass  # their message says it all; faults have a place of their own on the card
    return {label: value for label, value in told.items() if value}


def _upload(data: Mapping[str, Any]) -> str:
    objects, total = number(data, "objects"), number(data, "bytes")
    if objects is None or total is None:
        return ""
    return f"{objects:.0f} file{'' if objects == 1 else 's'}, {size(total)}"


def _cost(data: Mapping[str, Any]) -> str:
    low, expected, high = (number(data, f"cost_{part}") for part in ("low", "expected", "high"))
    cap = number(data, "max_cost_usd")
    if expected is None:
        return ""
    spread = f" ({dollars(low)} to {dollars(high)})" if low is not None and high is not None else ""
    return f"about {dollars(expected)}{spread}" + (f", at most {dollars(cap)}" if cap is not None else "")


def _hours(data: Mapping[str, Any]) -> str:
    hours = number(data, "hours")
    return f"about {duration(hours * 3600)}" if hours is not None else ""


def _rows(data: Mapping[str, Any]) -> str:
    train, held = number(data, "rows_train"), number(data, "rows_eval")
    return f"{train:,.0f} to train, {held:,.0f} held out" if train is not None and held is not None else ""


def load_card(stored: str | None, event: RunEvent) -> RunCard:
    """The card as it was stored (JSON), or a blank one for the event's run."""
    blank = RunCard(run_id=event.run_id, model=event.model)
    return RunCard.model_validate(json.loads(stored)) if stored else blank
