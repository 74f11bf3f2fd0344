"""The evaluation server over real HTTP, with base, champion and candidate on the tiny model."""

import io
import itertools
import json
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from tiny_jobs import SHORT, chat_rows, make_job, seal

from tuner import loop
from tuner.adapters import MEMBERS, extract_artifact
from tuner.contract import Container
from tuner.failure import Failure
from tuner.quantise import quantiser_digest
from tuner.serve import ServeSettings, load_variants
from tuner.signals import StopRequest

HOLDOUT = chat_rows(5, seed=1)


def trained(root: Path, base: Path, seed: int) -> Container:
    recipe = {**SHORT, "training": {**SHORT["training"], "seed": seed}}
    container = make_job(root, base, rows=chat_rows(30), holdout=HOLDOUT, recipe=recipe)
    ticks = itertools.count()
    loop.train(container, StopRequest(), lambda _: None, lambda: float(next(ticks)))
    return container


@pytest.fixture(scope="module")
def candidate(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Container:
    return trained(tmp_path_factory.mktemp("candidate") / "ml", tiny_base, seed=2)


def archive(model: Path) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        tar.add(model, arcname=".")
    return target.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def records(variants: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": row["id"],
            "variant": variant,
            "messages": row["messages"][:-1],
            "reference": row["messages"][-1]["content"],
            "generate": place < 3,
            **({"max_new_tokens": 2} if place == 1 else {}),
        }
        for place, row in enumerate(HOLDOUT)
        for variant in variants
    ]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


