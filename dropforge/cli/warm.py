"""Loaded once in the process from which workers are made: what each of them would load again.

Libraries are 0.6 s of that, and the language identifier's model 0.8 s.
"""

from dropforge_core.dataset import survey
from dropforge_core.dataset.languages import load_identifier

load_identifier()

__all__ = ["survey"]
