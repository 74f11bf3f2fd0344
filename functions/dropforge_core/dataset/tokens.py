"""How many tokens rows have under the base model: exactly where its tokenizer is at hand, else estimated.

A row surely fits where its bytes, and the most that the chat template can add to rows of its roles, are within
the limit: byte-level BPE never makes more tokens than bytes. It surely fits as well where its known words have
enough tokens fewer than bytes. All others are rendered and counted, so that the verdict is that of counting
every row. Totals come from a sample, or from all rows where the dataset is small.
"""

import json
import math
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, Self

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dropforge_core.dataset.chat_template import ChatTemplate, TemplateRefused, template_of
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.dataset.sampling import HIGHEST, Lowest
from dropforge_core.dataset.token_pieces import AddedToken, Layout, PieceCounter, replaces_spaces

__all__ = [
    "EXACT_BYTES",
    "ChatTokenizer",
    "PiecesDisagree",
    "TemplateRefused",
    "TokenCounter",
    "TokenTally",
    "load_tokenizer",
]

BYTES_PER_TOKEN: Final = 3.6
"""UTF-8 bytes of mixed English text and code per token of a vocabulary of 32k-128k; an estimate."""

SYNTAX_BYTES: Final = 30
"""JSON around one message, `{"role":"user","content":""},`; more than a template puts there in tokens."""

EXACT_BYTES: Final = 8 << 20
"""A dataset of up to so many bytes is small: all its rows are counted. About half a second by pieces, 3-4
seconds with a tokenizer that must read everything."""

SAMPLE: Final = 512
"""Different rows that are counted for the totals. Tokens per byte vary by 10-30 % from row to row, so the total's
95 % interval is 1-3 % wide either way."""

LARGEST: Final = 16
"""Rows with the most bytes that are counted for the longest one."""

HELD_BYTES: Final = 8192
"""Rows of the sample up to this size wait to be counted until the sample is known; larger ones would take
memory."""

SPOT_CHECKS: Final = 256
"""One counted row in so many is counted both ways, by its pieces and as a whole."""

_MOST_BYTES: Final = (1 << 24) - 1
"""Of a row; larger ones are as large as that in the order of sizes."""

_UNKNOWN: Final = 1 << 40
"""An excess that no limit allows."""

_ROLES: Final = re.compile(rb'\{"role":"(\w+)"').findall
"""Roles of canonical JSON, in which quotes inside texts are escaped."""

_FEWEST_SAMPLED: Final = 30
"""Rows below which a sample's own scatter says little of its error."""

_CONFIDENCE_95: Final = 1.959964
"""Quantile of the normal distribution, which fits a sample of hundreds of rows."""


class PiecesDisagree(Exception):
    """A row has another number of tokens by its pieces than as a whole: survey again with `counter.plain()`."""


