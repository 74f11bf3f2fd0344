"""Mutations of the nasty files: whatever comes of them, every reader ends, and every examination has a report."""

import gzip
import resource

import pytest
import zstandard
from dataset_cases import effort
from fuzz_targets import TARGETS, seeds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEEDS = {target: seeds(target) for target in TARGETS}
TOKENS = (
    b"\n",
    b"\r",
    b"\0",
    b'"',
    b'""',
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[" * 70,
    b"]" * 70,
    b",",
    b":",
    b"NaN",
    b"1e999",
    b"9" * 400,
    b"-",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"\xf0\x9f",
    b"PAR1",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"\x50\x2a\x4d\x18\x01\0\0\0x",
    b'{"messages":[]}\n',
    b'"role":"tool",',
    b"<|im_start|>",
    b"\x7f" * 300,
    b"\xff\xff\xff\x7f",
)

places = st.integers(0, 1 << 14)
mutations = st.one_of(
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("set"), places, st.integers(0, 255)),
    st.tuples(st.just("cut"), places, places),
    st.tuples(st.just("drop"), places, st.integers(1, 64)),
    st.tuples(st.just("repeat"), places, st.integers(1, 64)),
    st.tuples(st.just("insert"), places, st.sampled_from(TOKENS)),
    st.tuples(st.just("splice"), places, places),
    st.tuples(st.just("repack"), st.sampled_from(["gzip", "zstd"]), places),
)


def mutate(body, changes, other):
    """The body after all changes; places are taken modulo its length."""
    for kind, where, what in changes:
        at = where % (len(body) + 1) if kind != "repack" else 0
        if kind == "flip" and at < len(body):
            body = body[:at] + bytes([body[at] ^ 1 << what]) + body[at + 1 :]
        elif kind == "set":
            body = body[:at] + bytes([what]) + body[at + 1 :]
        elif kind == "cut":
            body = body[:at]
        elif kind == "drop":
            body = body[:at] + body[at + what :]
        elif kind == "repeat":
            body = body[:at] + body[at : at + what] * 2 + body[at + what :]
        elif kind == "insert":
            body = body[:at] + what + body[at:]
        elif kind == "splice":
            body = body[:at] + other[what % (len(other) + 1) :]
        elif kind == "repack":
            pack = gzip.compress if where == "gzip" else zstandard.compress
            half = what % (len(body) + 1)
            body = pack(body[:half]) + pack(body[half:])
    return body


@pytest.mark.parametrize("target", sorted(TARGETS))
@settings(max_examples=effort(120), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_no_mutation_of_a_nasty_file_breaks_a_reader(target, data):
    """Flipped, cut, spliced, stuffed and repacked, a file is read to rows, faults and a report, in bounded memory."""
    found = SEEDS[target]
    body, other = (found[data.draw(st.integers(0, len(found) - 1))] for _ in range(2))
    changes = data.draw(st.lists(mutations, min_size=1, max_size=5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    TARGETS[target](mutate(body, changes, other))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 512 << 10, "more than 512 MiB for a file of a few KiB"


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_what_holds_for_mutations_holds_for_the_nasty_files(target):
    """Every file of the corpus, as it is."""
    for body in SEEDS[target]:
        TARGETS[target](body)
