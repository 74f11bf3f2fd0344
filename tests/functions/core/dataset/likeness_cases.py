"""Columns in memory, and prompts that resemble one another."""

import random
from itertools import pairwise

import numpy as np

from dropforge_core.dataset.likeness.columns import ArrayColumns
from dropforge_core.dataset.likeness.sketch import Sketcher, learn_common


def spread(number):
    """A number as a digest: all its bits used, different for different numbers, 0 for 0."""
    return number * 0x9E3779B97F4A7C15 % 2**64


def digests(numbers):
    return np.array([spread(number) for number in numbers], np.uint64)


def columns_of(texts, sides=None, rows_a_chunk=100_000, common=None):
    """The columns of prompts; `whole` is the prompt's place."""
    sketches = Sketcher(learn_common(texts) if common is None else common).sketch(texts)
    values = {**sketches, "whole": digests(range(1, len(texts) + 1))}
    sides = np.zeros(len(texts), np.uint8) if sides is None else np.array(sides, np.uint8)
    return ArrayColumns(sides, values, rows_a_chunk)


def jaccard(one, other):
    """Of words and pairs of neighbouring words."""
    first, second = one.split(), other.split()
    a = {*first, *pairwise(first)}
    b = {*second, *pairwise(second)}
    return len(a & b) / len(a | b) if a or b else 1.0


VOCABULARY = [a + b + c for a in "bcdfghjklm" for b in ("ar", "en", "iv", "os", "ul") for c in "npqrstvwxz"]


def families(seed, count, length, copies=3, changed=0.1):
    """`count` prompts and of each some copies with a share of the words changed, in random order."""
    dice = random.Random(seed)
    out = []
    for _ in range(count):
        original = dice.choices(VOCABULARY, k=length)
        for copy in range(copies):
            words = [
                dice.choice(VOCABULARY) if copy and dice.random() < changed else word for word in original
            ]
            out.append(" ".join(words))
    dice.shuffle(out)
    return out
