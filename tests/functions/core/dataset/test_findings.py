"""What parts found comes back from disk as it was, under ordinals and lines of the whole."""

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset import findings
from dropforge_core.dataset.balance import BalanceState
from dropforge_core.dataset.findings import Findings, StoredColumns, Tallies
from dropforge_core.dataset.problems import Tally
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.tokens import TallyState


def _findings(index: int, file: int, lines: list[int], span: int) -> Findings:
    count = len(lines)
    return Findings(
        part=Part(index=index, file=file, start=0, end=span),
        lines=span,
        rows=count,
        faulty=0,
        bytes=0,
        problems=Tally(),
        tallies=Tallies({}, TallyState(None, by_tokenizer=False), BalanceState(), None),
        columns={
            "line": np.array(lines, np.uint32),
            "whole": np.arange(count, dtype=np.uint64) + np.uint64(1000 * index),
            "signature": np.full((count, 4), index, np.uint8),
        },
    )


parts = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.integers(1, 50), max_size=9, unique=True).map(sorted)),
    min_size=1,
    max_size=6,
).map(lambda found: sorted(found, key=lambda part: part[0]))


@given(parts=parts, chunk=st.integers(1, 4), data=st.data())
def test_rows_are_found_by_their_ordinals(
    tmp_path_factory: object, parts: list[tuple[int, list[int]]], chunk: int, data: st.DataObject
) -> None:
    """Chunks, single values and places agree with what was saved, however the rows lie in parts."""
    folder = Path(str(tmp_path_factory.mktemp("findings")))  # type: ignore[attr-defined]
    saved = [_findings(i, file, lines, 50) for i, (file, lines) in enumerate(parts)]
    for one in saved:
        one.save(folder)
    columns = StoredColumns(folder, [one.part for one in saved], ["eval", "train", "train"])
    whole = np.concatenate([one.columns["whole"] for one in saved])
    before = [
        50 * sum(earlier.part.file == one.part.file for earlier in saved[:i]) for i, one in enumerate(saved)
    ]
    lines = np.concatenate([one.columns["line"] + shift for one, shift in zip(saved, before, strict=True)])
    files = np.repeat([one.part.file for one in saved], [one.valid for one in saved])
    original, findings.CHUNK_ROWS = findings.CHUNK_ROWS, chunk
    blocks, findings._BLOCK_ROWS = findings._BLOCK_ROWS, 1 + chunk % 3
    try:
        assert columns.rows == len(whole)
        assert columns.sides.tolist() == [int(file == 0) for file in files]
        together = [(first, values) for first, values in columns.chunks("whole")]
        assert [first for first, _ in together] == np.cumsum([0, *map(len, (v for _, v in together))])[
            :-1
        ].tolist()
        assert np.concatenate([*(values for _, values in together), whole[:0]]).tolist() == whole.tolist()
        if columns.rows:
            some = np.array(data.draw(st.lists(st.integers(0, columns.rows - 1), max_size=12)), np.int64)
            assert columns.gather("whole", some).tolist() == whole[some].tolist()
            assert columns.gather("signature", some).shape == (len(some), 4)
            found_files, found_lines = columns.places(some)
            assert found_files.tolist() == files[some].tolist()
            assert found_lines.tolist() == lines[some].tolist()
    finally:
        findings.CHUNK_ROWS = original
        findings._BLOCK_ROWS = blocks


def test_a_report_of_a_part_survives_the_disk(tmp_path: Path) -> None:
    """Counts, tallies and problems are read as they were written."""
    made = _findings(3, 1, [2, 5], 9)
    made.save(tmp_path)
    ((header, before),) = StoredColumns(tmp_path, [made.part], ["eval", "train"]).parts()
    assert (header.part, header.lines, header.rows, header.valid, before) == (made.part, 9, 2, 2, 0)
