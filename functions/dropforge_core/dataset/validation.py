"""Everything that is looked at in a dataset, in one streamed pass."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import xxhash

from dropforge_core.contracts import DatasetFacts, Problem, ValidationReport
from dropforge_core.dataset.balance import Balance
from dropforge_core.dataset.faults import Fault
from dropforge_core.dataset.likeness.holdout import EVAL, LEFT_OUT, TRAIN, Cut, cut
from dropforge_core.dataset.likeness.repetition import RowIndex
from dropforge_core.dataset.likeness.similarity import NEAR, Components, SimilarityIndex, words
from dropforge_core.dataset.problems import Problems, severities
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.rows.reader import WELL_KNOWN_TOKENS
from dropforge_core.dataset.rows.stream import RowReader, ValidRow
from dropforge_core.dataset.tokens import TokenCounter, TokenTally
from dropforge_core.recipe import DatasetRules, Evaluation, Recipe

Progress = Callable[[int], None]
"""Told the bytes of rows read since the last time."""

_DATASET: Final = "(dataset)"
"""Stands for the file where a problem is of all files together."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What the first pass found; what the second one writes."""

    report: ValidationReport
    facts: DatasetFacts | None
    """None where the dataset is not valid."""
    files: tuple[SourceFile, ...]
    """In the order in which they were read."""
    cut: Cut
    index: RowIndex
    """File and line of each valid row."""
    digests: "array[int]"
    """64 bits of each valid row's SHA-256."""
    copies: dict[int, int]
    """Row to 2, 3, ... for rows that repeat an earlier one of their side."""


def validate(
    files: Sequence[SourceFile],
    recipe: Recipe | None = None,
    *,
    tokenizer: TokenCounter | None = None,
    recipe_problems: Sequence[Problem] = (),
    progress: Progress | None = None,
) -> ValidationReport:
    """Every fault of a dataset, and its facts. Arguments as of `examine`."""
    return examine(
        files, recipe, tokenizer=tokenizer, recipe_problems=recipe_problems, progress=progress
    ).report


def examine(
    files: Sequence[SourceFile],
    recipe: Recipe | None = None,
    *,
    tokenizer: TokenCounter | None = None,
    recipe_problems: Sequence[Problem] = (),
    progress: Progress | None = None,
) -> Examination:
    """Check all rows of all files, and decide which of them are held out.

    Args:
        files: the data files. One alone is all for training; of several, those named `eval*`, `test*`,
            `valid*` or `holdout*` are for evaluation.
        recipe: its rules, length limit and hold-out; None checks by the defaults, without a length limit.
        tokenizer: the base model's; without it lengths are estimated, and said to be.
        recipe_problems: what is wrong with the recipe, told together with the data's faults.
        progress: see `Progress`.
    """
    return _Examiner(files, recipe, tokenizer, recipe_problems, progress).run()


