"""The export: base and adapter as one folder of plain weights."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import ROWS, train
from tiny_jobs import SHORT, chat_rows, make_job, seal
from transformers import AutoModelForCausalLM, AutoTokenizer

from dropforge_core.contracts import BaseModelManifest
from tuner.adapters import Variants
from tuner.contract import Container
from tuner.data import Row, encode_rows
from tuner.failure import Failure
from tuner.generation import reference_nll
from tuner.integrity import verify_copy
from tuner.merge import Weights, merge
from tuner.model import LanguageModel, load_base
from tuner.signals import StopRequest

CPU = torch.device("cpu")


def trained(root: Path, base: Path, **recipe: Any) -> Container:
    container = make_job(root, base, rows=ROWS, recipe={**SHORT, **recipe})
    train(container)
    return container


def export(base: Path, container: Container, target: Path, weights: Weights) -> None:
    merge(base, container.model, target, StopRequest(), lambda _: None, weights=weights)


def likelihoods(model: LanguageModel) -> list[float]:
    rows = [Row(row["id"], tuple(row["messages"])) for row in chat_rows(6, seed=5)]
    documents = [example.documents[0] for example in encode_rows(rows, model.codec, "sft", 512)]
    return reference_nll(model, documents)


def tie(base: Path, folder: Path) -> Path:
    """The tiny model with one matrix for embedding and head, as small models are."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    seal(folder)
    return folder


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"adapter": {"r": 8, "alpha": 16, "rslora": True}},
        {"adapter": {"r": 8, "alpha": 16, "dora": True}},
        {"adapter": {"r": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}},
        {"quantization": "none"},
        {"tied": True},
    ],
    ids=["lora", "rslora", "dora", "named", "unquantised", "tied"],
)
def test_the_merged_model_answers_as_base_and_adapter_do(
    tiny_base: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    """In fp32 the likelihoods are equal to rounding, and far from the bare base's."""
    base = tie(tiny_base, tmp_path / "tied") if recipe.pop("tied", False) else tiny_base
    container = trained(tmp_path / "ml", base, **recipe)
    export(base, container, tmp_path / "merged", "fp32")
    variants = Variants(load_base(base, recipe.get("quantization", "nf4"), CPU))
    variants.add("candidate", container.model)
    with variants.active("base") as model:
        untrained = likelihoods(model)
    with variants.active("candidate") as model:
        expected = likelihoods(model)
    found = likelihoods(load_base(tmp_path / "merged", "none", CPU))
    assert found == pytest.approx(expected, abs=2e-3)
    assert sum(found) < 0.9 * sum(untrained)


def test_what_is_exported_is_a_base_model_like_any_other(tiny_base: Path, tmp_path: Path) -> None:
    """bf16 safetensors and no pickle, tokenizer and template with it, every file hashed, its origin named."""
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    container = trained(tmp_path / "ml", tiny_base, chat_template=template)
    export(tiny_base, container, tmp_path / "merged", "bf16")
    manifest = verify_copy(tmp_path / "merged")
    assert isinstance(manifest, BaseModelManifest)
    assert "model.safetensors" in manifest.files
    assert not [name for name in manifest.files if name.endswith((".bin", ".pt"))]
    config = json.loads((tmp_path / "merged" / "config.json").read_bytes())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == template
    origin = json.loads((tmp_path / "merged" / "MANIFEST.json").read_bytes())["merged_from"]
    assert (
        origin["recipe_digest"]
        == json.loads((container.model / "manifest.json").read_bytes())["recipe_digest"]
    )
    assert train(make_job(tmp_path / "again", tmp_path / "merged", rows=ROWS, recipe=SHORT)).steps == 12


def test_merging_in_four_bits_is_refused_with_the_reason(
    tiny_base: Path, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]]
) -> None:
    """The verb says that the training would be lost, and writes nothing."""
    process = start_tuner(
        "merge", "--root", str(tmp_path / "ml"), "--base", str(tiny_base), "--adapter", str(tmp_path),
        "--output", str(tmp_path / "merged"), "--weights", "nf4",
    )  # fmt: skip
    process.communicate()
    assert process.returncode == 1
    assert "would lose the training" in (tmp_path / "ml" / "output" / "failure").read_text()
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """A sum with the wrong base would be noise."""
    container = trained(tmp_path / "ml", tiny_base)
    other = tie(tiny_base, tmp_path / "other")
    with pytest.raises(Failure, match="BASE_MODEL: the merged was trained on"):
        export(other, container, tmp_path / "merged", "bf16")


def test_an_existing_folder_is_left_alone(tiny_base: Path, tmp_path: Path) -> None:
    """Nothing is overwritten."""
    with pytest.raises(Failure, match="exists"):
        merge(tiny_base, tmp_path, tmp_path, StopRequest(), lambda _: None)
