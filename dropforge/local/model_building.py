"""Builds base models on disk; run as a process: `python -m dropforge.local.model_building KIND TARGET`."""

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '')"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINY_VOCABULARY: Final = 512
TINY_SEED: Final = 17

WORDS: Final = [
    "a",
    "about",
    "address",
    "all",
    "also",
    "an",
    "and",
    "answer",
    "any",
    "are",
    "as",
    "ask",
    "at",
    "be",
    "because",
    "been",
    "before",
    "but",
    "by",
    "call",
    "can",
    "city",
    "come",
    "customer",
    "date",
    "day",
    "do",
    "email",
    "extract",
    "file",
    "find",
    "first",
    "for",
    "from",
    "get",
    "give",
    "go",
    "has",
    "have",
    "help",
    "hello",
    "how",
    "i",
    "if",
    "in",
    "is",
    "it",
    "json",
    "just",
    "keep",
    "know",
    "last",
    "like",
    "line",
    "look",
    "make",
    "many",
    "may",
    "me",
    "message",
    "more",
    "my",
    "name",
    "need",
    "new",
    "next",
    "no",
    "north",
    "not",
    "now",
    "number",
    "of",
    "on",
    "one",
    "only",
    "open",
    "or",
    "order",
    "other",
    "our",
    "out",
    "part",
    "people",
    "please",
    "price",
    "problem",
    "question",
    "read",
    "red",
    "reply",
    "request",
    "return",
    "road",
    "say",
    "see",
    "send",
    "service",
    "should",
    "show",
    "so",
    "some",
    "south",
    "state",
    "still",
    "street",
    "such",
    "take",
    "tell",
    "text",
    "than",
    "thank",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "thing",
    "this",
    "time",
    "to",
    "today",
    "two",
    "under",
    "unit",
    "up",
    "us",
    "use",
    "value",
    "very",
    "want",
    "was",
    "way",
    "we",
    "well",
    "west",
    "what",
    "when",
    "where",
    "which",
    "who",
    "why",
    "will",
    "with",
    "word",
    "work",
    "would",
    "write",
    "year",
    "yes",
    "you",
    "your",
    "zip",
    "avenue",
    "east",
    "suite",
    "null",
    "true",
    "false",
]  # two hundred quoted words would read worse
KEYS: Final = ("name", "number", "street", "city", "state", "zip", "value", "type", "id", "date", "text")


def build_tiny(target: Path) -> None:
    """A two-layer Llama with random weights and a byte-level tokenizer trained on `sample_text`.

    The head is wide enough (standard deviation 0.1 on 64 dimensions) for an adapter beneath it to move
    its logits: a head of the usual 0.02 could not express a distribution, however it was fed.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sample_text(2_000),
        trainers.BpeTrainer(
            vocab_size=TINY_VOCABULARY,
            special_tokens=[TURN_START, TURN_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=TURN_START, eos_token=TURN_END, pad_token=TURN_END
    )
    wrapped.chat_template = CHAT_TEMPLATE
    torch.manual_seed(TINY_SEED)
    model: Any = LlamaForCausalLM(  # type: ignore[no-untyped-call]
        LlamaConfig(
            vocab_size=TINY_VOCABULARY,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            initializer_range=0.1,
            tie_word_embeddings=False,
            bos_token_id=wrapped.bos_token_id,
            eos_token_id=wrapped.eos_token_id,
            pad_token_id=wrapped.pad_token_id,
        )
    )
    model.save_pretrained(target)
    wrapped.save_pretrained(target)


def sample_text(lines: int) -> Iterator[str]:
    """Plain sentences and small JSON objects, the same every time."""
    choose = random.Random(TINY_SEED)  # noqa: S311  # text, not secrets
    for _ in range(lines):
        words = [choose.choice(WORDS) for _ in range(choose.randint(4, 14))]
        yield " ".join(words).capitalize() + choose.choice(".?!,")
        keys = choose.sample(KEYS, choose.randint(1, 5))
        yield json.dumps(
            {key: choose.choice((choose.choice(WORDS), str(choose.randint(0, 99999)))) for key in keys}
        )


def convert_gguf(target: Path, gguf: Path) -> None:
    """SmolLM2's weights and tokenizer out of a GGUF file, as bf16 safetensors."""
    source: dict[str, Any] = {"gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    # GGUF names the first turn token as end of sequence; the model was trained to stop at the other.
    tokenizer.eos_token = TURN_END
    tokenizer.pad_token = TURN_END
    tokenizer.clean_up_tokenization_spaces = False
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **source)
    # What transformers keeps about the source format would make it refuse to save plain weights.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    model.config._name_or_path = ""  # noqa: SLF001  # would record a path of this machine
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    config = target / "config.json"
    described = json.loads(config.read_bytes())
    described.pop("_model_name_or_path", None)
    config.write_text(json.dumps(described, indent=2))


def main(arguments: list[str]) -> None:
    kind, target, *sources = arguments
    if kind == "tiny":
        build_tiny(Path(target))
    else:
        convert_gguf(Path(target), Path(sources[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
