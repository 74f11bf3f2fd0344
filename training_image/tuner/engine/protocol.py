"""What the evaluation server asks of whatever generates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tuner.conversation import Document
from tuner.generation import Answer


@dataclass(frozen=True, slots=True)
class Question:
    """One record for one variant.

    Attributes:
        ticket: of the asker, unlike any other that is open; the completion carries it.
        record: id of the row. Sampling is seeded by it, so an answer depends on no other record.
        prompt: tokens.
        document: prompt and reference, whose likelihood is measured; None where that is not wanted.
        max_new_tokens: of the answer, at most; 0 where none is wanted.
    """

    ticket: int
    record: str
    variant: str
    prompt: Sequence[int]
    document: Document | None
    max_new_tokens: int

    @property
    def generate(self) -> bool:
        return self.max_new_tokens > 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of a question.

    Attributes:
        nll: negative log likelihood of the reference, natural log, summed over its tokens; None where none was wanted.
        answer: None where none was wanted.
        fault: why there is neither.
    """

    ticket: int
    nll: float | None = None
    answer: Answer | None = None
    fault: str | None = None


class Engine(Protocol):
    """Works on all submitted questions together. One thread at a time may call it."""

    def submit(self, questions: Sequence[Question]) -> None:
        """Take questions of any variant. Those of one call are answered before those of later ones are begun."""

    def step(self) -> Sequence[Completion]:
        """Do a bounded piece of work, and hand back what it completed; each question exactly once."""

    def reset(self) -> None:
        """Forget every open question."""
