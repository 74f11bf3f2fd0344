"""Modules of the functions that the command line shares, importable by their own names.

In a checkout the folder of functions is on the path; a wheel carries these few in a folder of its own.
"""

import sys
from pathlib import Path
from typing import Final

SHARED: Final = Path(__file__).with_name("shared")

if SHARED.is_dir() and str(SHARED) not in sys.path:
    # First, because their names are common words.
    sys.path.insert(0, str(SHARED))

from base_model import locate  # noqa: E402  # the path has to be there before
from hub import BaseModelUnavailable, Hub, HubUnreachable  # noqa: E402

__all__ = ["BaseModelUnavailable", "Hub", "HubUnreachable", "locate"]
