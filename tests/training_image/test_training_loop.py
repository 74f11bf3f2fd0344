"""Training for real, on the tiny base."""

import json
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import DROPOUT, HOLDOUT, ROWS, poison, train
from tiny_jobs import REPOSITORY, REVISION, SHORT, chat_rows, make_job

from dropforge_core.contracts import TrainingConfig
from dropforge_core.recipe import Recipe
from tuner import loop
from tuner.adapters import Variants
from tuner.data import Row, encode_rows
from tuner.failure import Failure
from tuner.generation import reference_nll
from tuner.integrity import file_digest
from tuner.model import load_base
from tuner.optimise import learning_rate_at


def test_the_loss_falls_and_the_artifact_reloads_to_it(tiny_base: Path, tmp_path: Path) -> None:
    """What was trained is what the saved adapter does on the base: the best held-out loss, to rounding."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT)
    summary = train(container)
    assert summary.loss_curve[-1][1] < summary.loss_curve[0][1] - 1
    assert summary.first_eval_loss is not None
    assert summary.best_eval_loss is not None
    assert summary.best_eval_loss < summary.first_eval_loss - 1
    variants = Variants(load_base(tiny_base, "nf4", torch.device("cpu")))
    variants.add("candidate", container.model)
    codec = variants.base.codec
    rows = [Row(row["id"], tuple(row["messages"])) for row in HOLDOUT]
    documents = [example.documents[0] for example in encode_rows(rows, codec, "sft", 512)]
    tokens = sum(float(document.weights.sum()) for document in documents)
    for variant, expected in (("candidate", summary.best_eval_loss), ("base", summary.first_eval_loss)):
        with variants.active(variant) as model:
            assert sum(reference_nll(model, documents)) / tokens == pytest.approx(expected, abs=1e-4)


def test_two_runs_leave_the_same_bytes(
    tiny_base: Path, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]]
) -> None:
    """Same data, recipe and base: adapter, configuration and manifest agree byte for byte, dropout included.

    One run is in a process of its own, whose sets have another order.
    """
    made = []
    for name in ("first", "second", "apart"):
        container = make_job(tmp_path / name, tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=DROPOUT)
        if name == "apart":
            process = start_tuner("train", "--root", str(container.root), PYTHONHASHSEED="5")
            told, _ = process.communicate()
            assert process.returncode == 0, told
        else:
            train(container)
        files = ("adapter_model.safetensors", "adapter_config.json", "manifest.json")
        summary = json.loads((container.model / "training_summary.json").read_bytes())
        curves = [summary[curve] for curve in ("loss_curve", "eval_curve")]
        made.append([*curves, *((container.model / file).read_bytes() for file in files)])
    assert made[0] == made[1]
    assert made[0] == made[2]


def metric_definitions() -> dict[str, re.Pattern[str]]:
    """What CreateTrainingJob is told to read from the log."""
    machine = json.loads((REPOSITORY / "statemachine" / "fine_tune.asl.json").read_bytes())
    asked = machine["States"]["TrainAdapter"]["Arguments"]["AlgorithmSpecification"]["MetricDefinitions"]
    return {metric["Name"]: re.compile(metric["Regex"]) for metric in asked}


def test_the_log_lines_are_what_sagemaker_reads(tiny_base: Path, tmp_path: Path) -> None:
    """Each metric of the request is found once in every line that tells it, with the number that is kept."""
    lines: list[str] = []
    summary = train(
        make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT), lines.append
    )
    found = {
        name: [[float(value) for value in pattern.findall(line)] for line in lines if pattern.search(line)]
        for name, pattern in metric_definitions().items()
    }
    assert found["loss"] == [[pytest.approx(loss, abs=1e-4)] for _, loss in summary.loss_curve]
    assert found["eval_loss"] == [[pytest.approx(loss, abs=1e-4)] for _, loss in summary.eval_curve]
    of_each_step = {"loss", "grad_norm", "learning_rate", "epoch", "tokens_per_s", "memory_gib"}
    assert found.keys() == of_each_step | {"eval_loss"}
    for name in of_each_step:
        assert [len(values) for values in found[name]] == [1] * 12, name
    assert [values[0] for values in found["epoch"]] == sorted(values[0] for values in found["epoch"])
    assert [values[0] for values in found["learning_rate"]] == pytest.approx(
        [learning_rate_at(step, 12, 0.01, 0.03, "cosine") for step in range(1, 13)], rel=0.05
    )


def test_who_polls_reads_a_whole_progress_file_at_any_moment(tiny_base: Path, tmp_path: Path) -> None:
    """Phase, step, total, loss and seconds left are those of the line that the log has just told."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=SHORT)
    path, polled = container.output_data / "progress.json", []

    def say(_line: str) -> None:
        if path.exists():
            polled.append(json.loads(path.read_bytes()))

    summary = train(container, say)
    polled.append(json.loads(path.read_bytes()))
    steps = {one["step"]: one for one in polled if one["phase"] == "training" and "step" in one}
    assert sorted(steps) == list(range(1, 13))
    for step, loss in summary.loss_curve:
        assert steps[step]["loss"] == pytest.approx(loss, abs=1e-6)
        assert steps[step]["steps"] == 12
        assert (steps[step]["eta_s"] == 0) == (step == 12)


