"""First words that the ladder reads."""

import errno
from pathlib import Path

import pytest
import torch

from tuner.failure import REASON_LIMIT, Failure, classify, record


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "OOM_GPU"),
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
