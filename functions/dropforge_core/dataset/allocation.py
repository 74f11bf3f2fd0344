"""What a pass over many rows asks of the allocator: each block's memory is the next one's.

Both are measured in `benchmarks/validate.py`: without them a fifth of the time goes to pages that the heap gives
back after one block and asks for again in the next, and to collections that find nothing.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

_KEPT_BYTES: Final = 31 << 20


@contextmanager
def many_rows() -> Iterator[None]:
    """For the time of one block: no collection of cycles, which rows have none of, and a heap that keeps its pages.

    The collector is the whole process's; it is left as it was found.
    """
    _keep_pages()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@cache
def _keep_pages() -> None:
    """Raise the size up to which glibc keeps free memory at hand.

    It does so by itself when a block of its own mapping is freed: mallopt(3), M_MMAP_THRESHOLD, "dynamic". The
    block is never written to, so it takes no memory. Other allocators take no notice.
    """
    bytearray(_KEPT_BYTES)
