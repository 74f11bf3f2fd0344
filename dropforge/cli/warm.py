"""Loaded once in the process from which workers are made, and nowhere else: what each would load again.

Libraries are 0.6 s of that, and the language identifier's model 0.8 s. ^C reaches all processes of a terminal;
the first one ends the others in order, so these ignore it from the beginning.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)

from dropforge_core.dataset import survey  # noqa: E402  # a second of loading, in which ^C may come
from dropforge_core.dataset.languages import load_identifier  # noqa: E402

load_identifier()

__all__ = ["survey"]