def test_a_loss_that_is_no_number_names_the_rows(tiny_base: Path, tmp_path: Path) -> None:
    """NAN_LOSS says which row, by id, and never what is in it."""
    base = poison(tiny_base, tmp_path / "base", "Z")
    bad = {
        "id": "row-bad",
        "messages": [{"role": "user", "content": "Z"}, {"role": "assistant", "content": "fine"}],
    }
    container = make_job(tmp_path / "ml", base, rows=[*ROWS, bad], recipe=SHORT)
    with pytest.raises(Failure) as failure:
        train(container)
    assert failure.value.word == "NAN_LOSS"
    assert failure.value.message.endswith(": row-bad")


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("channel", ["rows", "holdout"])
def test_a_loss_that_is_no_number_names_the_row_wherever_it_is(
    tiny_base: Path, tmp_path: Path, method: str, channel: str
) -> None:
    """In training or in the hold-out, an answer or one of a pair: NAN_LOSS and the row's id, before any step."""
    base = poison(tiny_base, tmp_path / "base", "Z")
    good = [{**row, "chosen": "yes", "rejected": "no"} for row in ROWS[:8]]
    bad = {
        "id": "row-bad",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "Z"}],
    }
    rows = {"rows": good, "holdout": good[:2]}
    rows[channel] = [*rows[channel], {**bad, "chosen": "Z", "rejected": "no"}]
    container = make_job(tmp_path / "ml", base, recipe={**SHORT, "method": method}, **rows)
    with pytest.raises(Failure, match=r"NAN_LOSS: the loss of these rows is not finite: row-bad$"):
        train(container)
    assert not container.model.exists()


def test_a_gradient_that_is_no_number_names_the_rows(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where each loss is finite and their gradient is not, the whole step's rows are named."""
    monkeypatch.setattr(loop, "clip_gradients", lambda *_: float("inf"))
    with pytest.raises(Failure, match="NAN_LOSS: the gradient over these rows is not finite: row-0-"):
        train(make_job(tmp_path / "ml", tiny_base, rows=ROWS[:3], recipe=SHORT))


@pytest.mark.parametrize(
    ("row", "recipe", "told"),
    [
        ({"id": "r1", "messages": [{"role": "user", "content": "x"}]}, SHORT, "no assistant message"),
        ({"id": "r1", "messages": chat_rows(1)[0]["messages"]}, {**SHORT, "method": "dpo"}, "chosen"),
        (
            {
                "id": "r1",
                "messages": [{"role": "user", "content": "x " * 600}, {"role": "assistant", "content": "y"}],
            },
            SHORT,
            "longer than max_seq_len = 512",
        ),
    ],
)
def test_rows_that_cannot_be_taught_are_bad_data(
    tiny_base: Path, tmp_path: Path, row: Mapping[str, Any], recipe: Mapping[str, Any], told: str
) -> None:
    """BAD_DATA names the rows and why; nothing is truncated or skipped."""
    container = make_job(tmp_path / "ml", tiny_base, rows=[row], recipe=recipe)
    with pytest.raises(Failure, match=rf"BAD_DATA: 1 rows: .*{told}.* \(r1\)"):
        train(container)


def test_early_stopping_ends_a_run_that_no_longer_improves(tiny_base: Path, tmp_path: Path) -> None:
    """Patience counts measurements without a better held-out loss; the best adapter is the one kept."""
    recipe = {
        **SHORT,
        "training": {**SHORT["training"], "learning_rate": 0.5, "steps": 400, "early_stopping_patience": 2},
    }
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, holdout=HOLDOUT, recipe=recipe)
    summary = train(container)
    assert summary.stopped_by == "early_stopping"
    after = [loss for step, loss in summary.eval_curve if step > summary.best_step]
    assert len(after) == 2
    assert min(after) >= (summary.best_eval_loss or 0)


