"""A person's answer counts once, in time, and for the question that was asked."""

from datetime import UTC, datetime, timedelta

import pytest

from dropforge_core.approval import ApprovalAnswer, claim_of, holder_of, rule

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = (NOW + timedelta(hours=1)).isoformat()
YES = ApprovalAnswer(run_id="r", decision="approve", decided_by="ana")
NO = ApprovalAnswer(run_id="r", decision="deny", decided_by="bo")


@pytest.mark.parametrize(
    ("answer", "token", "expires_at", "holder", "code"),
    [
        (YES, "t", LATER, None, "accepted"),
        (NO, "t", LATER, None, "accepted"),
        (YES, "t", LATER, holder_of(YES), "accepted"),
        (NO, "t", LATER, holder_of(YES), "decided_already"),
        (NO, "", LATER, holder_of(YES), "decided_already"),
        (YES, "", "", None, "nothing_asked"),
        (YES, "t", NOW.isoformat(), None, "expired"),
        (YES, "t", "garbage", None, "expired"),
    ],
)
def test_only_a_first_answer_in_time_counts(answer, token, expires_at, holder, code):
    """The same answer by the same person may be repeated, since its first sending may have been lost."""
    ruling = rule(answer, token=token, expires_at=expires_at, now=NOW, holder=holder)
    assert (ruling.code, ruling.accepted) == (code, code == "accepted")


def test_a_token_is_not_in_its_claim():
    """What others can list does not let them answer."""
    assert "secret" not in claim_of("secret")
    assert claim_of("secret") != claim_of("other")
