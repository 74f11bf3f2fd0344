"""One NF4-rounded base in two residencies."""

from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import DROPOUT, HOLDOUT, ROWS, adapter_bytes, train
from tiny_jobs import SHORT, chat_rows, make_job

from tuner.adapters import Variants
from tuner.data import Row, encode_rows
from tuner.failure import Failure
from tuner.generation import reference_nll
from tuner.model import load_base
from tuner.residency import settle

CPU = torch.device("cpu")


@pytest.mark.parametrize("adapter", [{}, {"dora": True}, {"dropout": 0.1}])
def test_losses_are_equal_in_both(tiny_base: Path, tmp_path: Path, adapter: dict[str, Any]) -> None:
    """The same steps on the same rounded weights: every loss agrees to fp32 rounding, held out and trained."""
    curves = []
    for residency in ("4bit", "bf16"):
        recipe = {**SHORT, "adapter": {**SHORT["adapter"], **adapter}}
        container = make_job(
            tmp_path / residency, tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe, residency=residency
        )
        lines: list[str] = []
        summary = train(container, lines.append)
        assert f"residency={residency}" in lines
        curves.append([loss for _, loss in (*summary.loss_curve, *summary.eval_curve)])
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)


def test_an_adapter_trained_in_one_answers_alike_in_the_other(tiny_base: Path, tmp_path: Path) -> None:
    """The likelihoods of an adapter don't depend on how the base lies in memory."""
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT, residency="bf16"
    )
    train(container)
    found = []
    for wish in ("4bit", "bf16"):
        base = load_base(tiny_base, "nf4", CPU)
        assert settle(wish, base.causal, CPU, tight=False) == wish  # type: ignore[arg-type]
        variants = Variants(base)
        variants.add("candidate", container.model)
        rows = [Row(row["id"], tuple(row["messages"])) for row in chat_rows(4, seed=3)]
        documents = [example.documents[0] for example in encode_rows(rows, base.codec, "sft", 512)]
        with variants.active("candidate") as model:
            found.append(reference_nll(model, documents))
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_a_checkpoint_of_one_is_resumed_in_the_other(tiny_base: Path, tmp_path: Path) -> None:
    """An attempt on another machine may choose otherwise; the run goes on."""
    container = make_job(
        tmp_path / "ml", tiny_base, rows=ROWS, recipe=DROPOUT, residency="4bit", checkpoint_every_steps=5
    )
    expected = train(container)
    before = adapter_bytes(container)
    given = container.hyperparameters.read_text()
    container.hyperparameters.write_text(given[:-1] + ', "residency": "bf16"}')
    for checkpoint in sorted(container.checkpoints.iterdir())[1:]:
        (checkpoint / "MANIFEST.json").unlink()
    lines: list[str] = []
    resumed = train(container, lines.append)
    assert "residency=bf16" in lines
    assert "resumed=step-00000010" in lines
    assert [loss for _, loss in resumed.loss_curve] == pytest.approx(
        [loss for _, loss in expected.loss_curve], abs=1e-4
    )
    assert len(adapter_bytes(container)) == len(before)


@pytest.mark.parametrize(("tight", "chosen"), [(False, "bf16"), (True, "4bit")])
def test_auto_unpacks_where_there_is_room(tiny_base: Path, tight: bool, chosen: str) -> None:
    """A tiny base always fits; where the plan recomputes activations, memory is needed elsewhere."""
    base = load_base(tiny_base, "nf4", CPU)
    assert settle("auto", base.causal, CPU, tight=tight) == chosen


@pytest.mark.parametrize(("free", "chosen"), [(10**12, "bf16"), (1000, "4bit")])
def test_a_plan_that_was_wrong_about_memory_leaves_the_base_packed(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, free: int, chosen: str
) -> None:
    """The plan reckons with the nominal memory; what the GPU has free decides. No GPU is needed to say how much."""
    base = load_base(tiny_base, "nf4", CPU)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 10**12))
    assert settle("bf16", base.causal, torch.device("cuda"), tight=False) == chosen


def test_a_machine_with_little_memory_keeps_the_base_packed(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the unpacked base is fp32, twice what a plan for a GPU counted."""
    base = load_base(tiny_base, "nf4", CPU)
    monkeypatch.setattr("tuner.residency._host_memory", lambda: 1000)
    assert settle("bf16", base.causal, CPU, tight=False) == "4bit"


def test_no_measurement_repacks_the_base(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU with AVX-512 BF16 the library would, into a form without gradients: the job trains as on any other."""
    recipe = {**SHORT, "training": {**SHORT["training"], "steps": 4}}
    job: dict[str, Any] = {"rows": ROWS, "holdout": HOLDOUT, "recipe": recipe, "residency": "4bit"}
    expected = train(make_job(tmp_path / "plain", tiny_base, **job))
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    found = train(make_job(tmp_path / "newer", tiny_base, **job))
    assert found.loss_curve == expected.loss_curve
    assert found.eval_curve == expected.eval_curve


def test_four_bits_of_an_unquantised_base_are_refused(tiny_base: Path) -> None:
    """Nothing is quantised behind the recipe's back."""
    base = load_base(tiny_base, "none", CPU)
    assert settle("auto", base.causal, CPU, tight=False) == "unquantised"
    with pytest.raises(Failure, match="residency 4bit needs quantization nf4"):
        settle("4bit", base.causal, CPU, tight=False)
