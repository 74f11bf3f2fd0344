"""Tables of what is private data and of what only looks like it, read by the whole examination."""

import functools
import json

import pytest
from dataset_cases import in_memory
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge_core.dataset.rows.private_data import CODES
from dropforge_core.dataset.validation import validate
from dropforge_core.recipe import Recipe

# Rows of this table resemble one another; that is not what it is about.
RECIPE = Recipe.model_validate(
    {"base_model": "org/name", "dataset": {"min_rows": 1}, "training": {"max_seq_len": 131_072}}
)

# Every key is put together here, so that no scanner of this repository takes it for one.
_TAIL = "q1W2e3R4t5Y6u7I8o9P0a1S2d3F4g5H6j7K8l9Z0x1C2v3B4n5M6Q7w8E9r0T1y2U3i4O5p6"


def _key(*parts: str) -> str:
    return "".join(parts)


PRIVATE = {
    "PII_EMAIL": [
        "jane.roe@firm.de",
        "first.last+tag@sub.mail.firm.co.uk",
        "<jo@firm.fr>",
        "mailto:jo@firm.fr?subject=hello",
        "o'neil@mail.ie",
        "user_name@my-host.io",
        "x@y.co",
        "JO@FIRM.COM",
        "jo@firm.fr.",
        "(jo@firm.fr)",
        "jo@firm.fr,max@firm.fr",
        "https://host.io/?mail=jo@firm.fr&x=1",
        "1234567@qq.com",
        "jo@firm.museum",
        "jo@firm.xn--p1ai",
    ],
    "PII_PHONE": [
        # North America
        "+1 415 555 2671",
        "+1 (415) 555-2671",
        "+14155552671",
        "(415) 555-2671",
        "415-555-2671",
        "415.555.2671",
        "1-415-555-2671",
        "tel:+1-201-555-0123",
        # Britain, Germany, France, Spain, Italy, Netherlands, Switzerland, Sweden
        "+44 20 7946 0958",
        "+44 (0)20 7946 0958",
        "+44 7700 900123",
        "+49 30 901820",
        "+49 (0)30 901820",
        "+49-151-23456789",
        "+49 151 23456789",
        "+33 1 42 68 53 00",
        "+33142685300",
        "+34 912 345 678",
        "+39 06 6982 1234",
        "+31 20 123 4567",
        "+41 44 668 18 00",
        "+46 8 123 456 78",
        # India, Japan, China, Brazil, Australia, Mexico
        "+91 98765 43210",
        "+81 3-1234-5678",
        "+86 138 0013 8000",
        "+55 11 91234-5678",
        "+61 2 9374 4000",
        "+52 55 1234 5678",
        # the prefix that is dialled instead of +
        "0049 30 901820",
    ],
    "PII_CARD": [
        # the issuers' published test numbers
        "4111111111111111",
        "4242 4242 4242 4242",
        "4111-1111-1111-1111",
        "5555555555554444",
        "5500 0000 0000 0004",
        "2223003122003222",
        "378282246310005",
        "3714 496353 98431",
        "6011111111111117",
        "6011 0009 9013 9424",
        "3530111333300000",
        "30569309025904",
        "38520000023237",
        "6200000000000005",
        "6759649826438453",
        "card:4111111111111111.",
        "room 12 4111 1111 1111 1111",
        "4111 1111 1111 1111 12/27",
        "4111111111111111/123",
    ],
    "PII_IBAN": [
        # the examples of the register of ISO 13616
        "DE89370400440532013000",
        "DE89 3704 0044 0532 0130 00",
        "GB29 NWBK 6016 1331 9268 19",
        "GB29NWBK60161331926819",
        "FR1420041010050500013M02606",
        "FR14 2004 1010 0505 0001 3M02 606",
        "ES91 2100 0418 4502 0005 1332",
        "IT60X0542811101000000123456",
        "NL91 ABNA 0417 1643 00",
        "BE68 5390 0754 7034",
        "CH93 0076 2011 6238 5295 7",
        "AT61 1904 3002 3457 3201",
        "PL61109010140000071219812874",
        "SE45 5000 0000 0583 9825 7466",
        "NO93 8601 1117 947",
        "MT84MALT011000012345MTLCAST001S",
        "IBAN:DE89370400440532013000,",
    ],
    "SECRET_AWS": [
        _key("AKIA", "Z7Q2R3S4T5U6V7W2"),
        _key("ASIA", "Z7Q2R3S4T5U6V7W2"),
        f"aws_access_key_id={_key('AKIA', 'Z7Q2R3S4T5U6V7W2')}",
        f"aws_secret_access_key = {_key(_TAIL[:20], '/+', _TAIL[20:38])}",
        f"AWS.SECRET-ACCESS-KEY='{_key(_TAIL[:40])}'",
        f'"SecretAccessKey": "{_key(_TAIL[:40])}",',
        f"secret-access-key: {_key(_TAIL[:40])}",
    ],
    "SECRET_GCP": [
        _key("AIza", "Sy", _TAIL[:33]),
        _key("AIza", "Sy-", _TAIL[:31], "_"),
        _key("ya", "29.", "a0", _TAIL[:60]),
        _key("GOC", "SPX-", _TAIL[:28]),
    ],
    "SECRET_AZURE": [
        _key("DefaultEndpointsProtocol=https;AccountName=x;Account", "Key=", _TAIL[:64], _TAIL[:22], "=="),
        _key("Endpoint=sb://x/;SharedAccess", "Key=", _TAIL[:43], "="),
    ],
    "SECRET_TOKEN": [
        _key("gh", "p_", _TAIL[:36]),
        _key("gh", "o_", _TAIL[:36]),
        _key("gh", "u_", _TAIL[:36]),
        _key("gh", "s_", _TAIL[:36]),
        _key("gh", "r_", _TAIL[:36]),
        _key("github", "_pat_", _TAIL[:22], "_", _TAIL[:59]),
        _key("gl", "pat-", _TAIL[:20]),
        _key("xo", "xb-", "123456789012-1234567890123-", _TAIL[:24]),
        _key("xo", "xp-", "123456789012-", _TAIL[:24]),
        _key("s", "k-", _TAIL[:48]),
        _key("s", "k-proj-", _TAIL[:40], "-", _TAIL[:20]),
        _key("s", "k-ant-api03-", _TAIL[:70], "-AA"),
        _key("h", "f_", _TAIL[:34]),
        _key("s", "k_live_", _TAIL[:24]),
        _key("xa", "pp-1-A0123456789-1234567890123-", _TAIL[:40]),
        _key("np", "m_", _TAIL[:36]),
        _key("py", "pi-AgEIcHlwaS5vcmc", _TAIL[:60]),
        _key("S", "G.", _TAIL[:22], ".", _TAIL[:43]),
        _key("https://hooks.slack", ".com/services/T", "01234567/B", "01234567/", _TAIL[:24]),
        _key("dop", "_v1_", "0a1b2c3d" * 8),
        _key("dckr", "_pat_", _TAIL[:27]),
        _key("shp", "at_", "0a1b2c3d" * 4),
        _key("hv", "s.", _TAIL[:24]),
        _key("r", "k_live_", _TAIL[:24]),
        _key("eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9", ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.", _TAIL[:43]),
        f"Authorization: Bearer {_key('gh', 'p_', _TAIL[:36])}",
        f"https://user:{_key('gl', 'pat-', _TAIL[:20])}@host.io/x.git",
        f"https://{_key('gh', 'p_', _TAIL[:36])}@github.com/x/y",
    ],
    "SECRET_PRIVATE_KEY": [
        _key("-----BEGIN ", f"{kind}PRIVATE KEY", f"{end}-----")
        for kind, end in (
            ("", ""),
            ("RSA ", ""),
            ("EC ", ""),
            ("DSA ", ""),
            ("OPENSSH ", ""),
            ("ENCRYPTED ", ""),
            ("PGP ", " BLOCK"),
        )
    ],
}

HARMLESS = [
    # addresses of nobody, and what only has an @
    "someone@example.com",
    "jo@mail.example.org",
    "x@example.net.",
    "a@b",
    "user@localhost",
    "foo@bar.test",
    "foo@bar.invalid",
    "https://jane:secret@host.io/path",
    "@handle and @app.route",
    "git@github.com:org/repo.git",
    "icon@2x.png and photo@3x.jpg",
    "lodash@4.17.21",
    "image@sha256:9f86d081884c7d659a2feaa0c55ad015",
    "5 apples @ 3.50 each",
    # dates, times, versions, addresses of machines
    "2024-11-21 10:15:00 to 2024-11-22 11:15:00",
    "2024-11-21T10:15:00.123456+02:00",
    "20241121101500",
    "21.11.2024, 21/11/2024, 11-21-2024",
    "version 10.15.7.1234.5678",
    "1.2.3.4.5.6.7.8.9.10.11",
    "192.168.100.200 and 255.255.255.255:8080",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "00:1B:44:11:3A:B7",
    "1700000000 and 1700000000123 and 1700000000123456",
    # identifiers
    "550e8400-e29b-41d4-a716-446655440000",
    "123e4567-e89b-12d3-a456-426614174000",
    "d41d8cd98f00b204e9800998ecf8427e",
    "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "order 1000000000000000",
    "0012345678 and 0033142685300",
    "123-456-7890",
    "order 2024-000-118",
    "invoice 00012345678901234567",
    "ISBN 978-3-16-148410-0 and 9783161484100",
    "EAN 4006381333931",
    "IMEI 490154203237518",
    "1234 5678 1234 5670",
    "SSN 123-45-6789",
    "0000 0000 0000 0000",
    "4444 4444 4444 4444",
    "room 4111 of 1111",
    # numbers
    "pi is 3.14159265358979323846",
    "48.85822245, 2.29448134",
    "+48.85822245 +2.29448134",
    "-122.4194155, 37.7749295",
    "6.02214076e23 and 1.380649e-23",
    "1,234,567,890.12 and 1 000 000 000",
    "12 + 34 = 46; 9999999999 - 1",
    "x = [1234567890123, 2345678901234]",
    "call 911, 112, or 555-1234",
    "9503 e. rush st. south el monte ca 91733",
    # words that begin like keys
    "AKIA",
    "AKIA is four letters, ASIA a continent",
    "ASIAPACIFICREGIONALHEADQUARTERS",
    _key("AKIA", "IOSFODNN7EXAMPLE"),
    "AIzawa wrote it",
    "AccountKey=<your key>",
    "AccountKey=;SharedAccessKey=",
    "ghp_ is a prefix, glpat- another",
    _key("gh", "p_", "x" * 36),
    _key("s", "k-", "x" * 48),
    _key("h", "f_", "X" * 34),
    _key("s", "k_test_", _TAIL[:24]),
    "sk-fading-circle-loading-animation-wrapper-element",
    "hf_hub_download_with_authentication_token",
    "skip-level-meeting-with-everybody-in-the-team",
    "xoxo-hugs-and-kisses",
    "eyJ is how encoded JSON begins",
    _key("aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCY", "EXAMPLEKEY"),
    "aws_secret_access_key = os.environ['AWS_SECRET_ACCESS_KEY']",
    "set SecretAccessKey: your forty characters of secret, which nobody sees",
    "npm_config_registry and npm_lifecycle_event_with_many_words_in_its_name",
    "SG.com is a newspaper; hvs. is no word",
    "https://hooks.slack.com/services/T00000000/B00000000/XXXXXXXXXXXXXXXXXXXXXXXX",
    "attention = q@k.transpose(-2, -1)",
    "-----BEGIN PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----",
    "PRIVATE KEY and PRIVATE KEY-----",
    # letters and digits like account numbers
    "AB12 CDEF GHIJ KLMN",
    "XX00 1234 5678 9012 3456",
    "NASA12 MISSION 2024 PLAN",
    "part ZZ99AAAA1111BBBB2222",
    "GB AND US 1234 5678",
]


@functools.cache
def found(texts: tuple[str, ...]) -> list[dict[str, str]]:
    """For each text its codes, with the path at which each was found."""
    body = b"".join(
        json.dumps({"prompt": f"question {place}", "completion": f"Before, {text} and after."}).encode()
        + b"\n"
        for place, text in enumerate(texts)
    )
    report = validate([in_memory(body)], RECIPE)
    codes: list[dict[str, str]] = [{} for _ in texts]
    for problem in (*report.errors, *report.warnings):
        if problem.code in CODES:
            for line in problem.lines:
                codes[line - 1][problem.code] = problem.path
    return codes


ALL_PRIVATE = tuple(text for texts in PRIVATE.values() for text in texts)


@pytest.mark.parametrize(
    ("code", "text"), [(code, text) for code, texts in PRIVATE.items() for text in texts]
)
def test_private_data_is_found_as_what_it_is(code, text):
    """Every way of writing it is found, under its own code and under no other, in its field."""
    assert found(ALL_PRIVATE)[ALL_PRIVATE.index(text)] == {code: "completion"}


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_private_is_left_alone(text):
    """Dates, versions, hashes, identifiers, placeholders and examples are no finds."""
    assert found(tuple(HARMLESS))[HARMLESS.index(text)] == {}


@pytest.mark.parametrize("code", ["PII_CARD", "PII_IBAN"])
def test_a_wrong_digit_is_no_number(code):
    """A card or account number with one digit changed fails its check digits, and is not told."""
    changed = []
    for text in PRIVATE[code]:
        place = max(at for at, letter in enumerate(text.split(" 12/")[0].split("/")[0]) if letter.isdigit())
        changed.append(f"{text[:place]}{(int(text[place]) + 1) % 10}{text[place + 1 :]}")
    assert [codes.get(code) for codes in found(tuple(changed))] == [None] * len(changed)


def test_every_kind_is_in_the_table():
    """A kind without an example is a kind that may stop working unseen."""
    assert set(PRIVATE) == set(CODES)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(ALL_PRIVATE), st.sampled_from(HARMLESS), st.booleans())
def test_neither_neighbours_nor_escapes_hide_a_find(text, neighbour, escaped):
    r"""Other numbers on the same line, and \u escapes for every character, change nothing."""
    shown = f"{neighbour}; {text}; {neighbour}"
    written = "".join(f"\\u{ord(letter):04x}" for letter in shown) if escaped else json.dumps(shown)[1:-1]
    report = validate([in_memory(b'{"text": "%s"}' % written.encode())], RECIPE)
    (code,) = [code for code, texts in PRIVATE.items() if text in texts]
    assert code in {problem.code for problem in report.warnings}


def test_no_find_is_quoted():
    """A report has codes, counts and places, and no eight characters of what was found."""
    body = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in ALL_PRIVATE)
    said = validate([in_memory(body)], RECIPE).model_dump_json()
    for text in ALL_PRIVATE:
        pieces = {text[at : at + 8] for at in range(len(text) - 7)}
        assert not [
            piece for piece in pieces if piece in said and piece.strip("-") == piece and " " not in piece
        ]
