"""Giving up root where a verb does not need it."""

import os
import pwd
from typing import Final

USER: Final = "tuner"
"""Made by the Dockerfile; where it does not exist, as on a laptop, nothing changes."""


def drop_root() -> bool:
    """Become the image's own user, for good. False where the process is not root or has no such user.

    Training can't: SageMaker mounts the folders that it writes for root alone.
    """
    if os.geteuid() != 0:
        return False
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return False
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ["HOME"] = user.pw_dir
    return True
