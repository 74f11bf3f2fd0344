"""Training beside transformers' Trainer, TRL's SFTTrainer and Unsloth: speed, loss after equal tokens, memory.

    python benchmarks/train.py [--quick] [--json]                 on a CPU: SmolLM2-135M-Instruct; on a GPU: --shape 1B
    python benchmarks/train.py --shape 8B                         random weights in the shape of Llama 3.1 8B

Every contestant trains the same LoRA adapter on the same NF4 base with AdamW at a constant rate, once over the same rows
of mixed lengths, in steps of as many rows (ours: of as many tokens). Answers alone are taught.

- ours: the job of the image, from its settings on, by its own steps
- trainer_padded: transformers' Trainer as tutorials show it, rows in random order, padded
- trainer_by_length: the same with batches sampled by length
- trl_as_it_comes: TRL's SFTTrainer with its own settings (gradient checkpointing, adapter in bf16)
- trl_by_length, trl_padding_free, trl_packed: SFTTrainer at its best: nothing recomputed, adapter in fp32 on a CPU
- unsloth: where it is installed and there is a GPU

Each is a process of its own. On a CPU all are alive at once and take turns step by step, so that neighbours slow all
alike; on a GPU they come one after the other, and where a pass does not fit it is tried again at half the size. The first step
is warm-up. Useful tokens are those of the rows: padding earns nothing. CPU seconds are those of all threads. Peak memory is
that of the GPU, or of the process above its libraries, while training. MFU counts what the mathematics asks
for (benchmarks/trainers/flops.py has the formula), of useful tokens, over the peak of the device.

Loss is the mean over the hold-out's taught tokens, computed for every adapter by one and the same program. Two losses are
equal within noise if ours is at most two standard errors above, the error being that of the paired
differences between the hold-out's documents.

`--quick` takes random weights of SmolLM2's width with four layers (on a GPU: the 1B shape), three contestants and few steps. Where TRL or
Unsloth is missing the rest is run and the output says so. All but quick runs are written to benchmarks/results/.
"""

import argparse
import contextlib
import datetime as dt
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Last, for a name of the standard library may be a benchmark's too.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))
sys.path.insert(0, str(Path(__file__).parents[1] / "training_image"))
# Before torch is imported: spinning threads would measure the neighbours.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import torch
import transformers
from trainers.flops import peak_flops, training_flops
from trainers.verdict import figures_of, ratios_of
from trainers.workload import (
    SHAPES,
    Workload,
    example_rows,
    lay_out,
    mixed_rows,
    random_base,
    random_rows,
    seal,
)

from dropforge.local.base_models import SMOL, prepare

REPOSITORY: Final = Path(__file__).parents[1]
CONTESTANT: Final = REPOSITORY / "benchmarks" / "trainers" / "contestants.py"
RESULTS: Final = REPOSITORY / "benchmarks" / "results"
OUT_OF_MEMORY: Final = 12
"""A contestant's exit code."""
SMALLEST_PASS: Final = 2_048
GPU_PASS: Final = 16_384
"""Tokens of a pass to begin with; as many as the image begins with."""
CPU_PASS: Final = 2_048
"""Tokens of a pass of the peers: SmolLM2 keeps about 4 MB of each, its logits included, and all are alive at once."""
HOLDOUT: Final = 48
NAMES: Final = (
    "ours",
    "trainer_padded",
    "trainer_by_length",
    "trl_as_it_comes",
    "trl_by_length",
    "trl_padding_free",
    "trl_packed",
    "unsloth",
)
QUICK_NAMES: Final = ("ours", "trainer_padded", "trl_padding_free", "unsloth")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    """The command line."""

    shape: str
    data: str
    steps: int
    seed: int
    names: tuple[str, ...]
    mode: str
    alone: bool
    """One contestant after the other, as on a GPU."""


class Failed(RuntimeError):
    """A contestant did not get through; the message is for a person."""


