"""Where objects lie in a job's folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.local.sagemaker.storage import relative_key


@pytest.mark.parametrize(
    ("key", "prefix", "relative"),
    [
        ("data/train/a", "data/train/", "a"),
        ("data/train/deep/a", "data/train/", "deep/a"),
        ("data/train/a", "data/train", "a"),
        ("data/train.jsonl", "data/tr", "train.jsonl"),
        ("data/train/a", "data/tr", "train/a"),
        ("data/one.jsonl", "data/one.jsonl", "one.jsonl"),
        ("one.jsonl", "one.jsonl", "one.jsonl"),
        ("a/b", "", "a/b"),
    ],
)
def test_relative_key(key, prefix, relative):
    """A prefix is text: what follows its last folder, or it as a folder, is the place in the job."""
    assert relative_key(key, prefix) == relative


@given(st.text("ab/", max_size=8), st.text("ab/", min_size=1, max_size=8))
def test_relative_key_never_leaves(prefix, rest):
    """No key under a prefix comes out absolute."""
    assert not relative_key(prefix + rest, prefix).startswith("/")
