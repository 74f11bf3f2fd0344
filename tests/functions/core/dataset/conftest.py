"""Datasets from memory."""

import json

import pytest

from dropforge_core.dataset.source import SourceFile
from dropforge_core.recipe import Recipe


def in_memory(body, name="train.jsonl", chunk=1 << 20):
    """A file whose stream comes in pieces of `chunk` bytes."""

    def pieces():
        return iter([body[at : at + chunk] for at in range(0, len(body), chunk)])

    return SourceFile(name=name, open=pieces, size=len(body))


def chat(question, answer="a fine answer"):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def as_lines(*rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.fixture
def recipe():
    """A recipe with overrides by section."""

    def make(**sections):
        sections.setdefault("dataset", {}).setdefault("min_rows", 1)
        return Recipe.model_validate({"base_model": "org/name", **sections})

    return make