@dataclass(slots=True)
class Runner:
    """One contestant's process."""

    name: str
    process: "subprocess.Popen[str]"
    log: Path
    steps: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def is_done(self) -> bool:
        return bool(self.peak_bytes)

    def hear(self) -> dict[str, Any]:
        """The next line of it.

        Raises:
            MemoryError: where a pass did not fit the GPU.
            Failed: where it ended otherwise.
        """
        line = self.process.stdout.readline() if self.process.stdout else ""
        if line:
            heard: dict[str, Any] = json.loads(line)
            return heard
        code = self.process.wait()
        if code == OUT_OF_MEMORY:
            raise MemoryError
        told = [one for one in self.log.read_text(errors="replace").splitlines() if one.strip()]
        raise Failed(f"ended with code {code}: {told[-1] if told else 'no word'}")

    def step(self) -> None:
        """One optimizer step, or the end."""
        if self.process.stdin:
            # Who was killed while it waited is told by `hear`.
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write("\n")
                self.process.stdin.flush()
        heard = self.hear()
        if heard["event"] == "done":
            self.peak_bytes = heard["peak_bytes"]
            self.process.wait()
        else:
            self.steps.append(heard)

    def end(self) -> None:
        """Whatever it is at."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def start(name: str, workload: Workload, seed: int, pass_tokens: int = 0) -> Runner:
    log = workload.folder / f"{name}.log"
    command = [sys.executable, str(CONTESTANT), name, str(workload.folder)]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--seed", str(seed), "--pass-tokens", str(pass_tokens)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            # SFTTrainer refuses a process that sees several.
            env={"CUDA_VISIBLE_DEVICES": "0", **os.environ},
        )
    return Runner(name, process, log)


def in_turns(names: Sequence[str], workload: Workload, seed: int, say: Say) -> Iterator[Runner | str]:
    """All at once, a step each in turn; yields whoever is through, and a line for who is not."""
    running: list[Runner] = []
    try:
        for name in names:
            say(f"starting {name}")
            runner = start(name, workload, seed, 0 if name == "ours" else CPU_PASS)
            running.append(runner)
            try:
                runner.hear()
            except (Failed, MemoryError) as error:
                running.remove(runner)
                yield f"{name}: {error or 'out of memory'}"
        lap = 0
        while running:
            lap += 1
            say(f"lap {lap}")
            # Nobody always comes after the same one.
            for runner in running[lap % len(running) :] + running[: lap % len(running)]:
                try:
                    runner.step()
                except (Failed, MemoryError) as error:
                    running.remove(runner)
                    yield f"{runner.name}: {error or 'out of memory'}"
                    continue
                if runner.is_done:
                    running.remove(runner)
                    yield runner
                    continue
                last = runner.steps[-1]
                say(
                    f"{runner.name}: {last['useful']} tokens, {last['seconds']:.1f} s, {last['cpu_s']:.1f} s of CPU"
                )
    finally:
        for runner in running:
            runner.end()


def one_by_one(
    names: Sequence[str], workload: Workload, seed: int, pass_tokens: int, say: Say
) -> Iterator[Runner | str]:
    """Each alone, in smaller passes where one does not fit."""
    for name in names:
        bound = pass_tokens
        while True:
            say(f"{name}, passes of {bound} tokens")
            runner = start(name, workload, seed, bound)
            try:
                runner.hear()
                while not runner.is_done:
                    runner.step()
                yield runner
                break
            except MemoryError:
                bound //= 2
                if bound < SMALLEST_PASS:
                    yield f"{name}: a pass of {SMALLEST_PASS} tokens does not fit"
                    break
            except Failed as error:
                yield f"{name}: {error}"
                break
            finally:
                runner.end()


def absent(cuda: bool) -> dict[str, str]:
    """Contestants that can't run here, and why."""
    found = {}
    if importlib.util.find_spec("trl") is None:
        why = "TRL is not installed; `make bench` does it, or pip install --no-deps --require-hashes -r requirements/bench.txt"
        found |= dict.fromkeys((name for name in NAMES if name.startswith("trl")), why)
    if importlib.util.find_spec("unsloth") is None:
        found["unsloth"] = "Unsloth is not installed" + ("" if cuda else ", and there is no GPU for it")
    elif not cuda:
        found["unsloth"] = "Unsloth needs a GPU"
    return found


def make_workload(asked: Asked, folder: Path, device: torch.device) -> Workload:
    """The base and its rows, as many steps of them as were asked for, and a hold-out."""
    shape, data, steps = asked.shape, asked.data, asked.steps
    if shape == "smollm2":
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dropforge" / "models"
        base = folder / "base"
        shutil.copytree(prepare(fast=False, cache_dir=cache, on_progress=lambda *_: None), base)
        seal(base)
        rows_per_step = 8
        count = steps * rows_per_step + HOLDOUT
        rows = mixed_rows(count) if data == "mixed" else example_rows()[:count]
    else:
        drawn = SHAPES[shape]
        base = random_base(folder / "base", drawn, device)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        rows_per_step = drawn.rows_per_step
        rows = random_rows(drawn, steps * rows_per_step + HOLDOUT)
    return lay_out(
        f"{SMOL if shape == 'smollm2' else shape}, {data if shape == 'smollm2' else 'random words'}",
        folder / "work",
        base,
        rows[HOLDOUT:],
        rows[:HOLDOUT],
        rows_per_step,
    )


def evaluated(workload: Workload, seed: int) -> dict[str, Any]:
    """Held-out losses of every adapter, in a process of its own."""
    runner = start("evaluate", workload, seed)
    try:
        return runner.hear()
    finally:
        runner.end()


