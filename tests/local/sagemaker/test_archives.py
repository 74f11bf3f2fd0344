"""Archives come back as they were packed; hostile ones are refused."""

import gzip
import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge.local.sagemaker.archives import ArchiveRefused, pack, unpack

NAME = st.text("abc-_.0", min_size=1, max_size=8).filter(lambda name: name.strip("."))


@given(st.dictionaries(NAME, st.binary(max_size=50), max_size=5))
def test_round_trip(tmp_path_factory, files):
    """What was packed is what is unpacked, and packing twice gives the same members."""
    folder = tmp_path_factory.mktemp("packed")
    (folder / "deep").mkdir()
    for name, body in files.items():
        (folder / "deep" / name).write_bytes(body)
    archive = folder.parent / f"{folder.name}.tar.gz"
    pack(folder, archive)
    first = gzip.decompress(archive.read_bytes())
    into = folder.parent / f"{folder.name}-out"
    unpack(archive, into)
    assert {path.name: path.read_bytes() for path in (into / "deep").iterdir()} == files
    pack(into, archive)
    assert gzip.decompress(archive.read_bytes()) == first


def archive_of(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, body in members:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(body), "target"
            tar.addfile(member, io.BytesIO(body))
    return path


@pytest.mark.parametrize(
    "members",
    [
        [("a", tarfile.SYMTYPE, b"")],
        [("a", tarfile.LNKTYPE, b"")],
        [("a", tarfile.FIFOTYPE, b"")],
        [("a", tarfile.CHRTYPE, b"")],
        [("../a", tarfile.REGTYPE, b"x")],
        [("b/../../a", tarfile.REGTYPE, b"x")],
        [("/etc/a", tarfile.REGTYPE, b"x")],
        [("a\\..\\b", tarfile.REGTYPE, b"x")],
        [("a", tarfile.REGTYPE, b"x"), ("a", tarfile.REGTYPE, b"y")],
        [("a", tarfile.REGTYPE, b"x" * 101)],
        [(str(n), tarfile.REGTYPE, b"") for n in range(11)],
    ],
)
def test_refused(tmp_path, members):
    """Links, devices, names that leave the folder, doubles, and too much of anything are refused."""
    inside = tmp_path / "inside"
    with pytest.raises(ArchiveRefused):
        unpack(archive_of(tmp_path / "a.tar.gz", *members), inside, max_bytes=100, max_files=10)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.tar.gz", "inside"}


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"no" + raw, lambda _: b""])
def test_damaged(tmp_path, damage):
    """A cut or foreign file is refused."""
    path = archive_of(tmp_path / "a.tar.gz", ("a", tarfile.REGTYPE, bytes(range(256)) * 40))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArchiveRefused):
        unpack(path, tmp_path / "inside")


def test_links_are_not_packed(tmp_path):
    """A link in the model folder does not carry a file of the host away."""
    (tmp_path / "model").mkdir()
    (tmp_path / "secret").write_text("s")
    (tmp_path / "model" / "link").symlink_to(tmp_path / "secret")
    pack(tmp_path / "model", tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as tar:
        assert tar.getnames() == []
