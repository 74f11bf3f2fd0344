"""Failures with a stable first word, which the ladder reads from the job's FailureReason."""

import errno
import traceback
from pathlib import Path
from typing import Final, Literal

Word = Literal["OOM_GPU", "NAN_LOSS", "BAD_DATA", "BASE_MODEL", "DISK_FULL", "CODE"]

REASON_LIMIT: Final = 1024
"""Characters of `output/failure` that SageMaker keeps."""


class Failure(Exception):
    """A failure whose class is known. The message never quotes training text, only row ids."""

    def __init__(self, word: Word, message: str) -> None:
        self.word = word
        self.message = message
        super().__init__(f"{word}: {message}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the accelerator or, on a CPU, the host refused an allocation."""
    # By name: torch is not imported here, the cache verb lives without it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "not enough memory: you tried to allocate" in text
    )


def classify(error: BaseException) -> Failure:
    """Any exception as a Failure; what is not recognised is CODE with the place where it arose."""
    if isinstance(error, Failure):
        return error
    if is_out_of_memory(error):
        return Failure("OOM_GPU", "an allocation was refused outside the training step")
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Failure(
            "DISK_FULL", f"no space left while writing {error.filename or 'a file'}; raise volume_gb"
        )
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure("CODE", f"{type(error).__name__}{place}: {error}")


def record(path: Path, failure: Failure) -> None:
    """Write `output/failure`. A full disk must not hide the reason: what can't be written is dropped."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(failure)[:REASON_LIMIT], encoding="utf-8")
    except OSError:
        return
