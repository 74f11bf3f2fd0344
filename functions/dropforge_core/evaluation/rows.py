"""Held-out rows as questions: the conversation up to the answer, and the answer that is expected."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from dropforge_core.contracts import AnswerCheck
from dropforge_core.model import Frozen


class HoldoutRow(msgspec.Struct):
    """A canonical row of `dataset/eval/`.

    Of a preference pair `messages` end in the chosen answer; a plain text is one assistant message.
    """

    id: str
    messages: list[dict[str, Any]]
    meta: dict[str, Any] = {}
    rejected: str | dict[str, Any] | None = None
    """Of a preference pair the answer that people did not want."""


class Question(Frozen):
    """What every variant is asked about one row."""

    messages: tuple[Mapping[str, Any], ...]
    """The conversation up to the answer; empty for plain text, which is measured and never generated."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Definitions of the tools that the row names in its `meta`."""
    reference: str
    """Never empty."""
    answer: Mapping[str, Any] | None = None
    """The answer's message where it calls tools: its text is then what the chat template makes of it."""
    purpose: Literal["holdout", "canary"] = "holdout"
    check: AnswerCheck | None = None
    """What a canary's answer must be."""


class HoldoutBroken(ValueError):
    """The hold-out is not what validation wrote: it was changed, or another version wrote it."""


_decode = msgspec.json.Decoder(HoldoutRow).decode


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a stream of chunks, without their ends; blank lines are left out. Linear in the bytes."""
    pending: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        pending.append(first)
        for piece in rest:
            if line := b"".join(pending).strip():
                yield line
            pending = [piece]
    if line := b"".join(pending).strip():
        yield line


def holdout_rows(found: Iterable[bytes]) -> Iterator[HoldoutRow]:
    """Rows of the hold-out's lines. The same row twice counts once: a duplicate is no second observation.

    Raises:
        HoldoutBroken: for a line that is no row, or two different rows of one id.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(found, start=1):
        try:
            row = _decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HoldoutBroken(
                f"line {number} of the hold-out is no canonical row ({error}). Validate the dataset again."
            ) from error
        content = hash(line)
        if row.id in seen:
            if seen[row.id] != content:
                raise HoldoutBroken(
                    f"line {number} of the hold-out repeats the id {row.id!r} with other content. "
                    "Validate the dataset again."
                )
            continue
        seen[row.id] = content
        yield row


def question_of(row: HoldoutRow) -> Question | None:
    """The row's question, or None where there is no answer to compare with.

    The reference is the last assistant turn that counts (weight other than 0); what follows it is left
    out. An answer that is a tool call is compared as the compact JSON of its calls.
    """
    for index in range(len(row.messages) - 1, -1, -1):
        message = row.messages[index]
        if message.get("role") == "assistant" and message.get("weight") != 0:
            reference = _answer_text(message)
            if reference.strip():
                return Question(
                    messages=_shown(row.messages[:index]),
                    tools=_tools(row.meta),
                    reference=reference,
                    answer=_shown([message])[0] if message.get("tool_calls") else None,
                )
    return None


def rejected_question_of(row: HoldoutRow, question: Question) -> Question | None:
    """The row's question with the rejected answer as its reference; None where it has none."""
    if row.rejected is None:
        return None
    message = (
        {"role": "assistant", "content": row.rejected} if isinstance(row.rejected, str) else row.rejected
    )
    reference = _answer_text(message)
    if not reference.strip():
        return None
    answer = _shown([message])[0] if message.get("tool_calls") else None
    return question.model_copy(update={"reference": reference, "answer": answer})


def _shown(messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """Messages without the training weight, which is no part of a conversation."""
    return tuple(
        {key: value for key, value in message.items() if key != "weight" and value is not None}
        for message in messages
    )


def _tools(meta: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    tools = meta.get("tools") or ()
    listed = [tools] if isinstance(tools, Mapping) else tools
    return tuple(tool for tool in listed if isinstance(tool, Mapping))


def _answer_text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    if content:
        return str(content)
    calls = message.get("tool_calls")
    return (
        json.dumps(calls, ensure_ascii=False, separators=(",", ":"), sort_keys=True, default=str)
        if calls
        else ""
    )
