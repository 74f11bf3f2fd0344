"""Base models that are not what they should be are refused by name, before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from real_training import ROWS, train
from safetensors.torch import load_file, save_file
from tiny_jobs import SHORT, make_job, seal

from tuner.adapters import Variants
from tuner.failure import Failure
from tuner.model import has_kernels, load_base

CPU = torch.device("cpu")


@pytest.fixture
def altered(tiny_base: Path, tmp_path: Path) -> Callable[[Callable[[Path], None]], Path]:
    """A copy of the tiny base after a change, with hashes that agree: the copy is whole, its content is wrong."""

    def make(change: Callable[[Path], None]) -> Path:
        folder = tmp_path / "base"
        shutil.copytree(tiny_base, folder)
        change(folder)
        seal(folder)
        return folder

    return make


def configure(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **values}))


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_a_weight_of_another_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut_off(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def with_code_of_its_own(folder: Path) -> None:
    configure(folder, "config.json", model_type="own", auto_map={"AutoModelForCausalLM": "own.Model"})
    (folder / "own.py").write_text("raise SystemExit('this code ran')\n")


def of_an_unknown_kind(folder: Path) -> None:
    configure(folder, "config.json", model_type="nobody-knows")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_a_weight, r"lacks 1 of its weights.* model\.layers\.1\.self_attn\.q_proj\.weight"),
        (with_a_weight_of_another_shape, r"in another shape, the first is model\.norm\.weight"),
        (cut_off, "can't be loaded: SafetensorError"),
        (with_code_of_its_own, "can't be loaded: it needs code from its repository, which is never run here"),
        (of_an_unknown_kind, "can't be loaded"),
    ],
)  # fmt: skip
def test_a_base_that_is_not_whole_or_not_known_is_refused(
    altered: Callable[..., Path], change: Callable[[Path], None], told: str
) -> None:
    """Neither random numbers for what is missing nor code from the repository: BASE_MODEL, and what was found."""
    with pytest.raises(Failure, match=told) as failure:
        load_base(altered(change), "nf4", CPU)
    assert failure.value.word == "BASE_MODEL"


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 9), ["sm_80", "sm_86", "sm_90"], True),
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((12, 0), ["sm_80", "sm_86", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((7, 5), ["sm_80", "compute_80"], False),
        ((12, 1), ["sm_100", "sm_120"], True),
    ],
)
def test_a_gpu_is_known_by_the_code_that_torch_was_built_with(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    """Machine code runs within its major version, intermediate code on anything newer."""
    assert has_kernels(capability, built_for) is runs


def test_a_gpu_without_kernels_ends_the_job_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line says which GPU it is and what the image was built for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (12, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "RTX PRO 6000")
    with pytest.raises(
        Failure, match=r"RTX PRO 6000 has compute capability 12\.0.*built for sm_80, sm_90"
    ) as failure:
        load_base(tmp_path, "nf4", torch.device("cuda"))
    assert failure.value.word == "CODE"


def test_a_corrupt_shard_is_named(tiny_base: Path, tmp_path: Path) -> None:
    """A shard whose bytes are not those that were cached is told by name, with what to do."""
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(Failure, match=r"BASE_MODEL: model\.safetensors: found .*; cache the base again"):
        load_base(folder, "nf4", CPU)


def test_the_tokenizer_of_a_larger_model_is_found_out(altered: Callable[..., Path], tmp_path: Path) -> None:
    """Tokens beyond the embedding end the job in words, before a kernel fails."""

    def shrink(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            weights[name] = weights[name][:300].clone()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        configure(folder, "config.json", vocab_size=300)

    with pytest.raises(Failure, match="the tokenizer is not this model's"):
        train(make_job(tmp_path / "ml", altered(shrink), rows=ROWS, recipe=SHORT))


def without_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_bytes()).items() if k != "chat_template"}))  # fmt: skip


def test_a_base_without_chat_template_trains_under_the_recipe_s(
    altered: Callable[..., Path], tmp_path: Path
) -> None:
    """Without one the failure names the key; with it the job trains, and the template travels on."""
    base = altered(without_template)
    with pytest.raises(Failure, match="'chat_template' in the recipe"):
        train(make_job(tmp_path / "without", base, rows=ROWS, recipe=SHORT))
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    container = make_job(tmp_path / "with", base, rows=ROWS, recipe={**SHORT, "chat_template": template})
    train(container)
    assert json.loads((container.model / "manifest.json").read_bytes())["chat_template"] == template
    variants = Variants(load_base(base, "nf4", CPU))
    variants.add("champion", container.model)
    asked = [{"role": "user", "content": "one"}]
    expected = load_base(base, "nf4", CPU, template).codec.prompt(asked)
    assert variants.codec("champion").prompt(asked) == expected
    with pytest.raises(Failure, match="no chat template"):
        variants.codec("base").prompt(asked)


def test_tied_embeddings_stay_as_they_were(altered: Callable[..., Path], tmp_path: Path) -> None:
    """Where head and embedding are one matrix, the adapter has neither, and training learns all the same."""

    def tie(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        del weights["lm_head.weight"]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        configure(folder, "config.json", tie_word_embeddings=True)

    container = make_job(tmp_path / "ml", altered(tie), rows=ROWS, recipe=SHORT)
    summary = train(container)
    assert summary.loss_curve[-1][1] < summary.loss_curve[0][1]
    adapter = load_file(container.model / "adapter_model.safetensors")
    assert not [name for name in adapter if "embed" in name or "lm_head" in name]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"id": "r1", "messages": [{"role": "us', "part-00000.jsonl, line 1"),
        (b'{"id": "r1", "messages": [{"role": "user", "content": "\xff\xfe"}]}\n', "part-00000.jsonl, line 1"),
        (b"\x00" * 64, "part-00000.jsonl, line 1"),
        (b'{"id": 7, "messages": []}\n', "part-00000.jsonl, line 1"),
        (b"", "the train channel has no rows"),
    ],
    ids=["cut", "not UTF-8", "zeros", "another form", "empty"],
)  # fmt: skip
def test_a_corrupt_shard_of_the_dataset_is_named_with_its_line(
    tiny_base: Path, tmp_path: Path, content: bytes, told: str
) -> None:
    """BAD_DATA with file and line, and none of the bytes."""
    container = make_job(tmp_path / "ml", tiny_base, rows=ROWS, recipe=SHORT)
    (container.channel("train") / "part-00000.jsonl").write_bytes(content)
    with pytest.raises(Failure, match=told) as failure:
        train(container)
    assert failure.value.word == "BAD_DATA"
    assert "\\xff" not in failure.value.message


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"eos_token_id": 300}, "eos_token_id 300 in config.json, which is the token "),
        ({"bos_token_id": 300}, "bos_token_id 300 in config.json"),
        ({"eos_token_id": [1, 400]}, "eos_token_id 400 in config.json"),
        ({"eos_token_id": 5000}, "which is beyond the tokens of its tokenizer"),
    ],
)
def test_a_tokenizer_of_another_model_is_found_out_by_its_special_tokens(
    altered: Callable[..., Path], config: dict[str, Any], told: str
) -> None:
    """Where the model's markers are ordinary text to the tokenizer, the two don't belong together."""
    with pytest.raises(Failure, match=told) as failure:
        load_base(altered(lambda folder: configure(folder, "config.json", **config)), "nf4", CPU)
    assert failure.value.word == "BASE_MODEL"
    assert "not this model's" in failure.value.message


def test_a_tokenizer_of_a_smaller_model_is_found_out(altered: Callable[..., Path]) -> None:
    """Far fewer tokens than the embedding has rows are no padding."""

    def widen(rows: int) -> Callable[[Path], None]:
        def change(folder: Path) -> None:
            weights = load_file(folder / "model.safetensors")
            for name in ("model.embed_tokens.weight", "lm_head.weight"):
                weights[name] = torch.cat([weights[name], weights[name][: rows - len(weights[name])]])
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            configure(folder, "config.json", vocab_size=rows)

        return change

    with pytest.raises(
        Failure, match="a tokenizer of 512 tokens, the model has embeddings for 640"
    ) as failure:
        load_base(altered(widen(640)), "nf4", CPU)
    assert failure.value.word == "BASE_MODEL"


def test_a_chat_template_of_another_tokenizer_is_found_out(tiny_base: Path) -> None:
    """What closes its answers is plain text here, so that no answer would end; the recipe's key is named."""
    foreign = (
        "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|close|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
    )
    codec = load_base(tiny_base, "nf4", CPU, foreign).codec
    with pytest.raises(
        Failure, match=r"closes an answer with '<\|close\|>.*'chat_template' in the recipe"
    ) as failure:
        codec.prompt([{"role": "user", "content": "one"}])
    assert failure.value.word == "BASE_MODEL"
