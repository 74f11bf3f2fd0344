"""What the contestants' steps come to: rates, the noise of a loss, and what was promised beside what was found."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

PEERS: Final = {
    "trainer_padded": "transformers' Trainer, padded, random order",
    "trl": "TRL's SFTTrainer, the fastest of the settings that ran",
    "trl_as_it_comes": "TRL's SFTTrainer with its own settings",
    "unsloth": "Unsloth under SFTTrainer, padding-free",
}


def figures_of(
    steps: Sequence[Mapping[str, float]],
    peak_bytes: int,
    losses: Sequence[float],
    labels: Sequence[int],
    flops: float,
) -> dict[str, float]:
    """Over all steps but the first.

    Args:
        steps: `seconds`, `cpu_s`, and `useful`, `labels` and `computed` tokens of each.
        peak_bytes: of memory.
        losses: of the hold-out's documents, summed over their taught tokens.
        labels: taught tokens of each.
        flops: of a useful token, on average.
    """
    timed = steps[1:]
    total = {
        key: sum(step[key] for step in timed) for key in ("seconds", "cpu_s", "useful", "labels", "computed")
    }
    rate = total["useful"] / total["seconds"]
    return {
        "useful_tokens_per_s": round(rate, 1),
        "label_tokens_per_s": round(total["labels"] / total["seconds"], 1),
        "useful_tokens_per_cpu_s": round(total["useful"] / total["cpu_s"], 1),
        "s_per_step": round(total["seconds"] / len(timed), 3),
        "padding_share": round(max(0.0, 1 - total["useful"] / total["computed"]), 3),
        "tokens_trained": sum(step["useful"] for step in steps),
        "held_out_loss": round(sum(losses) / sum(labels), 4),
        "peak_memory_gb": round(peak_bytes / 1e9, 2),
        "tflops": round(rate * flops / 1e12, 4),
    }


def ratios_of(figures: dict[str, Any], judged: dict[str, Any], *, cuda: bool) -> dict[str, dict[str, Any]]:
    """What is promised beside what was found; only of contestants that ran."""
    found: dict[str, dict[str, Any]] = {}
    ran: dict[str, dict[str, float]] = figures["contestants"]
    if "ours" not in ran:
        return found
    ours = ran["ours"]
    settings = [name for name in ("trl_by_length", "trl_padding_free", "trl_packed") if name in ran]
    best = max(settings, key=lambda name: ran[name]["useful_tokens_per_s"], default="")
    goals = {
        "trainer_padded": ("trainer_padded", 1.5 if cuda else 1.7),
        "trl": (best, 1.0 if cuda else 1.4),
        "trl_as_it_comes": ("trl_as_it_comes", 1.0 if cuda else 1.4),
        "unsloth": ("unsloth", 1.0),
    }
    for short, (name, goal) in goals.items():
        if name not in ran:
            continue
        peer = PEERS[short] + (f" ({', '.join(settings)}): {name}" if short == "trl" else "")
        key = "best_trl" if short == "trl" else short
        speed = ours["useful_tokens_per_s"] / ran[name]["useful_tokens_per_s"]
        found[f"speed_over_{key}"] = _ratio(speed, goal, speed >= goal, f"{peer}; useful tokens per second")
        if not cuda:
            speed = ours["useful_tokens_per_cpu_s"] / ran[name]["useful_tokens_per_cpu_s"]
            found[f"cpu_time_speed_over_{key}"] = _ratio(
                speed, goal, speed >= goal, f"{peer}; useful tokens per second of processor time"
            )
        loss, within = ours["held_out_loss"] / ran[name]["held_out_loss"], noise(judged, name)
        found[f"loss_over_{key}"] = _ratio(
            loss, round(1 + within, 4), loss <= 1 + within, f"{peer}; equal within noise, lower is better"
        )
        memory = ours["peak_memory_gb"] / max(ran[name]["peak_memory_gb"], 0.01)
        found[f"memory_over_{key}"] = _ratio(memory, 1.0, memory <= 1.0, f"{peer}; lower is better")
    if cuda:
        share = ours["tflops"] * 1e12 / figures["peak_flops"]["flops"]
        found["mfu"] = _ratio(share, 0.40, share >= 0.40, figures["peak_flops"]["source"])
    return found


def noise(judged: dict[str, Any], name: str) -> float:
    """Two standard errors of the difference between our mean loss and another's, as a share of the other's."""
    ours, other = judged["losses"]["ours"], judged["losses"][name]
    labels = judged["labels"]
    mean = (sum(ours) - sum(other)) / sum(labels)
    # The error of a ratio of two sums (W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4).
    spread = sum((a - b - mean * n) ** 2 for a, b, n in zip(ours, other, labels, strict=True))
    error = math.sqrt(spread * len(labels) / max(1, len(labels) - 1)) / sum(labels)
    return 2 * error / (sum(other) / sum(labels))


def _ratio(value: float, goal: float, met: bool, peer: str) -> dict[str, Any]:
    return {"value": round(value, 3), "goal": goal, "met": bool(met), "peer": peer}
