"""Tokenizers of each family, trained on a small text."""

import json

import msgspec
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from dropforge_core.dataset.token_pieces import RUNS, WORDS, Layout, PieceCounter

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

BUILT = {}


def built(name):
    """Trained once, and counted with by every example, so that what is remembered is tried too."""
    if name not in BUILT:
        made = train(PRE_TOKENIZERS[name]) if name in PRE_TOKENIZERS else VARIANTS[name]()
        BUILT[name] = made, counter_of(made)
    return BUILT[name]
