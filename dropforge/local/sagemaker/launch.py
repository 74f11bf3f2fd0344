"""Becomes the program it is given: `launch.py <parent pid> <open|isolated> <argv...>`.

Before, it ties its life to its parent's and, where asked and possible, leaves the network. A process
of its own rather than a `preexec_fn`, which may deadlock in a program with threads.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Final

# prctl(2), unshare(2) and netdevice(7): Linux only.
_PR_SET_PDEATHSIG: Final = 1
_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1


def launch(parent: int, argv: list[str], *, isolated: bool) -> None:
    """Replace this process by `argv`. Returns only by an exception (OSError: no such program)."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # First, for a new user namespace takes the parent-death signal away again.
        if isolated:
            _leave_network(libc)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            # The parent died before the request took effect; nobody would ever stop us.
            sys.exit(1)
    # Python ignores it, and what is ignored stays ignored over exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvp(argv[0], argv)  # noqa: S606  # no shell is wanted: the argv is the image's exec-form entry point


def _leave_network(libc: ctypes.CDLL) -> None:
    """A network of nothing but a loopback. Kernels that forbid it leave the job connected, but without keys."""
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(_CLONE_NEWNET) != 0:
        if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
            return
        # Without a mapping the job would be nobody, to whom its own folders don't belong.
        for name, line in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with contextlib.suppress(OSError):
                Path("/proc/self", name).write_text(line, "ascii")
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[3:], isolated=sys.argv[2] == "isolated")