def measure(asked: Asked, say: Say) -> dict[str, Any]:
    """All that can run here, on one workload."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    missing = {name: why for name, why in absent(cuda).items() if name in asked.names}
    names = [name for name in asked.names if name not in missing]
    say(f"preparing {asked.shape}")
    with tempfile.TemporaryDirectory(prefix="train-") as scratch:
        workload = make_workload(asked, Path(scratch), device)
        turns = (
            one_by_one(names, workload, asked.seed, GPU_PASS, say)
            if asked.alone
            else in_turns(names, workload, asked.seed, say)
        )
        through: list[Runner] = []
        for one in turns:
            if isinstance(one, str):
                name, _, why = one.partition(": ")
                missing[name] = why
                say(f"{name} did not get through: {why}")
            else:
                through.append(one)
        say("measuring the hold-out")
        judged = evaluated(workload, asked.seed)
        config = transformers.AutoConfig.from_pretrained(workload.base, local_files_only=True)
        rows = [
            (len(row["input_ids"]), sum(label >= 0 for label in row["labels"]))
            for row in workload.encoded("train")
        ]
        flops = training_flops(config, rows) / workload.tokens
        peak, source = peak_flops(device)
        by_name = {runner.name: runner for runner in through}
        contestants = {
            name: figures_of(
                by_name[name].steps, by_name[name].peak_bytes, judged["losses"][name], judged["labels"], flops
            )
            for name in names
            if name in by_name
        }
        for found in contestants.values():
            found["mfu"] = round(found["tflops"] * 1e12 / peak, 4)
        figures = {
            "workload": {
                "name": workload.name,
                "rows": workload.rows,
                "rows_per_step": workload.rows_per_step,
                "tokens": workload.tokens,
                "label_tokens": workload.labels,
                "longest": workload.longest,
                "seed": asked.seed,
            },
            "gflop_per_useful_token": round(flops / 1e9, 4),
            "peak_flops": {"flops": peak, "source": source},
            "untrained_loss": round(sum(judged["losses"]["untrained"]) / sum(judged["labels"]), 4),
            "contestants": contestants,
            "absent": missing,
        }
    return {
        "name": "train",
        "machine": machine(device, asked.mode),
        "figures": figures,
        "ratios": ratios_of(figures, judged, cuda=cuda),
    }


def machine(device: torch.device, mode: str) -> dict[str, Any]:
    cuda = device.type == "cuda"
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {
        name: importlib.import_module(name).__version__
        for name in ("transformers", "peft", "trl", "bitsandbytes", "unsloth")
        if importlib.util.find_spec(name) is not None and (cuda or name != "unsloth")
    }
    return {
        "date": dt.datetime.now(tz=dt.UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "processor": models[0] if models else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "mode": mode,
    }


def save(document: dict[str, Any], folder: Path, shape: str) -> Path:
    """By shape, hardware and date."""
    about = document["machine"]
    hardware = about["gpu"] or f"{about['cpus']}x {about['processor']}"
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"train-{shape}-{slug}-{about['date']}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def show(document: dict[str, Any]) -> None:
    print(document["figures"]["workload"])
    for name, row in document["figures"]["contestants"].items():
        print(f"  {name:18}" + "  ".join(f"{key}={value}" for key, value in row.items()))
    for name, why in document["figures"]["absent"].items():
        print(f"  {name:18}not run: {why}")
    for name, ratio in document["ratios"].items():
        met = "met" if ratio["met"] else "missed"
        print(f"{name}: {ratio['value']} (goal {ratio['goal']}, {met}); {ratio['peer']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="within two minutes")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--shape", choices=["smollm2", *SHAPES], help="of the base; smollm2 has its real weights"
    )
    parser.add_argument("--data", choices=["mixed", "addresses"], default="mixed", help="SmolLM2's rows")
    parser.add_argument("--steps", type=int, help="of eight rows (a GPU's: 32), the first one included")
    parser.add_argument("--seed", type=int, default=17, help="of adapter and order")
    parser.add_argument(
        "--contestants", help="names, with commas between them; all, or few where it must be quick"
    )
    parser.add_argument("--alone", action="store_true", help="one after the other, as always on a GPU")
    parser.add_argument(
        "--results", type=Path, help="folder for the document (benchmarks/results; quick: none)"
    )
    given = parser.parse_args()
    cuda = torch.cuda.is_available()
    shape = given.shape or ("1B" if cuda else "quick" if given.quick else "smollm2")
    names = (
        tuple(given.contestants.split(",")) if given.contestants else QUICK_NAMES if given.quick else NAMES
    )
    if unknown := set(names) - set(NAMES):
        parser.error(f"no contestant is called {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    asked = Asked(
        shape=shape,
        data=given.data,
        steps=given.steps or (3 if given.quick else 8),
        seed=given.seed,
        names=names,
        mode="quick" if given.quick else "full",
        alone=cuda or given.alone,
    )
    say: Say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    document = measure(asked, say)
    if given.results or not given.quick:
        say(f"written to {save(document, given.results or RESULTS, shape)}")
    if given.json:
        print(json.dumps(document))
    else:
        show(document)


if __name__ == "__main__":
    main()
