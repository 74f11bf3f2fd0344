"""How far the planner is from what was measured: published runs, runs of one's own, and its interval's coverage.

    python benchmarks/plan.py [--quick] [--json] [--runs FILE]

FILE has one JSON document a line: the field `measured` of finished runs in the run table. Each is forecast
from those that ended before it, as the planner would have.

The published runs (ANCHORS) are of other trainers; they tell whether the formulas hold, not how fast this one
is. The peer of a learned constant is the planning value 0.25, and of the memory formula the published figure.
"""

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))

from dropforge_core.contracts import DatasetFacts, Interval
from dropforge_core.planning import shape_of
from dropforge_core.planning.calibration import (
    PRIOR_MFU,
    PRIOR_MIDDLE,
    PRIOR_SPREAD,
    RATE,
    RUN_SPREAD,
    Measurement,
    Speed,
    learn,
)
from dropforge_core.planning.duration import Workload, flop_per_token
from dropforge_core.planning.memory import GIB, MARGIN, training_memory
from dropforge_core.recipe import Recipe


def _llama(**sizes: Any) -> dict[str, Any]:
    return {"model_type": "llama", "tie_word_embeddings": False, **sizes}


LLAMA_2_7B: Final = _llama(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
)
QWEN_7B: Final = {**LLAMA_2_7B, "vocab_size": 151_936}
LLAMA_3_8B: Final = _llama(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128_256,
)
QWEN_25_7B: Final = _llama(
    hidden_size=3584,
    intermediate_size=18944,
    num_hidden_layers=28,
    num_attention_heads=28,
    num_key_value_heads=4,
    vocab_size=152_064,
)


class Anchor(NamedTuple):
    """One published measurement, one row a pass, on one GPU."""

    source: str
    config: dict[str, Any]
    quantization: str
    rank: int
    gpu: str
    tflops: float
    length: int
    """Tokens of a row, all of them full."""
    tokens_per_s: float
    memory_gb: float | None = None
    rows: int = 1
    """Of a pass."""
    checkpointing: bool = True
    fused_loss: bool = False


_FACTORY: Final = "LLaMA-Factory wiki, Performance comparison, 2024-04"
_UNSLOTH: Final = f"{_FACTORY} (Unsloth)"
_QWEN: Final = "Qwen README, profiling"
_NEMO: Final = "NeMo AutoModel, performance-summary, 2025-10"
ANCHORS: Final = (
    *(
        Anchor(_FACTORY, LLAMA_2_7B, "nf4", 8, "A100", 312, length, speed, memory)
        for length, speed, memory in ((1024, 2295, 6), (2048, 2741, 7), (4096, 2926, 9), (8192, 3128, 12))
    ),
    *(
        Anchor(_UNSLOTH, LLAMA_2_7B, "nf4", 8, "A100", 312, length, speed, memory, fused_loss=True)
        for length, speed, memory in ((1024, 2556, 5), (2048, 3178, 6), (4096, 3413, 7), (8192, 3632, 8))
    ),
    *(
        Anchor(_QWEN, QWEN_7B, "nf4", 64, "A100", 312, length, 8 * length / seconds, memory)
        for length, seconds, memory in (
            (256, 3.0, 11.5),
            (2048, 7.0, 13.9),
            (4096, 11.6, 16.9),
            (8192, 22.3, 23.5),
        )
    ),
    Anchor(_NEMO, LLAMA_3_8B, "none", 16, "H100", 989, 4096, 12_473, rows=2, checkpointing=False),
    Anchor(_NEMO, QWEN_25_7B, "none", 16, "H100", 989, 4096, 14_110, rows=2, checkpointing=False),
)
"""The 70B run on eight GPUs and the 8 GB laptop GPU of the same list are left out: no GPU here is like them."""
TYPES: Final = {"A100": "ml.p4d.24xlarge", "H100": "ml.p5.4xlarge"}


def work_of(anchor: Anchor) -> Workload:
    """The anchor as the planner would be asked for it."""
    recipe = Recipe.model_validate(
        {
            "base_model": "org/model",
            "quantization": anchor.quantization,
            "adapter": {"r": anchor.rank},
            "training": {"max_seq_len": anchor.length, "effective_batch_tokens": anchor.rows * anchor.length},
        }
    )
    dataset = DatasetFacts(
        digest="sha256:" + "0" * 64,
        rows_train=1000,
        rows_eval=0,
        bytes_train=1,
        tokens_train=1000 * anchor.length,
        tokens_exact=True,
        longest_tokens=anchor.length,
        format="text",
    )
    return Workload(recipe=recipe, dataset=dataset, shape=shape_of(anchor.config))


