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
CHRF_ORDER: Final = 6
"""Longest character n-gram of chrF."""
CHRF_BETA: Final = 2.0
"""Weight of recall against precision in chrF."""


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


def chrf(reference: str, text: str) -> float:
    """chrF2 (Popović 2015): character n-grams of 1 to 6, white space left out, recall weighted twice, in 0-1.

    Precision and recall are averaged over the orders for which either side has an n-gram.
    """
    expected, got = _SPACE.sub("", reference), _SPACE.sub("", text)
    if not expected or not got:
        return float(expected == got)
    precisions: list[float] = []
    recalls: list[float] = []
    for order in range(1, min(CHRF_ORDER, max(len(expected), len(got))) + 1):
        left, right = _ngrams(expected, order), _ngrams(got, order)
        common = (left & right).total()
        precisions.append(common / right.total() if right else 0.0)
        recalls.append(common / left.total() if left else 0.0)
    precision = sum(precisions) / len(precisions)
    recall = sum(recalls) / len(recalls)
    if precision + recall == 0:
        return 0.0
    weight = CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall)


def length_ratio(reference: str, text: str) -> float:
    """Shorter over longer, in characters: 1 is the same length, near 0 is much too short or much too long."""
    short, long = sorted((len(reference.strip()), len(text.strip())))
    return short / long if long else 1.0


def refusal(reference: str, text: str) -> float:
    """1 where the answer opens with an English refusal and the reference does not."""
    return float(bool(_REFUSAL.match(text)) and not _REFUSAL.match(reference))


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


def _ngrams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))
