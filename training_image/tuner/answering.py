"""From request lines to prediction lines: every record gets exactly one line, in the same order.

Requests overlap: the records of all that are open are worked on together. Whichever request comes first
moves the engine for all, so there is no thread that could outlive them.
"""

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from dropforge_core.contracts import EvaluationPrompt, Prediction
from tuner.adapters import Variants
from tuner.contract import Say
from tuner.conversation import NotTeachable
from tuner.engine.protocol import Completion, Engine, Question
from tuner.failure import Failure

POLL_S: Final = 0.02
"""How soon a waiting request takes over when the one that moved the engine is answered."""


@dataclass(slots=True)
class _Request:
    """One body. `predictions` are in the order of its lines, None while one is open."""

    lines: Sequence[bytes]
    predictions: list[Prediction | None]
    open: int = 0
    failure: Exception | None = None
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Open:
    """A record that the engine works on, and where its line belongs."""

    request: _Request
    place: int
    ask: EvaluationPrompt
    prompt_tokens: int


class Answerer:
    """Answers evaluation prompts of any variant with one engine; any number of threads may ask."""

    def __init__(self, variants: Variants, engine: Engine, max_new_tokens: int, say: Say) -> None:
        self._variants = variants
        self._engine = engine
        self._max_new_tokens = max_new_tokens
        self._say = say
        self._incoming: SimpleQueue[_Request] = SimpleQueue()
        self._turn = threading.Lock()
        self._tickets = itertools.count()
        self._open: dict[int, _Open] = {}

    def answer(self, body: bytes) -> bytes:
        """JSON lines of `EvaluationPrompt` to JSON lines of `Prediction`, in the same order.

        A record that can't be answered gets a line with `error`; blank lines get none.

        Raises:
            Exception: what the engine raised; the records of every open request are lost with it.
        """
        lines = [line for line in body.split(b"\n") if line.strip()]
        request = _Request(lines, [None] * len(lines))
        self._incoming.put(request)
        while not request.done.is_set():
            if self._turn.acquire(blocking=False):
                try:
                    while not request.done.is_set():
                        self._move()
                finally:
                    self._turn.release()
            else:
                request.done.wait(POLL_S)
        if request.failure is not None:
            raise request.failure
        return b"".join(
            prediction.model_dump_json(exclude_none=True).encode() + b"\n"
            for prediction in request.predictions
            if prediction is not None
        )

    def _move(self) -> None:
        """Take in what has come, and let the engine do one step. Only whoever holds the turn calls this."""
        taken: list[_Request] = []
        try:
            while True:
                try:
                    taken.append(self._incoming.get_nowait())
                except Empty:
                    break
                self._take(taken[-1])
            for completion in self._engine.step():
                self._settle(completion)
        except Exception as error:  # noqa: BLE001  # the engine's state is not known any more
            lost = {id(request): request for request in taken if not request.done.is_set()}
            lost |= {id(item.request): item.request for item in self._open.values()}
            self._open.clear()
            self._engine.reset()
            for request in lost.values():
                request.failure = error
                request.done.set()

    def _take(self, request: _Request) -> None:
        questions = []
        for place, line in enumerate(request.lines):
            read = self._read(request, place, line)
            if isinstance(read, Question):
                questions.append(read)
            else:
                request.predictions[place] = read
        request.open = len(questions)
        self._engine.submit(questions)
        if not questions:
            request.done.set()

    def _read(self, request: _Request, place: int, line: bytes) -> Question | Prediction:
        """The record's question, or the line that says what is wrong with it."""
        about: dict[str, Any] = {}
        try:
            document = msgspec.json.decode(line)
            about = document if isinstance(document, dict) else {}
            ask = EvaluationPrompt.model_validate(document)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValidationError, RecursionError) as error:
            fault = (
                "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors()[:5])
                if isinstance(error, ValidationError)
                else "the line is not JSON"
            )
            return _refuse(
                str(about.get("id", f"line-{place + 1}")), str(about.get("variant", "unknown")), fault
            )
        if ask.variant != "base" and ask.variant not in self._variants.loaded:
            why = self._variants.refused.get(ask.variant, f"no {ask.variant} is loaded")
            return _refuse(ask.id, ask.variant, why)
        codec = self._variants.codec(ask.variant)
        try:
            answer = ask.answer or {"role": "assistant", "content": ask.reference}
            taught = codec.answer(ask.messages, answer, tools=ask.tools)
            prompt = codec.prompt(ask.messages, ask.tools)
        except NotTeachable as fault:
            return _refuse(ask.id, ask.variant, str(fault))
        except Failure as failure:
            return _refuse(ask.id, ask.variant, failure.message)
        except Exception as error:  # noqa: BLE001  # a template runs on this record's text: it may raise anything
            return _refuse(ask.id, ask.variant, f"the record can't be read ({type(error).__name__})")
        ticket = next(self._tickets)
        self._open[ticket] = _Open(request, place, ask, len(prompt))
        limit = min(ask.max_new_tokens or self._max_new_tokens, self._max_new_tokens)
        return Question(ticket, ask.id, ask.variant, prompt, taught, limit if ask.generate else 0)

    def _settle(self, completion: Completion) -> None:
        item = self._open.pop(completion.ticket)
        request, ask, answer = item.request, item.ask, completion.answer
        if completion.fault is not None:
            request.predictions[item.place] = _refuse(ask.id, ask.variant, completion.fault)
        else:
            request.predictions[item.place] = Prediction(
                id=ask.id,
                variant=ask.variant,
                text=None if answer is None else self._variants.base.codec.decode(answer.tokens),
                finish_reason=None if answer is None else answer.finish_reason,
                prompt_tokens=item.prompt_tokens,
                completion_tokens=None if answer is None else len(answer.tokens),
                nll=completion.nll,
                reference_bytes=len(ask.reference.encode("utf-8", "surrogatepass")),
            )
        request.open -= 1
        if not request.open:
            self._say(f"answered={len(request.lines)}")
            request.done.set()


def _refuse(record: str, variant: str, fault: str) -> Prediction:
    return Prediction(id=record, variant=variant, error=fault)
