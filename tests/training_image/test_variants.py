"""Every kind of adapter that a recipe may ask for trains, resumes exactly and reloads."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import HOLDOUT, ROWS, StopAt, adapter_bytes, train
from safetensors.torch import load_file
from tiny_jobs import SHORT, make_job, seal
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dropforge_core.recipe import Training
from tuner.adapters import Variants
from tuner.data import Row, encode_rows
from tuner.generation import reference_nll
from tuner.model import load_base
from tuner.optimise import load_optimizer, make_optimizer, optimizer_tensors, set_learning_rate
from tuner.signals import Stopped


@pytest.mark.parametrize(
    "recipe",
    [
        {"adapter": {"r": 8, "alpha": 16, "rslora": True}},
        {"adapter": {"r": 8, "alpha": 16, "dora": True, "dropout": 0.1}},
        {"adapter": {"r": 8, "alpha": 16, "lora_plus_ratio": 8}},
        {"adapter": {"r": 8, "alpha": 16, "dora": True, "lora_plus_ratio": 4, "targets": ["q_proj", "down_proj"]}},
        {"quantization": "none"},
    ],
    ids=["rslora", "dora", "lora+", "dora and lora+, named", "unquantised"],
)  # fmt: skip
def test_each_kind_learns_resumes_and_reloads(
    tiny_base: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    """Its held-out loss falls; stopped half-way it ends in the same bytes; reloaded it has the saved loss."""
    job: dict[str, Any] = {"rows": ROWS, "holdout": HOLDOUT, "recipe": {**SHORT, **recipe}}
    whole = make_job(tmp_path / "whole", tiny_base, **job)
    summary = train(whole)
    assert summary.best_eval_loss is not None
    assert summary.first_eval_loss is not None
    assert summary.best_eval_loss < summary.first_eval_loss - 0.2
    stopped = make_job(tmp_path / "stopped", tiny_base, **job)
    with pytest.raises(Stopped):
        train(stopped, stop=StopAt(12))
    assert train(stopped).loss_curve == summary.loss_curve
    assert adapter_bytes(stopped) == adapter_bytes(whole)
    variants = Variants(load_base(tiny_base, recipe.get("quantization", "nf4"), torch.device("cpu")))
    variants.add("candidate", whole.model)
    rows = [Row(row["id"], tuple(row["messages"])) for row in HOLDOUT]
    documents = [e.documents[0] for e in encode_rows(rows, variants.base.codec, "sft", 512)]
    tokens = sum(float(document.weights.sum()) for document in documents)
    with variants.active("candidate") as model:
        assert sum(reference_nll(model, documents)) / tokens == pytest.approx(
            summary.best_eval_loss, abs=1e-4
        )


def matrices() -> dict[str, nn.Parameter]:
    return {f"layer.lora_{kind}.default.weight": nn.Parameter(torch.ones(2, 2)) for kind in "AB"}


def test_lora_plus_moves_b_faster_by_its_ratio() -> None:
    """With equal gradients Adam's first step is the learning rate: B's is the ratio times A's."""
    parameters = matrices()
    optimizer = make_optimizer(parameters, Training(), 16.0)
    set_learning_rate(optimizer, 0.01)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {name.split(".")[1]: float((1 - p).mean().detach()) for name, p in parameters.items()}
    assert moved["lora_A"] == pytest.approx(0.01, rel=1e-3)
    assert moved["lora_B"] == pytest.approx(0.16, rel=1e-3)


@pytest.mark.parametrize("ratio", [None, 4.0])
def test_an_optimizer_s_state_finds_its_parameters_again(ratio: float | None) -> None:
    """Whatever the order of the groups, each moment comes back to the parameter that it belongs to."""
    parameters = dict(reversed(matrices().items()))
    optimizer = make_optimizer(parameters, Training(), ratio)
    for weight, parameter in enumerate(parameters.values(), start=1):
        parameter.grad = torch.full_like(parameter, float(weight))
    optimizer.step()
    saved = optimizer_tensors(optimizer, parameters)
    other = make_optimizer(parameters, Training(), ratio)
    load_optimizer(other, parameters, saved)
    again = optimizer_tensors(other, parameters)
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


