r"""Personal data and secrets: found, counted and located; what was found never leaves this module.

Python's `re` reads 6 MB/s with a dozen patterns. So each kind has signs, patterns that Hyperscan looks for in
many rows at once (`suspicion`), and only texts of rows with a sign are searched. A sign is looked for in canonical
JSON, where a text has `\n` for a line break and `\u001f` for a control character: it may stand in
more rows than the kind does, and must not stand in fewer.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple


def luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 check digit."""
    doubled = [int(d) for d in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(2 * d - 9 * (d > 4) for d in doubled)) % 10 == 0


def iban_holds(text: str) -> bool:
    """ISO 13616: mod 97 of the rearranged digits is 1."""
    packed = text.replace(" ", "")
    return int("".join(str(int(c, 36)) for c in packed[4:] + packed[:4])) % 97 == 1


_LOCAL: Final = re.compile(r"[A-Za-z0-9][\w.+-]{0,63}\Z")
_USERINFO: Final = re.compile(r"://[^\s/@]{0,200}\Z")
"""Of an address of the web, not of mail (RFC 3986, 3.2.1)."""
_HOST: Final = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
_EXAMPLE: Final = re.compile(r"(?:\A|\.)(?:example\.(?:com|org|net)|(?:example|test|invalid))\Z")
"""Reserved for examples by RFC 2606: nobody's address."""
_PICTURE: Final = re.compile(r"\.(?:png|jpe?g|gif|svg|webp|avif|ico)\Z", re.IGNORECASE)
"""`icon@2x.png`; no country or company has one of these for a suffix."""


def _has_email(text: str) -> bool:
    at = text.find("@")
    while at >= 0:
        host = _HOST.match(text, at + 1)
        if host and _is_mail(text, at, host):
            begin = max(at - 64, 0)
            if _LOCAL.search(text, max(begin, text.rfind(" ", begin, at) + 1), at):
                return True
        at = text.find("@", at + 1)
    return False


def _is_mail(text: str, at: int, host: re.Match[str]) -> bool:
    """Whether what has the form of an address is one, of somebody."""
    if _EXAMPLE.search(host[0].lower()) or _PICTURE.search(host[0]):
        return False
    behind = text[host.end() : host.end() + 1]
    # git@github.com:owner/repository is where code lies; q@k.transpose(...) multiplies matrices.
    if behind == "(" or (behind == ":" and text.endswith("git", 0, at)):
        return False
    return _USERINFO.search(text, max(at - 256, 0), at) is None


_RUN: Final = re.compile(r"[0-9+(][0-9 .()+-]{8,}")
"""Every card and telephone number is inside of one of these."""
_CARD: Final = re.compile(
    r"(?<![0-9])(?<![0-9]\.)(?=((?:[0-9]{14,19}|[0-9]{4}(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3})?"
    r"|[0-9]{4}[ -][0-9]{6}[ -][0-9]{4,5})(?![0-9])(?!\.[0-9])))"
)
"""In one piece or in groups as they are embossed. Looked for at every place: a number may stand before a card."""
_ISSUED: Final = re.compile(
    # Visa
    r"4(?:[0-9]{15}|[0-9]{18})"
    # Mastercard, Maestro
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{10,15}"
    # American Express, Diners Club, Discover, JCB, UnionPay, Mir
    r"|3[47][0-9]{13}|3(?:0[0-5]|[689][0-9])[0-9]{11,16}|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12,15}"
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12,15}|62[0-9]{14,17}|220[0-4][0-9]{12,15}"
)
"""Issuers' ranges of ISO/IEC 7812 and their lengths; a tenth of all other numbers has the right check digit, too.
Visa's numbers of 13 digits are no longer issued, and German articles are numbered like them."""
_PHONE: Final = re.compile(
    r"(?<![\w.+-])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){2,4}"
    r"|(?<![0-9] )00[1-9][0-9]{0,2}[ -][0-9]{1,4}(?:[ -]?[0-9]{2,4}){2,4}"
    r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[.-])[2-9][0-9]{2}[.-][0-9]{4})(?![\w-])"
)
"""International with + or 00, or as the North American plan writes it."""
_DECIMAL: Final = re.compile(r"\+[0-9]+\.[0-9]+")
_NO_DIGITS: Final = re.compile(r"[^0-9]+")


def _is_card(match: re.Match[str]) -> bool:
    digits = _NO_DIGITS.sub("", match[1])
    # Behind a card its end or code may stand, in no way parted from a fifth group.
    grouped = not match[1].isdigit() and len(digits) > 16
    return any(
        len(set(number)) > 1 and _ISSUED.fullmatch(number) is not None and luhn(number)
        for number in ((digits, digits[:16]) if grouped else (digits,))
    )


def _is_phone(match: re.Match[str]) -> bool:
    digits = _NO_DIGITS.sub("", match[0])
    return 9 <= len(digits) <= 15 and len(set(digits)) > 2 and not _DECIMAL.fullmatch(match[0])


def _number(pattern: re.Pattern[str], holds: Callable[[re.Match[str]], bool]) -> Callable[[str], bool]:
    def search(text: str) -> bool:
        return any(
            holds(match)
            for run in _RUN.finditer(text)
            # One character more, for what must not follow a number; the one before is seen as it is.
            for match in pattern.finditer(text, run.start(), run.end() + 1)
        )

    return search


