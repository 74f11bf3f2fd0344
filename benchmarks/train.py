"""Training throughput and loss after equal tokens, beside transformers' Trainer on the same rows.

    python benchmarks/train.py [--quick] [--json]

Every contestant trains the same LoRA adapter (same seed) on the same NF4 base with fp32 AdamW at a constant
rate, in steps of eight rows' worth of tokens. Useful tokens are those of the rows; padding earns nothing.
Two data sets: the example's rows, which share a system message, and the same rows without it.

The first step is warm-up and is not timed. `--quick` takes a base of SmolLM2's width with four layers and
random weights; without it the base is SmolLM2-135M-Instruct. The peers are Trainer as tutorials show it
(rows in random order, padded) and Trainer with batches sampled by length.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training_image"))
# Before torch is imported: spinning threads would measure the neighbours.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from dropforge.local.base_models import prepare
from dropforge_core.recipe import Recipe
from tuner.batching import plan_steps
from tuner.data import Example, Row, encode_rows
from tuner.generation import reference_nll
from tuner.model import LanguageModel, attach_adapter, load_base, trainable
from tuner.objective import AnswerLikelihood, part_losses, split_step

REPOSITORY: Final = Path(__file__).parents[1]
ROWS_PER_STEP: Final = 8
RATE: Final = 5e-4
HELD_OUT: Final = 16
MICRO_BATCH: Final = 2_048
"""Tokens; a step is one pass for every contestant, as Trainer's is."""


@dataclass(slots=True)
class Result:
    """What one contestant did: seconds and useful tokens of each step, and the held-out loss after them."""

    seconds: list[float] = field(default_factory=list)
    useful: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    loss: float = 0.0

    def figures(self) -> dict[str, float]:
        """Over all steps but the first."""
        useful, seconds, computed = sum(self.useful[1:]), sum(self.seconds[1:]), sum(self.computed[1:])
        return {
            "useful_tokens_per_s": round(useful / seconds, 1),
            "s_per_step": round(seconds / len(self.seconds[1:]), 3),
            "padding_share": round(max(0.0, 1 - useful / computed), 3),
            "held_out_loss": round(self.loss, 4),
        }


@dataclass(frozen=True, slots=True)
class Task:
    """A base and its data."""

    base: Path
    train: Sequence[Row]
    holdout: Sequence[Row]
    steps: int

    def begin(self) -> tuple[LanguageModel, Any, list[Example], list[Example]]:
        """A fresh model with a fresh adapter, and the encoded rows."""
        torch.manual_seed(17)
        base = load_base(self.base, "nf4", torch.device("cpu"))
        recipe = Recipe.model_validate({"base_model": "s3://some-bucket/base/"})
        adapted = attach_adapter(base, recipe, gradient_checkpointing=False)
        train, holdout = (encode_rows(rows, base.codec, "sft", 4_096) for rows in (self.train, self.holdout))
        return base, adapted, train, holdout


def held_out(base: LanguageModel, examples: Sequence[Example]) -> float:
    """Mean negative log likelihood of the hold-out's answer tokens."""
    base.causal.eval()
    documents = [example.documents[0] for example in examples]
    return sum(reference_nll(base, documents)) / sum(float(d.weights.sum()) for d in documents)


def ours(task: Task, *, sharing: bool) -> Result:
    """The image's own step, without checkpoints and log lines."""
    base, _, examples, holdout = task.begin()
    parameters = list(trainable(base.causal).values())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    lengths = [example.length for example in examples]
    batch = ROWS_PER_STEP * sum(lengths) // len(lengths)
    schedule = plan_steps(lengths, batch, epochs=None, steps=task.steps, seed=17)
    objective, result = AnswerLikelihood(), Result()
    for step in range(1, task.steps + 1):
        started = time.perf_counter()
        chosen = [examples[index] for index in schedule.examples_of(step)]
        optimizer.zero_grad()
        parts = split_step(chosen, MICRO_BATCH, packing=True, sharing=sharing, hidden_size=base.hidden_size)
        weight = objective.weight(chosen)
        for part in parts:
            (part_losses(objective, base, part, chosen).sum() / weight).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        result.seconds.append(time.perf_counter() - started)
        result.useful.append(sum(example.length for example in chosen))
        result.computed.append(sum(part.shape.tokens for part in parts))
    result.loss = held_out(base, holdout)
    return result


