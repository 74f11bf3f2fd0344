"""Numbers as people read them."""

import math
from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
THIN: Final = "\u202f"
"""Narrow and unbreakable, between a number and its unit."""
MINUS: Final = "\u2212"
DASH: Final = "\u2013"


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thin spaces between thousands, a real minus; a dash for none."""
    if value is None or not math.isfinite(value):
        return DASH
    if value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif abs(value) >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits}g}"
        if "e" in text and abs(value) >= 1e-4:
            text = f"{value:.{digits + 4}f}".rstrip("0")
    return text.replace(",", THIN).replace("-", MINUS)


def percent(value: float | None) -> str:
    """A share as percent: one decimal below ten percent and above ninety-nine."""
    if value is None:
        return DASH
    scaled = value * 100
    text = f"{scaled:.0f}" if scaled in {0, 100} or 10 <= scaled < 99 else f"{scaled:.1f}"
    return f"{text}{THIN}%".replace("-", MINUS)


def money(value: float | None) -> str:
    """US dollars; small sums to the cent, sums below a cent as such."""
    if value is None:
        return DASH
    if 0 < value < 0.01:
        return "< $0.01"
    return f"${value:,.2f}" if value < 1000 else f"${value:,.0f}".replace(",", THIN)


def duration(seconds: float | None) -> str:
    """Two units at most: 48 s, 6 min 12 s, 2 h 5 min."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole}{THIN}s"
    if whole < _HOUR:
        minutes, rest = divmod(whole, _MINUTE)
        return f"{minutes}{THIN}min" + (f" {rest}{THIN}s" if rest and minutes < 20 else "")
    hours, rest = divmod(round(whole / _MINUTE), 60)
    return f"{hours}{THIN}h" + (f" {rest}{THIN}min" if rest else "")


def size(count: float) -> str:
    """Bytes in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f}{THIN}{unit}" if unit == "B" or count >= 100 else f"{count:.1f}{THIN}{unit}"
        count /= 1024
    return DASH


def plural(count: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`."""
    return f"{number(count)} {one if count == 1 else many or one + 's'}"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5, 5 times a power of ten) that cover low to high."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]
