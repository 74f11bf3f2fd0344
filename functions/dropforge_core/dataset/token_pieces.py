r"""How many tokens a text has, exactly, without giving all of it to the tokenizer.

A tokenizer reads 2-3 MB/s. Text repeats its words, so most of it can be counted by looking up words that the
tokenizer has counted before. That is exact only where the text is cut at places that no token ever covers.

Where a text may be cut. Call a space *single* when neither neighbour is white space (as `str.isspace` has it,
which is wider than Unicode's White_Space, so fewer cuts). The text is cut before single spaces. Each step of
the pipeline must then give the same for the whole as for the pieces one by one:

1. Added tokens are found before anything else, leftmost first and of those the longest. None may reach over a
   cut: no content has a single space inside or at its end, and none has `lstrip`, `rstrip` or `single_word`,
   which look beyond it.
2. The normaliser is NFC or nothing. U+0020 is a starter that composes with nothing before it, so NFC of a
   whole is NFC of its pieces (UAX #15, section 9: boundaries of normalisation).
3. The pre-tokenisers, in their order, are
   a. any number that only part runs of one class of characters from the rest (Digits, Punctuation, and the
      patterns of `RUNS`): they look at nothing but the run;
   b. then one of `WORDS`. All these patterns look ahead by one character at most and never behind; a match
      that has taken a character other than white space takes no space after it; and the look-ahead
      `\s+(?!\S)` is asked inside a run of white space only, which a piece never parts. So a match ends
      before every single space, and the matches on both sides are those of the pieces;
   c. then whatever works on one pre-token at a time (ByteLevel, Digits, Punctuation, Split).
4. BPE works on one pre-token at a time, without dropout. `ignore_merges` and byte fallback change nothing.
5. Nothing is added, cut off or padded at the end: `add_special_tokens=False`, truncation and padding off.

Tokenizers of SentencePiece's kind turn spaces into U+2581 and have no pre-tokeniser, so step 3 does not cut.
There the vocabulary does: BPE can't join over a place where no token of the vocabulary has U+2581 behind
another character. That is looked up, token by token. A text that has U+2581 itself is not cut.

Where no count is wanted but only whether a row fits, looking up words is enough (`PieceCounter.saves`): bytes are
the most that a text can have in tokens, and each known word between two spaces has that many fewer as it has
tokens fewer than bytes. What is not known stays with its bytes.

What is new is cut once more where the family's patterns always end a match (`_Family.inner`), and around added
tokens, so that `today,` and `today.` cost one word between them. All that is new in a text goes to the tokenizer
in one call, parted by an added token: what lies between two of them is a text of its own.

Anything else, such as an unknown pattern, a normaliser that prepends or lower-cases, or another model than
BPE, is counted as a whole. docs/adr/0007-exact-counts-by-the-word.md has the measurements.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NamedTuple

import msgspec
from tokenizers import Tokenizer

MOST_PIECES: Final = 1 << 18
"""Pieces remembered at a time: about 35 MB. When there are more, all are forgotten: those that recur are back
within a few rows."""

LONGEST_PIECE: Final = 48
"""Characters; longer pieces hardly recur."""

STRETCH: Final = 1 << 20
"""Characters over which is watched whether pieces recur."""

RETRY: Final = 32
"""Where they don't, one text in so many is still counted by its pieces."""

_NOT_A_PIECE: Final = 1 << 40
"""What a word counts for that is no piece, because white space stands beside its space. More than any text."""

_SINGLE_SPACE: Final = re.compile(r" (?=\S)(?<=\S )")
"""Written so that the scan is for a plain character."""

_SINGLE_OR_LAST_SPACE: Final = re.compile(r" (?:(?=[A-Za-z])|(?=\S)(?<=\S ))")
r"""Besides, the last of several spaces before an ASCII letter: `\s+(?!\S)` leaves it to the letter, and what stands
before it is the same at the end of a text."""

