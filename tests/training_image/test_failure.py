"""First words that the ladder reads."""

import errno
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_jobs import environment

from tuner.failure import REASON_LIMIT, Failure, classify, record, trail


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "OOM_GPU"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "OOM_GPU",
        ),
        (RuntimeError("[enforce fail] not enough memory: you tried to allocate 9 bytes"), "OOM_GPU"),
        (MemoryError(), "OOM_GPU"),
        (OSError(errno.ENOSPC, "No space left on device", "/opt/ml/x"), "DISK_FULL"),
        (Failure("BAD_DATA", "x"), "BAD_DATA"),
        (ValueError("x"), "CODE"),
    ],
)
def test_each_class_has_its_word(error: BaseException, word: str) -> None:
    """The word comes from the exception's kind; what nobody knows is CODE."""
    assert classify(error).word == word


def test_the_reason_fits_where_sagemaker_reads_it(tmp_path: Path) -> None:
    """`output/failure` begins with the word and keeps to 1,024 characters."""
    record(tmp_path / "output" / "failure", Failure("CODE", "x" * 5_000))
    text = (tmp_path / "output" / "failure").read_text()
    assert text.startswith("CODE: ")
    assert len(text) == REASON_LIMIT


def test_a_disk_that_refuses_does_not_hide_the_failure(tmp_path: Path) -> None:
    """Where the reason can't be written, the process still ends by the first error."""
    (tmp_path / "output").write_text("a file where the folder should be")
    record(tmp_path / "output" / "failure", Failure("DISK_FULL", "x"))


@given(st.text(max_size=2_000), st.lists(st.text(max_size=300), max_size=20))
def test_the_first_line_is_for_a_person_and_the_last_for_an_engineer(
    message: str, details: list[str]
) -> None:
    """Whatever is said, it fits, the word comes first, and the last frames stay before earlier ones."""
    with tempfile.TemporaryDirectory() as folder:
        record(Path(folder) / "failure", Failure("CODE", message), "\n".join(details))
        first, *rest = (Path(folder) / "failure").read_text().split("\n")
    assert first.startswith("CODE:")
    assert len("\n".join([first, *rest])) <= REASON_LIMIT
    lines = "\n".join(details).splitlines()
    assert rest == lines[len(lines) - len(rest) :]


def test_the_trail_names_places_and_no_values() -> None:
    """Causes come first, each with its kind and frames; what an exception says may quote a row and stays out."""

    def inner() -> None:
        raise KeyError("a secret of a row")

    try:
        try:
            inner()
        except KeyError as error:
            raise Failure("BASE_MODEL", "can't be loaded") from error
    except Failure as failure:
        told = trail(failure)
    lines = told.splitlines()
    assert lines[0] == "KeyError"
    assert any("test_failure.py" in line and line.endswith(" inner") for line in lines)
    assert "Failure" in lines
    assert "secret" not in told


FILL = """
import resource, sys, torch
from pathlib import Path
from tuner.checkpoint import Checkpoint, CheckpointStore, TrainingState
from tuner.failure import classify
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
big = {"a": torch.zeros(100_000)}
try:
    CheckpointStore(Path(sys.argv[1]), "run").save(Checkpoint(TrainingState(step=1), big, {}, {}, {}))
except BaseException as error:
    print(type(error).__name__, classify(error))
"""


def test_a_disk_that_takes_no_more_is_told_whichever_library_writes(tmp_path: Path) -> None:
    """Safetensors' own error, which is no OSError, is DISK_FULL too."""
    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("SafetensorError DISK_FULL: no space left")
    assert not list(tmp_path.glob("step-*"))
