"""The batch transform's input: every question for every variant, in shards of a bounded size."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from dropforge_core.contracts import EvaluationPrompt
from dropforge_core.evaluation.rows import Question

Variant = Literal["base", "champion", "candidate"]

GENERAL_ASKED: Final[tuple[Variant, ...]] = ("base", "candidate")
"""Who is asked general questions; all others are asked of every variant."""

PAYLOAD_MB: Final = 4
"""MaxPayloadInMB: room for the largest row alone, whose answer may stand in its line twice. With MultiRecord a request is
as many lines of a shard as fit, so what bounds requests is `SHARD_BYTES`."""
CONCURRENT_REQUESTS: Final = 2
"""InstanceCount times MaxConcurrentTransforms: requests that are answered at the same time."""
SHARD_BYTES: Final = 500_000
"""A shard is one request, and small, so that requests overlap; only one row alone may be larger."""
SHARD_PROMPTS: Final = 64
SHARD_NEW_TOKENS: Final = 32_768
"""Most tokens that one request may have to generate: a request must end within its time limit."""


class Shard(NamedTuple):
    name: str
    body: bytes
    prompts: int


def generated_ids(ids: Iterable[str], at_most: int) -> frozenset[str]:
    """The rows that are answered by generation: those of the smallest sha256 of their id.

    The choice depends on the ids alone, not on their order, and adding rows changes it least.
    """
    return frozenset(
        heapq.nsmallest(at_most, ids, key=lambda row_id: hashlib.sha256(row_id.encode()).digest())
    )


def shard_length(max_new_tokens: int, rows: int) -> int:
    """How many prompts one request carries, at most `SHARD_PROMPTS` and what may be generated in time.

    A variant's shards are equally long, and as many as there are requests at the same time, or more: a file is
    the unit that instances and requests share. Below 8 rows it is one, since batches gain more.

    Args:
        max_new_tokens: per answer.
        rows: that each variant is asked.
    """
    most = max(4, min(SHARD_PROMPTS, SHARD_NEW_TOKENS // max_new_tokens))
    least = CONCURRENT_REQUESTS if rows >= 4 * CONCURRENT_REQUESTS else 1
    return max(1, -(-rows // max(least, -(-rows // most))))


def shards(
    questions: Iterable[tuple[str, Question]],
    variants: Sequence[Variant],
    generated: frozenset[str],
    length: int,
) -> Iterator[Shard]:
    """Shards `<variant>-00000.jsonl` and so on, each of one variant, so that a request needs one adapter.

    The same rows give the same shards whatever the other variants are: writing them again changes nothing.

    Args:
        questions: (row id, question) in the dataset's order.
        variants: who answers.
        generated: ids that are answered by generation; the likelihood is measured on all.
        length: prompts of a shard, at most; fewer where they are long.
    """
    pending: dict[Variant, list[bytes]] = {variant: [] for variant in variants}
    sizes = dict.fromkeys(variants, 0)
    written = dict.fromkeys(variants, 0)

    def flush(variant: Variant) -> Shard:
        shard = Shard(
            f"{variant}-{written[variant]:05d}.jsonl",
            b"".join(pending[variant]),
            len(pending[variant]),
        )
        pending[variant], sizes[variant] = [], 0
        written[variant] += 1
        return shard

    for row_id, question in questions:
        for variant in variants:
            prompt = EvaluationPrompt(
                id=row_id,
                variant=variant,
                messages=question.messages,
                tools=question.tools,
                reference=question.reference,
                answer=question.answer,
                generate=(row_id in generated or question.purpose == "canary") and bool(question.messages),
                purpose=question.purpose,
                check=question.check,
            )
            line = prompt.model_dump_json().encode() + b"\n"
            if pending[variant] and (
                sizes[variant] + len(line) > SHARD_BYTES or len(pending[variant]) >= length
            ):
                yield flush(variant)
            pending[variant].append(line)
            sizes[variant] += len(line)
    for variant in variants:
        if pending[variant]:
            yield flush(variant)