_MINDS_SPACES: Final = re.compile(r"[A-Za-z]|.*\s", re.DOTALL)
"""An added token before which, or in which, several spaces would stay together."""

_PLAIN_WORD: Final = re.compile(r" [A-Za-z]{1,46}[.,;:!?]?\Z")

_REACHES_OVER: Final = re.compile(r"\S (?:\S|\Z)")
"""An added token that could reach over a cut."""

_SPACE: Final = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
r"""White_Space of Unicode, as tokenizers have it. Python's `\s` also takes U+001C-001F, where matches go on."""

_LETTERS_END: Final = r"(?<=[A-Za-z])(?=[!-&(-/:-@\[-`{-~0-9])"
"""A run of letters ends before ASCII punctuation other than the apostrophe of contractions, and before digits."""
_DIGITS_BEGIN: Final = r"(?<=[!-/:-@\[-`{-~])(?=[0-9])"
_DIGITS_END: Final = r"(?<=[0-9])(?=[!-/:-@\[-`{-~])"
_DIGITS_PART: Final = r"(?<=[0-9])(?=[0-9])"
_LETTERS_FOLLOW: Final = r"(?<=[0-9])(?=[A-Za-z])"
_SPACE_BEGINS: Final = f"(?<=[^{_SPACE}])(?=[{_SPACE}])"
_INDENT_BEGINS: Final = f"(?<=[^{_SPACE}])(?=(?![\\r\\n])[{_SPACE}])"
_LINE_BREAK_ENDS: Final = f"(?<![{_SPACE}]\\n)(?<=\\n)(?=[^{_SPACE}])"
"""A line break between other characters than white space is a pre-token of its own."""
_LINE_BEGINS: Final = f"(?<=[\\r\\n])(?=[^{_SPACE}/])"

_ALWAYS: Final = f"{_LETTERS_END}|{_DIGITS_BEGIN}|{_DIGITS_END}"
_BEFORE_SPACES: Final = re.compile(f"{_ALWAYS}|{_LETTERS_FOLLOW}|{_SPACE_BEGINS}|{_LINE_BREAK_ENDS}")
"""Where no pattern joins white space to what stands before it (GPT-2)."""

_AFTER_LINES: Final = re.compile(f"{_ALWAYS}|{_LETTERS_FOLLOW}|{_INDENT_BEGINS}|{_LINE_BEGINS}")
r"""Where line breaks may belong to the punctuation before them (`[\r\n]*`, in o200k also with `/`), and white
space that has one ends with the last of them (`\s*[\r\n]+`)."""

_WITH_DIGITS: Final = re.compile(f"{_ALWAYS}|{_INDENT_BEGINS}|{_LINE_BEGINS}")
"""Where, besides, letters may take a digit before them."""

_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CL100K: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MARKS: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K: Final = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s"
    r"|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_DEEPSEEK: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDS: Final[Mapping[str, re.Pattern[str]]] = {
    _GPT2: _BEFORE_SPACES,
    _CL100K % "{1,3}": _AFTER_LINES,  # cl100k, Llama 3, GLM
    _CL100K % "+": _AFTER_LINES,  # MiniCPM, behind a split of digits
    _CL100K % "": _AFTER_LINES,  # Qwen 2 and 3
    _MARKS: _AFTER_LINES,  # Qwen 3.5
    _O200K % (_CONTRACTIONS, _CONTRACTIONS, "{1,3}"): _AFTER_LINES,  # o200k, Llama 4
    _O200K % ("", "", ""): _AFTER_LINES,  # Tekken (Mistral), Nemotron
    _DEEPSEEK: _WITH_DIGITS,
}
"""Patterns that end a match before every single space, and where else they always end one."""