_IBAN: Final = re.compile(r"\b([A-Z]{2})[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}")
_BY_LENGTH: Final = {
    15: "NO",
    16: "BE",
    18: "DK FI FK FO GL NL SD",
    19: "MK SI",
    20: "AT BA EE KZ LT LU MN XK",
    21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA",
    23: "AE GI IL IQ OM SO TL",
    24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST",
    26: "IS TR",
    27: "BI DJ FR GR IT MC MR SM",
    28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA",
    30: "JO KW MU YE",
    31: "MT SC",
    32: "LC",
    33: "RU",
}
_IBAN_LENGTHS: Final = {
    country: length for length, countries in _BY_LENGTH.items() for country in countries.split()
}
"""Characters without spaces, by country: the register of ISO 13616."""


def _has_iban(text: str) -> bool:
    return any(_iban_at(text, match) for match in _IBAN.finditer(text))


def _iban_at(text: str, begin: re.Match[str]) -> bool:
    length = _IBAN_LENGTHS.get(begin[1])
    if length is None:
        return False
    # What follows a number may be written like one more group of it.
    shown = re.match(rf"[A-Z0-9](?: ?[A-Z0-9]){{{length - 1}}}(?![A-Za-z0-9])", text[begin.start() :][:64])
    return shown is not None and iban_holds(shown[0])


def _any(pattern: str) -> Callable[[str], bool]:
    search = re.compile(pattern).search
    return lambda text: search(text) is not None


_WORD: Final = rb"[\w\-\x80-\xff]"
r"""The bytes of `[\w-]`, which may be letters of any script."""
NINE_DIGITS: Final = rb"[^0-9][0-9](?:[ .()-]{0,2}[0-9]){8}"
"""How every card and telephone number begins: the sign of both."""


class Kind(NamedTuple):
    """One kind of private data."""

    code: str
    signs: tuple[bytes, ...]
    """Patterns for Hyperscan; one of them matches in the canonical JSON of every text that has the kind."""
    search: Callable[[str], bool]
    """Whether a text has it."""


KINDS: Final = (
    Kind("PII_EMAIL", (rb"[A-Za-z0-9_.+\-\x80-\xff]@[A-Za-z0-9-]",), _has_email),
    Kind(
        "SECRET_AWS",
        (rb"(?:AKIA|ASIA)[A-Z2-7]", rb"(?i)secret[_-]?access[_-]?key"),
        _any(
            r"\b(?:AKIA|ASIA)(?![A-Z2-7]{9}EXAMPLE)[A-Z2-7]{16}\b"
            r"|(?ai:secret[_-]?access[_-]?key)[\"'\\\s:=>]{1,8}"
            r"(?![A-Za-z0-9/+]*EXAMPLE)(?![xX]{40})[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"
        ),
    ),
    Kind(
        "SECRET_GCP",
        (rb"AIza", rb"ya29\.", rb"GOCSPX-"),
        _any(r"\b(?:AIza[\w-]{35}|ya29\.[\w-]{30,}|GOCSPX-[\w-]{28})"),
    ),
    Kind(
        "SECRET_AZURE",
        (rb"(?:AccountKey|SharedAccessKey)=",),
        _any(r"\b(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,}={0,2}"),
    ),
    Kind(
        "SECRET_TOKEN",
        (
            rb"gh[oprsu]_[A-Za-z0-9]{4}",
            rb"github_pat_",
            rb"glpat-",
            rb"xox[abeprs]-",
            rb"xapp-[0-9]-",
            # Many words end in this: risk-, task-, desk-.
            rb"sk-" + _WORD + rb"{32}",
            rb"[sr]k_live_",
            rb"npm_[A-Za-z0-9]{8}",
            rb"pypi-AgE",
            rb"SG\.[A-Za-z0-9_-]{16}",
            rb"hooks\.slack\.com/services/T",
            rb"dop_v1_",
            rb"dckr_pat_",
            rb"shpat_",
            rb"hvs\.[A-Za-z0-9]{8}",
            rb"hf_[A-Za-z0-9]{8}",
            rb"eyJ" + _WORD + rb"{4}",
        ),
        _any(
            # x for each character of a key is how documentation leaves it out.
            r"\b(?:gh[oprsu]_(?![xX]{36})[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}"
            r"|xox[abeprs]-[\w-]{10,}|xapp-[0-9]-[\w-]{20,}"
            # Names in style sheets have words of a few letters between hyphens.
            r"|sk-(?![xX]{32})(?=[\w-]*\w{20})[\w-]{32,}|[sr]k_live_[A-Za-z0-9]{16,}|hf_(?![xX]{30})[A-Za-z0-9]{30,}"
            r"|npm_[A-Za-z0-9]{36}\b|pypi-AgE[\w-]{50,}|SG\.[A-Za-z0-9_-]{16,32}\.[\w-]{32,64}"
            r"|hooks\.slack\.com/services/T\w{6,}/B\w{6,}/(?![xX]{16})\w{16,}"
            r"|dop_v1_[0-9a-f]{64}|dckr_pat_[\w-]{20,}|shpat_[0-9a-f]{32}|hvs\.[A-Za-z0-9]{8}[\w-]{16,}"
            r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
    ),
    Kind(
        "SECRET_PRIVATE_KEY",
        (rb"PRIVATE KEY(?: BLOCK)?-----",),
        _any(r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY(?: BLOCK)?-----"),
    ),
    Kind("PII_CARD", (NINE_DIGITS,), _number(_CARD, _is_card)),
    Kind("PII_PHONE", (NINE_DIGITS,), _number(_PHONE, _is_phone)),
    Kind(
        "PII_IBAN",
        (rb"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4} ?[A-Z0-9]{4}",),
        _has_iban,
    ),
)
CODES: Final = tuple(kind.code for kind in KINDS)
"""Everything that is looked for."""
