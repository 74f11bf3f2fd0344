"""The order of a run's states."""

from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.ledger import KEEPS_CONTENT_CLAIM, PHASES, TERMINAL_RANK, Status, rank

statuses = st.sampled_from(list(Status))


def test_phases_climb_in_the_order_of_the_run():
    """Each phase of a run ranks above the one before it, and every end above every phase."""
    ranks = [rank(phase) for phase in PHASES]
    assert ranks == sorted(set(ranks))
    assert max(ranks) < TERMINAL_RANK
    assert all(rank(status) == TERMINAL_RANK for status in Status if status.is_terminal)


@given(statuses, statuses, st.integers(0, 5))
def test_a_redrive_ranks_above_everything_before_it(before, after, redrive):
    """A run that was redriven can pass through its phases again, without any rank ever falling."""
    assert rank(after, redrive + 1) > rank(before, redrive)


def test_a_failed_run_gives_its_content_back():
    """The same data, uploaded again after a failure, is trained; after a result it is a duplicate."""
    assert not any(status in KEEPS_CONTENT_CLAIM for status in Status if status.is_failure)
    assert {Status.REGISTERED, Status.GATE_FAILED, Status.TRAINING} <= KEEPS_CONTENT_CLAIM
    assert Status.CANCELLED not in KEEPS_CONTENT_CLAIM
