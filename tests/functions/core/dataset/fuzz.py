"""A search, guided by coverage, for bytes for which something in `fuzz_targets` does not hold.

`python fuzz.py --seconds 120` gives every target its share of the time. Needs atheris.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
TARGETS = ("decode", "lines", "array", "csv", "parquet", "compression", "whole")


def search(target, seconds, found):
    """Search with one target. libFuzzer ends the process."""
    import atheris  # noqa: PLC0415  # first, so that it sees the others come

    with atheris.instrument_imports(include=["dropforge_core.dataset"]):
        import fuzz_targets  # noqa: PLC0415

        from dropforge_core.dataset.reading import compression  # noqa: PLC0415
    # Else most of the time goes into text that a few bytes stand for.
    compression.RATIO_FREE_BYTES = 1 << 18
    with tempfile.TemporaryDirectory() as folder:
        for number, body in enumerate(fuzz_targets.seeds(target)):
            (Path(folder) / f"{number}").write_bytes(body)
        options = [f"-max_total_time={seconds}", "-max_len=4096", "-rss_limit_mb=2048", "-timeout=30"]
        atheris.Setup(
            [sys.argv[0], folder, f"-artifact_prefix={found}/{target}-", *options],
            fuzz_targets.TARGETS[target],
        )
        atheris.Fuzz()


def main():
    """Search with every target, one after another; the exit code tells whether anything was found."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=120, help="for all targets together")
    options.add_argument("--target", choices=TARGETS, help="this one only, in this process")
    options.add_argument("--found", type=Path, default=Path("build/fuzz"), help="where finds go")
    given = options.parse_args()
    given.found.mkdir(parents=True, exist_ok=True)
    if given.target:
        sys.path[:0] = [str(HERE.parents[3] / "functions"), str(HERE)]
        search(given.target, given.seconds, given.found)
    share = max(1, given.seconds // len(TARGETS))
    each = [f"--seconds={share}", f"--found={given.found}"]
    failed = [
        target
        for target in TARGETS
        if subprocess.run([sys.executable, __file__, "--target", target, *each], check=False).returncode
    ]
    sys.stdout.write(f"found by: {', '.join(failed)}; see {given.found}\n" if failed else "nothing found\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
