"""Private data: what is found, what is not, and that cheap signs never hide a find."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.rows.private_data import found_in, iban_holds, luhn, signs_of, suspects


def codes(text):
    raw = text.encode()
    return set(found_in(text, suspects(raw, signs_of(b"other\n" + raw))))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("reach me: jane.roe+x@mail.acme-corp.co.uk.", "PII_EMAIL"),
        ("4111-1111-1111-1111", "PII_CARD"),
        ("pay with 5500 0000 0000 0004 now", "PII_CARD"),
        ("GB82 WEST 1234 5698 7654 32", "PII_IBAN"),
        ("DE89370400440532013000", "PII_IBAN"),
        ("+1 (415) 555-2671", "PII_PHONE"),
        ("415-555-2671", "PII_PHONE"),
        ("+44 20 7946 0958", "PII_PHONE"),
        ("ASIA" + "Q2" * 8, "SECRET_AWS"),
        ("xoxb-" + "12345-abcde", "SECRET_TOKEN"),
        ("sk-" + "proj-" + "a" * 30, "SECRET_TOKEN"),
        ("-----BEGIN " + "PRIVATE KEY-----", "SECRET_PRIVATE_KEY"),
    ],
)
def test_kinds_are_found(text, code):
    """One of each kind, in the ways in which people write them."""
    assert code in codes(text)


@pytest.mark.parametrize(
    "text",
    [
        "9503 e. rush st. south el monte ca 91733",
        "call 911, or 555-1234",
        "4111-1111-1111-1112",
        "DE89370400440532013001",
        "@handle and a @ b",
        "someone@example.com",
        "version 1.2.3.4.5.6.7.8.9.10",
        "pi is 3.14159265358979323846",
        "2024-11-21 10:00:00 to 2024-11-22 11:00:00",
        "order 1000000000000000",
        "skip-level meeting",
        "AKIA",
    ],
)
def test_what_only_looks_so_is_left_alone(text):
    """Dates, versions, postal addresses and failed check digits are no finds."""
    assert codes(text) == set()


@given(st.integers(0, 10**15 - 1))
def test_luhn_accepts_exactly_one_check_digit(body):
    """Of ten possible last digits one is right."""
    assert sum(luhn(f"{body:015d}{digit}") for digit in range(10)) == 1


@given(st.integers(0, 10**18 - 1))
def test_iban_check_digits_catch_every_change_of_a_digit(body):
    """Mod 97 notices any single digit that was changed."""
    account = f"{body:018d}"
    check = 98 - int(f"{account}131400") % 97
    good = f"DE{check:02d}{account}"
    assert iban_holds(good)
    changed = good[:-1] + str((int(good[-1]) + 1) % 10)
    assert not iban_holds(changed)
