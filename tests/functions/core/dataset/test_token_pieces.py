"""Counting by pieces gives what the tokenizer gives, or is not done."""

import json
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dropforge_core.dataset import token_pieces
from dropforge_core.dataset.token_pieces import RUNS, WORDS, Layout, PieceCounter

SMOL = Path.home() / ".cache/dropforge/models/SmolLM2-135M-Instruct/tokenizer.json"

TEXT = [
    "The quick brown fox doesn't jump over the lazy dog; it's asleep.\n\nWe'll see, won't we?\n",
    "def add(a, b):\n    return a + b  # 12,345.67\n\n\tx = {'key': [1, 22, 333, 4444]}\r\n",
    "Straße naïve café résumé 你好世界,今天天气很好。 日本語のテスト 한국어 عربى ٣٤٥ 👍🏽 👩‍👩‍👧 e\u0301e\u0301\n",
    "http://example.com/a/b?c=d&e=f//g ... --- *** ### !!! ???  double  spaces   triple\n/path\n//x\n",
] * 3

GPT2, *OTHERS = WORDS
DEEPSEEK = OTHERS[-1]


def split(pattern, behavior="isolated", *, invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def byte_level(*, regex=False, prefix=False):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def after(*first, regex=False):
    return pre_tokenizers.Sequence([*first, byte_level(regex=regex)])


PRE_TOKENIZERS = {
    "gpt2": byte_level(regex=True),
    "gpt2 with a prefix": byte_level(regex=True, prefix=True),
    "gpt2 by its pattern": after(split(GPT2)),
    "smollm2": after(pre_tokenizers.Digits(individual_digits=True), regex=True),
    "numbers first": after(pre_tokenizers.Digits(individual_digits=False), split(OTHERS[0])),
    "falcon": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            byte_level(regex=True),
            pre_tokenizers.Digits(individual_digits=False),
            split("[0-9][0-9][0-9]"),
        ]
    ),
    "deepseek": after(*[split(run) for run in sorted(RUNS) if run != r"\p{N}"], split(DEEPSEEK)),
    "kept matches": after(split(OTHERS[0], "removed", invert=True)),
    **{f"pattern {number}": after(split(pattern)) for number, pattern in enumerate(OTHERS)},
}


def train(
    pre_tokenizer, normalizer=None, *, added=(), special=("<|im_start|>", "<|im_end|>", "<|end|>"), **kind
):
    made = Tokenizer(models.BPE(**kind))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre_tokenizer is not None:
        made.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet() if not kind else []
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(
            vocab_size=700, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
        ),
    )
    made.add_special_tokens(list(special))
    made.add_tokens(list(added))
    return made


def counter_of(made):
    return PieceCounter(made, msgspec.json.decode(made.to_str(), type=Layout))


def sentence_piece(pre_tokenizer, normalizer=None, *, joining=False):
    """Spaces become U+2581, and nothing else parts the text; no token joins over one unless asked to."""
    learner = train(
        pre_tokenizers.Metaspace(prepend_scheme="never", split=not joining), unk_token=None, special=()
    )
    learned = json.loads(learner.to_str())["model"]
    vocabulary = learned["vocab"]
    for letter in ("▁", *(f"<0x{byte:02X}>" for byte in range(256))):
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    made = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizer
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|end|>"])
    return made


def gemma(**how):
    return sentence_piece(
        pre_tokenizers.Split(" ", "merged_with_previous"), normalizers.Replace(" ", "▁"), **how
    )


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

BUILT = {}


def built(name):
    """Trained once, and counted with by every example, so that what is remembered is tried too."""
    if name not in BUILT:
        made = train(PRE_TOKENIZERS[name]) if name in PRE_TOKENIZERS else VARIANTS[name]()
        BUILT[name] = made, counter_of(made)
    return BUILT[name]


VARIANTS = {
    "nfc": lambda: train(byte_level(regex=True), normalizers.NFC()),
    "nfc behind qwen's pattern": lambda: train(
        after(split(OTHERS[2])), normalizers.Sequence([normalizers.NFC()])
    ),
    "added tokens behind nfc": lambda: train(
        byte_level(regex=True),
        normalizers.NFC(),
        added=[AddedToken("<tool>", normalized=True), AddedToken("é", normalized=True), "word", "   "],
    ),
    "added tokens that overlap": lambda: train(
        byte_level(regex=True), added=["<tool>", "<tool><|end|>", "word", "ord,"]
    ),
    "ignoring merges": lambda: train(after(split(OTHERS[0])), ignore_merges=True),
    "gemma": gemma,
    "metaspace in front": lambda: sentence_piece(
        pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    ),
    "metaspace always": lambda: sentence_piece(
        pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    ),
    "metaspace that splits": lambda: sentence_piece(
        pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    ),
}


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
