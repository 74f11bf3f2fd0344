"""Problems are grouped and counted, whichever way a dataset is divided."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset import problems
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.problems import MAX_LINES, Notes, Problems, Tally, severities
from dropforge_core.recipe import DatasetRules

SEVERITY = severities(DatasetRules())
CODES = ("ROLE_ORDER", "FIELD_IGNORED", "PII_EMAIL", "JSON_INVALID")

faults = st.builds(
    lambda code, index, name, found: Fault(code, f"messages[{index}].{name}", found),
    st.sampled_from(CODES),
    st.integers(0, 3),
    st.sampled_from(["role", "content", "a", "b", "c", "d", "e"]),
    st.sampled_from([f"{thing} at byte {place}" for thing in "abcdefg" for place in (1, 20)]),
)


@given(
    lines=st.lists(st.lists(faults, max_size=4), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    limit=st.integers(1, 6),
)
def test_any_division_gives_the_same_problems(lines: list[list[Fault]], cuts: list[int], limit: int) -> None:
    """Entries, counts and lines are those of one pass, also where there are more kinds than are listed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(problems, "MAX_GROUPS", limit)
        whole = _merged(lines, [0, len(lines)])
        divided = _merged(lines, sorted({0, len(lines), *(cut for cut in cuts if cut < len(lines))}))
    assert divided.listed("error") == whole.listed("error")
    assert divided.listed("warning") == whole.listed("warning")
    assert divided.error_count == whole.error_count
    assert len(whole.listed("error")) + len(whole.listed("warning")) <= limit


def _merged(lines: list[list[Fault]], edges: list[int]) -> Problems:
    merged = Problems(SEVERITY)
    for start, stop in pairwise(edges):
        notes = Notes(SEVERITY, "train.jsonl")
        for number, row in enumerate(lines[start:stop], 1):
            for fault in row:
                notes.add(number, fault)
        # As it comes back from a file.
        merged.merge(Tally.of(notes.tally.state()), start)
    return merged


def test_a_kind_is_one_entry_with_its_first_place_and_all_its_lines() -> None:
    """4,212 rows with one fault are told in one breath: the first of them, and how many there are."""
    notes = Notes(SEVERITY, "train.jsonl")
    for line in range(7, 7 + 4212):
        notes.add(line, Fault("ROLE_ORDER", f"messages[{line % 3}].role", "role 'user' after role 'user'"))
    found = Problems(SEVERITY)
    found.merge(notes.tally, 0)
    (entry,) = found.listed("error")
    assert (entry.line, entry.count, entry.lines[:2], entry.lines[-1]) == (7, 4212, (7, 8), 4218)
    assert entry.path == "messages[1].role"


def test_what_is_found_in_other_words_is_told_with_its_line() -> None:
    """One entry of a code tells each thing that is wrong, not only the first: the lines of one wording are one."""
    notes = Notes(SEVERITY, "train.jsonl")
    for line, found in enumerate(["a tail at byte 7", "a tail at byte 1,900", "no colon at byte 3"], 1):
        notes.add(line, Fault("JSON_INVALID", "", found))
    notes.add(9, Fault("ROLE_UNKNOWN", "messages[0].role", "role 'ai'"))
    notes.add(9, Fault("ROLE_UNKNOWN", "messages[1].role", "role 'me'"))
    found = Problems(SEVERITY)
    found.merge(notes.tally, 100)
    json_entry, role_entry = found.listed("error")
    assert json_entry.lines == (101, 102, 103)
    assert json_entry.message.endswith(" Others have: no colon at byte 3 (line 103).")
    assert (role_entry.count, role_entry.message.endswith(" Others have: role 'me' (line 109).")) == (1, True)


def test_other_findings_are_few_and_short() -> None:
    """Names that people invent for every row fill neither a message nor memory."""
    notes = Notes(SEVERITY, "train.jsonl")
    for line in range(1, 500):
        notes.add(line, Fault("FORMAT_UNKNOWN", "", "the fields " + chr(0x100 + line) * 90))
    (entry,) = (made := Problems(SEVERITY), made.merge(notes.tally, 0), made.listed("error"))[2]
    assert entry.count == 499
    assert len(entry.message) < 900


def test_a_line_counts_once_for_each_kind() -> None:
    """Two faults of one kind on one line are one faulty line."""
    notes = Notes(SEVERITY, "train.jsonl")
    for index in range(3):
        notes.add(5, Fault("CONTENT_EMPTY", f"messages[{index}].content", "no text"))
    assert notes.tally.counts == {"CONTENT_EMPTY": 1}


def test_the_lines_of_an_entry_end_and_its_count_does_not() -> None:
    """The first 10,000 lines are listed, and all are counted."""
    found = Problems(SEVERITY)
    for part in range(3):
        notes = Notes(SEVERITY, "train.jsonl")
        for line in range(1, 6001):
            notes.add(line, Fault("JSON_INVALID", "", "nonsense"))
        found.merge(notes.tally, part * 6000)
    (entry,) = found.listed("error")
    assert (len(entry.lines), entry.lines[-1], entry.count) == (MAX_LINES, MAX_LINES, 18000)


def test_what_is_off_is_not_noted() -> None:
    """A check that the recipe turned off leaves no trace, in no count either."""
    severity = severities(DatasetRules(checks={"FIELD_IGNORED": "off"}))
    notes = Notes(severity, "train.jsonl")
    notes.add(1, Fault("FIELD_IGNORED", "messages[0].x", "a field"))
    assert not notes.tally.counts
