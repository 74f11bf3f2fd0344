"""The validation layer as `sam build` makes it: small enough for Lambda, loadable there, and of the same opinion.

Built once from the lock, with packages from the index: `pytest -m slow tests/template/test_layer.py`.
"""

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from template_text import ROOT, functions

pytestmark = pytest.mark.slow

LIMIT_BYTES: Final = 240 * 2**20
"""Lambda takes 250 MiB of layers and function, unzipped; the rest is room for a release of one of them."""

GLIBC: Final = (2, 26)
"""Of Amazon Linux 2, on which Lambda runs Python 3.11."""


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layer's folder, built by the very Makefile that `sam build` runs."""
    folder = tmp_path_factory.mktemp("layer")
    built = subprocess.run(
        ["make", "build-ValidationLayer", f"ARTIFACTS_DIR={folder}", f"PYTHON={sys.executable}"],
        cwd=ROOT / "layers" / "validation",
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "python"


@pytest.fixture(scope="module")
def metrics_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the layer that scoring has, built by its Makefile."""
    folder = tmp_path_factory.mktemp("metrics-layer")
    built = subprocess.run(
        ["make", "build-MetricsLayer", f"ARTIFACTS_DIR={folder}", f"PYTHON={sys.executable}"],
        cwd=ROOT / "layers" / "metrics",
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "python"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a function carries besides our code, as `sam build` installs it."""
    folder = tmp_path_factory.mktemp("package")
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
    subprocess.run([*command, "-r", str(ROOT / "functions" / "requirements.txt")], check=True)
    return folder


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)


def _inside(script: str, *paths: Path, data: bytes = b"") -> Any:
    """What a script prints as JSON in an interpreter that has the standard library and these paths only."""
    head = f"import json, sys; sys.path[:0] = {[str(path) for path in paths]!r}\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", head + script],
        input=data,
        capture_output=True,
        check=False,
        env={"PATH": os.environ["PATH"], "AWS_DEFAULT_REGION": "us-east-1", "POWERTOOLS_TRACE_DISABLED": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.splitlines()[-1])


def test_layer_and_function_fit_into_lambda(layer: Path, package: Path) -> None:
    """Unzipped they stay below the quota, our own code counted too."""
    sizes = {
        folder.name: sum(path.stat().st_size for path in _files(folder))
        for folder in (layer, package, ROOT / "functions")
    }
    assert sum(sizes.values()) < LIMIT_BYTES, sizes


def test_every_library_loads_on_lambdas_system(layer: Path, package: Path) -> None:
    """No library asks for a newer glibc than Lambda has."""
    found = 0
    for path in (*_files(layer), *_files(package)):
        if ".so" in path.suffixes:
            found += 1
            asked = {
                tuple(map(int, version.split(b".")))
                for version in re.findall(rb"GLIBC_(2\.\d+)", path.read_bytes())
            }
            assert all(version <= GLIBC for version in asked), (path.name, max(asked))
    assert found > 40


