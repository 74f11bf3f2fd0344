"""Answers that must hold a thing, whatever the averages say: canaries of the hold-out, and general questions."""

import re
from collections.abc import Mapping
from typing import Any, Final

from dropforge_core.contracts import AnswerCheck
from dropforge_core.evaluation.join import Asked, Joined
from dropforge_core.evaluation.rows import Question
from dropforge_core.gate.rules import Rule
from dropforge_core.gate.statistics import confidence
from dropforge_core.metrics.text import normalised
from dropforge_core.model import Frozen

LISTED: Final = 10
"""Failed canaries that the rule's sentence names; gate.json has all of them."""


class CanaryFailure(Frozen):
    id: str
    """Of the row."""
    why: str
    """What was wrong, without the answer's text."""


class Canaries(Frozen):
    """Held-out rows that must be answered right, each of them."""

    asked: int
    """How many there are."""
    failed: tuple[CanaryFailure, ...]
    """Of the candidate, sorted by id."""
    failed_before: tuple[str, ...]
    """Ids that the reference (the champion, else the base model) fails."""
    upper: float | None
    """Share of such questions that the candidate may still fail, where it failed none: 1 - alpha^(1/n), about 3/n at
    an alpha of 0.05. None where one failed."""


def as_canary(question: Question, mark: Any) -> Question:
    """The question of a row that is marked as a canary; the question itself where the mark says that it is none.

    Args:
        question: as asked of every row.
        mark: what the row has in the field that `gate.canary` names: true for an answer equal to the reference, or an
            object with `equals`, `contains`, `excludes` (a text or a list of texts). Anything else can't be
            checked, and fails the gate with the row's id.
    """
    if mark is None or mark is False:
        return question
    check: AnswerCheck | None = None
    if mark is True:
        check = AnswerCheck(equals=(question.reference,))
    elif isinstance(mark, Mapping) and mark and set(mark) <= set(AnswerCheck.model_fields):
        wanted = {name: _texts(value) for name, value in mark.items()}
        if all(wanted.values()):
            check = AnswerCheck(**wanted)
    return question.model_copy(update={"purpose": "canary", "check": check})


def _texts(value: Any) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    good = isinstance(listed, list) and all(isinstance(text, str) and normalised(text) for text in listed)
    return tuple(listed) if good else ()


def fault_of(check: AnswerCheck | None, text: str | None) -> str | None:
    """Why an answer does not pass; None where it does. No text of the answer or the row is told."""
    if check is None:
        return "its mark is neither true nor an object of equals, contains and excludes"
    if text is None:
        return "no answer was generated"
    said = normalised(text)
    if check.equals and said not in map(normalised, check.equals):
        return "the answer is not the expected one"
    if check.contains and not any(_holds(said, wanted) for wanted in check.contains):
        return "the answer lacks what it must contain"
    if any(_holds(said, banned) for banned in check.excludes):
        return "the answer holds what it must not"
    return None


def _holds(said: str, wanted: str) -> bool:
    """Whether the wanted words stand in the answer, not within longer words: 'no' is not in 'know'."""
    return re.search(rf"(?<!\w){re.escape(normalised(wanted))}(?!\w)", said) is not None


def canaries_of(joined: Joined, reference: str, alpha: float) -> Canaries | None:
    """How the canaries were answered; None where there is none.

    Args:
        joined: all answers.
        reference: the variant that was there before.
        alpha: of the bound.
    """
    asked = [one for one in joined.asked if one.purpose == "canary"]
    if not asked:
        return None
    failed = [
        CanaryFailure(id=one.id, why=why)
        for one in asked
        if (why := _fault(joined, one, "candidate")) is not None
    ]
    return Canaries(
        asked=len(asked),
        failed=tuple(failed),
        failed_before=tuple(one.id for one in asked if _fault(joined, one, reference) is not None),
        upper=None if failed else float(f"{1 - alpha ** (1 / len(asked)):.10g}"),
    )


def _fault(joined: Joined, asked: Asked, variant: str) -> str | None:
    answer = joined.answers.get(variant, {}).get(asked.id)
    return "there is no answer that can be used" if answer is None else fault_of(asked.check, answer.text)


def canaries_rule(found: Canaries, alpha: float) -> Rule:
    """Every canary passes."""
    if found.failed:
        told = "; ".join(f"{one.id}: {one.why}" for one in found.failed[:LISTED])
        more = f", and {len(found.failed) - LISTED} more" if len(found.failed) > LISTED else ""
        reason = (
            f"{len(found.failed)} of {found.asked} rows that must be answered right are not ({told}{more})."
        )
    else:
        reason = (
            f"All {found.asked} rows that must be answered right are. With {confidence(alpha)} confidence fewer than "
            f"{found.upper:.2g} of such questions fail."
        )
    return Rule(
        name="canaries",
        verdict="FAIL" if found.failed else "PASS",
        n=found.asked,
        value=len(found.failed),
        upper=found.upper,
        threshold=0,
        method="exact",
        reason=reason,
    )
