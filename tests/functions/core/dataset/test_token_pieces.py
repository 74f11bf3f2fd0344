"""Counting by pieces gives what the tokenizer gives, or is not done."""

import json
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_cases import GPT2, PRE_TOKENIZERS, VARIANTS, built, byte_level, counter_of, gemma, train
from tokenizers import Tokenizer

from dropforge_core.dataset import token_pieces
from dropforge_core.dataset.token_pieces import Layout, PieceCounter

SMOL = Path.home() / ".cache/dropforge/models/SmolLM2-135M-Instruct/tokenizer.json"

TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<tool>",
    "word",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "'s",
    "'LL",
]
PIECES = st.one_of(
    st.sampled_from(
        [*TOKENS, "The", "the", "fox,", "12", "3456", "x_1", "(a)", "//", "/", "\n/", ".\n", "!\x1c", "\x1c"]
    ),
    st.sampled_from(
        [
            " ",
            " ",
            " ",
            "\n",
            "e\u0301",
            "\u0301",
            "你好",
            "。",
            "ｶﾞ",
            "👍🏽",
            "٣",
            "½",
            "\u00a0",
            "\u2003",
            "\x85",
            "▁",
            "▁ ",
            " ▁",
        ]
    ),
    st.text(max_size=6),
    st.text(alphabet="abAB19.,;'/\"!- \n\t\r", max_size=12),
    st.text(
        alphabet=st.characters(categories=["Mn", "Lm", "Lo", "Nd", "Nl", "No", "Zs", "Cf", "So"]), max_size=6
    ),
)
TEXTS = st.lists(PIECES, max_size=24).map("".join)

FAMILIES = pytest.mark.parametrize("name", [*PRE_TOKENIZERS, *VARIANTS])


@FAMILIES
@settings(max_examples=60, deadline=None)
@given(TEXTS)
@example("a  b c\n d\n\ne . f\t g \x1c h")
@example("5a 5a5 a5.5a, \n/\n/ ▁ ▁ a▁ ▁b e\u0301 \u0301")
def test_pieces_add_up(name, text):
    """The number of tokens is the tokenizer's, for every family and whatever the text."""
    made, counter = built(name)
    assert counter.count(text) == len(made.encode(text, add_special_tokens=False))


@FAMILIES
def test_most_of_a_text_is_looked_up(name):
    """A text that repeats the words of another one costs the tokenizer nothing but what is new in it."""
    _, counter = built(name)
    counter.count("the quick brown fox jumps over the lazy dog " * 3 + "end")
    with patch.object(counter, "_encode", side_effect=AssertionError):
        assert counter.count("the lazy fox jumps over the brown dog and quick end".replace(" and", "")) > 8


SENTENCES = st.lists(
    st.sampled_from(
        [
            "the",
            "quick",
            "brown",
            "fox",
            "doesn't",
            "jump",
            "over",
            "a",
            "lazy",
            "dog",
            "it's",
            "asleep;",
            "http://x",
            "12",
            "你好",
            "▁",
            "word",
        ]
    ),
    max_size=30,
).flatmap(
    lambda words: st.lists(
        st.sampled_from([" ", " ", " ", " ", "  ", "\n", "\n ", " \n\n ", "\t", ", ", ". "]),
        min_size=len(words),
        max_size=len(words),
    ).map(lambda gaps: "".join(word + gap for word, gap in zip(words, gaps, strict=True)))
)


@FAMILIES
@settings(max_examples=60, deadline=None)
@given(st.one_of(TEXTS, SENTENCES))
def test_words_never_save_more_than_they_do(name, text):
    """What known words are said to have fewer tokens than bytes, the whole text has fewer, at least."""
    _, counter = built(name)
    tokens = counter.count(text)
    counter.count(" ".join(["x", *text.split(), "x"]))
    encoded = msgspec.json.encode([{"role": "user", "content": text}])
    most = len(encoded) - len(b'[{"role":"user","content":""}]')
    # Metaspace puts U+2581 in front.
    most += name.startswith("metaspace")
    for needed in range(1, most + 2):
        assert not counter.saves(encoded, needed) or tokens + needed <= most


@FAMILIES
def test_known_words_save(name):
    """Prose whose words are known is known to have fewer tokens than bytes, where the family allows it."""
    _, counter = built(name)
    text = "the quick brown fox jumps over the lazy dog " * 3 + "end"
    counter.count(text)
    encoded = msgspec.json.encode([{"role": "user", "content": text}])
    assert counter.saves(encoded, 20) == (
        name not in ("gpt2 with a prefix", "added tokens behind nfc", "added tokens that overlap")
    )