class TokenCounter(Protocol):
    """The base model's tokenizer and chat template."""

    special: frozenset[str]
    """Control tokens, which text must not contain."""

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> int:
        """Tokens of a conversation as it is trained on.

        Raises:
            TemplateRefused: when the template does not accept it.
        """
        ...

    def check(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> None:
        """Count both ways where there are two.

        Raises:
            PiecesDisagree: when they differ.
        """
        ...

    def excess(self, roles: Sequence[str]) -> int | None:
        """By how much the tokens of messages of these roles may exceed the bytes of their canonical JSON.

        Usually negative, JSON being wordier than templates. None where nothing can be promised, or where the
        template refuses.
        """
        ...

    def saves(self, encoded: bytes, needed: int) -> bool:
        """Whether a row of this canonical JSON surely has so many tokens fewer than bytes; False where unknown."""
        ...

    def may_lengthen(self, encoded: bytes) -> bool:
        """Whether the normaliser may make a text of this canonical JSON longer."""
        ...

    def plain(self) -> "TokenCounter":
        """The same without counting by pieces."""
        ...


class ChatTokenizer:
    """`tokenizer.json` and the chat template, rendered as transformers does."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout, template: ChatTemplate) -> None:
        # Some published tokenizers were saved with a truncation that transformers takes off, too.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._layout = layout
        self._template = template
        self.special = _special(layout.added_tokens, template.names.values())
        try:
            self._pieces: PieceCounter | None = PieceCounter(tokenizer, layout)
        except ValueError:
            self._pieces = None
        self._bounded = _is_bounded(layout) or (self._pieces is not None and replaces_spaces(layout))
        self._prefix = int(any(step["type"] == "Metaspace" for step in layout.pre_tokenizers))
        self._composes = bool(layout.normalizers) and self._bounded and not replaces_spaces(layout)
        self._added = re.compile("|".join(re.escape(t.content) for t in layout.added_tokens) or r"(?!)")

    def __reduce__(self) -> tuple[Any, ...]:
        raw, kept = self._tokenizer.to_str(), self._template
        return _restore, (raw, kept.source, kept.names, self._pieces is not None)

    @property
    def by_pieces(self) -> bool:
        """Whether counts are sums over pieces, at some 20 times the tokenizer's own speed."""
        return self._pieces is not None

    def plain(self) -> "ChatTokenizer":
        """The same without counting by pieces."""
        made = ChatTokenizer(self._tokenizer, self._layout, self._template)
        made._pieces = None
        return made

    def count(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> int:
        """Tokens of a conversation, control tokens included.

        One message alone is plain text, which training reads between the tokens of beginning and end.
        """
        text, beside = self._text(messages, tools)
        if self._pieces is not None:
            return self._pieces.count(text) + beside
        return len(self._tokenizer.encode(text, add_special_tokens=False)) + beside

    def check(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> None:
        """Count a conversation both ways.

        Raises:
            PiecesDisagree: when they differ.
        """
        if self._pieces is None:
            return
        text, _ = self._text(messages, tools)
        by_pieces, whole = self._pieces.count(text), self._pieces.whole(text)
        if by_pieces != whole:
            raise PiecesDisagree(f"{by_pieces} tokens by pieces, {whole} as a whole")

    def _text(self, messages: Sequence[Mapping[str, Any]], tools: Any) -> tuple[str, int]:
        """What the tokenizer reads of a conversation, and the tokens beside it."""
        if len(messages) == 1:
            return messages[0].get("content") or "", 2
        listed = [tools] if isinstance(tools, Mapping) else tools or ()
        shown = [tool for tool in listed if isinstance(tool, Mapping)]
        return self._template.render([_without_weight(m) for m in messages], shown or None), 0

    def excess(self, roles: Sequence[str]) -> int | None:
        """See `TokenCounter.excess`.

        The template is tried on messages of these roles. What it writes beside their texts is taken for what
        it writes beside any: bytes, with one for each control token. A template that leaves a text out, changes
        it or writes it twice makes no promise.
        """
        if not self._bounded:
            return None
        messages = [{"role": role, "content": f"x{at}x<&>'\"\\ß\n{at}"} for at, role in enumerate(roles)]
        syntax = len(msgspec.json.encode(messages)) - sum(
            len(msgspec.json.encode(message["content"])) for message in messages
        )
        if len(messages) == 1:
            return 2 + self._prefix - syntax
        try:
            text = self._template.render(messages)
        except TemplateRefused:
            return None
        for message in messages:
            if text.count(message["content"]) != 1:
                return None
            text = text.replace(message["content"], "")
        if self._composes and not unicodedata.is_normalized("NFC", text):
            return None
        between, parts = self._added.subn("", text)
        return len(between.encode()) + parts + self._prefix * (parts + 1) - syntax

    def saves(self, encoded: bytes, needed: int) -> bool:
        """See `TokenCounter.saves`."""
        return self._pieces is not None and self._pieces.saves(encoded, needed)

    def may_lengthen(self, encoded: bytes) -> bool:
        """NFC writes some characters with up to three times their bytes (UAX #15, composition exclusions)."""
        if not self._composes or encoded.isascii():
            return False
        return not unicodedata.is_normalized("NFC", encoded.decode())


def load_tokenizer(
    tokenizer_json: bytes, tokenizer_config: bytes, template: str | None = None
) -> ChatTokenizer | None:
    """A counter, or None where the model has no chat template (then token counts stay estimates).

    `template` is the text of `chat_template.jinja`, which newer models keep in a file of its own.

    Raises:
        ValueError: where the files are no tokenizer.
    """
    config = json.loads(tokenizer_config)
    source = template or template_of(config)
    if not source:
        return None
    names = {
        name: str(token.get("content") if isinstance(token, Mapping) else token)
        for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
        if (token := config.get(name)) is not None
    }
    try:
        tokenizer = Tokenizer.from_buffer(tokenizer_json)
    except Exception as error:  # noqa: BLE001  # the library raises nothing more exact
        raise ValueError(f"the tokenizer can't be used: {error}") from None
    layout = msgspec.json.decode(tokenizer_json, type=Layout)
    return ChatTokenizer(tokenizer, layout, ChatTemplate(source, names))


def _restore(raw: str, source: str, names: Mapping[str, str], by_pieces: bool) -> ChatTokenizer:
    layout = msgspec.json.decode(raw, type=Layout)
    made = ChatTokenizer(Tokenizer.from_str(raw), layout, ChatTemplate(source, names))
    return made if by_pieces else made.plain()


def _without_weight(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if "weight" not in message:
        return message
    return {name: value for name, value in message.items() if name != "weight"}


def _special(added: Iterable[AddedToken], names: Iterable[str]) -> frozenset[str]:
    """Control tokens, and those that the configuration gives a part, whether it calls them special or not."""
    named = set(names)
    return frozenset(
        token.content
        for token in added
        if (token.special or token.content in named)
        and len(token.content) >= 3
        and not token.content.isspace()
    )


def _is_bounded(layout: Layout) -> bool:
    """Whether a text in NFC never has more tokens than UTF-8 bytes: byte-level BPE that puts nothing before it."""
    steps = layout.pre_tokenizers
    return (
        layout.model.type == "BPE"
        and any(step["type"] == "ByteLevel" for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and all(step["type"] == "NFC" for step in layout.normalizers)
    )


class Rows(Protocol):
    """Valid rows that follow one another, as `rows.columns.RowBlock` has them."""

    @property
    def encoded(self) -> Sequence[bytes]: ...
    def sizes(self) -> NDArray[np.int64]: ...
    def metas(self) -> Sequence[bytes]: ...
    def row(self, index: int) -> Canonical: ...
    def without(self, indices: Collection[int]) -> Self: ...
    def __len__(self) -> int: ...


class Sampled(msgspec.Struct, array_like=True):
    """A row that surely fits, as often as it occurs."""

    times: int
    size: int
    """Bytes."""
    tokens: int = -1
    """-1 as long as it was not counted."""


class TallyState(msgspec.Struct):
    """What a tally has taken, as plain values for another process."""

    limit: int | None
    by_tokenizer: bool
    rows: int = 0
    bytes: int = 0
    counted_rows: int = 0
    """Of all that were counted one by one."""
    counted_bytes: int = 0
    counted_tokens: int = 0
    longest: int = 0
    """Most tokens of those and of the rows that are too long, or the highest estimate."""
    bound: int = HIGHEST
    sample: dict[int, Sampled] = {}
    """By digest."""
    largest_bound: int = HIGHEST
    largest: dict[int, Sampled] = {}
    """The rows with the most bytes."""


class _Sample:
    """Rows of which some are kept until it is known which of them are to be counted."""

    def __init__(self, size: int, bound: int = HIGHEST) -> None:
        self.lowest: Lowest[Sampled] = Lowest(size, bound)
        self._held: dict[int, Canonical] = {}
        """Rows that were not counted yet."""

    def take(
        self, counter: TokenCounter, rows: Rows, sizes: NDArray[np.int64], keys: NDArray[np.uint64]
    ) -> None:
        """Note those rows of a block that have the lowest keys."""
        if len(self._held) > 4 * self.lowest.size:
            self.lowest.settle()
            self._held = {key: row for key, row in self._held.items() if key in self.lowest.entries}
        for index in self.lowest.wanted(keys):
            key, size = int(keys[index]), int(sizes[index])
            known = self.lowest.entries.get(key)
            if known is not None:
                known.times += 1
                continue
            entry = self.lowest.entries[key] = Sampled(1, size)
            if size <= HELD_BYTES:
                self._held[key] = rows.row(index)
            else:
                entry.tokens = _count_sampled(counter, key, rows.row(index), size)

    def settle(self, counter: TokenCounter | None) -> None:
        """Count what is held."""
        self.lowest.settle()
        for key, entry in self.lowest.entries.items():
            if entry.tokens < 0 and counter is not None:
                entry.tokens = _count_sampled(counter, key, self._held[key], entry.size)
        self._held.clear()

    def add(self, bound: int, entries: Mapping[int, Sampled]) -> None:
        """Take another sample's entries; both are settled."""
        self.lowest.lower(bound)
        for key, one in entries.items():
            if key > self.lowest.bound:
                continue
            known = self.lowest.entries.get(key)
            if known is None:
                self.lowest.entries[key] = msgspec.structs.replace(one)
            else:
                known.times += one.times
        self.lowest.settle()

    def entries(self) -> dict[int, Sampled]:
        """In the order of their keys."""
        return {key: self.lowest.entries[key] for key in sorted(self.lowest.entries)}


class TokenTally:
    """The verdict on each row's length, and totals with how sure they are. Those of parts can be merged.

    Args:
        limit: tokens that a row may have; None for no limit.
        counter: the base model's; None estimates.
        count_all: whether every row is counted, or only those in doubt and a sample.
        bound: of the sample, see `sampling.bound_for`; the same for all parts of a dataset.
        keeps_long: whether rows that are too long are among those that the totals are of.
    """

    def __init__(
        self,
        limit: int | None,
        counter: TokenCounter | None,
        *,
        count_all: bool,
        bound: int = HIGHEST,
        keeps_long: bool = True,
    ) -> None:
        self._limit = limit
        self._counter = counter
        self._count_all = count_all
        self._keeps_long = keeps_long
        self._taken = TallyState(limit, counter is not None)
        self._sample = _Sample(SAMPLE, bound)
        self._largest = _Sample(LARGEST)
        self._excess: dict[tuple[bytes, ...], int] = {}

    def check(self, rows: Rows, digests: NDArray[np.uint64] | None = None) -> list[tuple[int, Fault]]:
        """Take the rows of a block.

        Args:
            rows: in any order; the tally is the same.
            digests: XXH3 (64 bits) of each row's `encoded`; made here where they are not given.

        Returns:
            The place in the block of each row with something wrong with its length, and what.

        Raises:
            PiecesDisagree: when counting by pieces was wrong for a row; then other counts may be wrong, too.
        """
        if not len(rows):
            return []
        sizes = rows.sizes()
        if self._counter is None:
            self._taken.rows += len(rows)
            self._taken.bytes += int(sizes.sum())
            return self._estimate_all(rows, sizes)
        if digests is None:
            digests = np.fromiter(map(xxhash.xxh3_64_intdigest, rows.encoded), np.uint64, len(rows))
        doubtful = range(len(rows)) if self._count_all else self._in_doubt(self._counter, rows, sizes)
        faults = []
        kept = np.ones(len(rows), np.bool_)
        for index in doubtful:
            spot = int(digests[index]) % SPOT_CHECKS == 0
            fault, tokens = self._judge(self._counter, rows.row(index), spot=spot)
            if fault is not None:
                faults.append((index, fault))
                kept[index] = self._keeps_long and fault.code == "OVER_LENGTH"
            if self._count_all and kept[index]:
                self._taken.counted_rows += 1
                self._taken.counted_bytes += int(sizes[index])
                self._taken.counted_tokens += tokens
        self._taken.rows += int(kept.sum())
        self._taken.bytes += int(sizes[kept].sum())
        if not self._count_all:
            self._take_samples(self._counter, rows, sizes, digests, kept)
        return faults

    def _judge(self, counter: TokenCounter, row: Canonical, *, spot: bool) -> tuple[Fault | None, int]:
        """What is wrong with a row's length, and its tokens."""
        try:
            tokens = _count(counter, row, spot=spot)
        except TemplateRefused as refused:
            found = f"a refusal of the template: {ascii(str(refused))[1:-1]}"
            return Fault("TEMPLATE_REFUSED", "", found), 0
        too_long = self._limit is not None and tokens > self._limit
        if too_long or self._count_all:
            # Which others are counted depends on which words are known, and is not told.
            self._taken.longest = max(self._taken.longest, tokens)
        if not too_long:
            return None, tokens
        return Fault("OVER_LENGTH", "", f"{tokens:,} tokens", f"at most {self._limit:,}"), tokens

    def _in_doubt(self, counter: TokenCounter, rows: Rows, sizes: NDArray[np.int64]) -> list[int]:
        """Places of the rows that may be too long, or may be refused by the template."""
        excess = self._excess
        roles = [tuple(_ROLES(encoded)) for encoded in rows.encoded]
        for missing in {*roles}.difference(excess):
            excess[missing] = _excess_of(counter, missing)
        added = np.fromiter(map(excess.__getitem__, roles), np.int64, len(roles))
        # What a template makes of tools is no matter of roles, nor is what a normaliser makes of a text.
        doubt = added == _UNKNOWN
        for index in np.flatnonzero(~doubt).tolist():
            encoded = rows.encoded[index]
            if b'"tool_call' in encoded or counter.may_lengthen(encoded):
                doubt[index] = True
        for index, meta in enumerate(rows.metas()):
            if meta and b'"tools":' in meta:
                doubt[index] = True
        if self._limit is not None:
            beyond = sizes + added - self._limit
            for index in np.flatnonzero((beyond > 0) & ~doubt).tolist():
                doubt[index] = not counter.saves(rows.encoded[index], int(beyond[index]))
        found: list[int] = np.flatnonzero(doubt).tolist()
        return found

    def _take_samples(
        self,
        counter: TokenCounter,
        rows: Rows,
        sizes: NDArray[np.int64],
        digests: NDArray[np.uint64],
        kept: NDArray[np.bool_],
    ) -> None:
        if not kept.all():
            rows = rows.without(np.flatnonzero(~kept).tolist())
            sizes, digests = sizes[kept], digests[kept]
        self._sample.take(counter, rows, sizes, digests)
        smallest_first = np.uint64(_MOST_BYTES) - np.minimum(sizes, _MOST_BYTES).astype(np.uint64)
        self._largest.take(counter, rows, sizes, smallest_first << np.uint64(40) | digests >> np.uint64(24))

    def _settle(self) -> None:
        """Count what the samples hold."""
        self._sample.settle(self._counter)
        self._largest.settle(self._counter)

    @staticmethod
    def estimate(size: int, messages: int) -> int:
        """Tokens of a row of `size` bytes of JSON."""
        return int((size - SYNTAX_BYTES * messages) / BYTES_PER_TOKEN) + 5 * messages + 1

    @staticmethod
    def _size_of(tokens: float) -> float:
        """Fewest bytes of a row that may be estimated at more than so many tokens."""
        return (tokens - 6) * BYTES_PER_TOKEN

    def _estimate_all(self, rows: Rows, sizes: NDArray[np.int64]) -> list[tuple[int, Fault]]:
        faults = []
        limit = math.inf if self._limit is None else self._limit
        # More messages make the estimate lower, so one message gives the most that a row can have.
        large = np.flatnonzero(sizes >= self._size_of(min(self._taken.longest, limit)))
        for index in large[np.argsort(-sizes[large], kind="stable")].tolist():
            encoded = rows.encoded[index]
            most = self.estimate(len(encoded), 1)
            if most <= self._taken.longest and most <= limit:
                break
            tokens = self.estimate(len(encoded), encoded.count(b'{"role":"'))
            self._taken.longest = max(self._taken.longest, tokens)
            if tokens > limit:
                found = f"about {tokens:,} tokens"
                faults.append((index, Fault("OVER_LENGTH_ESTIMATED", "", found, f"at most {self._limit:,}")))
        return sorted(faults, key=lambda found: found[0])

    def state(self) -> TallyState:
        """What another process needs of this tally. MessagePack and JSON take it as it is."""
        self._settle()
        return msgspec.structs.replace(
            self._taken,
            bound=self._sample.lowest.bound,
            sample=self._sample.entries(),
            largest_bound=self._largest.lowest.bound,
            largest=self._largest.entries(),
        )

    @classmethod
    def from_state(cls, state: TallyState) -> "TokenTally":
        """A tally that can be merged and asked, but takes no more rows."""
        made = cls(state.limit, None, count_all=False)
        made._taken.by_tokenizer = state.by_tokenizer
        made._add(state)
        return made

    def merge(self, other: "TokenTally") -> None:
        """Take what another tally took: the same as if this one had taken those rows itself."""
        self._settle()
        self._add(other.state())

    def _add(self, state: TallyState) -> None:
        mine = self._taken
        mine.rows += state.rows
        mine.bytes += state.bytes
        mine.counted_rows += state.counted_rows
        mine.counted_bytes += state.counted_bytes
        mine.counted_tokens += state.counted_tokens
        mine.longest = max(mine.longest, state.longest)
        self._sample.add(state.bound, state.sample)
        self._largest.add(state.largest_bound, state.largest)

    @property
    def exact(self) -> bool:
        """Whether every row was counted."""
        taken = self._taken
        return taken.by_tokenizer and (self._sample.lowest.has_all or taken.counted_rows == taken.rows)

    @property
    def longest(self) -> int:
        """Most tokens of a row that was counted, or the highest estimate.

        Counted are the rows that are too long, those with the most bytes, and those of the sample.
        """
        self._settle()
        counted = (*self._sample.lowest.entries.values(), *self._largest.lowest.entries.values())
        return max(self._taken.longest, max((one.tokens for one in counted), default=0))

    def total(self, size: int | None = None, rows: int | None = None, messages: int = 3) -> int:
        """Tokens of rows of so many bytes together, at the rate of all rows."""
        taken = self._taken
        size = taken.bytes if size is None else size
        if not taken.by_tokenizer:
            return self.estimate(size, messages * (taken.rows if rows is None else rows)) if size else 0
        if not taken.bytes:
            return 0
        rate, _ = self._rate()
        all_tokens = taken.counted_tokens + rate * (taken.bytes - taken.counted_bytes)
        return round(size * all_tokens / taken.bytes)

    @property
    def error(self) -> float | None:
        """Half of the total's 95 % interval, as a share of the total; None where nothing is known of the error."""
        total, margin = self.total(), self._margin()
        if margin is None:
            return None
        return margin / total if total else 0.0

    def _margin(self) -> int | None:
        """Half of the total's 95 % interval, in tokens."""
        error = self._rate()[1] if self._taken.by_tokenizer else None
        if error is None:
            return None
        return round(_CONFIDENCE_95 * error * (self._taken.bytes - self._taken.counted_bytes))

    def _rate(self) -> tuple[float, float | None]:
        """Tokens per byte of the rows that surely fit, and its standard error, None where it is not known.

        The ratio estimator over clusters, a cluster being a row as often as it occurs, with the finite
        population correction by bytes (Cochran, Sampling Techniques, 3rd ed., 1977, section 6.4).
        """
        self._settle()
        taken = self._taken
        if taken.rows == taken.counted_rows:
            return 0.0, 0.0
        found = np.array(
            [(one.times * one.size, one.times * one.tokens) for one in self._sample.lowest.entries.values()],
            dtype=np.float64,
        ).reshape(-1, 2)
        size, tokens = found.sum(axis=0)
        if not size:
            counted = taken.counted_tokens / taken.counted_bytes if taken.counted_bytes else 0.0
            return counted or 1 / BYTES_PER_TOKEN, None
        rate, n = float(tokens / size), len(found)
        if self._sample.lowest.has_all:
            return rate, 0.0
        if n < _FEWEST_SAMPLED:
            return rate, None
        rest = max(0.0, 1 - size / (taken.bytes - taken.counted_bytes))
        residuals = found[:, 1] - rate * found[:, 0]
        return rate, float(np.sqrt(rest * n / (n - 1) * (residuals**2).sum()) / size)

    def summary(self) -> dict[str, Any]:
        """What the report says.

        `interval` is where the total lies with 95 % confidence: the total itself where all rows were counted,
        None where nothing is known of the error, as without a tokenizer.
        """
        total, margin = self.total(), self._margin()
        interval = None if margin is None else [total - margin, total + margin]
        sampled = sum(one.times for one in self._sample.lowest.entries.values())
        return {
            "total": total,
            "interval": interval,
            "exact": self.exact,
            "rows_counted": self._taken.counted_rows + sampled,
            "longest": self.longest,
            "limit": self._limit,
            "method": "the base model's tokenizer and chat template"
            if self._taken.by_tokenizer
            else f"estimate at {BYTES_PER_TOKEN} bytes a token",
        }


def _count(counter: TokenCounter, row: Canonical, *, spot: bool) -> int:
    """Tokens of a row; of a pair, of its longer side."""
    tools = row.meta.get("tools")
    if spot:
        counter.check(row.messages, tools)
    tokens = counter.count(row.messages, tools)
    if row.rejected is not None:
        tokens = max(tokens, counter.count([*row.prompt, row.rejected], tools))
    return tokens


def _count_sampled(counter: TokenCounter, key: int, row: Canonical, size: int) -> int:
    try:
        return _count(counter, row, spot=key % SPOT_CHECKS == 0)
    except TemplateRefused:
        # The template took other rows of these roles, so it looked at the text. What fits and is refused for
        # its text is found in small datasets only.
        return TokenTally.estimate(size, len(row.messages))


def _excess_of(counter: TokenCounter, roles: tuple[bytes, ...]) -> int:
    # Two answers at the end are the two sides of a pair: either stands behind the prompt alone.
    kept = roles[:-1] if roles[-2:] == (b"assistant", b"assistant") else roles
    found = counter.excess([role.decode() for role in kept])
    return _UNKNOWN if found is None else found
