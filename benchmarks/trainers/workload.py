"""What every contestant trains: a base model on disk, rows for the image's trainer, the same rows as tokens.

Three kinds: SmolLM2-135M-Instruct on conversations of the examples, and random weights in a given shape on random
words. Random weights are as fast as trained ones. Words follow Zipf's law, so that there is something to learn.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from dropforge_core.contracts import BaseModelManifest, TrainingConfig
from dropforge_core.recipe import Recipe
from tuner.contract import Container
from tuner.conversation import ChatCodec
from tuner.data import Row, encode_rows
from tuner.integrity import MANIFEST, file_digest

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
SHARD_BYTES: Final = 2_000_000_000
RATE: Final = 5e-4
LONGEST_CONVERSATION: Final = 5
"""Questions and answers."""
TEMPLATE: Final = (
    "{% for m in messages %}<|start|>{{ m.role }} {{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant {% endif %}"
)
SPECIAL: Final = ("<|end|>", "<|start|>", "<|unknown|>", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama with random weights, and how its rows are drawn."""

    hidden: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool
    median_words: int
    longest_words: int
    rows_per_step: int

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )


SHAPES: Final = {
    "tiny": Shape(64, 128, 2, 4, 2, 512, True, 24, 60, 4),
    # SmolLM2's width, a third of its vocabulary.
    "quick": Shape(576, 1_536, 4, 9, 3, 16_384, True, 110, 400, 8),
    # Llama 3.2 1B and Llama 3.1 8B (their config.json at the hub).
    "1B": Shape(2_048, 8_192, 16, 32, 8, 128_256, True, 500, 2_000, 32),
    "8B": Shape(4_096, 14_336, 32, 32, 8, 128_256, False, 500, 2_000, 32),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """Lies in `folder`: `base/`, `rows.json` (train and hold-out as tokens and labels), `container/` for the image."""

    name: str
    folder: Path
    rows_per_step: int
    rows: int
    tokens: int
    labels: int
    longest: int

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def container(self) -> Container:
        return Container(self.folder / "container")

    def encoded(self, part: str) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` (-100 where nothing is taught) of each row of `train` or `eval`."""
        found: list[dict[str, list[int]]] = json.loads((self.folder / f"{part}.json").read_bytes())
        return found

    def save(self) -> None:
        document = asdict(self) | {"folder": str(self.folder)}
        (self.folder / "workload.json").write_text(json.dumps(document))


def read_workload(folder: Path) -> Workload:
    document = json.loads((folder / "workload.json").read_bytes())
    return Workload(**document | {"folder": Path(document["folder"])})


def lay_out(  # noqa: PLR0913, PLR0917  # what a workload is made of
    name: str, folder: Path, base: Path, train: Sequence[Row], holdout: Sequence[Row], rows_per_step: int
) -> Workload:
    """Write the rows as the image's channels and as tokens; both are the same tokens, by the same codec."""
    folder.mkdir(parents=True)
    (folder / "base").symlink_to(base)
    vocabulary = int(json.loads((base / "config.json").read_bytes())["vocab_size"])
    tokenizer: Any = AutoTokenizer.from_pretrained(base, local_files_only=True)
    codec = ChatCodec(tokenizer, frozenset({int(tokenizer.eos_token_id)}), vocabulary=vocabulary)
    container = Container(folder / "container")
    sizes: dict[str, list[int]] = {}
    for part, rows in (("train", train), ("eval", holdout)):
        documents = [example.documents[0] for example in encode_rows(rows, codec, "sft", 1 << 20)]
        encoded = [
            {
                "input_ids": d.ids.tolist(),
                "labels": np.where(d.weights > 0, d.ids, -100).tolist(),
            }
            for d in documents
        ]
        (folder / f"{part}.json").write_text(json.dumps(encoded))
        sizes[part] = [d.length for d in documents]
        if part == "train":
            labels = sum(int((d.weights > 0).sum()) for d in documents)
        channel = container.channel(part)
        channel.mkdir(parents=True)
        lines = [json.dumps({"id": row.id, "messages": list(row.messages)}) for row in rows]
        (channel / "rows.jsonl").write_text("\n".join(lines) + "\n")
    container.channel("base").symlink_to(base)
    workload = Workload(
        name,
        folder,
        rows_per_step,
        len(train),
        sum(sizes["train"]),
        labels,
        max(sizes["train"] + sizes["eval"]),
    )
    workload.save()
    return workload


def write_job(workload: Workload, seed: int, pass_tokens: int) -> None:
    """The job's settings: one epoch at a constant rate, in steps of as many tokens as the peers' rows have.

    Args:
        workload: what is trained.
        seed: of the adapter and of the order.
        pass_tokens: bound of one forward pass; 0 lets the trainer choose.
    """
    recipe = Recipe.model_validate(
        {
            "base_model": "s3://some-bucket/base/",
            "training": {
                "epochs": 1,
                "learning_rate": RATE,
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "effective_batch_tokens": max(64, workload.tokens * workload.rows_per_step // workload.rows),
                "max_seq_len": max(128, workload.longest),
                "seed": seed,
            },
        }
    )
    config = TrainingConfig(
        run_id="benchmark",
        model="benchmark",
        recipe=recipe.model_dump(mode="json"),
        recipe_digest="-",
        dataset_digest="-",
        base_model_name="base",
        base_model_revision="0" * 40,
        gradient_checkpointing=False,
    )
    container = workload.container
    container.channel("config").mkdir(parents=True, exist_ok=True)
    (container.channel("config") / "training.json").write_text(config.model_dump_json())
    container.hyperparameters.parent.mkdir(parents=True, exist_ok=True)
    container.hyperparameters.write_text(
        json.dumps({"run_id": "benchmark", "micro_batch_tokens": str(pass_tokens)})
    )


def example_rows() -> list[Row]:
    """The addresses as they are: short rows, all under one system message."""
    return [Row(str(index), messages) for index, messages in enumerate(_messages("us-addresses/addresses"))]


def mixed_rows(count: int) -> list[Row]:
    """Conversations of one to five questions about addresses or dates.

    Half have a system message and half have none, so that no beginning is shared by all.
    """
    generator = np.random.default_rng(17)
    sources = [list(_messages(name)) for name in ("us-addresses/addresses", "dates/dates")]
    rows = []
    for index in range(count):
        source = sources[int(generator.random() < 0.5)]
        turns = int(generator.integers(1, LONGEST_CONVERSATION, endpoint=True))
        picked = generator.choice(len(source), turns, replace=False)
        system = source[0][:1] if generator.random() < 0.5 else ()
        talk = [message for at in picked for message in source[int(at)] if message["role"] != "system"]
        rows.append(Row(str(index), (*system, *talk)))
    return rows


def _messages(name: str) -> Iterator[tuple[dict[str, Any], ...]]:
    for line in (EXAMPLES / f"{name}.jsonl").read_bytes().splitlines():
        yield tuple(json.loads(line)["messages"])


def random_rows(shape: Shape, count: int) -> list[Row]:
    """Questions and answers of random words; lengths are log-normal, so that a few rows are very long."""
    generator = np.random.default_rng(17)
    words = shape.vocabulary - len(SPECIAL)
    rows = []
    for index in range(count):
        length = int(np.clip(generator.lognormal(np.log(shape.median_words), 0.8), 8, shape.longest_words))
        drawn = (generator.zipf(1.3, length) - 1) % min(words, 2_000)
        cut = max(1, int(length * generator.uniform(0.4, 0.8)))
        texts = [" ".join(f"w{number}" for number in part) for part in (drawn[:cut], drawn[cut:])]
        roles = ("user", "assistant")
        rows.append(
            Row(
                str(index),
                tuple({"role": r, "content": t or "w0"} for r, t in zip(roles, texts, strict=True)),
            )
        )
    return rows


def random_base(folder: Path, shape: Shape, device: torch.device) -> Path:
    """Random bf16 weights in shards, a tokenizer of as many words as the embedding has rows, a manifest.

    Weights are drawn on `device`; one shard is held at a time.
    """
    folder.mkdir(parents=True)
    config = shape.config()
    config.save_pretrained(folder)
    _word_tokenizer(shape).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
            if not (shape.tied and name == "lm_head.weight")
        }
    torch.manual_seed(17)
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    shards = 0
    for at, (name, size) in enumerate(shapes.items(), start=1):
        norm = len(size) == 1
        drawn = torch.ones(size) if norm else torch.randn(size, device=device) * 0.02
        shard[name] = drawn.bfloat16().cpu()
        if at == len(shapes) or sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            shards += 1
            file = f"model-{shards:05d}.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            index.update(dict.fromkeys(shard, file))
            shard.clear()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return seal(folder)


def _word_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    words = [*SPECIAL, *(f"w{number}" for number in range(shape.vocabulary - len(SPECIAL)))]
    inner = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<|unknown|>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",  # noqa: S106  # a token of language
        pad_token="<|end|>",  # noqa: S106
        unk_token="<|unknown|>",  # noqa: S106
        additional_special_tokens=["<|start|>"],
    )
    made.chat_template = TEMPLATE
    return made


def seal(folder: Path) -> Path:
    """The manifest without which no base is loaded."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name not in {MANIFEST, ".complete"}]
    manifest = BaseModelManifest(
        name=folder.name,
        revision=sha256(folder.name.encode()).hexdigest()[:40],
        source="made",
        files={path.name: file_digest(path) for path in files},
        bytes=sum(path.stat().st_size for path in files),
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return folder
