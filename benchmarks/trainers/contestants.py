"""The trainers that are compared, each in a process of its own, one optimizer step at a time.

    python benchmarks/trainers/contestants.py NAME FOLDER --seed N --pass-tokens N

Every contestant trains the same LoRA adapter on the same NF4 base with AdamW at a constant rate, one epoch over the same
rows, so many rows a step. Before each step it waits for a line on its standard input: the caller lets contestants
take turns, so that a machine whose speed drifts is equally kind to all. It answers with lines of JSON: `ready`, one
a step, and `done` with its peak of memory. The adapter is left in `adapter-NAME.safetensors`.

`evaluate` is no contestant: it tells the held-out loss of the base and of every adapter that lies there.
"""

import argparse
import contextlib
import ctypes
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

# Last, for a name of the standard library may be a benchmark's too.
sys.path.pop(0)
sys.path.append(str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "functions"))
sys.path.insert(0, str(Path(__file__).parents[2] / "training_image"))
# Before torch is imported: spinning threads would measure the neighbours.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
from trainers.workload import RATE, Workload, read_workload, write_job

from dropforge_core.recipe import Recipe

OUT_OF_MEMORY: Final = 12
"""Exit code; the caller tries again with smaller passes."""


class Caller:
    """Who says when the next step may begin."""

    def __init__(self) -> None:
        # Libraries print too.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def tell(self, **event: Any) -> None:
        self._answers.write(json.dumps(event) + "\n")
        self._answers.flush()

    def wait(self) -> None:
        """Until the caller says so; its end ends this process."""
        if not sys.stdin.readline():
            os._exit(1)


