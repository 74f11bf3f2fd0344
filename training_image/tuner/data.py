"""Reading canonical rows from a channel into examples."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec

from tuner.conversation import ChatCodec, Document, NotTeachable, tools_of
from tuner.failure import Failure

SHOWN_IDS: Final = 10


class Row(msgspec.Struct, frozen=True):
    """One canonical row."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    chosen: str | Mapping[str, Any] | None = None
    """Preference rows only: the better answer, as text or message; `messages` may end in it."""
    rejected: str | Mapping[str, Any] | None = None
    meta: Mapping[str, Any] = {}
    """`tools` of it are shown to the chat template."""


@dataclass(frozen=True, slots=True)
class Example:
    """What one row teaches: its documents; for preferences exactly (chosen, rejected)."""

    id: str
    documents: tuple[Document, ...]

    @property
    def length(self) -> int:
        """Tokens of all its documents."""
        return sum(document.length for document in self.documents)


def read_rows(channel: Path) -> Iterator[Row]:
    """Rows of all `*.jsonl` shards, in the order of their names.

    Raises:
        Failure: BAD_DATA with file and line.
    """
    return decoded(lines_of(channel))


class Line(NamedTuple):
    """One line of a shard, not read yet."""

    shard: str
    number: int
    content: bytes


def lines_of(channel: Path) -> Iterator[Line]:
    """Lines of all `*.jsonl` shards that are not empty, in the order of their names."""
    for shard in sorted(channel.glob("*.jsonl")):
        with shard.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Line(shard.name, number, line)


def decoded(lines: Iterable[Line]) -> Iterator[Row]:
    """Rows of the lines.

    Raises:
        Failure: BAD_DATA with file and line.
    """
    decoder = msgspec.json.Decoder(Row)
    for shard, number, content in lines:
        try:
            yield decoder.decode(content)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            # A message of msgspec names a type and a path, never a value; the other quotes bytes.
            told = error if isinstance(error, msgspec.MsgspecError) else "not UTF-8"
            raise Failure("BAD_DATA", f"{shard}, line {number}: {told}") from None


@dataclass(slots=True)
class Encoded:
    """Some rows as examples, and the ids of those that are none, by what is wrong with them."""

    examples: list[Example] = field(default_factory=list)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, others: Self) -> None:
        self.examples += others.examples
        for fault, ids in others.faults.items():
            self.faults.setdefault(fault, []).extend(ids)

    def whole(self) -> list[Example]:
        """The examples.

        Raises:
            Failure: BAD_DATA naming the first rows that can't be taught, by id.
        """
        if self.faults:
            told = "; ".join(
                f"{len(ids)} rows: {fault} ({', '.join(ids[:SHOWN_IDS])})"
                for fault, ids in self.faults.items()
            )
            raise Failure("BAD_DATA", told)
        return self.examples


def encode_rows(
    rows: Iterable[Row], codec: ChatCodec, method: Literal["sft", "dpo"], max_seq_len: int
) -> list[Example]:
    """Examples of the rows, in order. Nothing is truncated.

    Raises:
        Failure: BAD_DATA naming the first rows that can't be taught, by id; BASE_MODEL where the tokenizer
            has no chat template or is not the model's.
    """
    return encode(rows, codec, method, max_seq_len).whole()


def encode(rows: Iterable[Row], codec: ChatCodec, method: Literal["sft", "dpo"], max_seq_len: int) -> Encoded:
    """The rows as examples and faults, in order.

    Raises:
        Failure: BASE_MODEL where the tokenizer has no chat template or is not the model's.
    """
    made = Encoded()
    for row in rows:
        try:
            documents = _documents(row, codec, method)
        except NotTeachable as fault:
            made.faults.setdefault(str(fault), []).append(row.id)
            continue
        longest = max(document.length for document in documents)
        if longest > max_seq_len:
            made.faults.setdefault(f"longer than max_seq_len = {max_seq_len} tokens", []).append(row.id)
            continue
        made.examples.append(Example(row.id, documents))
    return made


def _documents(row: Row, codec: ChatCodec, method: Literal["sft", "dpo"]) -> tuple[Document, ...]:
    tools = tools_of(row.meta)
    if method == "sft":
        return codec.conversation(row.messages, tools)
    if row.chosen is None or row.rejected is None:
        raise NotTeachable("method dpo needs 'chosen' and 'rejected', the row has none")
    answered = bool(row.messages) and row.messages[-1].get("role") == "assistant"
    prompt = row.messages[:-1] if answered else row.messages
    chosen, rejected = (
        codec.answer(
            prompt, {"role": "assistant", "content": said} if isinstance(said, str) else said, tools=tools
        )
        for said in (row.chosen, row.rejected)
    )
    return chosen, rejected
