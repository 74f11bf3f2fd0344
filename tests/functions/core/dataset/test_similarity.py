"""Likeness of prompts: estimates that hold, pairs that are found."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.likeness.similarity import ALIKE, Components, SimilarityIndex, signature, words

VOCABULARY = [f"word{number}x" for number in range(5000)]


def prompt(dice, length):
    return [dice.choice(VOCABULARY).encode() for _ in range(length)]


def test_words_are_lower_case_without_punctuation_and_with_folded_numbers():
    """The same street with another number is the same prompt."""
    assert words("9503 E. Rush St., South-El-Monte") == words("17 e rush st south el monte")
    assert words("ÄRZTE in Straße 12") == words("ärzte in strasse 7")


def test_text_without_spaces_is_told_apart():
    """Chinese questions are not one long word each."""
    one, other = (
        words("今天北京的天气怎么样我想去公园散步请告诉我"),
        words("今天北京的天气怎么样我想去商店买东西请告诉我"),
    )
    assert len(set(one) & set(other)) >= 8
    assert set(one) != set(other)


@given(st.sets(st.integers(0, 2**64 - 1), max_size=200))
def test_a_signature_depends_on_the_features_alone(features):
    """The same set in any order gives the same signature of full length."""
    made = signature(features)
    other: set[int] = set()
    for feature in sorted(features, reverse=True):
        other.add(feature)
    assert len(made) == 64
    assert made == signature(other)


@pytest.mark.parametrize("length", [12, 40, 300])
@pytest.mark.parametrize("changed", [0.05, 0.1, 0.5])
def test_like_prompts_are_found_and_unlike_ones_are_not(length, changed):
    """Copies with a few words changed meet; copies with half of them changed do not."""
    dice = random.Random(7)
    index = SimilarityIndex()
    for _ in range(200):
        original = prompt(dice, length)
        copy = [dice.choice(VOCABULARY).encode() if dice.random() < changed else word for word in original]
        index.add(original)
        index.add(copy)
    found = {(row, earlier) for row, earlier, _ in index.pairs()}
    together = sum((2 * n + 1, 2 * n) in found for n in range(200))
    if changed == 0.5:
        assert together <= 4
    elif changed == 0.05:
        assert together >= 180
    assert all(row // 2 == earlier // 2 for row, earlier in found)


def test_a_pair_is_at_least_as_alike_as_promised():
    """No pair below the threshold is given out."""
    dice = random.Random(3)
    index = SimilarityIndex()
    base = prompt(dice, 30)
    for _ in range(20):
        index.add([dice.choice(VOCABULARY).encode() if dice.random() < 0.2 else word for word in base])
    pairs = list(index.pairs())
    assert pairs
    assert all(similarity >= ALIKE for _, _, similarity in pairs)


def test_beyond_its_bound_an_index_compares_no_more():
    """Rows beyond the bound are counted, not held."""
    index = SimilarityIndex(max_rows=10)
    for _ in range(25):
        index.add([b"same"])
    assert (index.rows, index.compared) == (25, 10)
    assert len(list(index.pairs())) == 9


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)), max_size=40))
def test_components_are_the_closure_of_their_pairs(pairs):
    """Two items have one root exactly where pairs lead from one to the other."""
    made = Components(20)
    groups = [{n} for n in range(20)]
    for a, b in pairs:
        made.join(a, b)
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for member in list(groups[b]):
                groups[member] = groups[a]
    assert all((made.root(a) == made.root(b)) == (b in groups[a]) for a in range(20) for b in range(20))
