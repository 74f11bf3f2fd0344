"""Tokens a second of greedy answers: the image's engine beside transformers' `generate`, in a loop and padded.

    python benchmarks/serve.py [--quick] [--json]

All contestants answer the same 50 prompts of the example's data, which share a system message, with the same
weights in fp32, up to the same limit each. The peers are `generate` called for one prompt after the other, and
`generate` called once for all of them, padded on the left to one width. An answer's tokens are those before its
stop token; what a padded batch generates beyond an answer's end earns nothing. The answers of all contestants
are compared token by token.

Rounds are interleaved and mirrored (ours, half of the loop, padded, the other half, padded, ours), so that a
machine that is busier for a while slows all of them. `--quick` takes a base of SmolLM2's width with four layers and
random weights, which never ends an answer by itself, so limits differ; without it the base is
SmolLM2-135M-Instruct.
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
from pathlib import Path
from typing import Any, Final

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training_image"))
# Before torch is imported: spinning threads would measure the neighbours.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
from trainers.workload import example_rows, seal
from transformers import LlamaConfig, LlamaForCausalLM

from dropforge.local.base_models import prepare
from dropforge.local.stack import cache_dir
from tuner.adapters import Variants
from tuner.engine.continuous import ContinuousEngine, completions
from tuner.engine.protocol import Question
from tuner.generation import Decoding
from tuner.model import LanguageModel, load_base

PROMPTS: Final = 50
LIMIT: Final = 48
"""Tokens of an answer, at most."""
QUICK_LIMITS: Final = (4, 8, 12, 24)
GOAL_OVER_LOOP: Final = 3.0

Tokens = tuple[int, ...]


@dataclass(slots=True)
class Result:
    """Seconds and answers of one contestant."""

    seconds: float = 0.0
    tokens: int = 0
    answers: dict[int, Tokens] = field(default_factory=dict)

    def add(self, places: Sequence[int], answers: Sequence[Tokens], seconds: float) -> None:
        self.seconds += seconds
        self.tokens += sum(map(len, answers))
        self.answers.update(zip(places, answers, strict=True))

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Task:
    """Prompts and how many tokens each answer may have; two copies of the model, since ours changes its own."""

    prompts: Sequence[list[int]]
    limits: Sequence[int]
    own: LanguageModel
    peer: LanguageModel

    def ours(self, places: Sequence[int]) -> list[Tokens]:
        engine = ContinuousEngine(Variants(self.own), Decoding(max(self.limits)), lambda _: None)
        asked = [Question(i, str(i), "base", self.prompts[i], None, self.limits[i]) for i in places]
        found = {c.ticket: c.answer.tokens for c in completions(engine, asked) if c.answer is not None}
        return [found[place] for place in places]

    def padded(self, places: Sequence[int]) -> list[Tokens]:
        """One call of `generate`; with one place it is a step of the plain loop."""
        width = max(len(self.prompts[place]) for place in places)
        pad = self.peer.pad_id
        ids = torch.tensor([[pad] * (width - len(self.prompts[i])) + self.prompts[i] for i in places])
        mask = torch.tensor(
            [[0] * (width - len(self.prompts[i])) + [1] * len(self.prompts[i]) for i in places]
        )
        stops = self.peer.codec.stop_ids
        with torch.inference_mode():
            found = self.peer.causal.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(self.limits[place] for place in places),
                do_sample=False,
                eos_token_id=sorted(stops),
                pad_token_id=pad,
            )[:, width:].tolist()
        return [
            tuple(
                row[: next((at for at, token in enumerate(row) if token in stops), len(row))][
                    : self.limits[i]
                ]
            )
            for i, row in zip(places, found, strict=True)
        ]

    def loop(self, places: Sequence[int]) -> list[Tokens]:
        return [self.padded([place])[0] for place in places]


def random_base(folder: Path, source: Path) -> Path:
    """SmolLM2's width with four layers of random weights, and the tiny tokenizer with its vocabulary."""
    target = folder / "random"
    target.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((source / name).read_bytes())
    torch.manual_seed(17)
    config = LlamaConfig.from_pretrained(
        source,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=4,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
    )
    LlamaForCausalLM(config).save_pretrained(target)
    return seal(target)


def task_of(base: Path, *, quick: bool) -> Task:
    own, peer = (load_base(base, "none", torch.device("cpu")) for _ in range(2))
    rows = example_rows()[:PROMPTS]
    prompts = [own.codec.prompt(row.messages[:-1]) for row in rows]
    limits = [QUICK_LIMITS[i % len(QUICK_LIMITS)] if quick else LIMIT for i in range(PROMPTS)]
    return Task(prompts, limits, own, peer)


def measure(*, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """All contestants, interleaved."""
    with tempfile.TemporaryDirectory() as scratch:
        say("preparing the base model")
        made = prepare(quick, cache_dir(), lambda *_: None)
        if quick:
            base = random_base(Path(scratch), made)
        else:
            base = Path(scratch) / "base"
            base.mkdir()
            for path in made.iterdir():
                if path.is_file() and not path.name.startswith("."):
                    (base / path.name).symlink_to(path)
            (base / "MANIFEST.json").unlink(missing_ok=True)
            seal(base)
        task = task_of(base, quick=quick)
    everyone, half = range(PROMPTS), PROMPTS // 2
    results = {name: Result() for name in ("ours", "plain_loop", "padded_batch")}
    for work in (task.ours, task.loop, task.padded):
        work(range(2))  # warm-up
    for name, work, places in (
        ("ours", task.ours, everyone),
        ("plain_loop", task.loop, everyone[:half]),
        ("padded_batch", task.padded, everyone),
        ("plain_loop", task.loop, everyone[half:]),
        ("padded_batch", task.padded, everyone),
        ("ours", task.ours, everyone),
    ):
        say(f"{name}: {len(places)} prompts")
        started = time.perf_counter()
        answers = work(places)
        results[name].add(places, answers, time.perf_counter() - started)
    return {
        "name": "serve",
        "machine": {
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mode": "quick" if quick else "full",
        },
        "figures": {
            "prompts": PROMPTS,
            "prompt_tokens": sum(map(len, task.prompts)),
            "answer_tokens": sum(map(len, results["plain_loop"].answers.values())),
            "tokens_per_s": {name: round(result.rate, 2) for name, result in results.items()},
        },
        "ratios": ratios(results),
    }


def ratios(results: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """Speed over both peers, and the share of answers that are the same token by token."""
    mine, found = results["ours"], {}
    for peer, goal, what in (
        ("plain_loop", GOAL_OVER_LOOP, "transformers' generate, one prompt after the other"),
        ("padded_batch", 1.0, "transformers' generate, one padded batch"),
    ):
        other = results[peer]
        speed = mine.rate / other.rate
        same = sum(mine.answers[place] == other.answers[place] for place in range(PROMPTS)) / PROMPTS
        found[f"speed_over_{peer}"] = {
            "value": round(speed, 2),
            "goal": goal,
            "met": speed >= goal,
            "peer": what,
        }
        found[f"same_answers_as_{peer}"] = {
            "value": same,
            "goal": 1.0,
            "met": same >= 1.0,
            "peer": f"{what}; share of answers that are equal in every token",
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
    for name, rate in found["figures"]["tokens_per_s"].items():
        print(f"{name:14}{rate:10} tokens/s")
    for name, ratio in found["ratios"].items():
        print(f"{name}: {ratio['value']} (goal {ratio['goal']}); {ratio['peer']}")


if __name__ == "__main__":
    main()
