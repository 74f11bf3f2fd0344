"""Caching a base model, against S3 and a hub that answers over HTTP."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import boto3
import pytest
from tiny_jobs import environment

from dropforge_core.contracts import BaseModelManifest
from dropforge_core.layout import MODEL_SHAPE
from tuner.cache_base_model import BucketSource, SourceFile, cache_base_model, wanted_files
from tuner.claim import Claim, Pace
from tuner.failure import Failure
from tuner.signals import Stopped, StopRequest

REVISION = "b" * 40
DESTINATION = f"s3://runs/base-models/tiny/{REVISION}/"
PREFIX = f"base-models/tiny/{REVISION}/"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights " * 100,
    "tokenizer.json": b"{}",
    "LICENSE": b"Apache",
    "pytorch_model.bin": b"a pickle",
    "modeling_x.py": b"import os",
    "onnx/model.onnx": b"x",
}
KEPT = {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}


@pytest.fixture
def s3(s3_endpoint: str) -> Any:
    client = boto3.client("s3", endpoint_url=s3_endpoint)
    client.create_bucket(Bucket="runs")
    for name, body in FILES.items():
        client.put_object(Bucket="runs", Key=f"sources/tiny/{name}", Body=body)
    return client


def cache(
    source: str = "s3://runs/sources/tiny/", stop: StopRequest | None = None
) -> tuple[BaseModelManifest, list[str]]:
    lines: list[str] = []
    return cache_base_model(source, DESTINATION, stop or StopRequest(), lines.append, {}), lines


def keys(s3: Any) -> set[str]:
    found = s3.list_objects_v2(Bucket="runs", Prefix=PREFIX).get("Contents", [])
    return {entry["Key"].removeprefix(PREFIX) for entry in found}


def test_only_what_loading_needs_is_copied_and_hashed(s3: Any) -> None:
    """Safetensors, JSON and terms arrive with their digests; pickles, code and subfolders do not."""
    manifest, _ = cache()
    assert keys(s3) == {*KEPT, MODEL_SHAPE, "MANIFEST.json", "CLAIM"}
    assert manifest.terms == {"files": "LICENSE"}
    assert manifest.files == {name: hashlib.sha256(FILES[name]).hexdigest() for name in KEPT}
    assert (manifest.name, manifest.revision) == ("tiny", REVISION)
    stored = s3.get_object(Bucket="runs", Key=PREFIX + "MANIFEST.json")["Body"].read()
    assert BaseModelManifest.model_validate_json(stored) == manifest


def test_a_broken_off_copy_goes_on_where_it_was(s3: Any) -> None:
    """What has arrived from the same content stays; a changed file is copied again; the manifest is last."""

    class AfterTwo(StopRequest):
        checks = 0

        def check(self) -> None:
            self.checks += 1
            if self.checks > 2:
                raise Stopped

    with pytest.raises(Stopped):
        cache(stop=AfterTwo())
    assert len(keys(s3) - {"CLAIM"}) == 2
    assert "MANIFEST.json" not in keys(s3)
    stamps = {
        name: s3.head_object(Bucket="runs", Key=PREFIX + name)["LastModified"]
        for name in keys(s3) - {"CLAIM"}
    }
    s3.put_object(Bucket="runs", Key="sources/tiny/tokenizer.json", Body=b'{"v":2}')
    manifest, _ = cache()
    assert manifest.files["tokenizer.json"] == hashlib.sha256(b'{"v":2}').hexdigest()
    kept = set(stamps) - {"tokenizer.json"}
    assert kept
    for name in kept:
        assert s3.head_object(Bucket="runs", Key=PREFIX + name)["LastModified"] == stamps[name]


def test_a_whole_copy_is_left_alone(s3: Any) -> None:
    """Caching again reads the manifest and copies nothing."""
    first, _ = cache()
    again, lines = cache()
    assert again == first
    assert lines == ["phase=cached_already"]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_model_that_needs_its_own_code_is_refused(s3: Any, name: str) -> None:
    """`auto_map` in any configuration ends the copy before the weights move."""
    s3.put_object(Bucket="runs", Key=f"sources/tiny/{name}", Body=b'{"auto_map": {"AutoModel": "x.Y"}}')
    with pytest.raises(Failure, match=rf"BASE_MODEL: {name} has 'auto_map'"):
        cache()
    assert not keys(s3) & {"model.safetensors", "MANIFEST.json"}


def test_weights_in_other_formats_are_refused() -> None:
    """A pickle is no fallback."""
    files = [SourceFile("config.json", 2, "x"), SourceFile("pytorch_model.bin", 9, "y")]
    with pytest.raises(Failure, match=r"no .safetensors weights \(it has .bin, .json\)"):
        wanted_files(files)


@pytest.mark.parametrize("source", ["ftp://x", "hub:", "https://host/model", "s3://runs/nothing/"])
def test_a_source_that_is_none_is_told(s3: Any, source: str) -> None:
    """Wrong references and empty prefixes end in BASE_MODEL."""
    with pytest.raises(Failure, match="BASE_MODEL"):
        cache(source)


def test_caching_does_not_load_torch() -> None:
    """The verb runs on a small machine: neither torch nor transformers is imported."""
    code = "import sys, tuner.__main__, tuner.cache_base_model, tuner.hub; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


COMMIT = "c" * 40


class Hub(BaseHTTPRequestHandler):
    """The two calls of the hub that a download makes: the model's description, and a file at a commit."""

    asked_with: ClassVar[list[str | None]] = []
    refuse = False
    flip = False

    def do_HEAD(self) -> None:  # the standard library's name
        self.answer(body=False)

    def do_GET(self) -> None:  # the standard library's name
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        Hub.asked_with.append(self.headers.get("Authorization"))
        if Hub.refuse:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path = self.path.split("?")[0]
        if path.startswith("/api/models/org/tiny/revision/main"):
            self.reply(json.dumps(self.description()).encode(), body=body, kind="application/json")
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            name = path.rsplit("/", 1)[1]
            content = FILES[name][::-1] if Hub.flip and name.endswith("safetensors") else FILES[name]
            self.reply(content, body=body, etag=hashlib.sha1(FILES[name]).hexdigest())
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    @staticmethod
    def description() -> dict[str, Any]:
        siblings: list[dict[str, Any]] = [{"rfilename": n, "size": len(b)} for n, b in FILES.items()]
        for entry in siblings:
            if entry["rfilename"].endswith(".safetensors"):
                digest = hashlib.sha256(FILES[entry["rfilename"]]).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": entry["size"], "pointerSize": 134}
        return {
            "id": "org/tiny",
            "modelId": "org/tiny",
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
            "gated": "manual",
            "cardData": {
                "license": "other",
                "license_name": "tiny-community",
                "license_link": "https://example.com/licence",
            },
        }

    def reply(
        self, content: bytes, *, body: bool, kind: str = "application/octet-stream", etag: str = "e"
    ) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Silence."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked_with, Hub.refuse, Hub.flip = [], False, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache_from_hub(
    hub: str, tmp_path: Path, start_tuner: Callable[..., subprocess.Popen[str]]
) -> Callable[..., tuple[int, str]]:
    def run(**extra: str) -> tuple[int, str]:
        process = start_tuner(
            "cache-base-model",
            *("--root", str(tmp_path / "ml"), "--source", "hub:org/tiny@main", "--destination", DESTINATION),
            HF_ENDPOINT=hub,
            HF_HUB_OFFLINE="1",
            HF_HOME=str(tmp_path / "hf"),
            **extra,
        )
        out, _ = process.communicate()
        return process.returncode, out

    return run