class _Examiner:
    def __init__(
        self,
        files: Sequence[SourceFile],
        recipe: Recipe | None,
        tokenizer: TokenCounter | None,
        recipe_problems: Sequence[Problem],
        progress: Progress | None,
    ) -> None:
        self._recipe = recipe
        self._rules = recipe.dataset if recipe else DatasetRules()
        self._evaluation = recipe.evaluation if recipe else Evaluation()
        # Evaluation comes first, so that its rows are among those compared with all others.
        self._files = (
            (files[0].alone,) if len(files) == 1 else tuple(sorted(files, key=lambda f: (f.side, f.name)))
        )
        self.problems = Problems(severities(self._rules))
        self.problems.add_ready(tuple(recipe_problems))
        special = tokenizer.special if tokenizer else WELL_KNOWN_TOKENS
        self._reader = RowReader(self.problems, special, progress)
        self._tally = TokenTally(recipe.training.max_seq_len if recipe else None, tokenizer)
        self._index = RowIndex()
        self._similar = SimilarityIndex()
        self._balance = Balance()
        self._whole = array("Q")
        self._prompts = array("Q")
        self._sizes = array("I")
        self._told: set[int] = set()
        """Rows of which something stronger than likeness was said."""
        self._digest = hashlib.sha256()

    def run(self) -> Examination:
        if not self._files:
            self.problems.add(_DATASET, None, Fault("FILE_NONE", "", "no data file"))
        for file in self._files:
            self._index.start_file(file.name)
            side = EVAL if file.side == "eval" else TRAIN
            for row in self._reader.read(file):
                self._take(file.name, side, row)
        self._check_size()
        self._check_method()
        copies = self._check_repetition()
        given = EVAL in self._index.sides
        leaks = self._check_leaks()
        alike, near = self._check_similarity(given=given)
        chosen = self._cut(alike, given=given)
        self._leave_out_copies(chosen, copies)
        self._check_balance()
        self._excuse_dropped()
        report = self._report(chosen, copies, near, leaks)
        facts = self._facts(chosen) if report.valid else None
        return Examination(report, facts, self._files, chosen, self._index, self._whole, copies)

    def _take(self, file: str, side: int, valid: ValidRow) -> None:
        row, encoded = valid.row, valid.encoded
        fault = self._tally.add(row, len(encoded))
        if fault is not None and self._reader.reject(file, valid.line, fault):
            return
        digest = hashlib.sha256(encoded).digest()
        self._digest.update(digest)
        self._digest.update(b"\1" if side else b"\0")
        if row.meta:
            self._digest.update(msgspec.json.encode(row.meta))
        prompt = row.prompt
        asked = prompt or row.messages
        tokens = words("\n".join([m["content"] for m in asked if m["role"] != "system"]))
        whole = int.from_bytes(digest[:8], "big")
        self._index.add(
            valid.line,
            side,
            whole,
            xxhash.xxh3_64_intdigest(msgspec.json.encode(prompt)) if prompt else None,
        )
        self._whole.append(whole)
        self._prompts.append(xxhash.xxh3_64_intdigest(b" ".join(tokens)))
        self._sizes.append(len(encoded))
        self._similar.add(tokens)
        self._balance.add(len(encoded), row.messages[-1]["content"])

    def _add(self, row: int, code: str, found: str) -> None:
        file, line = self._index.place(row)
        self.problems.add(file, line, Fault(code, "", found))

    def _at(self, row: int, other: int) -> str:
        """Where a row is, seen from another one."""
        file, line = self._index.place(row)
        return f"line {line}" if file == self._index.place(other)[0] else f"line {line} of {file}"

    def _check_size(self) -> None:
        valid = len(self._index)
        if valid < self._rules.min_rows:
            found = f"{valid} valid of {self._reader.rows} rows"
            wanted = f"at least {self._rules.min_rows}"
            self.problems.add(_DATASET, None, Fault("ROWS_TOO_FEW", "", found, wanted))
        if valid > self._rules.max_rows:
            wanted = f"at most {self._rules.max_rows:,}"
            self.problems.add(_DATASET, None, Fault("ROWS_TOO_MANY", "", f"{valid:,} rows", wanted))
        sides = {file.side for file in self._files}
        for side, code in (("eval", "EVAL_EMPTY"), ("train", "TRAIN_EMPTY")):
            missing = (EVAL if side == "eval" else TRAIN) not in self._index.sides
            if missing and valid and (side in sides or side == "train"):
                self.problems.add(_DATASET, None, Fault(code, "", "none"))

    def _check_method(self) -> None:
        if self._recipe is None or self._reader.format is None:
            return
        pairs = self._reader.format == "preference"
        if self._recipe.method == "dpo" and not pairs:
            found = f"method dpo and rows of format '{self._reader.format}'"
            self.problems.add(_DATASET, None, Fault("METHOD_FORMAT", "", found))
        if self._recipe.method == "sft" and pairs:
            self.problems.add(
                _DATASET, None, Fault("PREFERENCE_UNUSED", "", "method sft and preference pairs")
            )

    def _check_repetition(self) -> dict[int, int]:
        copies: dict[int, int] = {}
        for repeat in sorted(self._index.repeats()):
            copies[repeat.row] = repeat.copy
            self._add(repeat.row, "DUPLICATE_ROW", f"the same row as {self._at(repeat.first, repeat.row)}")
        if self._reader.format not in ("preference", "text"):
            for row, first in sorted(self._index.conflicts()):
                self._told.add(row)
                where = self._at(first, row)
                self._add(row, "CONFLICTING_ANSWERS", f"another answer than {where} to the same prompt")
        return copies

    def _check_similarity(self, *, given: bool) -> tuple[Components, int]:
        """Groups of rows that resemble one another, and how many resemble an earlier row closely."""
        similar = self._similar
        alike = Components(similar.compared)
        if given and {self.problems.severity[c] for c in ("NEAR_DUPLICATE", "LEAKAGE_NEAR")} == {"off"}:
            return alike, 0
        close = []
        for row, earlier, similarity in similar.pairs():
            alike.join(row, earlier)
            said = row in self._told or self._whole[row] == self._whole[earlier]
            if similarity >= NEAR and not said:
                close.append((row, earlier))
        for row, earlier in sorted(close):
            crosses = self._index.sides[row] != self._index.sides[earlier]
            found = f"a prompt much like that of {self._at(earlier, row)}"
            self._add(row, "LEAKAGE_NEAR" if crosses else "NEAR_DUPLICATE", found)
        if similar.compared < similar.rows:
            found = f"{similar.compared:,} of {similar.rows:,} rows compared"
            self.problems.add(_DATASET, None, Fault("SIMILARITY_PARTIAL", "", found))
        return alike, len(close)

    def _check_leaks(self) -> int:
        if self.problems.severity["LEAKAGE_EXACT"] == "off":
            return 0
        leaks = sorted(self._index.leaks())
        for row, trained in leaks:
            self._told.add(row)
            self._add(row, "LEAKAGE_EXACT", f"a prompt that {self._at(trained, row)} trains on")
        return len(leaks)

    def _cut(self, alike: Components, *, given: bool) -> Cut:
        if given or len(self._index) < 2:
            return Cut(bytearray(self._index.sides), "given")
        chosen = cut(self._prompts, self._whole, alike, self._similar.compared, self._evaluation)
        if chosen.basis != "similarity":
            kinds = {
                "prompt": "rows that nearly all resemble one another",
                "row": "rows of nearly one prompt",
            }
            found = f"{kinds[chosen.basis]}, numbers aside"
            self.problems.add(_DATASET, None, Fault("HOLDOUT_BY_ROW", "", found))
        return chosen

    @staticmethod
    def _leave_out_copies(chosen: Cut, copies: dict[int, int]) -> None:
        for row in copies:
            if chosen.sides[row] == EVAL:
                chosen.sides[row] = LEFT_OUT

    def _check_balance(self) -> None:
        for fault in self._balance.faults():
            self.problems.add(_DATASET, None, fault)

    def _excuse_dropped(self) -> None:
        """With `on_invalid: drop`, faulty rows up to the allowed share are warnings."""
        faulty, rows = self._reader.faulty, self._reader.rows
        if self._rules.on_invalid != "drop" or not faulty:
            return
        share = faulty / rows
        if share > self._rules.max_dropped_share:
            return
        self.problems.excuse_rows()
        found = f"{faulty:,} of {rows:,} rows dropped ({share:.2%})"
        self.problems.add(_DATASET, None, Fault("ROWS_DROPPED", "", found))

    def _report(self, chosen: Cut, copies: dict[int, int], near: int, leaks: int) -> ValidationReport:
        errors = self.problems.error_count
        return ValidationReport(
            valid=errors == 0,
            format=self._reader.format,
            rows=self._reader.rows,
            bytes=self._reader.bytes,
            error_count=errors,
            errors=self.problems.listed("error"),
            warnings=self.problems.listed("warning"),
            tokens=self._tally.summary(),
            duplicates={
                "exact": len(copies),
                "near": near,
                "conflicting": self.problems.count("CONFLICTING_ANSWERS"),
                "rows_compared": self._similar.compared,
            },
            leakage={"exact": leaks, "near": self.problems.count("LEAKAGE_NEAR")},
            pii={"rows": dict(sorted(self._reader.private.items()))},
            holdout={
                "basis": chosen.basis,
                "train": chosen.count(TRAIN),
                "eval": chosen.count(EVAL),
                "left_out": chosen.count(LEFT_OUT),
            },
        )

    def _facts(self, chosen: Cut) -> DatasetFacts:
        size = sum(size for size, side in zip(self._sizes, chosen.sides, strict=True) if side == TRAIN)
        rows = chosen.count(TRAIN)
        return DatasetFacts(
            digest=f"sha256:{self._digest.hexdigest()}",
            rows_train=rows,
            rows_eval=chosen.count(EVAL),
            bytes_train=size,
            tokens_train=self._tally.total(size, rows),
            tokens_exact=self._tally.exact,
            longest_tokens=self._tally.longest,
            format=str(self._reader.format),
        )
