"""`python -m probe_image train --root ROOT`: succeed, fail or sleep, as the hyperparameter `mode` says."""

import json
import sys
import time
from pathlib import Path


def main(verb: str, root: Path) -> int:
    """Play the container."""
    mode = json.loads((root / "input/config/hyperparameters.json").read_text())["mode"]
    print(f"{verb} mode={mode} loss=0.5", flush=True)  # noqa: T201  # a container's output is its log
    if mode == "sleep":
        time.sleep(600)
    if mode == "fail":
        (root / "output").mkdir(exist_ok=True)
        (root / "output/failure").write_text("CODE probe was told to fail")
        return 1
    (root / "model/adapter.bin").write_bytes(b"weights")
    return 0


if __name__ == "__main__":
    sys.exit(
        main(
            sys.argv[1],
            Path(sys.argv[sys.argv.index("--root") + 1]) if "--root" in sys.argv else Path("/opt/ml"),
        )
    )
