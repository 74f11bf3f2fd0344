"""Make the rows of this example from the Unicode CLDR: `pip install babel==2.18.0`, then `python build.py`.

The same version of Babel gives the same bytes.
"""

import datetime as dt
import json
import random
from pathlib import Path

from babel.dates import format_date

LANGUAGES = ("cs", "da", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "ro", "sv", "tr")
STYLES = ("full", "long", "medium")
ROWS = 2_000
SYSTEM = "Answer with the date as YYYY-MM-DD and nothing else."
FIRST, LAST = dt.date(1950, 1, 1), dt.date(2049, 12, 31)


def rows(seed: int) -> list[dict[str, object]]:
    """Dates in words, each once, in random order."""
    rng = random.Random(seed)  # noqa: S311  # data that repeats
    found: dict[str, dict[str, object]] = {}
    while len(found) < ROWS:
        day = FIRST + dt.timedelta(rng.randrange((LAST - FIRST).days + 1))
        language, style = rng.choice(LANGUAGES), rng.choice(STYLES)
        asked = format_date(day, style, locale=language)
        # Numbers alone would be a riddle: which of 03 and 04 is the month.
        if any(character.isalpha() for character in asked):
            found[asked] = {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": day.isoformat()},
                ],
                "meta": {"language": language, "style": style},
            }
    return list(found.values())


if __name__ == "__main__":
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(17)]
    Path(__file__).with_name("dates.jsonl").write_text("".join(lines), encoding="utf-8")