@pytest.fixture(scope="module")
def smol():
    """The demo's real tokenizer."""
    if not SMOL.exists():
        pytest.skip("SmolLM2's tokenizer is not in the cache of base models; `make demo` puts it there")
    made = Tokenizer.from_file(str(SMOL))
    return made, counter_of(made)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_pieces_add_up_for_a_real_tokenizer(smol, text):
    """SmolLM2 counts the same, piece by piece."""
    made, counter = smol
    assert counter.count(text) == len(made.encode(text, add_special_tokens=False))


def test_pieces_of_a_source_tree_add_up(smol):
    """Code, prose and tables as people write them."""
    made, counter = smol
    for path in sorted(Path(token_pieces.__file__).parents[3].glob("docs/*.md")):
        text = path.read_text()
        assert counter.count(text) == len(made.encode(text, add_special_tokens=False)), path.name


def changed(how):
    made = train(byte_level(regex=True))
    layout = json.loads(made.to_str())
    how(layout)
    return Tokenizer.from_str(json.dumps(layout)), layout


def with_normalizer(*steps):
    return lambda layout: layout.update(normalizer={"type": "Sequence", "normalizers": list(steps)})


def with_pre_tokenizer(*steps):
    return lambda layout: layout.update(pre_tokenizer={"type": "Sequence", "pretokenizers": list(steps)})


def with_added(**how):
    return lambda layout: layout["added_tokens"][0].update(how)


PLAIN = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}


@pytest.mark.parametrize(
    "how",
    [
        with_normalizer({"type": "NFKC"}),
        with_normalizer({"type": "Lowercase"}),
        with_normalizer({"type": "Prepend", "prepend": "▁"}),
        with_normalizer({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}),
        with_pre_tokenizer(PLAIN),
        with_pre_tokenizer({"type": "Whitespace"}, PLAIN),
        with_pre_tokenizer(
            {"type": "Split", "pattern": {"Regex": r"\w+ \w+|."}, "behavior": "Isolated", "invert": False},
            PLAIN,
        ),
        with_pre_tokenizer(
            {"type": "Split", "pattern": {"Regex": GPT2}, "behavior": "MergedWithNext", "invert": False},
            PLAIN,
        ),
        with_pre_tokenizer(
            {"type": "Punctuation", "behavior": "MergedWithPrevious"}, {**PLAIN, "use_regex": True}
        ),
        with_added(content="two words"),
        with_added(content="<trailing> "),
        with_added(lstrip=True),
        with_added(rstrip=True),
        with_added(single_word=True),
        lambda layout: layout["model"].update(dropout=0.1),
        lambda layout: layout.update(normalizer=None, pre_tokenizer=None),
    ],
)
def test_what_is_not_known_is_not_cut(how):
    """Tokenizers whose tokens might reach over a cut, or that are not recognised, are counted as a whole."""
    made, layout = changed(how)
    with pytest.raises(ValueError, match="can't be cut"):
        PieceCounter(made, msgspec.json.decode(json.dumps(layout), type=Layout))


def test_a_vocabulary_that_joins_words_is_not_cut():
    """A tokenizer of SentencePiece's kind with one token over a space is counted as a whole."""
    with pytest.raises(ValueError, match="can't be cut"):
        counter_of(gemma(joining=True))


def test_pieces_that_do_not_add_up_are_not_trusted():
    """Were a known pattern treated in another way than is thought, the trial text would show it."""
    made = train(byte_level(regex=False))
    layout = json.loads(made.to_str())
    layout["pre_tokenizer"]["use_regex"] = True
    with pytest.raises(ValueError, match="do not add up"):
        PieceCounter(made, msgspec.json.decode(json.dumps(layout), type=Layout))


def test_memory_is_bounded():
    """However many different words come, no more than the limit are remembered, and counts stay right."""
    made, _ = built("gpt2")
    with patch.object(token_pieces, "MOST_PIECES", 50):
        counter = counter_of(made)
        for start in range(0, 2_000, 40):
            text = " ".join(f"w{number} {number}x" for number in range(start, start + 40))
            assert counter.count(text) == len(made.encode(text).ids)
            assert len(counter._words) <= 50 + 80
            assert len(counter._texts) <= 50 + 200


def test_what_never_recurs_is_left_to_the_tokenizer():
    """Where pieces are of no use most texts are counted as a whole; where they are again, none is."""
    made, _ = built("gpt2")
    counter = counter_of(made)
    foreign, usual = "世界中の人々が今日も働いている" * 40, "the quick brown fox " * 40

    def whole(text, times):
        with (
            patch.object(token_pieces, "STRETCH", 10_000),
            patch.object(counter, "_learn_texts", return_value=0),
            patch.object(counter, "_learn_words", wraps=counter._learn_words) as by_pieces,
        ):
            for number in range(times):
                assert counter.count(text.replace("日", chr(0x4E00 + number))) > 0
        return times - by_pieces.call_count

    whole(foreign, 60)
    assert whole(foreign, 320) == 310
    whole(usual, 1_000)
    assert whole(usual, 100) == 0
