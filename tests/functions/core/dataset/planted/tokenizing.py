"""A real tokenizer of one token a byte, and a chat template that refuses one word."""

import functools
import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dropforge_core.dataset.tokens import TokenCounter, load_tokenizer
from planted.texts import MARK

REFUSED_WORD = f"{MARK}refused"

_TEMPLATE = (
    "{% for m in messages %}<|a|>{{ m['role'] }}\n{{ m['content'] }}<|z|>\n"
    "{% if '@' in m['content'] %}{{ raise_exception('A word that is not taken') }}{% endif %}{% endfor %}"
).replace("@", REFUSED_WORD)


@functools.cache
def byte_tokenizer() -> TokenCounter:
    """Counts bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|a|>", "<|z|>"])
    counter = load_tokenizer(made.to_str().encode(), json.dumps({"chat_template": _TEMPLATE}).encode())
    assert counter is not None
    return counter
