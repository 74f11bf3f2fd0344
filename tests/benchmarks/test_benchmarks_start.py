"""Every benchmark can be started as its page says."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.py")))
def test_it_starts_beside_the_others(script: str) -> None:
    """Imports are whole, and no script's name hides a module of the standard library from them."""
    told = subprocess.run(
        [sys.executable, FOLDER / script, "--help"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "--quick" in told.stdout
