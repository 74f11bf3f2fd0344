"""`model.tar.gz` and `output.tar.gz`: packed as SageMaker packs them, unpacked with suspicion."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Final

MAX_BYTES: Final = 30 * 10**9
"""Batch transform's volume is 30 GB; an archive that would not fit there does not unpack here."""
MAX_FILES: Final = 100_000


class ArchiveRefused(ValueError):
    """The archive must not be unpacked. Names the member and why."""


def pack(folder: Path, archive: Path) -> None:
    """The folder's content, sorted, without owner or time, so that equal content packs to equal members."""
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for path in sorted(folder.rglob("*")):
            if not path.is_symlink() and (path.is_file() or path.is_dir()):
                tar.add(path, arcname=path.relative_to(folder).as_posix(), recursive=False, filter=_anonymous)


def unpack(archive: Path, into: Path, max_bytes: int = MAX_BYTES, max_files: int = MAX_FILES) -> None:
    """Regular files and folders only, all below `into`.

    Raises:
        ArchiveRefused: for a link, a device, a name that leaves the folder or comes twice, too many
            bytes or files, or what is no gzip-compressed tar at all.
    """
    total = 0
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for count, member in enumerate(tar, start=1):
                total += member.size
                if count > max_files or total > max_bytes:
                    raise ArchiveRefused(f"more than {max_files} files or {max_bytes} bytes")
                target = into.joinpath(*_parts(member.name))
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif member.isreg():
                    _write(tar.extractfile(member), target, member)
                else:
                    raise ArchiveRefused(
                        f"{member.name!r} is a link or a device; only files and folders may be in it"
                    )
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArchiveRefused(f"{type(error).__name__}: {error}") from error


def _parts(name: str) -> tuple[str, ...]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ArchiveRefused(f"{name!r} leaves the folder")
    return path.parts


def _write(source: IO[bytes] | None, target: Path, member: tarfile.TarInfo) -> None:
    if source is None:
        raise ArchiveRefused(f"{member.name!r} has no content")
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as out:
        shutil.copyfileobj(source, out)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    return member
