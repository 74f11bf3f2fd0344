"""Builds the layer: the locked wheels for Lambda, without what the dataset checks never touch.

`python build.py REQUIREMENTS FOLDER`. Function and layers together may have 250 MB unzipped (Lambda quotas), and
pyarrow, numpy and the rest come to that alone. Runs on any machine: wheels are chosen for Lambda's system, not
for this one.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

PYTHON: Final = "3.11"
PLATFORMS: Final = ("manylinux_2_17_x86_64", "manylinux2014_x86_64")
"""Lambda's Python 3.11 runs on Amazon Linux 2, whose glibc is 2.26: wheels for 2.28 do not load there."""

UNUSED: Final = (
    "bin",
    "**/tests",
    "**/__pycache__",
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.pxi",
    "**/*.c",
    "**/*.h",
    # headers and sources to compile against
    "numpy/_core/include",
    "numpy/f2py",
    "numpy/random/lib",
    "pyarrow/include",
    "pyarrow/src",
    # RPC, query plans, ORC, CUDA, and filesystems: rows come from streams that the handlers open
    "pyarrow/*flight*",
    "pyarrow/*_substrait.cpython*",
    "pyarrow/*orc*",
    "pyarrow/*cuda*",
    "pyarrow/_azurefs*",
    "pyarrow/_gcsfs*",
    "pyarrow/_hdfs*",
    "pyarrow/_s3fs*",
    # the same library under names that only linkers look for; a wheel has no links
    "pyarrow/libarrow_python*.so",
    "pyarrow/libarrow_python*.so.*.*",
    # the backend for other interpreters than CPython
    "zstandard/*cffi*",
)
"""Patterns of what is removed, in the installed tree."""


def install(requirements: Path, folder: Path) -> None:
    """The locked packages, hashes checked, nothing built from source.

    Raises:
        subprocess.CalledProcessError: pip refused; it has said why.
    """
    platforms = [option for platform in PLATFORMS for option in ("--platform", platform)]
    options = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "--no-compile"]
    options += ["--implementation=cp", f"--python-version={PYTHON}", *platforms]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *options,
        "--target",
        str(folder),
        "-r",
        str(requirements),
    ]
    subprocess.run(command, check=True)  # noqa: S603  # our own interpreter's pip


def prune(folder: Path) -> None:
    """Remove what is unused.

    Raises:
        LookupError: a pattern fits nothing: a package was renamed inside, and the layer has grown.
    """
    for pattern in UNUSED:
        found = list(folder.glob(pattern))
        if not found:
            raise LookupError(f"nothing in {folder} is like {pattern}; adapt UNUSED in {Path(__file__).name}")
        for path in found:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    target = Path(sys.argv[2])
    install(Path(sys.argv[1]), target)
    prune(target)
