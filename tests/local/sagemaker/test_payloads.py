"""Cutting files into bodies and answers into files loses, doubles and reorders nothing."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.local.sagemaker.payloads import RecordTooLarge, assembled, payloads

LINES = st.lists(st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"-") + b"\n"), max_size=30)


@given(LINES, st.sampled_from(["MultiRecord", "SingleRecord"]), st.integers(21, 60))
def test_every_record_once(lines, strategy, limit):
    """The bodies join to the file without its blank lines; none is larger than allowed, or splits a line."""
    bodies = list(payloads(lines, "Line", strategy, limit))
    assert b"".join(bodies) == b"".join(line for line in lines if line.strip())
    assert all(0 < len(body) <= limit and body.endswith(b"\n") for body in bodies)
    if strategy == "SingleRecord":
        assert all(body.count(b"\n") == 1 for body in bodies)


@given(LINES, st.integers(21, 60))
def test_bodies_are_full(lines, limit):
    """MultiRecord begins a new body only where the next line would not have fitted."""
    bodies = list(payloads(lines, "Line", "MultiRecord", limit))
    for body, following in pairwise(bodies):
        assert len(body) + len(following.partition(b"\n")[0]) + 1 > limit


def test_no_limit():
    """A limit of 0 is none."""
    assert list(payloads([b"x" * 100 + b"\n"] * 3, "Line", "MultiRecord", 0)) == [(b"x" * 100 + b"\n") * 3]


@pytest.mark.parametrize("split", ["None", "Line"])
def test_too_large(split):
    """What can't be cut small enough is refused, with its number and size."""
    with pytest.raises(RecordTooLarge, match="record 1 has 11 bytes"):
        list(payloads([b"x" * 10 + b"\n"], split, "MultiRecord", 10))


def test_last_line_without_newline():
    """The last line counts, newline or not."""
    assert list(payloads([b"a\n", b"b"], "Line", "SingleRecord", 9)) == [b"a\n", b"b"]


@pytest.mark.parametrize(
    ("answer", "assemble", "written"),
    [(b"a", "Line", b"a\n"), (b"a\n", "Line", b"a\n"), (b"a", "None", b"a"), (b"", "Line", b"\n")],
)
def test_assembled(answer, assemble, written):
    """`Line` ends every answer with a newline; `None` leaves it as it is."""
    assert assembled(answer, assemble) == written