RUNS: Final = frozenset({r"\p{N}", r"\p{N}+", r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+"})  # noqa: RUF001  # as DeepSeek writes it
"""Patterns that match runs of one class of characters, white space not among them."""

_DIGIT_BY_DIGIT: Final = frozenset({r"\p{N}", _CL100K % "", _MARKS, _O200K % ("", "", "")})
"""Patterns that match no two digits at once."""

_UNDERSCORE: Final = "\u2581"
_JOINS_OVER: Final = re.compile(f"[^{_UNDERSCORE}]{_UNDERSCORE}")

_NASTY: Final = (
    "It's  a test,isn't it?\n\nYes:\t'12,345.67' -- 3rd; naïve re\u0301sume\u0301 İstanbul ǅ ﬁ\r\n  x = y_1;\n\n\n// end/\n/ n\n"
    " 你好,世界。 これは 日本語 한국어 e\u0301\u0323 \u0301x \u200b zero\u200bwidth a\u00a0b \u00a0 c \u2003d\u2028e \u0378 ٣٤٥٦ ½ Ⅷ x² "
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪. ' s 's'S don'T we'LL o'ree I'm'd (a)b[c]{d}<e>@f#g$h%i^j&k*l ~`|\\ \x1c \x85 z  "
)
"""What the conditions above are about, in one text; counted both ways before a tokenizer is trusted to pieces."""


class AddedToken(msgspec.Struct):
    """A token that is found before anything else looks at the text."""

    id: int
    content: str
    special: bool = False
    normalized: bool = False
    """Whether it is looked for behind the normaliser."""
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Model(msgspec.Struct):
    type: str = "BPE"
    dropout: float | None = None
    continuing_subword_prefix: str | None = None
    end_of_word_suffix: str | None = None
    unk_token: str | None = None
    vocab: msgspec.Raw = msgspec.Raw(b"{}")


class Layout(msgspec.Struct):
    """What matters here of a `tokenizer.json`; its merges, most of the file, are passed over."""

    model: _Model
    added_tokens: list[AddedToken] = []
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None

    @property
    def normalizers(self) -> list[dict[str, Any]]:
        """The single steps of the normaliser, those of sequences too."""
        return _steps(self.normalizer, "normalizers")

    @property
    def pre_tokenizers(self) -> list[dict[str, Any]]:
        """The single steps of the pre-tokeniser, those of sequences too."""
        return _steps(self.pre_tokenizer, "pretokenizers")


def _steps(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [step for inner in part[inside] for step in _steps(inner, inside)]


class _Family(NamedTuple):
    """How a tokenizer's text may be cut."""

    inner: re.Pattern[str] | None
    """Where pieces may be cut again; None where they may not."""
    replaced: bool = False
    """Spaces become U+2581."""


def _family(layout: Layout) -> _Family | None:
    """How a tokenizer's texts may be cut; None where nothing is known of it."""
    if layout.model.type != "BPE" or layout.model.dropout:
        return None
    for token in layout.added_tokens:
        looks_around = token.lstrip or token.rstrip or token.single_word
        if looks_around or _REACHES_OVER.search(token.content):
            return None
    if all(step["type"] == "NFC" for step in layout.normalizers):
        found = _by_words(layout.pre_tokenizers)
        if found is not None:
            return found
    return _by_vocabulary(layout)


def _by_words(steps: Sequence[Mapping[str, Any]]) -> _Family | None:
    """The family of pre-tokenisers one of which ends a pre-token before every single space."""
    inner: re.Pattern[str] | None = None
    for step in steps:
        if inner is not None:
            if step["type"] not in ("ByteLevel", "Digits", "Punctuation", "Split"):
                return None
        elif not _parts_runs(step):
            inner = _words_of(step)
            if inner is None:
                return None
    if inner is None:
        return None
    # A prefix that each text gets would be given to the parts of a piece as well.
    if any(step.get("add_prefix_space") for step in steps):
        return _Family(None)
    if any(map(_parts_digits, steps)):
        inner = re.compile(f"{inner.pattern}|{_DIGITS_PART}")
    return _Family(inner)


def _parts_runs(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokeniser does no more than part runs of one class of characters from the rest."""
    if step["type"] == "Punctuation":
        return step["behavior"] in ("Isolated", "Contiguous")
    if step["type"] == "Split":
        return _pattern(step) in RUNS and step["behavior"] == "Isolated" and not step.get("invert")
    return bool(step["type"] == "Digits")


def _parts_digits(step: Mapping[str, Any]) -> bool:
    """Whether a pre-tokeniser makes a pre-token of every single digit."""
    if step["type"] == "Digits":
        return bool(step.get("individual_digits"))
    return step["type"] == "Split" and _pattern(step) in _DIGIT_BY_DIGIT


def _words_of(step: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Where pieces may be cut again behind a pre-tokeniser that ends a pre-token before every single space."""
    if step["type"] == "ByteLevel":
        return WORDS[_GPT2] if step.get("use_regex", True) else None
    if step["type"] != "Split":
        return None
    # `Removed` and inverted keeps the matches and drops what is between them, which is nothing.
    way = (step["behavior"], bool(step.get("invert")))
    return WORDS.get(_pattern(step)) if way in (("Isolated", False), ("Removed", True)) else None


def _pattern(step: Mapping[str, Any]) -> str:
    """A Split's regular expression, line breaks escaped."""
    found = str(step["pattern"].get("Regex", ""))
    return found.replace("\r", r"\r").replace("\n", r"\n")


def _by_vocabulary(layout: Layout) -> _Family | None:
    """The family of SentencePiece's kind, if no token reaches over a space."""
    model = layout.model
    if not replaces_spaces(layout) or model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    vocabulary = msgspec.json.decode(model.vocab, type=dict[str, int])
    if _UNDERSCORE not in vocabulary or any(map(_JOINS_OVER.search, vocabulary)):
        return None
    if any(token.normalized and _UNDERSCORE in token.content for token in layout.added_tokens):
        return None
    return _Family(None, replaced=True)


def replaces_spaces(layout: Layout) -> bool:
    """Whether spaces become U+2581 (and Metaspace puts one in front), and nothing else happens before BPE."""
    before = [(step["type"], step.get("pattern"), step.get("content")) for step in layout.normalizers]
    steps = layout.pre_tokenizers
    if before == [("Replace", {"String": " "}, _UNDERSCORE)]:
        # Gemma splits at spaces that are no longer there.
        return all(step["type"] == "Split" and step["pattern"] == {"String": " "} for step in steps)
    return not before and [(step["type"], step.get("replacement")) for step in steps] == [
        ("Metaspace", _UNDERSCORE)
    ]


class _Counts(dict[str, int]):
    """Tokens by key. What is missing counts nothing yet, and waits."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []

    def __missing__(self, key: str) -> int:
        self.waiting.append(key)
        return 0

    def total(self, keys: Sequence[str]) -> int:
        """Tokens of all keys but those that wait."""
        return sum(map(self.__getitem__, keys))

    def keep(self, found: Mapping[str, int]) -> None:
        """Remember counts; all others are forgotten where there are too many."""
        if len(self) + len(found) > MOST_PIECES:
            self.clear()
        self.update(found)


class PieceCounter:
    """Counts the tokens of texts by their pieces. Keeps what it has counted, up to `MOST_PIECES`."""

    def __init__(self, tokenizer: Tokenizer, layout: Layout) -> None:
        """Take a tokenizer whose truncation and padding are off.

        Raises:
            ValueError: where its texts can't be cut, or the pieces of a text do not add up.
        """
        family = _family(layout)
        if family is None:
            raise ValueError("a tokenizer whose texts can't be cut into pieces")
        self._encode = tokenizer.encode
        self._replaced = family.replaced
        self._inner = family.inner
        self._words = _Counts()
        """By word, which stands for the word behind a space. A key that begins with a space is a text's first
        word, without one before it; a key that ends with one is its last, which white space may end."""
        self._texts = _Counts()
        """By text that stands for itself."""
        self._seen = self._new = 0
        """Characters of the present stretch, and those of them that the tokenizer had to read."""
        self._turn = self._every = 1
        contents = sorted((t.content for t in layout.added_tokens if t.content), key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, contents)) or r"(?!)")
        self._separator = _separator(layout.added_tokens, layout.model.unk_token)
        self._one_search = len({token.normalized for token in layout.added_tokens}) < 2
        """Added tokens are looked for at once, and not some before the normaliser and some behind it."""
        self._as_written = not layout.normalizers or not any(t.normalized for t in layout.added_tokens)
        """Added tokens are in a text if and only if its characters show them."""
        last_too = (
            family.inner is not None and self._as_written and not any(map(_MINDS_SPACES.match, contents))
        )
        self._split = (_SINGLE_OR_LAST_SPACE if last_too else _SINGLE_SPACE).split
        self._saves = last_too or (family.replaced and not any(" " in content for content in contents))
        self._savings: dict[bytes, int] = {}
        """By word of ASCII letters, perhaps with a sign behind it: its bytes and a space's, less its tokens."""
        beside = [
            f"{left}{token}{right}"
            for token in contents[:32]
            for left in ("a", " ")
            for right in ("b ", "\n")
        ]
        for text in (_NASTY, *beside):
            if self.count(text) != self.whole(text):
                raise ValueError("pieces of a text that do not add up to the whole")

    def whole(self, text: str) -> int:
        """Tokens of a text, counted by the tokenizer."""
        return len(self._encode(text, add_special_tokens=False))

    def count(self, text: str) -> int:
        """Tokens of a text, control tokens included."""
        self._turn += 1
        if self._turn % self._every or not text or (self._replaced and _UNDERSCORE in text):
            return self.whole(text)
        self._seen += len(text)
        if self._seen * self._every > STRETCH:
            # Some languages write no spaces, and random text never recurs.
            self._every = RETRY if self._new > 0.6 * self._seen else 1
            self._seen = self._new = 0
        # Where white space stands beside a space, words are no pieces. These two are the usual ways.
        if "  " not in text and "\n " not in text:
            words = text.split(" ")
            words[0] = " " + words[0]
            words[-1] += " "
            total = self._words.total(words) + self._learn_words()
            if total < _NOT_A_PIECE:
                return total
        first, *others = self._split(text)
        return self._texts.total([first, *[" " + other for other in others]]) + self._learn_texts()

    def saves(self, encoded: bytes, needed: int) -> bool:
        """Whether the words of a row surely have so many tokens fewer than bytes, as far as they are known.

        Args:
            encoded: JSON without white space outside its texts, and without escapes other than those that JSON
                asks for, so that what stands between two spaces is as it is, or has an escape in it.
            needed: bytes, at least 1.
        """
        if not self._saves or (self._replaced and (b"  " in encoded or _UNDERSCORE.encode() in encoded)):
            # With two spaces running the second is not U+2581 before a word, but one of a run.
            return False
        saving, begin, end = self._savings.get, 0, len(encoded)
        while begin < end:
            # Most words are known and have a quarter as many tokens: this much is mostly enough.
            stop = begin + 2 * needed + 64
            stop = encoded.find(b" ", stop) + 1 if stop < end else end
            stop = stop or end
            needed -= sum(map(saving, encoded[begin:stop].split(b" "), repeat(0)))
            if needed <= 0:
                return True
            begin = stop
        return False

    def _learn_words(self) -> int:
        """Tokens of the words that wait."""
        waiting, self._words.waiting = self._words.waiting, []
        if not waiting:
            return 0
        found = {key: _text_of(key) for key in waiting}
        self._texts.total([text for text in found.values() if text is not None])
        counts = self._learn()
        known = {
            key: _NOT_A_PIECE if text is None else counts[text] if text in counts else self._texts[text]
            for key, text in found.items()
        }
        self._words.keep({key: tokens for key, tokens in known.items() if len(key) <= LONGEST_PIECE})
        return sum(map(known.__getitem__, waiting))

    def _learn_texts(self) -> int:
        """Tokens of the texts that wait."""
        waiting = self._texts.waiting.copy()
        if not waiting:
            return 0
        return sum(map(self._learn().__getitem__, waiting))

    def _learn(self) -> dict[str, int]:
        """Count the texts that wait, by parts."""
        waiting, self._texts.waiting = {*self._texts.waiting}, []
        parts = {text: self._parts(text) for text in waiting}
        fresh = {part for found in parts.values() for part in found if part not in self._texts}
        counts = self._count_new(fresh)
        counts |= {
            text: sum([counts[part] if part in counts else self._texts[part] for part in found])
            for text, found in parts.items()
            if found != [text]
        }
        self._texts.keep({text: tokens for text, tokens in counts.items() if len(text) <= LONGEST_PIECE})
        if len(self._savings) > MOST_PIECES:
            self._savings.clear()
        self._savings |= {
            text[1:].encode(): len(text) - tokens
            for text, tokens in counts.items()
            if _PLAIN_WORD.match(text) and self._added.search(text) is None
        }
        return counts

    def _parts(self, text: str) -> list[str]:
        """A text cut where its tokens never reach over; added tokens are parts."""
        if self._inner is None or text[1:].isalpha() or not (self._as_written or text.isascii()):
            return [text]
        found = self._added.search(text)
        if found is None:
            return self._cut(text)
        if not self._one_search:
            return [text]
        parts: list[str] = []
        begin = 0
        while found:
            # An added token parts a text for all that comes after, so what lies between is a text of its own.
            parts += [*self._cut(text[begin : found.start()]), found[0]]
            begin = found.end()
            found = self._added.search(text, begin)
        return parts + self._cut(text[begin:])

    def _cut(self, text: str) -> list[str]:
        # Long texts without spaces are mostly of scripts that have none, in which little is found to cut.
        if self._inner is None or (len(text) > LONGEST_PIECE and not text.isascii()):
            return [text]
        return self._inner.split(text)

    def _count_new(self, texts: Iterable[str]) -> dict[str, int]:
        """Tokens of each text, in one call as far as possible."""
        together: list[str] = []
        counts = {}
        for text in texts:
            self._new += len(text)
            if self._separator is not None and self._may_follow(text):
                together.append(text)
            else:
                counts[text] = self.whole(text)
        if len(together) < 2 or self._separator is None:
            return counts | {text: self.whole(text) for text in together}
        between, mark = self._separator
        ids = self._encode(between.join(together), add_special_tokens=False).ids
        ids.append(mark)
        begin = 0
        for text in together:
            end = ids.index(mark, begin)
            counts[text] = end - begin
            begin = end + 1
        return counts

    def _may_follow(self, text: str) -> bool:
        """Whether a text has as many tokens behind an added token as by itself, and has none in it."""
        # A prefix, where there is one, may be for the very beginning only; before a space there is none.
        stands = self._inner is not None or text.startswith(" ")
        return stands and (self._as_written or text.isascii()) and self._added.search(text) is None


def _text_of(key: str) -> str | None:
    """The text that a word stands for; None where white space stands beside its space."""
    first, last = key.startswith(" "), key.endswith(" ")
    body = key[first : len(key) - last]
    if not body or (body[-1].isspace() and not last) or (body[0].isspace() and not first):
        return None
    return body if first else " " + body


def _separator(added: Sequence[AddedToken], unknown: str | None) -> tuple[str, int] | None:
    """An added token, and its number, that is found between any two texts without an added token, and only there.

    The token for what is unknown may be found inside as well.
    """
    for token in added:
        usable = token.content and token.content != unknown and not token.normalized
        if usable and not any(_meet(token.content, other.content) for other in added):
            return token.content, token.id
    return None


def _meet(separator: str, other: str) -> bool:
    """Whether another token (or the same) could be found over an end of the separator."""
    ends = range(1, len(separator) + (other != separator))
    return (other != separator and separator in other) or any(
        other.endswith(separator[:length]) or other.startswith(separator[-length:]) for length in ends
    )