def test_a_hub_revision_becomes_a_commit(s3: Any, cache_from_hub: Callable[..., tuple[int, str]]) -> None:
    """The real hub client resolves `main`, downloads at that commit, and the manifest records it."""
    secret = boto3.client("secretsmanager").create_secret(Name="hub", SecretString="hf_not_a_real_token")
    code, out = cache_from_hub(HUB_TOKEN_SECRET_ARN=secret["ARN"])
    assert code == 0, out
    manifest = BaseModelManifest.model_validate_json(
        s3.get_object(Bucket="runs", Key=PREFIX + "MANIFEST.json")["Body"].read()
    )
    assert manifest.revision == COMMIT
    assert manifest.licence == "other"
    assert manifest.terms == {
        "name": "tiny-community",
        "link": "https://example.com/licence",
        "gated": "manual",
        "files": "LICENSE",
    }
    assert set(manifest.files) == KEPT
    assert manifest.files["model.safetensors"] == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert set(Hub.asked_with) == {"Bearer hf_not_a_real_token"}
    assert "hf_not_a_real_token" not in out


def test_a_gated_model_says_what_to_do(
    s3: Any, tmp_path: Path, cache_from_hub: Callable[..., tuple[int, str]]
) -> None:
    """The failure names the licence and the secret, not a status code."""
    Hub.refuse = True
    code, _ = cache_from_hub()
    assert code == 1
    failure = (tmp_path / "ml" / "output" / "message").read_text()
    assert failure.startswith("BASE_MODEL: org/tiny is gated: accept its licence")


