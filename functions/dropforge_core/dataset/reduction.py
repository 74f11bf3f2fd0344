"""From the findings of all parts to one report, the facts, and a side for every row."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
import numpy as np

from dropforge_core.contracts import DatasetFacts, Problem, ValidationReport
from dropforge_core.dataset.balance import Balance
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.findings import Column, StoredColumns
from dropforge_core.dataset.languages import LanguageMix
from dropforge_core.dataset.likeness.columns import EVAL, TRAIN, Rows
from dropforge_core.dataset.likeness.cutting import LEFT_OUT, Cut, cut
from dropforge_core.dataset.likeness.nearness import Pairs, near_pairs
from dropforge_core.dataset.likeness.repeats import conflicts, leaks, repeats
from dropforge_core.dataset.outline import HEAD_BYTES, Outline
from dropforge_core.dataset.problems import DATASET, MAX_LINES, Problems, severities
from dropforge_core.dataset.reading.parts import Part
from dropforge_core.dataset.tokens import TallyState, TokenTally
from dropforge_core.gate.sampling import rows_needed
from dropforge_core.recipe import DatasetRules, Evaluation, Gate, Recipe

_NONE: Final = np.empty(0, np.uint32)


@dataclass(frozen=True, slots=True)
class Examination:
    """What the first pass found; what the second one writes."""

    report: ValidationReport
    facts: DatasetFacts | None
    """None where the dataset is not valid."""
    outline: Outline
    parts: tuple[Part, ...]
    cut: Cut
    columns: StoredColumns
    """On disk, for as long as the folder of findings is there."""
    copies: tuple[Rows, Rows]
    """Rows that repeat an earlier one of their side, and which copy each is: 2, 3, ..."""
    temporary: "TemporaryDirectory[str] | None" = None
    """The folder of findings, where it is to go with this object."""

    def decision(self, part: Part) -> bytes:
        """What the second pass must know of one part, as a file: see `writing.write_part`."""
        first, after = self.columns.starts[part.index : part.index + 2]
        rows, numbers = self.copies
        low, high = np.searchsorted(rows, (first, after))
        return msgspec.msgpack.encode(
            Decision(
                sides=bytes(self.cut.sides[first:after]),
                lines=self.columns.of_part(part.index, "line").astype("<u4").tobytes(),
                digests=self.columns.of_part(part.index, "whole").astype("<u8").tobytes(),
                copies=dict(zip((rows[low:high] - first).tolist(), numbers[low:high].tolist(), strict=True)),
            )
        )


class Decision(msgspec.Struct, frozen=True):
    """The valid rows of one part in order."""

    sides: bytes
    lines: bytes
    """Little-endian 32-bit numbers: where each row begins in the part."""
    digests: bytes
    """Little-endian 64-bit numbers: what each row was when it was surveyed."""
    copies: dict[int, int]
    """Row to 2, 3, ... for rows that repeat an earlier one of their side."""


def reduce(
    outline: Outline,
    parts: Sequence[Part],
    folder: Path,
    recipe: Recipe | None = None,
    recipe_problems: Sequence[Problem] = (),
) -> Examination:
    """Compare all rows with one another, and put together what was found in all parts.

    Args:
        outline: of the dataset.
        parts: all of `outline.parts()`, in order.
        folder: where the findings of all parts were saved.
        recipe: as the parts were surveyed under.
        recipe_problems: what is wrong with the recipe, told together with the data's faults.
    """
    return _Reducer(outline, tuple(parts), folder, recipe, recipe_problems).run()


class _Reducer:
    def __init__(
        self,
        outline: Outline,
        parts: tuple[Part, ...],
        folder: Path,
        recipe: Recipe | None,
        recipe_problems: Sequence[Problem],
    ) -> None:
        self._outline, self._parts, self._recipe = outline, parts, recipe
        self._rules = recipe.dataset if recipe else DatasetRules()
        self._problems = Problems(severities(self._rules), recipe_problems)
        self._columns = StoredColumns(folder, parts, outline.sides)
        self._rows = self._faulty = self._bytes = 0
        self._private: Counter[str] = Counter()
        limit = recipe.training.max_seq_len if recipe else None
        counted = next((header.tallies.tokens.by_tokenizer for header, _ in self._columns.parts()), False)
        self._tokens = TokenTally.from_state(TallyState(limit, counted))
        self._balance = Balance()
        self._languages = LanguageMix()

    def run(self) -> Examination:
        self._file_faults()
        self._gather()
        self._check_size()
        self._check_method()
        copies = self._check_repetition()
        conflicting = self._check_conflicts()
        leaked = self._check_leaks()
        groups, near, near_leaked = self._check_likeness(np.union1d(conflicting, leaked))
        chosen = self._cut(groups)
        chosen.leave_out(copies[0])
        for fault in (*self._balance.faults(self._rules), *self._languages.faults(self._rules)):
            self._add(DATASET, fault)
        self._excuse_dropped()
        # Of rows, which several to a line are in an array; problems count lines.
        told = {
            "duplicates": {
                "exact": len(copies[0]),
                "near": near,
                "conflicting": self._told("CONFLICTING_ANSWERS", len(conflicting)),
            },
            "leakage": {
                "exact": self._told("LEAKAGE_EXACT", len(leaked)),
                "near": self._told("LEAKAGE_NEAR", near_leaked),
            },
        }
        report = self._report(chosen, told)
        facts = self._facts(chosen) if report.valid else None
        return Examination(report, facts, self._outline, self._parts, chosen, self._columns, copies)

    def _add(self, file: str, fault: Fault) -> None:
        self._problems.add(file, fault)

    def _file_faults(self) -> None:
        if not self._outline.files:
            self._add(DATASET, Fault("FILE_NONE", "", "no data file"))
        if self._outline.shapeless:
            found = f"no row of a known format in the first {HEAD_BYTES >> 20} MiB"
            self._add(DATASET, Fault("FORMAT_UNKNOWN", "", found))
        for file in self._outline.files:
            if file.fault is not None:
                self._problems.add(file.name, file.fault, () if file.line is None else (file.line,))

    def _gather(self) -> None:
        for header, before in self._columns.parts():
            self._rows += header.rows
            self._faulty += header.faulty
            self._bytes += header.bytes
            self._problems.merge(header.problems, before)
            self._private.update(header.tallies.private)
            self._tokens.merge(TokenTally.from_state(header.tallies.tokens))
            self._balance.merge(Balance.from_state(header.tallies.balance))
            if header.tallies.languages is not None:
                self._languages.merge(LanguageMix.from_state(header.tallies.languages))

    def _note_rows(self, code: str, found: str, rows: Column, others: Column) -> None:
        """Note rows of one kind, each with another that it is like; `found` has a place for where that is.

        Args:
            code: of the problem.
            found: says `{}` where the other row's place belongs.
            rows: ordinals, ascending.
            others: one for each row.
        """
        if not len(rows) or self._problems.severity[code] == "off":
            return
        files, lines = self._columns.places(rows)
        for file in np.unique(files):
            here = np.flatnonzero(files == file)
            # Several rows of an array may stand on one line, which counts once.
            told = np.unique(lines[here])
            first = here[0]
            there, line = (int(value[0]) for value in self._columns.places(others[first : first + 1]))
            place = f"line {line}" if there == file else f"line {line} of {self._outline.files[there].name}"
            fault = Fault(code, "", found.format(place))
            name = self._outline.files[int(file)].name
            self._problems.add(name, fault, told[:MAX_LINES].tolist(), len(told))

    def _check_size(self) -> None:
        valid = self._columns.rows
        if valid < self._rules.min_rows:
            found = f"{valid} valid of {self._rows} rows"
            self._add(DATASET, Fault("ROWS_TOO_FEW", "", found, f"at least {self._rules.min_rows}"))
        if valid > self._rules.max_rows:
            wanted = f"at most {self._rules.max_rows:,}"
            self._add(DATASET, Fault("ROWS_TOO_MANY", "", f"{valid:,} rows", wanted))
        sides = set(self._outline.sides)
        present = set(np.unique(self._columns.sides).tolist())
        for side, number, code in (("eval", EVAL, "EVAL_EMPTY"), ("train", TRAIN, "TRAIN_EMPTY")):
            if valid and number not in present and (side in sides or side == "train"):
                self._add(DATASET, Fault(code, "", "none"))

    def _check_method(self) -> None:
        form = self._outline.form
        if self._recipe is None or form is None:
            return
        pairs = form == "preference"
        if self._recipe.method == "dpo" and not pairs:
            self._add(DATASET, Fault("METHOD_FORMAT", "", f"method dpo and rows of format '{form}'"))
        if self._recipe.method == "sft" and pairs:
            self._add(DATASET, Fault("PREFERENCE_UNUSED", "", "method sft and preference pairs"))

    def _check_repetition(self) -> tuple[Rows, Rows]:
        found = repeats(self._columns)
        self._note_rows("DUPLICATE_ROW", "the same row as {}", found.row, found.first)
        return found.row, found.copy

    def _check_conflicts(self) -> Rows:
        if not self._columns.has("prompt") or self._outline.form in ("preference", "text"):
            return _NONE
        found = conflicts(self._columns)
        told = "another answer than {} to the same prompt"
        self._note_rows("CONFLICTING_ANSWERS", told, found.row, found.first)
        return found.row

    def _check_leaks(self) -> Rows:
        if not self._columns.has("prompt") or "eval" not in self._outline.sides:
            return _NONE
        found = leaks(self._columns)
        self._note_rows("LEAKAGE_EXACT", "a prompt that {} trains on", found.row, found.first)
        return found.row

    def _told(self, code: str, rows: int) -> int:
        return rows if self._problems.severity[code] != "off" else 0

    def _check_likeness(self, told: Rows) -> tuple[Rows | None, int, int]:
        """For each row the group that it resembles; how many rows are near an earlier one, and near one of the other side.

        `told` are rows of which something stronger than likeness was said.
        """
        if not self._columns.has("signature"):
            return None, 0, 0
        found = near_pairs(self._columns, near=self._rules.near_duplicate_similarity)
        leaks = self._note_near("LEAKAGE_NEAR", found.leaks, told)
        return found.group, self._note_near("NEAR_DUPLICATE", found.near, told), leaks

    def _note_near(self, code: str, pairs: Pairs, told: Rows) -> int:
        # The same row again is a repetition, and was said to be one.
        same = self._columns.gather("whole", pairs.row) == self._columns.gather("whole", pairs.other)
        fresh = ~same & ~np.isin(pairs.row, told)
        self._note_rows(code, "a prompt much like that of {}", pairs.row[fresh], pairs.other[fresh])
        return int(np.count_nonzero(fresh))

    def _cut(self, groups: Rows | None) -> Cut:
        if groups is None or "eval" in self._outline.sides or self._columns.rows < 2:
            return Cut(self._columns.sides.copy(), "given")
        evaluation = self._recipe.evaluation if self._recipe else Evaluation()
        gate = self._recipe.gate if self._recipe else Gate()
        chosen = cut(self._columns, groups, evaluation, rows_needed(gate))
        if chosen.basis != "similarity":
            kinds = {
                "prompt": "rows that nearly all resemble one another",
                "row": "rows of nearly one prompt",
            }
            self._add(DATASET, Fault("HOLDOUT_BY_ROW", "", f"{kinds[chosen.basis]}, numbers aside"))
        return chosen

    def _excuse_dropped(self) -> None:
        """With `on_invalid: drop`, faulty rows up to the allowed share are warnings, and beyond it told to be too many."""
        if self._rules.on_invalid != "drop" or not self._faulty:
            return
        share = self._faulty / self._rows
        if share > self._rules.max_dropped_share:
            found = f"{self._faulty:,} faulty rows of {self._rows:,} ({share:.2%})"
            self._add(DATASET, Fault("DROP_LIMIT", "", found, f"at most {self._rules.max_dropped_share:.2%}"))
            return
        self._problems.excuse_rows()
        found = f"{self._faulty:,} of {self._rows:,} rows dropped ({share:.2%})"
        self._add(DATASET, Fault("ROWS_DROPPED", "", found))

    def _report(self, chosen: Cut, told: dict[str, dict[str, int]]) -> ValidationReport:
        problems = self._problems
        errors = problems.error_count
        return ValidationReport(
            valid=errors == 0,
            format=self._outline.form,
            rows=self._rows,
            bytes=self._bytes,
            error_count=errors,
            errors=problems.listed("error"),
            warnings=problems.listed("warning"),
            tokens=self._tokens.summary(),
            duplicates=told["duplicates"],
            leakage=told["leakage"],
            languages=self._languages.summary(),
            pii={"rows": dict(sorted(self._private.items()))},
            holdout={
                "basis": chosen.basis,
                "train": chosen.count(TRAIN),
                "eval": chosen.count(EVAL),
                "left_out": chosen.count(LEFT_OUT),
            },
        )

    def _facts(self, chosen: Cut) -> DatasetFacts:
        digest = hashlib.sha256()
        size = 0
        for (first, content), (_, sizes) in zip(
            self._columns.chunks("content"), self._columns.chunks("size"), strict=True
        ):
            sides = chosen.sides[first : first + len(content)]
            digest.update(content.astype("<u8").tobytes())
            size += int(sizes[sides == TRAIN].sum(dtype=np.int64))
        # Behind all rows, not behind each chunk of them: chunks end where parts do.
        digest.update(self._columns.sides.tobytes())
        rows = chosen.count(TRAIN)
        return DatasetFacts(
            digest=f"sha256:{digest.hexdigest()}",
            rows_train=rows,
            rows_eval=chosen.count(EVAL),
            bytes_train=size,
            tokens_train=self._tokens.total(size, rows),
            tokens_exact=self._tokens.exact,
            tokens_error=self._tokens.error,
            longest_tokens=self._tokens.longest,
            format=str(self._outline.form),
        )
