"""Values that recur, counted chunk by chunk."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.likeness.recurring import numbered


@given(st.lists(st.lists(st.integers(0, 4)), max_size=5))
def test_entries_of_a_slot_are_numbered_on_from_chunk_to_chunk(chunks):
    """However the entries are cut into chunks, empty ones too, each gets its number within its slot."""
    seen = np.zeros(5, np.uint32)
    found = [int(n) for chunk in chunks for n in numbered(np.array(chunk, np.int64), seen)]
    entries = [slot for chunk in chunks for slot in chunk]
    assert found == [entries[: at + 1].count(slot) for at, slot in enumerate(entries)]
