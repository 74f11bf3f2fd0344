"""Datasets from memory."""

import json
import os

from dropforge_core.dataset.reading.source import SourceFile


def in_memory(body, name="train.jsonl", chunk=1 << 20):
    """A file whose stream comes in pieces of `chunk` bytes."""

    def pieces(start):
        return iter([body[at : at + chunk] for at in range(start, len(body), chunk)])

    return SourceFile(name=name, open=pieces, size=len(body))


def effort(usual):
    """How often a property is tried: the usual number, or so many times more under `make fuzz`."""
    return usual * int(os.environ.get("DROPFORGE_EFFORT", "1"))


def chat(question, answer="a fine answer"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def as_lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "jetty",
    "knoll",
    "lagoon",
]


def question(number):
    """Questions without a word in common for different numbers."""
    return f"{WORDS[number % 12]}{'abcdefghij'[number // 12 % 10]} {WORDS[number // 5 % 12]}{'klmnopqrst'[number % 10]}x{'abcdefghij'[number // 7 % 10]}"


GERMAN = (
    "Der Zug nach Norden steht heute auf dem anderen Gleis und fährt zehn Minuten später ab.",
    "Im Garten hinter dem alten Haus blühen seit gestern die ersten Rosen dieses Sommers.",
    "Wer morgens früh aufsteht, kann am Hafen den Fischern beim Ausladen zusehen.",
    "Die Nachbarin hat uns gestern Abend einen großen Topf Suppe vor die Tür gestellt.",
)
ENGLISH = (
    "The train to the north leaves from another platform today and departs ten minutes late.",
    "Behind the old house in the garden the first roses of this summer have opened since yesterday.",
    "Whoever gets up early in the morning can watch the fishermen unload at the harbour.",
    "Our neighbour put a large pot of soup in front of our door yesterday evening.",
)


def spoken(sentences, count):
    """Rows of text in one language, each with words of its own."""
    return [
        {
            "text": " ".join(
                f"{sentences[(n // 4**place) % 4]} {question(n + 31 * place)} {question(n + 53 * place + 7)}"
                for place in range(2)
            )
        }
        for n in range(count)
    ]


def _row_of(size):
    row = as_lines({"text": "@"}).strip()
    return row.replace(b"@", b"x" * (size - len(row) + 1))


def _long_element():
    long = b"[\n" + as_lines(chat("a b")) + b",\n" + _row_of((1 << 20) + 1) + b",\n"
    return long + as_lines(chat("c d")) + b"]\n"


MADE = {
    "long-line.jsonl": lambda: as_lines(chat("a b")) + _row_of((1 << 20) + 1) + b"\n" + as_lines(chat("c d")),
    "longest-line.jsonl": lambda: _row_of(1 << 20) + b"\n" + as_lines({"text": "a short one"}),
    "endless-line.jsonl": lambda: (
        as_lines(chat("a b")) + b"x" * (5 << 20) + b'\n{"messages": [\n' + as_lines(chat("c d"))
    ),
    "long-element.json": _long_element,
    "long-field.csv": lambda: b"text\na b\n" + b"x" * ((1 << 20) + 1) + b"\nc d\n",
    "two-languages.jsonl": lambda: as_lines(*spoken(ENGLISH, 150), *spoken(GERMAN, 30)),
    "heavy-rows.jsonl": lambda: as_lines(
        *[chat(question(n), f"{question(n)}!") for n in range(110)], chat("all of it", "every word " * 4_000)
    ),
}
"""Nasty files that are too large to be kept."""
