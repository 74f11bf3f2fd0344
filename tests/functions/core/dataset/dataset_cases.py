"""Datasets from memory."""

import json

from dropforge_core.dataset.reading.source import SourceFile


def in_memory(body, name="train.jsonl", chunk=1 << 20):
    """A file whose stream comes in pieces of `chunk` bytes."""

    def pieces(start):
        return iter([body[at : at + chunk] for at in range(start, len(body), chunk)])

    return SourceFile(name=name, open=pieces, size=len(body))


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
