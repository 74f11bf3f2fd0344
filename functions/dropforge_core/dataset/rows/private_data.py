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
_HOST: Final = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}\b")
_EXAMPLE: Final = re.compile(r"(?:\A|\.)(?:example\.(?:com|org|net)|(?:example|test|invalid))\Z")
"""Reserved for examples by RFC 2606: nobody's address."""


def _has_email(text: str) -> bool:
    at = text.find("@")
    while at >= 0:
        host = _HOST.match(text, at + 1)
        if host and not _EXAMPLE.search(host[0].lower()) and _LOCAL.search(text, max(at - 64, 0), at):
            return True
        at = text.find("@", at + 1)
    return False


_RUN: Final = re.compile(r"[0-9+(][0-9 .()+-]{8,}")
"""Every card and telephone number is inside of one of these."""
_CARD: Final = re.compile(r"(?<![\d.])[0-9](?:[ -]?[0-9]){12,18}(?![\d.])")
_PHONE: Final = re.compile(
    r"(?<![\w.+-])(?:\+[1-9][0-9]{0,2}[ .-]?(?:\([0-9]{1,4}\)[ .-]?)?[0-9]{1,4}(?:[ .-]?[0-9]{2,4}){2,4}"
    r"|\([0-9]{3}\) ?[0-9]{3}[.-][0-9]{4}|[0-9]{3}[.-][0-9]{3}[.-][0-9]{4})(?![\w-])"
)
_NO_DIGITS: Final = re.compile(r"[^0-9]+")


def _is_card(text: str) -> bool:
    digits = _NO_DIGITS.sub("", text)
    return len(set(digits)) > 1 and luhn(digits)


def _is_phone(text: str) -> bool:
    digits = _NO_DIGITS.sub("", text)
    return 9 <= len(digits) <= 15 and len(set(digits)) > 2


def _number(pattern: re.Pattern[str], holds: Callable[[str], bool]) -> Callable[[str], bool]:
    def search(text: str) -> bool:
        return any(
            holds(match[0])
            for run in _RUN.finditer(text)
            # One character more, for what must not follow a number; the one before is seen as it is.
            for match in pattern.finditer(text, run.start(), run.end() + 1)
        )

    return search


_IBAN: Final = re.compile(r"\b[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")


def _has_iban(text: str) -> bool:
    return any(iban_holds(match[0]) for match in _IBAN.finditer(text))


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
    Kind("SECRET_AWS", (rb"(?:AKIA|ASIA)[A-Z2-7]",), _any(r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b")),
    Kind("SECRET_GCP", (rb"AIza",), _any(r"\bAIza[\w-]{35}")),
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
            rb"xox[abprs]-",
            # Many words end in this: risk-, task-, desk-.
            rb"sk-" + _WORD + rb"{32}",
            rb"[sr]k_live_",
            rb"hf_[A-Za-z0-9]{8}",
            rb"eyJ" + _WORD + rb"{4}",
        ),
        _any(
            r"\b(?:gh[oprsu]_[A-Za-z0-9]{36,}|github_pat_\w{60,}|glpat-[\w-]{20,}|xox[abprs]-[\w-]{10,}"
            r"|sk-[\w-]{32,}|[sr]k_live_[A-Za-z0-9]{16,}|hf_[A-Za-z0-9]{30,}"
            r"|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,})"
        ),
    ),
    Kind("SECRET_PRIVATE_KEY", (rb"PRIVATE KEY-----",), _any(r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----")),
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
