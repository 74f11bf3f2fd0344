"""Reads from the image's Dockerfile what a process needs to be the container: entry point, ENV, import path."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_NOT_CARRIED: Final = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
"""Variables that name folders of the image's file system; the host's own take their place."""


class DockerfileRefused(ValueError):
    """The Dockerfile can't be stood in for by a process. Says the line and how to mend it."""


def entry_point_of(dockerfile: Path, python: str) -> list[str]:
    """The argv of the last exec-form ENTRYPOINT, its `python` replaced by the interpreter given.

    Raises:
        DockerfileRefused: where there is none, or it is in shell form (a shell as PID 1 would
            swallow SageMaker's SIGTERM), or it is not a Python program.
    """
    found: list[str] | None = None
    for line, instruction, rest in _instructions(dockerfile):
        if instruction == "FROM":
            # Each stage begins without an entry point of its own; only the last stage is the image.
            found = None
        if instruction != "ENTRYPOINT":
            continue
        try:
            argv = json.loads(rest)
        except json.JSONDecodeError:
            argv = None
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise DockerfileRefused(
                f"{dockerfile}:{line}: ENTRYPOINT {rest} is in shell form; "
                'write it in exec form, as ENTRYPOINT ["python", "-m", "module"], so that signals arrive'
            )
        found = argv
    if found is None:
        raise DockerfileRefused(f'{dockerfile}: no ENTRYPOINT; add ENTRYPOINT ["python", "-m", "module"]')
    program = PurePosixPath(found[0]).name
    if not program.startswith("python"):
        raise DockerfileRefused(
            f"{dockerfile}: ENTRYPOINT starts {found[0]!r}; "
            "only a Python program can run without the image, so name python there"
        )
    return [python, *found[1:]]


def environment_of(dockerfile: Path) -> dict[str, str]:
    """The image's ENV, and the PYTHONPATH under which the host has what the image COPYs.

    The build context is the folder above the Dockerfile's own. ENV values that name folders of the
    image, or other variables, are left out: they mean nothing on the host.

    Raises:
        DockerfileRefused: where an instruction can't be read, or no COPY brings a Python package.
    """
    context = dockerfile.resolve().parent.parent
    environment: dict[str, str] = {}
    roots: dict[str, None] = {}
    for line, instruction, rest in _instructions(dockerfile):
        if instruction == "ENV":
            try:
                words = shlex.split(rest)
            except ValueError as error:
                raise DockerfileRefused(f"{dockerfile}:{line}: ENV {rest}: {error}") from error
            for word in words:
                name, equals, value = word.partition("=")
                if not equals:
                    raise DockerfileRefused(f"{dockerfile}:{line}: ENV {rest}; write NAME=value")
                if name not in _NOT_CARRIED and not value.startswith("/") and "$" not in value:
                    environment[name] = value
        elif instruction == "COPY" and "--from=" not in rest:
            roots.update(dict.fromkeys(_import_roots(context, _copied(rest))))
    if not roots:
        raise DockerfileRefused(f"{dockerfile}: no COPY brings a Python package from {context}")
    return {**environment, "PYTHONPATH": ":".join(roots)}


def _copied(rest: str) -> list[str]:
    if rest.startswith("["):
        return [str(word) for word in json.loads(rest)[:-1]]
    return [word for word in shlex.split(rest) if not word.startswith("--")][:-1]


def _import_roots(context: Path, sources: list[str]) -> Iterator[str]:
    for source in sources:
        folder = context / source
        if (folder / "__init__.py").is_file():
            yield str(folder.resolve().parent)
        elif folder.is_dir() and any(folder.glob("*/__init__.py")):
            yield str(folder.resolve())


def _instructions(dockerfile: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, upper-case instruction and its arguments; continued lines joined, comments left out."""
    joined, start = "", 0
    for number, raw in enumerate(dockerfile.read_text("utf-8").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        start = start if joined else number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        word, _, rest = joined.partition(" ")
        yield start, word.upper(), rest.strip()
        joined = ""