def test_a_gpu_s_optimizer_moves_as_a_cpu_s_and_resumes_from_it() -> None:
    """One fused kernel takes the same steps to rounding, and goes on with the moments of the other."""
    torch.manual_seed(2)
    slopes = [torch.randn(2, 2) for _ in range(8)]

    def stepped(
        optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], some: list[Any]
    ) -> None:
        for slope in some:
            for parameter in parameters.values():
                parameter.grad = slope.clone()
            optimizer.step()

    plain, fused = matrices(), matrices()
    ours, other = (make_optimizer(p, Training(weight_decay=0.1), 4.0) for p in (plain, fused))
    for group in other.param_groups:
        group["fused"] = True
    stepped(ours, plain, slopes)
    stepped(other, fused, slopes[:5])
    resumed = matrices()
    with torch.no_grad():
        for name, parameter in resumed.items():
            parameter.copy_(fused[name])
    third = make_optimizer(resumed, Training(weight_decay=0.1), 4.0)
    load_optimizer(third, resumed, optimizer_tensors(other, fused))
    stepped(third, resumed, slopes[5:])
    for name, parameter in plain.items():
        torch.testing.assert_close(resumed[name], parameter, rtol=1e-6, atol=1e-7)


def test_a_mamba_base_trains_on_all_linear_layers_that_can_carry_an_adapter(
    tiny_base: Path, tmp_path: Path
) -> None:
    """It has no attention to choose a kernel for; its way out takes no adapter, and is left out of all-linear."""
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    known = AutoConfig.from_pretrained(tiny_base)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": known.vocab_size}
    markers = {"bos_token_id": known.bos_token_id, "eos_token_id": known.eos_token_id, "pad_token_id": 0}
    torch.manual_seed(3)
    AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **sizes, **markers)).save_pretrained(base)
    seal(base)
    recipe = {**SHORT, "training": {**SHORT["training"], "steps": 3}}
    container = make_job(tmp_path / "ml", base, rows=ROWS[:6], holdout=HOLDOUT[:2], recipe=recipe)
    lines: list[str] = []
    summary = train(container, lines.append)
    assert summary.best_eval_loss is not None
    assert summary.first_eval_loss is not None
    assert summary.best_eval_loss < summary.first_eval_loss
    assert "layout=padded shared_beginning=no" in lines
    config = json.loads((container.model / "adapter_config.json").read_bytes())
    assert config["target_modules"] == ["dt_proj", "in_proj", "x_proj"]


def test_the_best_adapter_is_the_one_saved_and_named(tiny_base: Path, tmp_path: Path) -> None:
    """Where later steps make it worse, the artifact holds the earlier adapter, and its manifest says so."""
    training = {**SHORT["training"], "learning_rate": 0.5, "steps": 400, "early_stopping_patience": 2}
    recipe = {**SHORT, "training": training}
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe)
    summary = train(container)
    assert summary.best_step < summary.steps
    manifest = json.loads((container.model / "manifest.json").read_bytes())
    assert manifest["saved_step"] == summary.best_step
    assert manifest["last_step"] == summary.steps
    newest = max(container.checkpoints.glob("step-*"))
    best, last = load_file(newest / "best.safetensors"), load_file(newest / "adapter.safetensors")
    saved = load_file(container.model / "adapter_model.safetensors")
    assert {name.replace(".default", "").split("model.", 1)[1]: t.sum() for name, t in best.items()} == {
        name.replace("base_model.model.", "").split("model.", 1)[1]: t.sum() for name, t in saved.items()
    }
    assert any(not torch.equal(best[name], last[name]) for name in best)