@dataclass(slots=True)
class Turns:
    """Times what lies between two waits."""

    caller: Caller
    device: torch.device
    memory: "Memory"
    started: float = 0.0
    cpu: float = 0.0
    counted: list[tuple[int, int, int]] = field(default_factory=list)
    """Useful, taught and computed tokens of passes that no step has claimed yet."""

    def begin(self) -> None:
        gc.collect()
        self.memory.reset()
        self.caller.tell(event="ready")
        self._go()

    def _go(self) -> None:
        if self.device.type == "cpu":
            # While it waits it holds no pages that it freed: the others need them.
            ctypes.CDLL(None).malloc_trim(0)
        self.caller.wait()
        self.cpu = time.process_time()
        self.started = time.perf_counter()

    def count(self, useful: int, labels: int, computed: int) -> None:
        self.counted.append((useful, labels, computed))

    def end_step(self, passes: int) -> None:
        """A step of so many of the oldest passes is over; waits for the next one."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        useful, labels, computed = (sum(column) for column in zip(*self.counted[:passes], strict=True))
        del self.counted[:passes]
        self.caller.tell(
            event="step", seconds=seconds, cpu_s=cpu, useful=useful, labels=labels, computed=computed
        )
        self._go()


class Memory:
    """The most that was held while training: of the GPU, else of the process above what its libraries take."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._libraries = _status("VmRSS")

    def reset(self) -> None:
        """What loading took is another benchmark's matter."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        # Linux: the high-water mark of resident memory starts again at what is resident (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _status("VmHWM") - self._libraries


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


@dataclass(frozen=True, slots=True)
class Task:
    """What a contestant is given."""

    workload: Workload
    seed: int
    pass_tokens: int
    """Tokens of one forward pass; 0 where a step is one pass."""
    device: torch.device
    turns: Turns

    @property
    def recipe(self) -> Recipe:
        config = json.loads((self.workload.container.channel("config") / "training.json").read_bytes())
        return Recipe.model_validate(config["recipe"])

    @property
    def rows_per_pass(self) -> int:
        """The largest divisor of a step's rows that keeps a pass of the longest rows within its bound."""
        rows = self.workload.rows_per_step
        if not self.pass_tokens:
            return rows
        fit = max(1, self.pass_tokens // self.workload.longest)
        return max(count for count in range(1, rows + 1) if rows % count == 0 and count <= fit)


def ours(task: Task) -> Any:
    """The image's own job up to the first step, and its own steps."""
    from tuner.contract import read_training_job  # noqa: PLC0415  # part of this contestant's memory
    from tuner.distributed.ranks import ALONE  # noqa: PLC0415
    from tuner.loop import load, seed_everything, take_step  # noqa: PLC0415
    from tuner.passes import rehearse, training_passes  # noqa: PLC0415
    from tuner.progress import Stopwatch  # noqa: PLC0415
    from tuner.run import prepare  # noqa: PLC0415
    from tuner.signals import StopRequest  # noqa: PLC0415

    container = task.workload.container
    job = read_training_job(container)
    seed_everything(task.seed)
    base, residency = load(container, job, task.device, _note, ALONE)
    run = prepare(job, base, residency, container, _note)
    stop, watch = StopRequest(), Stopwatch(time.perf_counter)
    rehearse(run, stop)
    _note(f"residency={residency} {run.layouts} pass={run.state.micro_batch_tokens}")
    turns = task.turns
    turns.begin()
    for step in range(1, run.schedule.steps + 1):
        take_step(run, watch, stop)
        examples = [run.examples[index] for index in run.schedule.examples_of(step)]
        turns.count(
            sum(example.length for example in examples),
            sum(int((d.weights > 0).sum()) for example in examples for d in example.documents),
            sum(part.shape.tokens for part in training_passes(run, examples)),
        )
        turns.end_step(1)
    return run.adapted


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def trainer(task: Task, *, sampling: str) -> Any:
    """Trainer of transformers on rows that are padded to the longest of a batch."""
    from peft import get_peft_model  # noqa: PLC0415
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments  # noqa: PLC0415

    tokenizer = _tokenizer(task)
    torch.manual_seed(task.seed)
    model = get_peft_model(_quantised(task), _lora(task))
    pad = DataCollatorForSeq2Seq(tokenizer, padding=True)
    rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in task.workload.encoded("train")]
    rows = [{**row, "length": len(row["input_ids"])} for row in rows]

    def collate(batch: list[dict[str, Any]]) -> Any:
        return pad([{key: row[key] for key in ("input_ids", "labels", "attention_mask")} for row in batch])

    with tempfile.TemporaryDirectory() as scratch:
        made = Trainer(
            model=model,
            args=TrainingArguments(
                **_common(task, scratch),
                per_device_train_batch_size=task.rows_per_pass,
                gradient_accumulation_steps=task.workload.rows_per_step // task.rows_per_pass,
                train_sampling_strategy=sampling,
                length_column_name="length",
                remove_unused_columns=False,
                bf16=task.device.type == "cuda",
            ),
            train_dataset=rows,  # type: ignore[arg-type]  # anything with a length and items
            data_collator=collate,
        )
        _train(made, task)
    return model