def speed_of(number: int, anchor: Anchor) -> Speed:
    """What a run like the anchor would have left in the table."""
    work = work_of(anchor)
    return Speed(
        run_id=f"anchor{number}",
        ended_at=f"2026-01-01T00:00:{number:02d}Z",
        parameters=work.shape.parameters,
        instance_type=TYPES[anchor.gpu],
        device="cuda",
        flop_per_token=flop_per_token(work, checkpointing=anchor.checkpointing),
        peak_tflops=anchor.tflops,
        tokens_per_s=anchor.tokens_per_s,
    )


def published() -> list[dict[str, Any]]:
    """Every anchor: the constant it had, and what the prior and the other sources' runs would have said."""
    speeds = [speed_of(number, anchor) for number, anchor in enumerate(ANCHORS)]
    rows = []
    for anchor, speed in zip(ANCHORS, speeds, strict=True):
        others = [s for a, s in zip(ANCHORS, speeds, strict=True) if a.source != anchor.source]
        learned = learn(others, speed.instance_type, speed.parameters)
        row = {
            "source": anchor.source,
            "tokens_of_a_row": anchor.length,
            "tokens_per_s": round(anchor.tokens_per_s),
            "mfu": round(speed.mfu, 3),
            "in_prior": _holds(PRIOR_MFU, speed.mfu),
            "forecast_prior": round(anchor.tokens_per_s * PRIOR_MFU.expected / speed.mfu),
            "factor_prior": _factor(PRIOR_MFU.expected, speed.mfu),
            "runs_of_other_sources": round(learned.runs, 1),
            "in_learned": _holds(learned.mfu, speed.mfu),
            "factor_learned": _factor(learned.mfu.expected, speed.mfu),
        }
        rows.append({**row, **_memory(anchor)})
    return rows


def _memory(anchor: Anchor) -> dict[str, Any]:
    if anchor.memory_gb is None:
        return {}
    work = work_of(anchor)
    predicted = training_memory(
        work.shape,
        work.recipe,
        micro_batch_tokens=anchor.rows * anchor.length,
        checkpointing=anchor.checkpointing,
        fused_loss=anchor.fused_loss,
    ).total
    return {
        "memory_gb": anchor.memory_gb,
        "memory_predicted_gb": round(predicted / 1e9, 2),
        "memory_predicted_gib": round(predicted / GIB, 2),
        "covered_by_margin": predicted / MARGIN / 1e9 >= anchor.memory_gb,
    }


