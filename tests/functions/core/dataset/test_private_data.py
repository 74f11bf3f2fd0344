"""Private data: what is found, what is not, and that cheap signs never hide a find."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge_core.dataset.rows.messages import encode
from dropforge_core.dataset.rows.private_data import CODES, KINDS, iban_holds, luhn
from dropforge_core.dataset.rows.suspicion import Scanner, kinds_of

SCANNER = Scanner((), ())


def signs(*texts):
    """Codes of which a row has signs, by row."""
    rows = [encode([{"role": "user", "content": text}]) for text in texts]
    found = SCANNER.suspects(b"\n".join((*rows, b"")), rows)
    return [{kind.code for kind in kinds_of(found.get(at, 0))} for at in range(len(rows))]


def codes(text):
    (signed,) = signs(text)
    found = {kind.code for kind in KINDS if kind.search(text)}
    assert found <= signed
    return found


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("reach me: jane.roe+x@mail.acme-corp.co.uk.", "PII_EMAIL"),
        ("nobody@example.com, jane@acme.org", "PII_EMAIL"),
        ("4111-1111-1111-1111", "PII_CARD"),
        ("pay with 5500 0000 0000 0004 now", "PII_CARD"),
        ("12 (13 14) 1, 2, 3: 5500 0000 0000 0004", "PII_CARD"),
        ("\x144111111111111111", "PII_CARD"),
        ("GB82 WEST 1234 5698 7654 32", "PII_IBAN"),
        ("DE89370400440532013000", "PII_IBAN"),
        ("\x14DE89370400440532013000", "PII_IBAN"),
        ("+1 (415) 555-2671", "PII_PHONE"),
        ("7, 415-555-2671", "PII_PHONE"),
        ("415-555-2671", "PII_PHONE"),
        ("+44 20 7946 0958", "PII_PHONE"),
        ("ASIA" + "Q2" * 8, "SECRET_AWS"),
        ("xoxb-" + "12345-abcde", "SECRET_TOKEN"),
        ("sk-" + "proj-" + "a" * 30, "SECRET_TOKEN"),
        ("\nhf_" + "a" * 30, "SECRET_TOKEN"),
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
        "someone@example.com, a@mail.example.org, b@test",
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


AROUND = st.text(alphabet=st.sampled_from('a1 \n\x14\x1f."\\é\u0661@+-(){}A'), max_size=6)
SHAPES = {
    "PII_EMAIL": r"[A-Za-z0-9][\w.+-]{0,9}@([A-Za-z0-9-]{1,9}\.){1,4}[A-Za-z]{2,9}",
    "SECRET_AWS": r"(AKIA|ASIA)[A-Z2-7]{16}",
    "SECRET_GCP": r"AIza[\w-]{35}",
    "SECRET_AZURE": r"(AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,44}={0,2}",
    "SECRET_TOKEN": r"(gh[oprsu]_[A-Za-z0-9]{36,40}|github_pat_\w{60,70}|glpat-[\w-]{20,22}|xox[abprs]-[\w-]{10,12}"
    r"|sk-[\w-]{32,34}|[sr]k_live_[A-Za-z0-9]{16,18}|hf_[A-Za-z0-9]{30,32}"
    r"|eyJ[\w-]{10,12}\.eyJ[\w-]{10,12}\.[\w-]{10,12})",
    "SECRET_PRIVATE_KEY": r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----",
    "PII_CARD": r"[0-9]([ -]?[0-9]){12,18}",
    "PII_PHONE": r"(\+[1-9][0-9]{0,2}[ .-]?(\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}([ .-]?[0-9]{2,4}){2,4}"
    r"|\([0-9]{3}\) ?[0-9]{3}[.-][0-9]{4}|[0-9]{3}[.-][0-9]{3}[.-][0-9]{4})",
    "PII_IBAN": r"[A-Z]{2}[0-9]{2}( ?[A-Z0-9]{4}){2,7}( ?[A-Z0-9]{1,4})?",
}


# A random number seldom has the right check digit.
TRUE = st.sampled_from(
    [
        "4111111111111111",
        "4111 1111 1111 1111",
        "5500-0000-0000-0004",
        "378282246310005",
        "3782 822463 10005",
        "+1 (415) 555-2671",
        "415-555-2671",
        "0049 30 901820",
        "DE89370400440532013000",
        "GB82 WEST 1234 5698 7654 32",
    ]
)


@settings(max_examples=400)
@given(
    st.lists(
        st.sampled_from(CODES).flatmap(
            lambda code: st.tuples(
                AROUND, TRUE | st.from_regex(SHAPES[code], fullmatch=True), AROUND, TRUE | AROUND
            )
        ),
        min_size=1,
        max_size=6,
    )
)
def test_every_find_has_its_sign(pieces):
    """A kind that a text has is among the signs of its row, whatever stands around it and in other rows."""
    texts = ["".join(piece) for piece in pieces]
    for text, signed in zip(texts, signs(*texts), strict=True):
        assert {kind.code for kind in KINDS if kind.search(text)} <= signed


def test_shapes_cover_all_kinds():
    """Each kind has a shape to try; and most of what has the shape of a name or a key is a find."""
    assert set(SHAPES) == set(CODES)


def test_rows_full_of_signs_are_all_suspected():
    """Where there are more signs than are worth telling, every row is to be looked at."""
    texts = ["a@b.co " * 400] * 20 + ["4111-1111-1111-1111"]
    assert all("PII_EMAIL" in signed for signed in signs(*texts)[:20])
    assert "PII_CARD" in signs(*texts)[20]


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


CARDS = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?=((?:[0-9]{14,19}|[0-9]{4}(?:[ -][0-9]{4}){3})(?![0-9])(?!\.[0-9])))"
)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            ["4111111111111111", "4111 1111 1111 1111", "4111-1111-1111-1112", " ", ".", "4", "a"]
        ),
        max_size=8,
    ).map("".join)
)
def test_cards_are_found_as_by_reading_the_whole_text(text):
    """Looking at runs of digits only finds what the pattern finds in the text."""
    card = next(kind for kind in KINDS if kind.code == "PII_CARD")
    digits = [re.sub(r"\D", "", match[1]) for match in CARDS.finditer(text)]
    assert card.search(text) == any(number == "4" + "1" * 15 for number in digits)
