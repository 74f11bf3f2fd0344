"""What an answer is worth as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.metrics import REGISTRY, nll_per_byte
from dropforge_core.metrics.text import longest_common_subsequence, normalised, refusal, rouge_l, token_f1

WORDS = st.lists(st.sampled_from("abcd"), max_size=12)


def plain_lcs(left, right):
    """The textbook dynamic programme, to hold the bit-parallel one against."""
    row = [0] * (len(right) + 1)
    for a in left:
        before = row[:]
        for j, b in enumerate(right):
            row[j + 1] = before[j] + 1 if a == b else max(before[j + 1], row[j])
    return row[-1]


@given(WORDS, WORDS)
def test_subsequence_is_the_textbooks(left, right):
    """The bit-parallel length of the longest common subsequence is the dynamic programme's."""
    assert longest_common_subsequence(left, right) == plain_lcs(left, right)


def test_every_metric_tells_what_it_is():
    """Each metric has a description and a worst score on the bad side of its direction; nothing else has its name."""
    for name, metric in REGISTRY.items():
        assert metric.name == name
        assert len(metric.description) > 20
        assert metric.better(metric.worst, 0.5) < 0


def test_known_values():
    """Scores that were worked out by hand from the definitions."""
    assert token_f1("the cat sat", "a cat sat down") == pytest.approx(0.8)
    assert rouge_l("the cat sat on the mat", "the cat on mat") == pytest.approx(0.8)
    assert normalised("  **Yes.** ") == "yes"
    assert normalised("$5") == "$5"


@pytest.mark.parametrize(
    ("answer", "refuses"),
    [("I'm sorry, but I can't do that.", 1.0), ("As an AI language model, I", 1.0), ("Sorry is a word", 0.0)],
)
def test_refusals_are_recognised_by_their_opening(answer, refuses):
    """A refusal is told by how the answer opens, and only where the reference does not refuse."""
    assert refusal("42", answer) == refuses
    assert refusal(answer, answer) == 0.0


@pytest.mark.parametrize(("nll", "size"), [(float("nan"), 3), (float("inf"), 3), (-1.0, 3), (1.0, 0)])
def test_no_likelihood_is_made_up(nll, size):
    """A likelihood that is not finite, negative, or of nothing is refused."""
    with pytest.raises(ValueError):
        nll_per_byte(nll, size)


def test_lower_is_better_for_loss():
    """An improvement is positive for a metric where less is better."""
    assert REGISTRY["nll_per_byte"].better(1.0, 3.0) == 2.0
    assert nll_per_byte(6.0, 3) == 2.0