def test_bytes_that_are_not_the_hubs_are_refused(
    s3: Any, tmp_path: Path, cache_from_hub: Callable[..., tuple[int, str]]
) -> None:
    """A download whose digest differs from the hub's own never reaches the bucket."""
    Hub.flip = True
    code, _ = cache_from_hub()
    assert code == 1
    assert "the hub says" in (tmp_path / "ml" / "output" / "message").read_text()
    assert not keys(s3) & {"model.safetensors", "MANIFEST.json"}


def test_an_absent_hub_is_told_as_such(s3: Any, tmp_path: Path, start_tuner: Callable[..., Any]) -> None:
    """A connection that nobody takes is a reason in words, with what to do, and no stack of a client."""
    process = start_tuner(
        "cache-base-model",
        *("--root", str(tmp_path / "ml"), "--source", "hub:org/tiny@main", "--destination", DESTINATION),
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path / "hf"),
    )
    process.communicate()
    assert process.returncode == 1
    told = (tmp_path / "ml" / "output" / "message").read_text().splitlines()
    assert told[0].startswith("BASE_MODEL: the hub does not answer")
    assert any("tuner/hub.py" in line for line in told[1:])


def test_a_cached_commit_needs_no_hub(s3: Any, tmp_path: Path, start_tuner: Callable[..., Any]) -> None:
    """What lies there whole at a fixed commit is found without asking anybody."""
    source = f"hub:org/tiny@{COMMIT}"
    manifest = BaseModelManifest(name="tiny", revision=COMMIT, source=source, files={}, bytes=0)
    s3.put_object(Bucket="runs", Key=PREFIX + "MANIFEST.json", Body=manifest.model_dump_json().encode())
    process = start_tuner(
        *("cache-base-model", "--root", str(tmp_path), "--source", source, "--destination", DESTINATION),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    out, _ = process.communicate()
    assert process.returncode == 0, out


QUICK = Pace(poll=0.02, beat=0.05, abandoned=1.0)


def test_runs_at_the_same_time_make_one_copy(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several jobs one copies; the others wait for its manifest and answer with it."""
    fetched: list[str] = []
    real = BucketSource.fetch

    def fetch(source: BucketSource, file: SourceFile, folder: Path) -> Path:
        fetched.append(file.name)
        return real(source, file, folder)

    monkeypatch.setattr(BucketSource, "fetch", fetch)
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(
                cache_base_model, "s3://runs/sources/tiny/", DESTINATION, StopRequest(), str, {}, QUICK
            )
            for _ in range(4)
        ]
        manifests = [job.result() for job in jobs]
    assert all(manifest == manifests[0] for manifest in manifests)
    assert sorted(fetched) == sorted(KEPT)


def test_an_abandoned_claim_is_taken_over(s3: Any) -> None:
    """A job that was killed while it copied keeps nobody waiting for ever."""
    s3.put_object(Bucket="runs", Key=PREFIX + "CLAIM", Body=b'{"holder": "dead", "beat": 3}')
    lines: list[str] = []
    cache_base_model("s3://runs/sources/tiny/", DESTINATION, StopRequest(), lines.append, {}, QUICK)
    assert lines[0] == "phase=waiting another job is caching this base model"
    assert "phase=taking_over" in lines
    assert "MANIFEST.json" in keys(s3)


def test_a_holder_that_lives_keeps_its_claim(s3: Any) -> None:
    """Its beats show that it works, however long the copy takes: nobody else begins."""
    done = threading.Event()
    holder = Claim(s3, "runs", PREFIX + "CLAIM", QUICK)
    waiting = Claim(s3, "runs", PREFIX + "CLAIM", QUICK)
    lines: list[str] = []
    with holder.held(lambda: False, StopRequest(), str) as mine, ThreadPoolExecutor(1) as pool:
        assert mine

        def wait() -> bool:
            with waiting.held(done.is_set, StopRequest(), lines.append) as turn:
                return turn

        answer = pool.submit(wait)
        while not lines:
            done.wait(QUICK.poll)
        assert not done.wait(2 * QUICK.abandoned)
        done.set()
        assert answer.result() is False
    assert lines == ["phase=waiting another job is caching this base model"]