def test_each_library_works_without_what_was_removed(layer: Path) -> None:
    """Arrays, patterns, hashes, Zstandard, a tokenizer from bytes, templates, languages: from the layer alone."""
    made = _inside(
        """
import hyperscan, jinja2, jinja2.sandbox, numpy as np, py3langid, tokenizers, xxhash, zstandard
base = hyperscan.Database()
base.compile(expressions=[b"[0-9]{3}"], flags=[hyperscan.HS_FLAG_DOTALL], elements=1)
hits = []
base.scan(b"a 123", match_event_handler=lambda *hit: hits.append(hit[2]))
squeezed = zstandard.ZstdCompressor().compress(b"rows " * 100)
model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hello": 1}, unk_token="[UNK]"))
model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
again = tokenizers.Tokenizer.from_buffer(model.to_str().encode())
print(json.dumps({
    "product": int((np.arange(6, dtype=np.uint64).reshape(2, 3) @ np.ones((3, 1), np.uint64)).sum()),
    "eigen": float(np.linalg.eigvalsh(np.eye(3)).sum()),
    "hits": hits,
    "hash": xxhash.xxh3_64_intdigest(b"row"),
    "text": zstandard.ZstdDecompressor().decompress(squeezed).decode()[:5],
    "ids": again.encode("hello there").ids,
    "template": jinja2.sandbox.ImmutableSandboxedEnvironment().from_string("{{ a }}!").render(a="b"),
    "language": py3langid.classify("Dies ist ein Satz auf Deutsch, wie man ihn schreibt.")[0],
    "paths": sorted({m.__file__.split("/python/")[0] for m in (np, hyperscan, tokenizers)}),
}))
""",
        layer,
    )
    assert made.pop("paths") == [str(layer.parent)]
    assert made["hits"]
    assert made == {
        "product": 15,
        "eigen": 3.0,
        "hits": made["hits"],
        "hash": 15712659403273015405,
        "text": "rows ",
        "ids": [1, 0],
        "template": "b!",
        "language": "de",
    }


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_parquet_is_read_whatever_compresses_it(layer: Path, codec: str) -> None:
    """A file that this environment's newer pyarrow wrote, from a stream of bytes, row group by row group."""
    buffer = io.BytesIO()
    table = pa.table({"prompt": ["a", "b", "c"], "messages": [[{"role": "user", "content": "x"}]] * 3})
    pq.write_table(table, buffer, compression=codec, row_group_size=2)
    read = _inside(
        """
import io, pyarrow.parquet as pq
file = pq.ParquetFile(io.BytesIO(sys.stdin.buffer.read()))
# Threads of this pyarrow may outlive their interpreter by a moment, which ends it with SIGABRT.
rows = [file.read_row_group(n, use_threads=False).to_pylist() for n in range(file.num_row_groups)]
print(json.dumps(rows))
""",
        layer,
        data=buffer.getvalue(),
    )
    rows = table.to_pylist()
    assert read == [rows[:2], rows[2:]]


def test_every_handler_that_has_the_layer_loads(layer: Path, package: Path) -> None:
    """Importing is what Lambda does first; nothing comes from anywhere but function and layer."""
    has = {"Ref": "ValidationLayer"}
    modules = sorted(
        module for module, properties in functions().items() if has in properties.get("Layers", [])
    )
    imported = _inside(
        f"import importlib\nprint(json.dumps([importlib.import_module(m).__name__ for m in {modules!r}]))",
        ROOT / "functions",
        package,
        layer,
    )
    assert imported == modules


def test_scoring_works_from_its_own_small_layer(metrics_layer: Path, package: Path) -> None:
    """Its handler loads on Lambda's system with function and layer alone, and BLEU is what it is here."""
    assert sum(path.stat().st_size for path in _files(metrics_layer)) < 30 * 2**20
    for path in _files(metrics_layer):
        if ".so" in path.suffixes:
            versions = re.findall(rb"GLIBC_(2\.\d+)", path.read_bytes())
            assert all(tuple(map(int, version.split(b"."))) <= GLIBC for version in versions), path.name
    script = """
import score_predictions
from dropforge_core.metrics.catalogue import bleu, chrf
pair = ("the cat sat on the mat", "the cat sat on a mat")
print(json.dumps([score_predictions.__name__, bleu(*pair), chrf(*pair)]))
"""
    here = [Path(path) for path in sys.path if path.endswith("site-packages")]
    there = _inside(script, ROOT / "functions", package, metrics_layer)
    assert there == _inside(script, ROOT / "functions", *here)


def test_the_layer_is_of_the_same_opinion(layer: Path, package: Path, tmp_path: Path) -> None:
    """The report on a dataset with faults is the one that this environment's versions give, byte for byte."""
    rows = (ROOT / "examples" / "us-addresses" / "addresses.jsonl").read_bytes().splitlines(keepends=True)
    broken = [*rows[:300], b"{\n", *rows[:3], b'{"messages": []}\n']
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b"".join(broken), mtime=0))
    (tmp_path / "eval.jsonl").write_bytes(b"".join(rows[300:340]))
    table = pa.Table.from_pylist([json.loads(row) for row in rows[340:500]])
    pq.write_table(table, tmp_path / "more.parquet", compression="zstd", row_group_size=50)
    script = f"""
from pathlib import Path
from dropforge_core.dataset.validation import validate
from dropforge_core.dataset.reading.source import local_file
files = [local_file(path) for path in sorted(Path({str(tmp_path)!r}).iterdir())]
print(json.dumps(validate(files).model_dump_json()))
"""
    here = [Path(path) for path in sys.path if path.endswith("site-packages")]
    assert _inside(script, ROOT / "functions", package, layer) == _inside(script, ROOT / "functions", *here)
