"""Metrics that compare an answer with its reference as text. Pure functions of two strings."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Final

_WORD: Final = re.compile(r"\w+")
_SPACE: Final = re.compile(r"\s+")
_ARTICLE: Final = re.compile(r"\b(?:a|an|the)\b")
_REFUSAL: Final = re.compile(
    r"\s*(?:i['\u2019]?m (?:very |so )?sorry|sorry,|i (?:can(?:no|['\u2019])t|am (?:not able|unable) to|won['\u2019]t)"
    r"|i['\u2019]m (?:not able|unable) to|as an? (?:ai|artificial|language model)|unfortunately, i (?:can|am|must))",
    re.IGNORECASE,
)
_LETTER: Final = re.compile(r"\(?([A-Ja-j])\)?(?=[.):\s]|\Z)")
_NAMED: Final = re.compile(
    r"(?:answer|option|choice)\b(?:\s+is)?\s*[:=]?\s*[\"'*(]*([A-Ja-j])(?=[.,;:)\"'*\s]|\Z)", re.IGNORECASE
)


def exact_match(reference: str, text: str) -> float:
    """1 where the texts are equal, white space at the ends aside."""
    return float(reference.strip() == text.strip())


def normalised(text: str) -> str:
    """NFKC, case-folded, white space collapsed, punctuation at the ends removed."""
    folded = _SPACE.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()
    return _strip_punctuation(folded)


def normalised_match(reference: str, text: str) -> float:
    """1 where the texts are equal after `normalised`: '**Yes.**' is 'yes'."""
    return float(normalised(reference) == normalised(text))


def token_f1(reference: str, text: str) -> float:
    """Harmonic mean of precision and recall over the bag of words, as SQuAD scores (arXiv 1606.05250).

    Lower case, without punctuation and English articles. Two empty answers agree: 1.
    """
    return _bag_f1(Counter(_squad_words(reference)), Counter(_squad_words(text)))


def rouge_l(reference: str, text: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004, ROUGE-L with beta = 1), without stemming.

    Words are runs of letters and digits of any script, case-folded.
    """
    expected, got = _WORD.findall(reference.casefold()), _WORD.findall(text.casefold())
    if not expected or not got:
        return float(expected == got)
    common = longest_common_subsequence(expected, got)
    return 2 * common / (len(expected) + len(got))


def longest_common_subsequence(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyrö 2004): one big-integer step a word.

    Time is O(len(right) * len(left) / 64): answers of thousands of words stay in milliseconds.
    """
    positions: dict[str, int] = {}
    for index, word in enumerate(left):
        positions[word] = positions.get(word, 0) | (1 << index)
    full = (1 << len(left)) - 1
    row = full
    for word in right:
        matched = row & positions.get(word, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(left) - row.bit_count()


def choice_of(text: str) -> str | None:
    """The letter, A to J, that an answer to a multiple-choice question names; None where it names none.

    It opens with the letter ('B', '(b)', 'B. Paris'), or says 'the answer is B'. A lone 'a' or 'I' that goes on as a
    sentence is no letter.
    """
    bare = text.strip().strip("*\"'`")
    if (opening := _LETTER.match(bare)) and not _is_sentence(bare, opening):
        return opening.group(1).upper()
    named = _NAMED.findall(text)
    return named[-1].upper() if named else None


def choice_match(reference: str, text: str) -> float:
    """1 where the answer names the letter that the reference names."""
    expected = choice_of(reference)
    return float(expected is not None and choice_of(text) == expected)


def length_ratio(reference: str, text: str) -> float:
    """Shorter over longer, in characters: 1 is the same length, near 0 is much too short or much too long."""
    short, long = sorted((len(reference.strip()), len(text.strip())))
    return short / long if long else 1.0


def refusal(reference: str, text: str) -> float:
    """1 where the answer opens with an English refusal and the reference does not."""
    return float(bool(_REFUSAL.match(text)) and not _REFUSAL.match(reference))


def _is_sentence(text: str, opening: re.Match[str]) -> bool:
    """Whether what looks like a letter is a word: 'A cat sat', 'I think so'."""
    follows = text[opening.end() :]
    return opening.group(0) == opening.group(1) and follows[:1].isspace() and bool(follows.strip())


def _strip_punctuation(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_decoration(text[start]):
        start += 1
    while end > start and _is_decoration(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_decoration(character: str) -> bool:
    # P: punctuation. S: symbols such as the ` and ~ of Markdown; currency (Sc) carries meaning and stays.
    category = unicodedata.category(character)
    return category[0] == "P" or category in {"Sk", "Zs"} or character == "~"


def _squad_words(text: str) -> list[str]:
    bare = "".join(c for c in text.casefold() if not unicodedata.category(c).startswith("P"))
    return _ARTICLE.sub(" ", bare).split()


def _bag_f1(expected: Counter[str], got: Counter[str]) -> float:
    if not expected or not got:
        return float(expected == got)
    common = (expected & got).total()
    return 2 * common / (expected.total() + got.total())
