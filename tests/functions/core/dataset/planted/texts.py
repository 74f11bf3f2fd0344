"""Sentences that nothing may object to, each unlike all others."""

import random
import re

MARK = "qzx"
"""Is in every word that only one sentence has. No report may contain it."""

_TEXT = """
able about account across after again almost along already always among animal answer apple around autumn
basket bridge bright bring brother brown build butter button cabin candle careful carry castle centre chair
change child choose church circle city clean clear clock close cloud coast coffee colour common copper corner
country cover create cross dance danger daughter decide deep describe desert dinner doctor double dream drive
early earth east empty engine enough evening every explain family farmer field figure final finger finish flower
follow forest forget fresh friend garden gentle give glass golden gather green ground guess half hammer happy
harbour harvest heavy hidden history holiday honest horse house hundred hungry island journey judge kitchen
ladder language laugh leather lesson letter library listen little machine market matter meadow measure member
middle minute mirror modern morning mother mountain music narrow nature needle neighbour never night noise
north notice number ocean office orange orchard order other paint paper pencil people piano picture pillow
planet plenty pocket poem polite potato problem promise question quick quiet railway rather ready reason
remember repair rich river road roof rough round season second secret seven shadow sharp shelter silver simple
sister sleep slow small smooth soldier south spoon spring square station stone storm story straight street
strong sudden sugar summer sweet table teacher thank thousand thread thunder ticket together tomorrow tower
travel trouble twelve under useful valley village visit voice wagon waiter warm water weather welcome west
wheel while whisper window winter within wonder wooden worker write yellow yesterday young
"""
WORDS = _TEXT.split()

FLOURISHES = (
    "",
    "",
    "",
    "on 2024-11-21 at 10:15:00",
    "version 10.4.22-rc.1 of 127.0.0.1",
    "with id 123e4567-e89b-12d3-a456-426614174000",
    "for order 2024-000-118 of 19.99 EUR",
    "and commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 ✈️",
    "مرحبا بالعالم",
    "שלום עולם",
    "日本語のテキスト、改行なし。",
    "naïve café, e\u0301 and ﬁ",
    'he said "no", then \\" and \\\\ and ": and \\\\": {}[],',
    "first line\nsecond line\r\nthird\tline",
    "\\u0000 and \\ud800 as words, NaN, Infinity, null, undefined",
    "<|not a token|> {{ template }} {% if %} <end of turn>",
    "line\u2028separator \u00a0space \ufeffjoiner \u200dzero \u200b width \u200e mark",
    "control \x01 \x1f \x7f \x85 characters",
    "\U0001d54f \U0010ffff \ufffd",
    "a @ b, @handle, user@localhost, someone@example.com",
    "'single', `ticks`, --- dashes, # hashes, a;b,c\td|e",
)
"""Odd, but nobody's fault."""


def word(number: int, salt: str) -> str:
    """A word of its own for every number and salt."""
    letters = "abcdefghijklmnop"
    return MARK + salt + "".join(letters[int(digit, 16)] for digit in f"{number:04x}")


def sentence(number: int, salt: str, flourish: int = 0) -> str:
    """A dozen words, unlike those of every other number and salt; it ends in the flourish."""
    dice = random.Random(f"{number}/{salt}")
    common = " ".join(dice.sample(WORDS, 9))
    own = [word(number, salt + mark) for mark in "abc"]
    ending = FLOURISHES[flourish % len(FLOURISHES)]
    return f"{own[0]} {common} {own[1]} {10 + number % 90} {own[2]} {ending}".rstrip()


def renumbered(text: str) -> str:
    """The same sentence with another number: alike, but not the same."""
    return re.sub(r" (\d\d) ", r" 9\1 ", text, count=1)