@pytest.fixture
def served(
    tiny_base: Path,
    tmp_path: Path,
    candidate: Container,
    s3_endpoint: str,
    start_tuner: Callable[..., subprocess.Popen[str]],
) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A running server, asked only after its ping turned green."""
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="runs")
    for path in tiny_base.iterdir():
        s3.upload_file(str(path), "runs", f"base-models/tiny-llama/{'a' * 40}/{path.name}")
    champion = trained(tmp_path / "champion", tiny_base, seed=1)
    s3.put_object(Bucket="runs", Key="champion/model.tar.gz", Body=archive(champion.model))
    port = free_port()
    process = start_tuner(
        "serve",
        "--root",
        str(candidate.root),
        BASE_MODEL_URI=f"s3://runs/base-models/tiny-llama/{'a' * 40}/",
        CHAMPION_MODEL_URI="s3://runs/champion/model.tar.gz",
        MAX_NEW_TOKENS="8",
        TEMPERATURE="0",
        SAGEMAKER_BIND_TO_PORT=str(port),
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        seen = set()
        while 200 not in seen:
            assert process.poll() is None, process.stdout and process.stdout.read()
            try:
                seen.add(client.get("/ping").status_code)
            except httpx.TransportError:
                time.sleep(0.1)
        assert seen <= {200, 503}
        yield client, process


def test_three_variants_answer_the_same_prompts(
    served: tuple[httpx.Client, subprocess.Popen[str]],
) -> None:
    """One request asks all three: each record gets one line in its place, bad ones an error, none is lost."""
    client, process = served
    asked: list[Any] = records(("base", "champion", "candidate"))
    asked.insert(2, b"{not json")
    asked.insert(5, {"id": "half", "variant": "candidate"})
    asked.insert(7, {**asked[0], "id": "unknown-variant", "variant": "nobody"})
    answer = client.post("/invocations", content=jsonl(asked))
    assert answer.status_code == 200
    lines = [json.loads(line) for line in answer.content.splitlines()]
    assert len(lines) == len(asked)
    for ask, line in zip(asked, lines, strict=True):
        if isinstance(ask, bytes):
            assert line["id"] == "line-3"
            assert line["error"] == "the line is not JSON"
        else:
            assert (line["id"], line["variant"]) == (ask["id"], ask["variant"])
            assert ("error" in line) == (ask["id"] in {"half", "unknown-variant"})
    good = [line for line in lines if "error" not in line]
    for line in good:
        assert line["reference_bytes"] > 0
        assert ("text" in line) == (line["id"] in {row["id"] for row in HOLDOUT[:3]})
        # A record's own limit of two tokens holds for it alone.
        assert line["id"] != HOLDOUT[1]["id"] or line["completion_tokens"] <= 2
    assert any(line["completion_tokens"] > 2 for line in good if "text" in line)
    total = {v: sum(p["nll"] for p in good if p["variant"] == v) for v in ("base", "champion", "candidate")}
    assert total["champion"] < total["base"] * 0.8
    assert total["candidate"] < total["base"] * 0.8
    assert total["champion"] != total["candidate"]
    # Asked again, alone and backwards: a variant's answers depend on nothing that was asked before it.
    again = client.post("/invocations", content=jsonl(records(("base",))[::-1]))
    before = {line["id"]: line for line in good if line["variant"] == "base"}
    for line in map(json.loads, again.content.splitlines()):
        assert line["nll"] == pytest.approx(before[line["id"]]["nll"], rel=1e-5)
        assert line.get("text") == before[line["id"]].get("text")
    assert client.get("/execution-parameters").json()["BatchStrategy"] == "MULTI_RECORD"
    assert client.post("/invocations", content=b"\n\n").content == b""
    chunked = client.post(
        "/invocations", content=iter([jsonl(records(("base",)))[:50], jsonl(records(("base",)))[50:]])
    )
    assert len(chunked.content.splitlines()) == len(HOLDOUT)
    process.terminate()
    assert process.wait(timeout=120) == 143


def test_a_candidate_of_another_base_is_refused(
    tiny_base: Path,
    tmp_path: Path,
    candidate: Container,
    s3_endpoint: str,
    start_tuner: Callable[..., subprocess.Popen[str]],
) -> None:
    """The server ends with BASE_MODEL rather than answer with an adapter on the wrong weights."""
    other = tmp_path / "other"
    other.mkdir()
    for path in tiny_base.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    (other / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    seal(other)
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="runs")
    for path in other.iterdir():
        s3.upload_file(str(path), "runs", f"base-models/other/{'b' * 40}/{path.name}")
    process = start_tuner(
        "serve",
        "--root",
        str(candidate.root),
        BASE_MODEL_URI=f"s3://runs/base-models/other/{'b' * 40}/",
        SAGEMAKER_BIND_TO_PORT=str(free_port()),
    )
    process.communicate()
    assert process.returncode == 1
    assert candidate.failure.read_text().startswith("BASE_MODEL: the candidate was trained on tiny-llama@")


@pytest.mark.parametrize(
    ("change", "is_told"),
    [({}, False), ({"quantiser": "0" * 64}, True), ({"quantiser": None}, False)],
    ids=["the same", "another", "of an older image"],
)
def test_weights_of_another_quantiser_are_told(  # noqa: PLR0917  # one fixture for each part of a job
    tiny_base: Path,
    tmp_path: Path,
    candidate: Container,
    s3_endpoint: str,
    change: dict[str, Any],
    is_told: bool,
) -> None:
    """Where the evaluation's base was rounded otherwise than the training's, the log says so, and it answers."""
    container = Container(tmp_path / "ml")
    shutil.copytree(candidate.model, container.model)
    manifest = json.loads((container.model / "manifest.json").read_bytes())
    assert manifest["quantiser"] == quantiser_digest("cpu")
    (container.model / "manifest.json").write_text(json.dumps({**manifest, **change}))
    s3 = boto3.client("s3", endpoint_url=s3_endpoint)
    s3.create_bucket(Bucket="runs")
    for path in tiny_base.iterdir():
        s3.upload_file(str(path), "runs", f"base-models/tiny-llama/{'a' * 40}/{path.name}")
    lines: list[str] = []
    settings = ServeSettings(base_model_uri=f"s3://runs/base-models/tiny-llama/{'a' * 40}/")
    variants = load_variants(container, settings, tmp_path / "scratch", lines.append)
    assert variants.loaded == {"candidate"}
    assert any("another quantiser" in line for line in lines) == is_told


def test_only_known_files_leave_an_archive(tmp_path: Path) -> None:
    """A path that climbs out, a link or an unknown name in model.tar.gz is never written."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        for name in ("../manifest.json", "/etc/manifest.json", "evil.py", "manifest.json"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"{}"))
        link = tarfile.TarInfo("adapter_config.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    (tmp_path / "a.tar.gz").write_bytes(target.getvalue())
    extract_artifact(tmp_path / "a.tar.gz", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert "manifest.json" in MEMBERS


def test_a_broken_archive_is_bad_data(tmp_path: Path) -> None:
    """A truncated artifact is told as such."""
    (tmp_path / "a.tar.gz").write_bytes(archive(tmp_path)[:30])
    with pytest.raises(Failure, match="BAD_DATA"):
        extract_artifact(tmp_path / "a.tar.gz", tmp_path / "out")
