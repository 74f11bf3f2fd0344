"""Passes that must fit into memory. The limit is injected where a device would refuse."""

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import DROPOUT, HOLDOUT, ROWS, adapter_bytes, train
from tiny_jobs import SHORT, chat_rows, make_job

from tuner import loop, passes
from tuner.failure import Failure


def limit_tokens(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds at most so many tokens with their gradients; answers the sizes it was asked for."""
    real, asked = passes.part_losses, []

    def narrow(objective: Any, model: Any, part: Any, *rest: Any) -> Any:
        asked.append(part.shape.tokens)
        if torch.is_grad_enabled() and part.shape.tokens > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(objective, model, part, *rest)

    monkeypatch.setattr(passes, "part_losses", narrow)
    return asked


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_trying_the_heaviest_pass_first_changes_no_byte(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With it and without it a run has the same losses and the same adapter, dropout included."""
    rows = [{**row, "chosen": "yes", "rejected": "no"} for row in ROWS] if method == "dpo" else ROWS
    recipe = {**DROPOUT, "method": method, "training": {**DROPOUT["training"], "steps": 4}}
    made = []
    for name in ("tried", "untried"):
        container = make_job(tmp_path / name, tiny_base, rows=rows, recipe=recipe)
        made.append((train(container).loss_curve, adapter_bytes(container)))
        monkeypatch.setattr(loop, "rehearse", lambda *_: None)
    assert made[0] == made[1]


def test_the_first_pass_is_the_heaviest_of_the_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No later pass computes more, up to a token a row, wherever the longest row stands in the data."""
    asked = limit_tokens(monkeypatch, 10_000)
    long = {
        "id": "long",
        "messages": [
            {"role": "user", "content": "words " * 60},
            {"role": "assistant", "content": "and so on"},
        ],
    }
    train(make_job(tmp_path / "ml", tiny_base, rows=[*chat_rows(60), long], recipe=SHORT))
    assert asked[0] >= max(asked) - 8


def test_a_pass_that_does_not_fit_is_done_in_halves(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halved before the first step, at the same effective batch and order: the losses stay what they were."""
    expected = train(make_job(tmp_path / "roomy", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT))
    limit_tokens(monkeypatch, 200)
    lines: list[str] = []
    found = train(
        make_job(tmp_path / "narrow", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT), lines.append
    )
    halved = [index for index, line in enumerate(lines) if line.startswith("micro_batch_tokens=")]
    assert [lines[index] for index in halved] == ["micro_batch_tokens=256", "micro_batch_tokens=128"]
    assert max(halved) < min(index for index, line in enumerate(lines) if line.startswith("step="))
    for (_, loss), (_, wanted) in zip(found.loss_curve, expected.loss_curve, strict=True):
        assert loss == pytest.approx(wanted, abs=2e-3)
    assert found.tokens == expected.tokens


def test_memory_that_runs_out_later_halves_there(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A neighbour may take memory after the start: the step is repeated in halves with the same dropout."""
    whole = train(make_job(tmp_path / "whole", tiny_base, rows=ROWS, recipe=DROPOUT))
    monkeypatch.setattr(loop, "rehearse", lambda *_: None)
    limit_tokens(monkeypatch, 300)
    halved = train(make_job(tmp_path / "halved", tiny_base, rows=ROWS, recipe=DROPOUT))
    assert [step for step, _ in halved.loss_curve] == [step for step, _ in whole.loss_curve]


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_row_that_fits_only_if_recomputed_is_trained_so(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Where the plan reckoned with too much memory the job keeps less, in place of ending; the losses stay."""
    job: dict[str, Any] = {"rows": ROWS, "holdout": HOLDOUT, "recipe": DROPOUT}
    expected = train(make_job(tmp_path / "roomy", tiny_base, **job))
    real, passes_made = passes.part_losses, itertools.count()
    begins = 0 if when == "at first" else 6

    def tight(objective: Any, model: Any, part: Any, *rest: Any) -> Any:
        wants = torch.is_grad_enabled() and next(passes_made) >= begins
        if wants and not model.causal.is_gradient_checkpointing:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(objective, model, part, *rest)

    monkeypatch.setattr(passes, "part_losses", tight)
    lines: list[str] = []
    found = train(make_job(tmp_path / "tight", tiny_base, **job), lines.append)
    told = [index for index, line in enumerate(lines) if line.startswith("phase=recomputing")]
    assert len(told) == 1
    assert lines[told[0] + 1] == "micro_batch_tokens=512"
    for (_, loss), (_, wanted) in zip(found.loss_curve, expected.loss_curve, strict=True):
        assert loss == pytest.approx(wanted, abs=2e-3)


def test_every_pass_of_a_step_is_laid_out_once_and_ahead(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a pass runs the next one is made by another thread; nothing is made twice."""
    real, made = passes.lay_out, []

    def lay_out(*given: Any) -> Any:
        made.append(threading.current_thread().name)
        return real(*given)

    monkeypatch.setattr(passes, "lay_out", lay_out)
    asked = limit_tokens(monkeypatch, 10_000)
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=SHORT)
    given = {"run_id": "run1", "attempt": "1", "micro_batch_tokens": "96"}
    container.hyperparameters.write_text(json.dumps(given))
    train(container)
    assert len(made) > 24
    # Of those that were asked for, one or two are the rehearsal's.
    assert len(asked) - len(made) in {1, 2}
    assert all(name.startswith("batch") for name in made)


def test_a_row_that_does_not_fit_at_all_is_out_of_memory_before_the_first_step(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Halving ends at one row; then the ladder must find a larger machine, and nothing was paid for."""
    limit_tokens(monkeypatch, 0)
    lines: list[str] = []
    with pytest.raises(Failure, match="OOM_GPU: a pass of"):
        train(make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=SHORT), lines.append)
    assert not [line for line in lines if line.startswith("step=")]