def test_preferences_raise_the_chosen_answer(tiny_base: Path, tmp_path: Path) -> None:
    """DPO starts at log 2, where model and reference agree, and its loss falls on pairs it has not seen."""

    def pairs(seed: int, count: int) -> list[dict[str, Any]]:
        rows = chat_rows(count, seed)
        return [
            {
                **row,
                "chosen": row["messages"][-1],
                "rejected": {"role": "assistant", "content": "I do not know."},
            }
            for row in rows
        ]

    recipe = {**SHORT, "method": "dpo"}
    container = make_job(tmp_path / "ml", tiny_base, rows=pairs(0, 40), holdout=pairs(1, 8), recipe=recipe)
    summary = train(container)
    assert summary.first_eval_loss == pytest.approx(0.693147, abs=1e-5)
    assert summary.best_eval_loss is not None
    assert summary.best_eval_loss < 0.4


def test_settings_of_another_run_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    """Hyperparameters and training.json must come from one plan."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=SHORT)
    container.hyperparameters.write_text(json.dumps({"run_id": "another", "attempt": "1"}))
    with pytest.raises(Failure, match="must come from one plan"):
        train(container)


def test_an_altered_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A base whose bytes are not those that were cached never trains."""
    base = tmp_path / "base"
    base.mkdir()
    for path in tiny_base.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    with (base / "tokenizer.json").open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(Failure, match=r"BASE_MODEL: tokenizer.json: found"):
        train(make_job(tmp_path / "ml", base, rows=ROWS, recipe=SHORT))


def test_targets_that_fit_nothing_list_what_would(tiny_base: Path, tmp_path: Path) -> None:
    """A typo in adapter.targets is answered with the names that the model has."""
    recipe = {**SHORT, "adapter": {"targets": ["querry"]}}
    with pytest.raises(Failure, match=r"BASE_MODEL: adapter.targets .*q_proj"):
        train(make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=recipe))


def test_the_manifest_says_what_it_was_made_from(tiny_base: Path, tmp_path: Path) -> None:
    """Recipe, data and base digests, and the libraries' versions, travel with the adapter."""
    container = make_job(
        tmp_path / "ml",
        tiny_base,
        rows=ROWS,
        recipe=SHORT,
        image="registry/image@sha256:1",
        source_commit="0123abc",
    )
    train(container)
    config = TrainingConfig.model_validate_json((container.channel("config") / "training.json").read_bytes())
    manifest = json.loads((container.model / "manifest.json").read_bytes())
    assert manifest["recipe_digest"] == config.recipe_digest
    assert manifest["dataset_digest"] == config.dataset_digest
    assert manifest["base_model"]["name"] == "tiny-llama"
    assert Recipe.model_validate(manifest["recipe"]).digest == config.recipe_digest
    assert manifest["source_commit"] == "0123abc"
    assert manifest["image"] == "registry/image@sha256:1"
    assert manifest["residency"] == "bf16"
    assert manifest["seed"] == 17
    assert manifest["saved_step"] == manifest["last_step"] == 12
    assert manifest["libraries"].pop("python") == platform.python_version()
    assert {"torch", "transformers", "peft", "bitsandbytes"} <= manifest["libraries"].keys()
    assert manifest["libraries"] == {name: version(name) for name in manifest["libraries"]}
    assert manifest["base_model"]["revision"] == REVISION
    assert manifest["base_model"]["files"] == {
        path.name: file_digest(path) for path in tiny_base.iterdir() if path.name != "MANIFEST.json"
    }
    assert manifest["files"] == {
        name: file_digest(container.model / name)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }
    assert len(manifest["data_order"]) == 64
    adapter = json.loads((container.model / "adapter_config.json").read_bytes())
    assert adapter["base_model_name_or_path"] == "tiny-llama"
    assert str(tmp_path) not in (container.model / "adapter_config.json").read_text()
