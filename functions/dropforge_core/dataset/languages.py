"""Whether a dataset mixes languages, told from a sample of rows.

Models that identify languages err on short texts and code, so those are passed over, and an answer counts
only where it is nearly certain. On 22,000 translated messages of free software (31 languages, 60 characters
and more) 85 % got an answer, and one of those in 2,000 was wrong, relatives aside: most were messages that had
been left in English.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, Protocol

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.dataset.sampling import HIGHEST, Lowest
from dropforge_core.recipe import DatasetRules

SAMPLE: Final = 500
"""Different rows that are looked at: a language with 2 % of the rows has 10 of them, give or take 6 (95 %). At
0.1 ms a row that is a twentieth of a second, a tenth of what it takes to load the model."""

MOST_CHARACTERS: Final = 400
"""Of each row. The identifier's certainty hardly grows beyond."""

FEWEST_BYTES: Final = 40
"""UTF-8 bytes of letters in a text that is looked at: seven English words, or fourteen Chinese characters."""

CERTAIN: Final = 0.9
"""The least probability with which an answer counts."""

FEWEST_ROWS: Final = 100
"""Rows with an answer below which nothing is said: a single row would be a share worth knowing."""

_PROSE: Final = 0.6
"""Letters among all characters but white space, at least; code and tables have fewer."""

_NOT_PROSE: Final = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\b\w+://\S+|(?<!\S)\S+@\S+|<[^<>\n]{1,200}>", re.DOTALL
)
"""Fenced and inline code, addresses, tags. Anchored, so that long runs without white space cost no squares."""

_LEFT_OUT: Final = "an ba br eo fo fy gd gl ht la lb nn oc om qu se tk tt vo wa"
"""Languages of two letters that take certainty from their large neighbours and are hardly ever trained on. Those
of three letters are left out, too."""

_KIN: Final = (frozenset({"da", "no"}), frozenset({"id", "ms"}), frozenset({"bs", "hr", "sr"}))
"""Languages that short texts can't tell apart; each set counts as its likeliest member, and as one."""


class Rows(Protocol):
    """Valid rows that follow one another, as `rows.columns.RowBlock` has them."""

    @property
    def encoded(self) -> Sequence[bytes]: ...
    def row(self, index: int) -> Canonical: ...
    def __len__(self) -> int: ...


class LanguageState(msgspec.Struct):
    """What was found in a sample, as plain values for another process."""

    bound: int = HIGHEST
    sample: dict[int, str] = {}
    """Language by the row's digest; empty where there was no answer."""


class LanguageMix:
    """Shares of languages among the rows with the lowest digests.

    Args:
        bound: see `sampling.bound_for`; the same for all parts of a dataset.
    """

    def __init__(self, bound: int = HIGHEST) -> None:
        self._sample: Lowest[str] = Lowest(SAMPLE, bound)
        """Languages, and texts where they are still to be told."""
        self._texts: dict[int, str] = {}

    def add(self, rows: Rows, digests: NDArray[np.uint64] | None = None) -> None:
        """Take the rows of a block.

        Args:
            rows: in any order; the shares are the same.
            digests: XXH3 (64 bits) of each row's `encoded`; made here where they are not given.
        """
        if not len(rows):
            return
        if digests is None:
            digests = np.fromiter(map(xxhash.xxh3_64_intdigest, rows.encoded), np.uint64, len(rows))
        for index in self._sample.wanted(digests):
            digest = int(digests[index])
            if digest not in self._sample.entries:
                self._sample.entries[digest] = ""
                self._texts[digest] = _text_of(rows.row(index))
        if len(self._texts) > 4 * SAMPLE:
            self._sample.settle()
            self._texts = {one: text for one, text in self._texts.items() if one in self._sample.entries}

    def _settle(self) -> None:
        """Tell the languages of the sample's texts."""
        self._sample.settle()
        for digest, text in self._texts.items():
            if digest in self._sample.entries:
                self._sample.entries[digest] = language_of(text)
        self._texts.clear()

    def state(self) -> LanguageState:
        """What another process needs of this mix; no text among it."""
        self._settle()
        return LanguageState(self._sample.bound, dict(sorted(self._sample.entries.items())))

    @classmethod
    def from_state(cls, state: LanguageState) -> "LanguageMix":
        """The mix whose state it was."""
        made = cls()
        made._add(state)
        return made

    def merge(self, other: "LanguageMix") -> None:
        """Take what another mix took: the same as if this one had taken those rows itself."""
        self._settle()
        self._add(other.state())

    def _add(self, state: LanguageState) -> None:
        self._sample.lower(state.bound)
        for digest, language in state.sample.items():
            if digest <= self._sample.bound:
                self._sample.entries[digest] = language
        self._sample.settle()

    def _shares(self) -> tuple[int, dict[str, float]]:
        """Rows with an answer, and the share of each language among them, the largest first."""
        self._settle()
        found = Counter(filter(None, self._sample.entries.values()))
        for kin in _KIN:
            members = [language for language in kin if language in found]
            if len(members) > 1:
                # By count, then by name, so that order decides nothing.
                likeliest = min(members, key=lambda language: (-found[language], language))
                found[likeliest] = sum(found.pop(language) for language in members)
        rows = found.total()
        ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
        return rows, {language: count / rows for language, count in ordered}

    def summary(self) -> dict[str, Any]:
        """What the report says: `{"sampled": rows looked at, "told": rows with an answer, "shares": {...}}`.

        Shares are of the rows with an answer, by ISO 639-1 code, the largest first.
        """
        rows, shares = self._shares()
        return {
            "sampled": len(self._sample.entries),
            "told": rows,
            "shares": {language: round(share, 4) for language, share in shares.items()},
        }

    def faults(self, rules: DatasetRules) -> Iterator[Fault]:
        """A second language with a share that is worth knowing by a recipe's rules; nothing on small samples."""
        rows, shares = self._shares()
        if rows < FEWEST_ROWS:
            return
        main, *others = shares
        told = [language for language in others if shares[language] >= rules.second_language_share]
        if told:
            parts = ", ".join(f"{language} ({shares[language]:.0%})" for language in (main, *told))
            yield Fault("LANGUAGE_MIX", "", f"{parts} in a sample of {rows:,} rows")


def language_of(text: str) -> str:
    """ISO 639-1 code of a text's language; empty where it is too short, no prose, or in doubt."""
    prose = _NOT_PROSE.sub(" ", text)
    letters = "".join(filter(str.isalpha, prose))
    if len(letters.encode()) < FEWEST_BYTES or len(letters) < _PROSE * len("".join(prose.split())):
        return ""
    ranked = _identifier().rank(prose)
    first, probability = ranked[0]
    for kin in _KIN:
        if first in kin:
            probability = sum(share for language, share in ranked if language in kin)
    return str(first) if probability >= CERTAIN else ""


def _text_of(row: Canonical) -> str:
    """What the model learns to write, then what it is asked."""
    said = [m["content"] for m in row.messages if m["role"] == "assistant"]
    asked = [m["content"] for m in row.messages if m["role"] == "user"]
    return "\n".join([*said, *asked])[:MOST_CHARACTERS]


def load_identifier() -> None:
    """Load the identifier's model now (0.8 s), so that processes made from this one share it."""
    _identifier()


@cache
def _identifier() -> Any:
    # 0.6 s and 80 MB: only where a sample is to be told.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # noqa: PLC0415

    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    made.set_languages([one for one in made.labels if len(one) == 2 and one not in _LEFT_OUT.split()])
    return made
