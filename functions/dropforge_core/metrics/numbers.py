"""Numbers in answers. Pure Python."""

import math
import re
from collections.abc import Callable
from typing import Final

_NUMBER: Final = re.compile(
    # Thousands in threes with commas, or plain digits; not inside a word, such as the 2 of CO2.
    r"(?<![\w.])(?<!\d,)[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?"
)
_FINAL: Final = re.compile(r"####\s*(.+)")


def number_in(text: str) -> float | None:
    """The number that a text answers with; None where it has none.

    Behind '####' (as GSM8K marks an answer, arXiv 2110.14168) where that is there, else the last one. Commas divide
    thousands, a point the decimals; currency and percent signs are left aside.
    """
    marked = _FINAL.findall(text)
    found = [
        value for value in map(_value, _NUMBER.findall(marked[-1] if marked else text)) if value is not None
    ]
    return found[-1] if found else None


def is_number(text: str) -> bool:
    """Whether a text is one number and little else: a sign of currency, a percent, a unit of a few letters."""
    return number_in(text) is not None and len(_NUMBER.sub("", text).strip()) <= 3


def within(absolute: float, relative: float) -> Callable[[str, str], float]:
    """A comparison of the numbers of reference and answer: |a - r| <= max(absolute, relative |r|)."""

    def numeric_match(reference: str, answer: str) -> float:
        expected, got = number_in(reference), number_in(answer)
        if expected is None or got is None:
            return 0.0
        return float(expected == got or abs(got - expected) <= max(absolute, relative * abs(expected)))

    return numeric_match


def _value(found: str) -> float | None:
    try:
        value = float(found.replace(",", "").replace("\u2212", "-"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
