"""Becomes the program it is given, once its life is tied to its parent's: `launch.py <parent pid> <argv...>`.

A process of its own rather than a `preexec_fn`, which may deadlock in a program with threads.
"""

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""prctl(2), Linux only. Elsewhere a job outlives an engine that was killed with SIGKILL."""


def launch(parent: int, argv: list[str]) -> None:
    """Replace this process by `argv`. Returns only by an exception (OSError: no such program)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # The parent died before the request took effect; nobody would ever stop us.
            sys.exit(1)
    # Python ignores it, and what is ignored stays ignored over exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(argv[0], argv)  # noqa: S606  # no shell is wanted: the argv is the image's exec-form entry point


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2:])