def sft_trainer(task: Task, *, tuned: bool, form: str = "padded") -> Any:
    """TRL's SFTTrainer on rows that are tokens and labels already.

    Args:
        task: what is trained.
        tuned: without gradient checkpointing, and on a CPU with an adapter in fp32; else what TRL takes by itself.
            Its bf16 is off on every CPU: one without such instructions takes minutes for a step.
        form: `padded`, `padded_by_length`, `padding_free` or `packed` (best-fit decreasing).
    """
    from datasets import Dataset  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    cpu = task.device.type == "cpu"
    workload = task.workload
    rows_per_pass, accumulation = task.rows_per_pass, workload.rows_per_step // task.rows_per_pass
    settings: dict[str, Any] = {"max_length": None}
    attention = "sdpa"
    if form == "padded_by_length":
        settings["train_sampling_strategy"] = "group_by_length"
    if form in {"padding_free", "packed"}:
        settings["padding_free"] = True
        attention = _variable_length_attention(task.device)
        # Without padding a pass may have as many rows as its bound has mean rows.
        mean = workload.tokens // workload.rows
        fit = max(1, (task.pass_tokens or workload.tokens) // mean)
        rows_per_pass = max(
            n for n in range(1, workload.rows_per_step + 1) if workload.rows_per_step % n == 0 and n <= fit
        )
        accumulation = workload.rows_per_step // rows_per_pass
        if form == "packed":
            # One pack a pass, of the same tokens.
            settings |= {"packing": True, "max_length": max(workload.longest, rows_per_pass * mean)}
            rows_per_pass = 1
    if tuned:
        settings["gradient_checkpointing"] = False
    if cpu:
        settings["bf16"] = False
    torch.manual_seed(task.seed)
    with tempfile.TemporaryDirectory() as scratch:
        made = SFTTrainer(
            model=_quantised(task, attention),
            args=SFTConfig(
                **_common(task, scratch),
                **settings,
                per_device_train_batch_size=rows_per_pass,
                gradient_accumulation_steps=accumulation,
            ),
            train_dataset=Dataset.from_list(workload.encoded("train")),
            processing_class=_tokenizer(task),
            peft_config=_lora(task),
        )
        if tuned and cpu:
            for parameter in made.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        _train(made, task)
    return made.model


def unsloth(task: Task) -> Any:
    """Unsloth's kernels under TRL's SFTTrainer, padding-free, as its notebooks show it."""
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]  # noqa: PLC0415, I001  # patches what follows
    from datasets import Dataset  # noqa: PLC0415
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    workload = task.workload
    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(workload.base), max_seq_length=workload.longest, load_in_4bit=True
    )
    model = FastLanguageModel.get_peft_model(
        model,
        r=task.recipe.adapter.r,
        lora_alpha=task.recipe.adapter.alpha,
        lora_dropout=0,
        bias="none",
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=False,
        random_state=task.seed,
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = SFTTrainer(
            model=model,
            args=SFTConfig(
                **_common(task, scratch),
                padding_free=True,
                max_length=None,
                per_device_train_batch_size=task.rows_per_pass,
                gradient_accumulation_steps=workload.rows_per_step // task.rows_per_pass,
            ),
            train_dataset=Dataset.from_list(workload.encoded("train")),
            processing_class=_tokenizer(task),
        )
        _train(made, task)
    return model


def _common(task: Task, scratch: str) -> dict[str, Any]:
    return {
        "output_dir": scratch,
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "use_cpu": task.device.type == "cpu",
        "report_to": [],
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": task.seed,
    }


def _lora(task: Task) -> Any:
    from peft import LoraConfig  # noqa: PLC0415

    adapter = task.recipe.adapter
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules="all-linear",
        bias="none",
    )


