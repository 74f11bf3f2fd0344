"""`dropforge push`: look what is there, make room, upload."""

from collections.abc import Callable
from typing import Any

from dropforge.cli.files import DataFiles
from dropforge.cli.upload import Pushed, make_room, plan_upload, upload
from dropforge_core.model import Frozen

WithBar = Callable[[int | None, str, Callable[[Callable[[int], None]], Any]], Any]
"""Does work that tells bytes, and shows how far it is: (total bytes or None, what is done, the work)."""


class Asked(Frozen):
    """The command's options."""

    found: DataFiles
    model: str
    version: str | None = None
    again: bool = False
    replace: bool = False
    add: bool = False


def push(asked: Asked, bucket: str, with_bar: WithBar) -> Pushed:
    """Upload a dataset, the marker last.

    Args:
        asked: what and how.
        bucket: the dataset bucket.
        with_bar: shows how far the work is.

    Raises:
        CommandFailed: when a file or name can't be used, or the version holds other files.
        KeyboardInterrupt: when ^C or SIGTERM came; nothing was started.
    """
    found = asked.found
    plan = with_bar(found.size, "reading", lambda tell: plan_upload(found, asked.model, asked.version, tell))
    removed = make_room(plan, bucket, replace=asked.replace, add=asked.add)
    pushed: Pushed = with_bar(
        plan.bytes,
        "uploading",
        lambda tell: upload(plan, bucket, model=asked.model, again=asked.again, progress=tell),
    )
    return pushed.model_copy(update={"removed": removed, "left_out": found.left_out})
