"""The Dockerfile, its lock and its build script, as far as they can be checked without Docker."""

import json
import os
import pwd
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_jobs import IMAGE, REPOSITORY

from dropforge_core.planning.catalogue import NEWEST_CAPABILITY
from tuner import privileges

DOCKERFILE = (IMAGE / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(keyword, argument) of every instruction, with continued lines joined and comments left out."""
    lines = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    joined = lines.replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def test_the_entry_point_is_python_itself() -> None:
    """Exec form, and no shell between SageMaker's signals and the process."""
    (entry,) = [argument for keyword, argument in instructions() if keyword == "ENTRYPOINT"]
    assert json.loads(entry) == ["python", "-m", "tuner"]
    assert not [keyword for keyword, _ in instructions() if keyword == "CMD"]


def test_every_copied_path_exists_and_is_let_into_the_context() -> None:
    """The build context holds what COPY names, and .dockerignore does not hide it."""
    allowed = {
        line[1:]
        for line in (IMAGE / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [argument.split()[0] for keyword, argument in instructions() if keyword == "COPY"]
    assert copied
    assert all((REPOSITORY / source).exists() for source in copied)
    assert set(copied) == allowed


def test_what_is_copied_is_all_that_the_entry_point_imports() -> None:
    """From the copied folders alone, with torch's and the lock's packages, every verb's code imports."""
    code = (
        "import tuner.__main__, tuner.loop, tuner.serve, tuner.cache_base_model, tuner.model_shape, tuner.hub, sys;"
        "print([m for m in sys.modules if m.split('.')[0] in ('dropforge', 'runtime')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "PYTHONPATH": f"{IMAGE}{os.pathsep}{REPOSITORY / 'functions'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_the_base_is_an_exact_tag() -> None:
    """Version, CUDA and flavour are all named; the digest is resolved when the image is built."""
    base, *_ = [argument for keyword, argument in instructions() if keyword == "ARG"]
    assert re.fullmatch(r"BASE=[a-z/]+:\d+\.\d+\.\d+-cuda\d+\.\d+-cudnn\d+-runtime", base)
    assert "latest" not in DOCKERFILE


def test_the_base_has_the_torch_that_is_tested() -> None:
    """The image's torch is the release that these tests run with."""
    import torch  # noqa: PLC0415  # seconds, for this test only

    wanted = re.search(r"pytorch:(\d+\.\d+\.\d+)-", DOCKERFILE)
    assert wanted is not None
    assert torch.__version__.split("+")[0] == wanted[1]


def test_the_planner_takes_no_gpu_that_the_image_s_cuda_does_not_know() -> None:
    """Torch's builds for CUDA 12.6 end with Hopper; a base with another CUDA asks for another end here."""
    assert "-cuda12.6-" in DOCKERFILE
    assert NEWEST_CAPABILITY == (9, 0)


def test_every_package_is_pinned_by_hash_and_torch_is_none_of_them() -> None:
    """Pip is told to require hashes, each package has some, and nothing replaces the base's CUDA build."""
    assert "--require-hashes" in DOCKERFILE
    lock = (REPOSITORY / "requirements" / "training-image.txt").read_text().replace("\\\n", " ")
    packages = [line for line in lock.splitlines() if line and not line.startswith(("#", " "))]
    assert packages
    assert all(re.match(r"[a-z0-9-]+==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in packages)
    names = {line.split("==")[0] for line in packages}
    assert not names & {"torch", "triton"}
    assert not any(name.startswith("nvidia-") for name in names)


def test_the_image_knows_its_commit() -> None:
    """The build passes the commit that the artifacts' manifests name."""
    assert ("ENV", "DROPFORGE_COMMIT=${COMMIT}") in instructions()
    assert '--build-arg "COMMIT=$commit"' in (IMAGE / "build.sh").read_text()


def test_the_build_script_parses() -> None:
    """`build.sh` is valid shell; it resolves the tag that the Dockerfile names."""
    subprocess.run(["bash", "-n", str(IMAGE / "build.sh")], check=True)
    assert "s/^ARG BASE=//p" in (IMAGE / "build.sh").read_text()


def test_a_recorded_digest_belongs_to_the_dockerfile_s_base() -> None:
    """Where an image was built, its lock speaks of the base that the Dockerfile names today."""
    lock = IMAGE / "image.lock"
    if lock.exists():
        (base,) = re.findall(r"^base=(\S+)@sha256:[0-9a-f]{64}$", lock.read_text(), re.MULTILINE)
        assert f"ARG BASE={base}\n" in DOCKERFILE


def test_root_is_given_up_in_an_order_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups first, then the group, then the user: after setuid the others would be refused."""
    done: list[tuple[str, object]] = []
    monkeypatch.setenv("HOME", "/root")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        pwd, "getpwnam", lambda name: SimpleNamespace(pw_uid=10001, pw_gid=10002, pw_dir=f"/home/{name}")
    )
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda value, name=name: done.append((name, value)))
    assert privileges.drop_root()
    assert done == [("setgroups", []), ("setgid", 10002), ("setuid", 10001)]
    assert os.environ["HOME"] == "/home/tuner"


@pytest.mark.parametrize("uid", [0, 1000])
def test_nothing_changes_outside_the_image(monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    """Without root, or without the image's user, the process stays who it is."""

    def unknown(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    assert not privileges.drop_root()


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.12"])
def test_the_lock_resolves_for_the_image(python: str, tmp_path: Path) -> None:
    """Every pinned package has a wheel for linux x86-64 under the base's Python, with a listed hash."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"),
            *("--only-binary", ":all:", "--python-version", python, "--platform", "manylinux_2_28_x86_64"),
            *("--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_24_x86_64"),
            *("--requirement", str(REPOSITORY / "requirements" / "training-image.txt")),
            *("--dest", str(tmp_path)),
        ],
        check=True,
    )