def recorded(runs: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Every run of one's own, forecast from those that ended before it."""
    rows = []
    ordered = sorted((r for r in runs if r.device == "cuda"), key=lambda r: (r.ended_at, r.run_id))
    for place, run in enumerate(ordered):
        learned = learn(ordered[:place], run.instance_type, run.parameters, gpus=run.gpus)
        rows.append(
            {
                "run_id": run.run_id,
                "instance_type": run.instance_type,
                "parameters": run.parameters,
                "mfu": round(run.mfu, 4),
                "runs_before": round(learned.runs, 1),
                "inside": _holds(learned.mfu, run.mfu),
                "factor": _factor(learned.mfu.expected, run.mfu),
                "factor_prior": _factor(PRIOR_MFU.expected, run.mfu),
                "memory_predicted_over_measured": round(
                    run.forecast_memory_gib / max(run.peak_memory_gib, 1e-9), 3
                ),
            }
        )
    return rows


def coverage(trials: int) -> list[dict[str, Any]]:
    """Families and runs drawn as the model assumes, seeded: how often the interval holds the next run, and its width."""
    pattern = speed_of(0, ANCHORS[0])
    between = math.sqrt(PRIOR_SPREAD**2 - RUN_SPREAD**2)
    rows = []
    for count in (0, 1, 3, 10, 30):
        draw, inside, widths = random.Random(count), 0, []  # noqa: S311  # a seeded draw, no secret
        for _ in range(trials):
            family = PRIOR_MIDDLE * math.exp(draw.gauss(0, between))
            following, *shares = (family * math.exp(draw.gauss(0, RUN_SPREAD)) for _ in range(count + 1))
            runs = [
                pattern.model_copy(
                    update={"run_id": str(i), "tokens_per_s": pattern.tokens_per_s * share / pattern.mfu}
                )
                for i, share in enumerate(shares)
            ]
            found = learn(runs, pattern.instance_type, pattern.parameters).mfu
            inside += _holds(found, following)
            widths.append(found.high / found.low)
        rows.append(
            {
                "runs": count,
                "inside": round(inside / trials, 3),
                "high_over_low": round(statistics.median(widths), 2),
            }
        )
    return rows


def _holds(interval: Interval, value: float) -> bool:
    return interval.low <= value <= interval.high


def _factor(planned: float, measured: float) -> float:
    """How many times too fast or too slow the planned value is, 1 or more."""
    return round(math.exp(abs(math.log(planned / measured))), 3)


def _share(rows: Iterable[dict[str, Any]], name: str) -> float:
    values = [bool(row[name]) for row in rows if name in row]
    return round(sum(values) / len(values), 3) if values else 0.0


def measure(*, quick: bool, runs: Sequence[Measurement]) -> dict[str, Any]:
    """The document."""
    anchors, own = published(), recorded(runs)
    trials = 1000 if quick else 4000
    covered = coverage(trials)
    # Only sources of which others measured the same GPU can be forecast from others.
    told = [row for row in anchors if row["runs_of_other_sources"] >= 0.5]
    prior, learned = (
        statistics.median(row[name] for row in told) for name in ("factor_prior", "factor_learned")
    )
    worst = min(row["inside"] for row in covered)
    noise = 3 * math.sqrt(RATE * (1 - RATE) / trials)
    ratios = {
        "share_of_published_runs_inside_the_prior": _at_least(
            _share(anchors, "in_prior"),
            RATE,
            f"{len(anchors)} runs of {len({a.source for a in ANCHORS})} sources",
        ),
        "share_of_published_runs_inside_what_other_sources_teach": _at_least(
            _share(told, "in_learned"), RATE, f"{len(told)} runs on A100; sources share no trainer"
        ),
        "median_factor_of_error_learned_over_prior": _at_most(
            round(learned / prior, 3), 1.0, f"planned at {PRIOR_MFU.expected}: off by a factor of {prior}"
        ),
        "share_of_published_peaks_that_the_margin_covers": _at_least(
            _share(anchors, "covered_by_margin"),
            1.0,
            "published peaks of other trainers, one pass a step",
        ),
        "least_coverage_of_the_interval": _at_least(
            worst, round(RATE - noise, 3), f"stated rate {RATE}, {trials} draws for each number of runs"
        ),
    }
    if own:
        ratios["share_of_own_runs_inside"] = _at_least(_share(own, "inside"), RATE, f"{len(own)} runs")
    return {
        "name": "plan",
        "machine": {"cpu": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "figures": {"published": anchors, "recorded": own, "coverage": covered},
        "ratios": ratios,
    }


def _at_least(value: float, goal: float, peer: str) -> dict[str, Any]:
    return {"value": value, "goal": goal, "met": value >= goal, "peer": peer}


def _at_most(value: float, goal: float, peer: str) -> dict[str, Any]:
    return {"value": value, "goal": goal, "met": value <= goal, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer draws")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--runs", type=Path, help="measurements of finished runs, one JSON document a line")
    asked = parser.parse_args()
    lines = asked.runs.read_text(encoding="utf-8").splitlines() if asked.runs else []
    found = measure(
        quick=asked.quick, runs=[Measurement.model_validate_json(line) for line in lines if line.strip()]
    )
    if asked.json:
        print(json.dumps(found))
        return
    for name, rows in found["figures"].items():
        print(name)
        for row in rows:
            print("  " + "  ".join(f"{key}={value}" for key, value in row.items()))
    for name, ratio in found["ratios"].items():
        met = "met" if ratio["met"] else "missed"
        print(f"{name}: {ratio['value']} (goal {ratio['goal']}, {met}); {ratio['peer']}")


if __name__ == "__main__":
    main()
