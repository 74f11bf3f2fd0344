"""The training benchmark: its count of FLOPs, its verdicts, and a whole run of it with a tiny model."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

# Last: a benchmark may be called like a module of the standard library.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from trainers.flops import training_flops
from trainers.verdict import figures_of, noise, ratios_of

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "train.py"
CONFIG = LlamaConfig(
    vocab_size=300,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)


def test_frozen_maps_cost_four_flops_a_weight_and_the_head_only_where_there_is_a_label():
    """The count is four for each weight that transformers' model has in its linear layers, six in the adapter."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG)
    maps = [
        part
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear) and name != "lm_head"
    ]
    weights = sum(part.weight.numel() for part in maps)
    adapter = sum(5 * (part.in_features + part.out_features) for part in maps)
    attention = 6 * 3 * 48
    assert training_flops(CONFIG, [(1, 0)], rank=5) == 4 * weights + 6 * adapter + attention
    taught = training_flops(CONFIG, [(1, 1)], rank=5) - training_flops(CONFIG, [(1, 0)], rank=5)
    assert taught == 4 * model.lm_head.weight.numel()


def test_attention_grows_with_the_square_of_a_row_and_not_with_the_number_of_rows():
    """Two rows of n tokens cost twice one row; one row of 2n costs more by what its halves attend to each other."""
    one, two, long = (training_flops(CONFIG, rows) for rows in ([(64, 0)], [(64, 0)] * 2, [(128, 0)]))
    assert two == 2 * one
    assert long - two == 6 * 3 * 48 * (128**2 - 2 * 64**2)


def contestant(seconds: float, losses: list[float]) -> dict[str, float]:
    step = {"seconds": seconds, "cpu_s": seconds, "useful": 100, "labels": 40, "computed": 200}
    warm_up = step | {"seconds": 1000.0}
    return figures_of([warm_up, step, step], 10**9, losses, [1] * len(losses), 1e9)


def test_figures_leave_out_the_warm_up_and_padding():
    """A slow first step counts nowhere, and computed tokens that are padding are no throughput."""
    found = contestant(2.0, [1.0, 3.0])
    assert found["useful_tokens_per_s"] == 50
    assert found["label_tokens_per_s"] == 20
    assert found["padding_share"] == 0.5
    assert found["held_out_loss"] == 2.0
    assert found["tokens_trained"] == 300


def test_a_goal_is_met_by_what_was_measured_alone():
    """Slower than the goal, a worse loss beyond the noise, and a peer that did not run are told as what they are."""
    losses = {
        "ours": [1.0, 2.0, 3.0, 4.0],
        "trainer_padded": [1.1, 2.0, 3.1, 4.0],
        "trl_packed": [0.5, 1.4, 2.6, 3.4],
    }
    judged = {"losses": losses, "labels": [1] * 4}
    seconds = {"ours": 1.0, "trainer_padded": 1.8, "trl_packed": 1.3}
    ran = {name: contestant(seconds[name], losses[name]) for name in losses}
    found = ratios_of({"contestants": ran, "peak_flops": {}}, judged, cuda=False)
    assert found["speed_over_trainer_padded"]["met"]
    assert not found["speed_over_best_trl"]["met"]
    assert found["speed_over_best_trl"]["value"] == 1.3
    assert found["loss_over_trainer_padded"]["met"]
    assert not found["loss_over_best_trl"]["met"]
    assert not any("unsloth" in name or "as_it_comes" in name for name in found)


def test_equal_losses_leave_no_noise():
    """The noise is that of the documents' differences, not of the documents."""
    judged = {"losses": {"ours": [1.0, 20.0, 5.0], "trl_packed": [1.0, 20.0, 5.0]}, "labels": [1, 10, 3]}
    assert noise(judged, "trl_packed") == 0


@pytest.mark.slow
def test_random_weights_run_from_end_to_end_with_whoever_is_installed(tmp_path):
    """The way a GPU takes, with a tiny shape: all train the same tokens, and who is missing is named with a reason."""
    names = "ours,trainer_padded,trl_padding_free,unsloth"
    options = ["--shape", "tiny", "--steps", "3", "--contestants", names, "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *options, "--alone", "--json"],
        stdout=subprocess.PIPE,
        check=True,
        timeout=900,
    )
    document = json.loads(done.stdout)
    figures = document["figures"]
    ran, absent = figures["contestants"], figures["absent"]
    assert {"ours", "trainer_padded"} <= set(ran)
    assert set(ran) | set(absent) == {"ours", "trainer_padded", "trl_padding_free", "unsloth"}
    if importlib.util.find_spec("trl") is None:
        assert "requirements/bench.txt" in absent["trl_padding_free"]
    assert {one["tokens_trained"] for one in ran.values()} == {figures["workload"]["tokens"]}
    assert all(one["held_out_loss"] < figures["untrained_loss"] for one in ran.values())
    assert all(one["peak_memory_gb"] > 0 and one["mfu"] > 0 for one in ran.values())
    (written,) = tmp_path.iterdir()
    assert document["machine"]["date"] in written.name
    assert json.loads(written.read_bytes()) == document
