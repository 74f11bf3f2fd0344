"""Languages of a sample of rows."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest
import xxhash
from dataset_cases import chat, question
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge_core.dataset import languages
from dropforge_core.dataset.languages import LanguageMix, LanguageState, language_of
from dropforge_core.dataset.rows.columns import RowBlock
from dropforge_core.dataset.rows.formats import Canonical
from dropforge_core.dataset.sampling import HIGHEST, bound_for
from dropforge_core.recipe import DatasetRules

SENTENCES = {
    "en": "The invoice of last month is still missing, so please send it to me again before the end of the week.",
    "de": "Die Rechnung vom letzten Monat fehlt noch immer, bitte schicken Sie sie mir bis Ende der Woche noch einmal.",
    "fr": "La facture du mois dernier manque toujours, veuillez me la renvoyer avant la fin de la semaine.",
    "ja": "先月の請求書がまだ届いていませんので、今週末までにもう一度送っていただけますでしょうか。",
    "ru": "Счёт за прошлый месяц до сих пор не пришёл, пожалуйста, пришлите его ещё раз до конца недели.",  # noqa: RUF001  # Russian
}


def block(answers):
    """Rows with these answers; every question is another one."""
    rows = [chat(question(n), f"{answer} {n}") for n, answer in enumerate(answers)]
    return RowBlock.of((n, Canonical(row["messages"], {})) for n, row in enumerate(rows, 1))


def mix_of(*blocks, **how):
    made = LanguageMix(**how)
    for one in blocks:
        made.add(one)
    return made


@pytest.mark.parametrize("language", SENTENCES)
def test_a_sentence_is_enough(language):
    """A language of its own script or of shared letters is told from one sentence."""
    assert language_of(SENTENCES[language]) == language


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Hello there",
        "12 Main Street, 90210",
        "```python\nprint('the quick brown fox jumps over the lazy dog and runs away')\n```",
        '{"id": 17, "tags": ["a", "b"], "sizes": [1, 2, 3, 4, 5, 6, 7, 8, 9], "open": true}',
        "https://example.com/the/quick/brown/fox/jumps/over/the/lazy/dog/and/then/some/more",
        "x" * 100_000,
        "@" * 10_000 + "<" * 10_000 + "`" * 9_999,
    ],
    ids=["nothing", "short", "address", "code", "json", "link", "one letter", "signs"],
)
def test_what_is_no_prose_has_no_language(text):
    """Short texts, code, numbers and links are passed over rather than guessed."""
    assert language_of(text) == ""


def test_a_second_language_is_told_with_its_share():
    """Ten German answers among two hundred are worth a word; the report has the shares."""
    mix = mix_of(block([SENTENCES["de"]] * 10 + [SENTENCES["en"]] * 190))
    (fault,) = mix.faults(DatasetRules())
    assert (fault.code, fault.found) == ("LANGUAGE_MIX", "en (95%), de (5%) in a sample of 200 rows")
    assert mix.summary() == {"sampled": 200, "told": 200, "shares": {"en": 0.95, "de": 0.05}}


@pytest.mark.parametrize(
    "answers",
    [
        [SENTENCES["de"]] * 10 + [SENTENCES["en"]] * 80,
        [SENTENCES["de"]] * 2 + [SENTENCES["en"]] * 190,
        [SENTENCES["ru"]] * 200,
        [],
    ],
    ids=["few rows", "a quotation or two", "one language", "nothing"],
)
def test_little_is_no_reason_to_speak(answers):
    """Small samples, single rows and datasets of one language bring no warning."""
    assert list(mix_of(block(answers)).faults(DatasetRules())) == []


def test_relatives_count_as_one_language():
    """Danish and Norwegian can't be told apart in a sentence, and are not called a mix."""
    mix = LanguageMix.from_state(
        LanguageState(HIGHEST, dict.fromkeys(range(90), "da") | dict.fromkeys(range(90, 150), "no"))
    )
    assert list(mix.faults(DatasetRules())) == []
    assert mix.summary()["shares"] == {"da": 1.0}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 900), max_size=4), st.booleans())
def test_any_division_gives_the_same_shares(many_rows, cuts, known):
    """However rows are divided, and whether or not their number is known before, the sample is the same."""
    rows, whole = many_rows
    bound = bound_for(len(rows), languages.SAMPLE) if known else HIGHEST
    edges = [0, *sorted(cuts), len(rows)]
    merged = LanguageMix(bound)
    for begin, end in pairwise(edges):
        part = LanguageMix(bound)
        inside = rows.without({*range(len(rows))} - {*range(begin, end)})
        digests = np.array([xxhash.xxh3_64_intdigest(one) for one in inside.encoded], np.uint64)
        part.add(inside, digests)
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(part.state()), type=LanguageState)
        merged.merge(LanguageMix.from_state(state))
    assert msgspec.to_builtins(merged.state().sample) == msgspec.to_builtins(whole.state().sample)
    assert merged.summary() == whole.summary()


@pytest.fixture(scope="module")
def many_rows():
    """More rows than a sample has, and the mix of all of them at once."""
    rows = block(list(SENTENCES.values()) * 180)
    assert len(rows) > languages.SAMPLE
    return rows, mix_of(rows)