def trainer(task: Task, *, sampling: str) -> Result:
    """Transformers' Trainer with the collator that its examples use."""
    base, adapted, examples, holdout = task.begin()
    result = Result()
    pad = DataCollatorForSeq2Seq(base.codec._tokenizer, padding=True)  # noqa: SLF001  # the same tokenizer

    def collate(rows: list[dict[str, Any]]) -> Any:
        kept = [{key: row[key] for key in ("input_ids", "labels")} for row in rows]
        batch = pad([{**row, "attention_mask": [1] * len(row["input_ids"])} for row in kept])
        result.useful.append(int(batch["attention_mask"].sum()))
        result.computed.append(int(batch["attention_mask"].numel()))
        return batch

    class Watch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            result.seconds.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory() as scratch:
        Trainer(
            model=adapted,
            args=TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=ROWS_PER_STEP,
                max_steps=task.steps,
                learning_rate=RATE,
                lr_scheduler_type="constant",
                weight_decay=0.0,
                train_sampling_strategy=sampling,
                length_column_name="length",
                remove_unused_columns=False,
                use_cpu=True,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
                seed=17,
            ),
            train_dataset=[_trainer_row(example) for example in examples],
            data_collator=collate,
            callbacks=[Watch()],
        ).train()
    del result.useful[task.steps :], result.computed[task.steps :]
    result.loss = held_out(base, holdout)
    return result


def _trainer_row(example: Example) -> dict[str, Any]:
    document = example.documents[0]
    labels = [int(t) if w > 0 else -100 for t, w in zip(document.ids, document.weights, strict=True)]
    return {"input_ids": document.ids.tolist(), "labels": labels, "length": document.length}


def shallow_base(folder: Path, source: Path) -> Path:
    """SmolLM2's width and vocabulary with four layers of random weights, and the tiny tokenizer."""
    target = folder / "shallow"
    target.mkdir()
    torch.manual_seed(17)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((source / name).read_bytes())
    return seal(target)


def seal(folder: Path) -> Path:
    """The manifest without which no base is loaded."""
    digests = {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name not in {"MANIFEST.json", ".complete"}
    }
    document = {"name": folder.name, "revision": "0" * 40, "source": "s3://-/", "files": digests, "bytes": 1}
    (folder / "MANIFEST.json").write_text(json.dumps(document))
    return folder


def read_examples(*, system: bool) -> list[Row]:
    lines = (REPOSITORY / "examples" / "us-addresses" / "addresses.jsonl").read_bytes().splitlines()
    found = (json.loads(line)["messages"] for line in lines)
    return [
        Row(str(index), tuple(m for m in messages if system or m["role"] != "system"))
        for index, messages in enumerate(found)
    ]


def measure(*, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All contestants on both data sets."""
    with tempfile.TemporaryDirectory() as scratch:
        say("preparing the base model")
        made = prepare(quick, Path(scratch) / "cache", lambda *_: None)
        base = shallow_base(Path(scratch), made) if quick else seal(made)
        figures: dict[str, dict[str, dict[str, float]]] = {}
        for name, system in (("shared_system_message", True), ("nothing_shared", False)):
            rows = read_examples(system=system)
            task = Task(base, rows[HELD_OUT:], rows[:HELD_OUT], steps=4 if quick else 12)
            contestants: dict[str, Callable[[], Result]] = {
                "ours": lambda task=task: ours(task, sharing=True),
                "ours_without_sharing": lambda task=task: ours(task, sharing=False),
                "trainer_random": lambda task=task: trainer(task, sampling="random"),
                "trainer_by_length": lambda task=task: trainer(task, sampling="group_by_length"),
            }
            if not system:
                del contestants["ours_without_sharing"]  # the same as ours
            figures[name] = {}
            for contestant, run in contestants.items():
                say(f"{name}: {contestant}")
                figures[name][contestant] = run().figures()
    return {
        "name": "train",
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mode": "quick" if quick else "full",
        },
        "figures": figures,
        "ratios": ratios(figures),
    }


def ratios(figures: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Useful tokens per second against Trainer, and its loss against ours after equal tokens."""
    found: dict[str, dict[str, Any]] = {}
    for data, goal in (("shared_system_message", 1.6), ("nothing_shared", 1.2)):
        mine = figures[data]["ours"]
        for peer in ("trainer_random", "trainer_by_length"):
            other = figures[data][peer]
            speed = mine["useful_tokens_per_s"] / other["useful_tokens_per_s"]
            loss = mine["held_out_loss"] / other["held_out_loss"]
            what = f"transformers' Trainer, {peer.removeprefix('trainer_').replace('_', ' ')}"
            found[f"{data}_speed_over_{peer}"] = {
                "value": round(speed, 2),
                "goal": goal,
                "met": speed >= goal,
                "peer": what,
            }
            found[f"{data}_loss_over_{peer}"] = {
                "value": round(loss, 3),
                "goal": 1.1,
                "met": loss <= 1.1,
                "peer": f"{what}, after the same number of rows; lower is better",
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within two minutes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    asked = parser.parse_args()
    found = measure(quick=asked.quick, say=lambda line: print(line, file=sys.stderr))
    if asked.json:
        print(json.dumps(found))
        return
    for data, contestants in found["figures"].items():
        print(data)
        for name, row in contestants.items():
            print(f"  {name:22}" + "  ".join(f"{key}={value}" for key, value in row.items()))
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio['value']} (goal {ratio['goal']}); {ratio['peer']}")


if __name__ == "__main__":
    main()
