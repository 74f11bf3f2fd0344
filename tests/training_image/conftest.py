"""The tiny base model, the image's entry point as a process, and S3 over HTTP."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before torch is imported: spinning threads starve the neighbours on a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import httpx
import pytest
from tiny_jobs import environment, seal


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama of `local up --fast`, as its cached copy would lie in a channel."""
    from dropforge.local.model_building import build_tiny  # noqa: PLC0415  # imports torch

    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    folder.mkdir()
    build_tiny(folder)
    seal(folder)
    return folder


@pytest.fixture
def start_tuner() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the image's entry point; whatever still runs at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **extra: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", *arguments],
            env=environment(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.fixture
def s3_endpoint(aws_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Moto's S3 over HTTP, named by the environment as the local AWS would be."""
    httpx.post(f"{aws_server}/moto-api/reset").raise_for_status()
    for name, value in {
        "AWS_ENDPOINT_URL": aws_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    return aws_server
