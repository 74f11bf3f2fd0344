"""Failures with a stable first word, which the ladder reads from the job's FailureReason."""

import errno
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, get_args

Word = Literal["OOM_GPU", "NAN_LOSS", "BAD_DATA", "BASE_MODEL", "DISK_FULL", "RANK_LOST", "CODE"]
WORDS: Final[tuple[Word, ...]] = get_args(Word)

REASON_LIMIT: Final = 1024
"""Characters of `output/failure` that SageMaker keeps."""
PERSON_LIMIT: Final = 700
"""Of these, what the first line may take where there are lines for an engineer."""
FRAMES: Final = 8

NO_MEMORY: Final = (
    *("out of memory", "not enough memory: you tried to allocate"),
    # A library's handle or workspace did not fit beside what torch holds.
    *("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUSOLVER_STATUS_ALLOC_FAILED"),
)
"""How errors read that are raised where memory is refused, and are no OutOfMemoryError."""
NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
"""How errors of Rust libraries (safetensors, tokenizers) end; they are no OSError."""


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
    return isinstance(error, RuntimeError) and any(words in text for words in NO_MEMORY)


def is_rank_lost(error: BaseException) -> bool:
    """Whether another of the processes that train together went away."""
    # By name, as above. gloo raises plain RuntimeErrors that begin with the place in its sources.
    if type(error).__name__ in {"DistBackendError", "DistNetworkError", "DistStoreError"}:
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


def classify(error: BaseException) -> Failure:
    """Any exception as a Failure; what is not recognised is CODE with the place where it arose."""
    if isinstance(error, Failure):
        return error
    if is_out_of_memory(error):
        return Failure("OOM_GPU", "an allocation was refused outside the training step")
    if _system_error(error) in NO_ROOM:
        name = Path(str(getattr(error, "filename", None) or "a file")).name
        return Failure("DISK_FULL", f"no space left while writing {name}; raise volume_gb")
    if is_rank_lost(error):
        return Failure(
            "RANK_LOST",
            "the connection to another process was lost; the reason is in the log of the one that ended",
        )
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Failure("CODE", f"{type(error).__name__}{place}: {error}")


def _system_error(error: BaseException) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def trail(error: BaseException) -> str:
    """Where it arose, for an engineer: kinds and frames from the first cause to the last, never a value."""
    return "\n".join(line for one in _causes(error) for line in _frames(one))


def _causes(error: BaseException) -> Iterator[BaseException]:
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)
    yield error


def _frames(error: BaseException) -> Iterator[str]:
    yield type(error).__name__
    for frame in traceback.extract_tb(error.__traceback__)[-FRAMES:]:
        path = Path(frame.filename)
        yield f"  {path.parent.name}/{path.name}:{frame.lineno} {frame.name}"


def record(path: Path, failure: Failure, details: str = "") -> None:
    """Write `output/failure`: one line for a person, then the last lines of `details` for which there is room.

    A full disk must not hide the reason: what can't be written is dropped.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_reason(str(failure), details.splitlines()), "utf-8", "backslashreplace")
    except OSError:
        return


def _reason(told: str, details: list[str]) -> str:
    line = " ".join(told.split())[: PERSON_LIMIT if details else REASON_LIMIT]
    kept: list[str] = []
    room = REASON_LIMIT - len(line)
    for detail in reversed(details):
        room -= len(detail) + 1
        if room < 0:
            break
        kept.insert(0, detail)
    return "\n".join([line, *kept])
