"""A channel's rows as tokens, by all cores of the host: rendering a chat template holds Python's lock.

Processes are forked, as data loaders fork them: they inherit the tokenizer, touch neither the GPU nor torch, and send
their examples back in the order of the rows.
"""

import ctypes
import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Final, Literal, TypeVar

from tuner.contract import Say
from tuner.conversation import ChatCodec
from tuner.data import Encoded, Example, Line, decoded, encode, lines_of
from tuner.failure import Failure, Word

WORTH_SHARING: Final = 2_000_000
"""Bytes of a channel; fewer are tokenised before the processes have started."""
CHUNK: Final = 256
"""Rows that a process takes at a time."""
PR_SET_PDEATHSIG: Final = 1
"""Of Linux' prctl(2)."""

T = TypeVar("T")
Method = Literal["sft", "dpo"]
Answer = Encoded | tuple[Word, str]
"""Of a process: examples, or the word and message of a failure."""

_inherited: list[tuple[ChatCodec, Method, int]] = []
"""What a forked process finds instead of being sent it."""


def encode_channel(  # noqa: PLR0913, PLR0917  # where from, how, and by how many
    channel: Path, codec: ChatCodec, method: Method, max_seq_len: int, say: Say, processes: int | None = None
) -> list[Example]:
    """Examples of all rows of a channel, in order; the same by one process and by many.

    Args:
        channel: with `*.jsonl` shards.
        codec: of the base model.
        method: what a row teaches.
        max_seq_len: tokens of the longest document that is allowed.
        say: told where the processes could not be used.
        processes: None takes as many as this process has cores, where the channel is worth it.

    Raises:
        Failure: as `encode_rows` and `read_rows`.
    """
    if processes is None:
        size = sum(shard.stat().st_size for shard in channel.glob("*.jsonl"))
        processes = cores() if size >= WORTH_SHARING else 1
    if processes > 1:
        try:
            return _shared(channel, (codec, method, max_seq_len), processes).whole()
        except (BrokenProcessPool, OSError) as error:
            say(f"phase=tokenising_alone {type(error).__name__}: the processes for it did not live")
    return encode(decoded(lines_of(channel)), codec, method, max_seq_len).whole()


def cores() -> int:
    """Of this process, where several of a host train together."""
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // beside)


def _shared(channel: Path, task: tuple[ChatCodec, Method, int], processes: int) -> Encoded:
    made = Encoded()
    _inherited.append(task)
    try:
        with ProcessPoolExecutor(
            processes, multiprocessing.get_context("fork"), initializer=_begin, initargs=(os.getpid(),)
        ) as pool:
            # So many at a time that all have work, and the rows of a large channel never lie here twice.
            for chunks in _by(4 * processes, _by(CHUNK, lines_of(channel))):
                for answer in pool.map(_encode, chunks):
                    if isinstance(answer, tuple):
                        raise Failure(*answer)
                    made.add(answer)
    finally:
        _inherited.clear()
    return made


def _by(size: int, items: Iterable[T]) -> Iterator[list[T]]:
    found = iter(items)
    while chunk := list(itertools.islice(found, size)):
        yield chunk


def _begin(parent: int) -> None:
    """Die with the parent, however it ends, and leave its signals to it."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _encode(lines: Sequence[Line]) -> Answer:
    (codec, method, max_seq_len) = _inherited[-1]
    try:
        return encode(decoded(lines), codec, method, max_seq_len)
    except Failure as failure:
        return failure.word, failure.message