def _quantised(task: Task, attention: str = "sdpa") -> Any:
    """As tutorials load it."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: PLC0415

    dtype = torch.bfloat16 if task.device.type == "cuda" else torch.float32
    return AutoModelForCausalLM.from_pretrained(
        task.workload.base,
        dtype=dtype,
        device_map={"": task.device},
        attn_implementation=attention,
        local_files_only=True,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
    )


def _tokenizer(task: Task) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415

    found: Any = AutoTokenizer.from_pretrained(task.workload.base, local_files_only=True)
    found.pad_token = found.pad_token or found.eos_token
    return found


def _variable_length_attention(device: torch.device) -> str:
    """What TRL wants for rows without padding, where it is installed; sdpa keeps documents apart by a mask."""
    import importlib.util  # noqa: PLC0415

    found = device.type == "cuda" and importlib.util.find_spec("flash_attn")
    return "flash_attention_2" if found else "sdpa"


def _train(made: Any, task: Task) -> None:
    """Run a Trainer to its end, a step a turn."""
    from transformers import TrainerCallback  # noqa: PLC0415

    turns, collate = task.turns, made.data_collator

    def counting(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        computed = int(batch["input_ids"].numel())
        mask = batch.get("attention_mask")
        turns.count(
            computed if mask is None else int(mask.sum()), int((batch["labels"] != -100).sum()), computed
        )
        return batch

    class Watch(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            turns.begin()

        def on_step_end(self, args: Any, *_: Any, **__: Any) -> None:
            turns.end_step(args.gradient_accumulation_steps)

    made.data_collator = counting
    made.add_callback(Watch())
    made.train()


def evaluate(task: Task) -> dict[str, Any]:
    """Held-out loss per document (summed over its taught tokens) and its taught tokens, by the image's own model."""
    import numpy as np  # noqa: PLC0415
    from peft import set_peft_model_state_dict  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    from tuner.conversation import Document  # noqa: PLC0415
    from tuner.generation import batches_by_tokens, reference_nll  # noqa: PLC0415
    from tuner.model import attach_adapter, load_base  # noqa: PLC0415
    from tuner.residency import settle  # noqa: PLC0415

    base = load_base(task.workload.base, "nf4", task.device)
    settle("auto", base.causal, task.device, tight=False)
    documents = [
        Document(np.array(row["input_ids"]), (np.array(row["labels"]) >= 0).astype(np.float32))
        for row in task.workload.encoded("eval")
    ]
    adapted = attach_adapter(base, task.recipe, gradient_checkpointing=False)
    base.causal.eval()

    def losses() -> list[float]:
        found = [0.0] * len(documents)
        for batch in batches_by_tokens([d.length for d in documents], 2_048):
            for at, loss in zip(batch, reference_nll(base, [documents[at] for at in batch]), strict=True):
                found[at] = round(loss, 5)
        return found

    with adapted.disable_adapter():
        answer: dict[str, Any] = {"untrained": losses()}
    for path in sorted(task.workload.folder.glob("adapter-*.safetensors")):
        set_peft_model_state_dict(adapted, load_file(path))
        answer[path.stem.removeprefix("adapter-")] = losses()
    return {"losses": answer, "labels": [int(d.weights.sum()) for d in documents]}


CONTESTANTS: Final[dict[str, Callable[[Task], Any]]] = {
    "ours": ours,
    "trainer_padded": lambda task: trainer(task, sampling="random"),
    "trainer_by_length": lambda task: trainer(task, sampling="group_by_length"),
    "trl_as_it_comes": lambda task: sft_trainer(task, tuned=False),
    "trl_by_length": lambda task: sft_trainer(task, tuned=True, form="padded_by_length"),
    "trl_padding_free": lambda task: sft_trainer(task, tuned=True, form="padding_free"),
    "trl_packed": lambda task: sft_trainer(task, tuned=True, form="packed"),
    "unsloth": unsloth,
}


@contextlib.contextmanager
def _out_of_memory_is_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        from tuner.failure import is_out_of_memory  # noqa: PLC0415

        if not is_out_of_memory(error):
            raise
        print(error, file=sys.stderr)
        os._exit(OUT_OF_MEMORY)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=[*CONTESTANTS, "evaluate"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--pass-tokens", type=int, default=0)
    asked = parser.parse_args()
    caller = Caller()
    import bitsandbytes  # noqa: F401, PLC0415  # libraries are not what is measured
    import peft  # noqa: F401, PLC0415
    import transformers  # noqa: F401, PLC0415

    if asked.name == "unsloth":
        import unsloth as _  # noqa: F401, PLC0415
    if asked.name.startswith("trl"):
        import trl  # noqa: F401, PLC0415
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workload = read_workload(asked.folder)
    write_job(workload, asked.seed, asked.pass_tokens)
    turns = Turns(caller, device, Memory(device))
    task = Task(workload, asked.seed, asked.pass_tokens, device, turns)
    with _out_of_memory_is_told():
        if asked.name == "evaluate":
            caller.tell(event="evaluated", **evaluate(task))
            return
        adapted = CONTESTANTS[asked.name](task)
    peak = turns.memory.peak_bytes()
    from peft import get_peft_model_state_dict  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    adapter = {
        n: t.detach().float().cpu().contiguous() for n, t in get_peft_model_state_dict(adapted).items()
    }
    save_file(adapter, workload.folder / f"adapter-{asked.name}.safetensors")
    caller.tell(event="done", peak_bytes=peak)


if __name__ == "__main__":
    main()
