"""Which checkpoint a run would go on from."""

import re
from typing import Final

from dropforge_core.aws import Bucket

_CHECKPOINT: Final = re.compile(r"step-(\d{8})/MANIFEST\.json")


def newest_step(runs: Bucket, prefix: str) -> int:
    """The step of the newest checkpoint that is whole, whose manifest is written last; 0 where there is none."""
    found = (_CHECKPOINT.fullmatch(str(entry["Key"]).removeprefix(prefix)) for entry in runs.list(prefix))
    return max((int(match[1]) for match in found if match), default=0)
