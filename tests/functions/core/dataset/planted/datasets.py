"""Whole datasets: the files, the recipe, and every entry that their report must have."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dataset_cases import in_memory
from hypothesis import strategies as st

from dropforge_core.dataset.codes import CODES
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.tokens import TokenCounter
from dropforge_core.recipe import Recipe
from planted.containers import Layout, holds, lines_down, write
from planted.faults import PLANTS, Made, Plant, put_into
from planted.files import FILE_PLANTS, FaultyFile, FilePlant
from planted.rows import FORMS, Row, Seed, format_of, good
from planted.texts import renumbered
from planted.tokenizing import REFUSED_WORD, byte_tokenizer

DATASET = "(dataset)"

COPIES = ("DUPLICATE_ROW", "NEAR_DUPLICATE", "CONFLICTING_ANSWERS")
"""Of an earlier row on the same side."""
LEAKS = ("LEAKAGE_EXACT", "LEAKAGE_NEAR")
"""Of a row on the other side."""
TOO_LONG = "OVER_LENGTH"
"""A row of more tokens than the recipe allows, where it has a limit."""
REFUSED = "TEMPLATE_REFUSED"
"""A row that the chat template does not take, where there is one."""
WHOLE = (
    "FILE_NONE",
    "ROWS_TOO_FEW",
    "ROWS_TOO_MANY",
    "TRAIN_EMPTY",
    "EVAL_EMPTY",
    "PREFERENCE_UNUSED",
    "METHOD_FORMAT",
    "ROWS_DROPPED",
    "DROP_LIMIT",
    "BOM",
    "BLANK_LINE",
)
"""What a plan may come to without planting a row."""

LIMIT = 8192
_LONG = 40_000
"""Characters that are too many tokens also by the estimate."""

_TRAIN_NAMES = ("train", "data", "a b", "part-7", "überall", "contest", "device", "values")
_EVAL_NAMES = ("eval", "test-x", "validation", "holdout_9", "val", "Eval-B", "dev", "Dev-2")


class Entry(NamedTuple):
    """What is compared of a problem."""

    file: str
    line: int | None
    path: str
    code: str
    lines: tuple[int, ...]
    count: int


def element_of(path: str) -> str:
    """Which element of an array on one line a path is in; empty where lines tell."""
    return path.partition("]")[0] if path.startswith("[") else ""


@dataclass
class Expected:
    """What must be told, gathered in the order of reading."""

    severity: dict[str, str]
    groups: dict[tuple[str, str, str], list[tuple[int | None, str]]] = field(default_factory=dict)
    rows: int = 0
    faulty: int = 0
    valid: dict[str, int] = field(default_factory=lambda: {"train": 0, "eval": 0})
    form: str | None = None
    leaking: dict[str, set[tuple[str, int]]] = field(default_factory=dict)
    """Code to (file, place) of rows; several may stand on one line."""

    def tell(self, code: str, file: str = DATASET, line: int | None = None, path: str = "") -> None:
        """Expect a problem, unless its check is off."""
        if self.severity[code] == "off":
            return
        pattern = re.sub(r"\[\d+\]", "[*]", path)
        places = self.groups.setdefault((file, code, pattern), [])
        seen = (line, element_of(path))
        if line is None or seen not in {(known, element_of(other)) for known, other in places}:
            places.append((line, path))

    def see(self, form: str) -> None:
        """A row of the form was read; the first one decides."""
        self.form = self.form or format_of(form)

    def take(self, side: str, good_rows: int = 0, bad_rows: int = 0) -> None:
        """Count rows that were read."""
        self.rows += good_rows + bad_rows
        self.valid[side] += good_rows
        self.faulty += bad_rows

    def drop(self, most: float) -> None:
        """Drop faulty rows up to that share: what is wrong with them is no error any more."""
        if self.faulty > most * self.rows:
            self.tell("DROP_LIMIT")
            return
        self.tell("ROWS_DROPPED")
        for code, kind in CODES.items():
            if kind.scope == "row" and self.severity[code] == "error":
                self.severity[code] = "warning"

    def entries(self, severity: str) -> list[Entry]:
        """Those of one severity, in the order in which a report lists them."""
        found = []
        for (file, code, _), places in self.groups.items():
            if self.severity[code] == severity:
                places.sort(key=lambda place: place[0] or 0)
                lines = tuple(dict.fromkeys(line for line, _ in places if line is not None))
                found.append(Entry(file, places[0][0], places[0][1], code, lines, len(places)))
        return sorted(found, key=lambda e: (e.file == DATASET, e.file, e.line or 0, e.code, e.path))

    @property
    def error_count(self) -> int:
        return sum(entry.count for entry in self.entries("error"))


@dataclass(frozen=True)
class RowPlan:
    """One place in a file: a good row, an empty line, a copy or a planted fault."""

    what: str | Plant
    style: int


@dataclass(frozen=True)
class FilePlan:
    side: str
    name: str
    layout: Layout
    rows: tuple[RowPlan, ...]
    faulty: FilePlant | None = None
    """The whole file is this fault, instead of the rows."""


@dataclass(frozen=True)
class Plan:
    """A dataset before it is written."""

    form: str
    files: tuple[FilePlan, ...]
    settings: dict[str, Any]
    chunk: int = 1 << 20
    tokens: str = ""
    """Without a limit, `estimated`, or `exact` with a tokenizer."""


@dataclass
class Dataset:
    """A dataset, and what must be said of it."""

    files: list[SourceFile]
    recipe: Recipe
    tokenizer: TokenCounter | None
    expected: Expected
    bodies: dict[str, bytes]
    where: dict[tuple[str, int], str]
    """File and line to what was planted there."""


# --- drawing a plan


@st.composite
def layouts(draw: st.DrawFn, form: str, containers: tuple[str, ...]) -> Layout:
    """A container that holds rows of the form, and one of the ways of writing it."""
    container = draw(st.sampled_from([c for c in containers if holds(c, form)]))
    if container == "parquet":
        return Layout(container, row_group=draw(st.integers(1, 8)), spacing=draw(st.integers(0, 1)))
    cuts = draw(st.lists(st.integers(0, 1000), max_size=2))
    return Layout(
        container,
        ascii_only=draw(st.booleans()),
        spacing=draw(st.integers(0, 2)),
        indent=draw(st.sampled_from([None, None, 0, 1, 3])) if container == "array" else None,
        separator=draw(st.sampled_from([",", ",", "\t", ";"])) if container == "csv" else ",",
        quote_all=draw(st.booleans()),
        line_end=draw(st.sampled_from(["\n", "\n", "\r\n"])),
        last_line_end=draw(st.booleans()),
        bom=draw(st.integers(0, 7)) == 7,
        compression=draw(st.sampled_from(["", "", "", "gzip", "zstd"])),
        cuts=tuple(cuts),
        honest_name=draw(st.booleans()),
    )


def applicable(form: str, container: str) -> list[Plant]:
    """Plants that a row of the form in such a container can have."""
    return [
        plant
        for plant in PLANTS
        if container in plant.containers and (plant.forms is None or form in plant.forms)
    ]


def _copies(form: str) -> list[str]:
    found = [*COPIES, *LEAKS]
    if format_of(form) in ("preference", "text"):
        found.remove("CONFLICTING_ANSWERS")
    return found


@st.composite
def row_plans(draw: st.DrawFn, form: str, container: str, most: int) -> tuple[RowPlan, ...]:
    """Rows of one file: half of them good."""
    plants = applicable(form, container)
    blank = ["BLANK_LINE"] if container in ("jsonl", "csv") else []
    kinds = st.one_of(
        st.just("good"),
        st.just("good"),
        st.sampled_from(plants),
        st.sampled_from([*_copies(form), *blank, TOO_LONG, REFUSED]),
    )
    return tuple(draw(st.lists(st.builds(RowPlan, kinds, st.integers(0, 5000)), min_size=1, max_size=most)))


@st.composite
def plans(
    draw: st.DrawFn,
    forms: tuple[str, ...] = FORMS,
    containers: tuple[str, ...] = ("jsonl", "array", "csv", "parquet"),
    most_files: int = 3,
    most_rows: int = 12,
) -> Plan:
    """Any dataset of one format with any faults."""
    form = draw(st.sampled_from(forms))
    files = []
    for number in range(draw(st.integers(1, most_files))):
        side = draw(st.sampled_from(["train", "train", "eval"]))
        stem = draw(st.sampled_from(_TRAIN_NAMES if side == "train" else _EVAL_NAMES))
        layout = draw(layouts(form, containers))
        rows = draw(row_plans(form, layout.container, most_rows))
        faulty = None
        if draw(st.integers(0, 9)) == 9:
            own = [plant for plant in FILE_PLANTS if plant.forms is None or form in plant.forms]
            faulty = draw(st.sampled_from(own))
        files.append(FilePlan(side, f"{stem}.{number}", layout, rows, faulty))
    adjustable = [code for code, kind in CODES.items() if kind.adjustable and code not in LEAKS]
    checks = draw(
        st.dictionaries(st.sampled_from(adjustable), st.sampled_from(["error", "warning", "off"]), max_size=4)
    )
    settings = {
        "checks": checks,
        "min_rows": draw(st.sampled_from([1, 1, 1, 4])),
        "max_rows": draw(st.sampled_from([1000, 1000, 1000, 5])),
        "on_invalid": draw(st.sampled_from(["reject", "reject", "drop"])),
        "max_dropped_share": draw(st.sampled_from([0.02, 0.5])),
        "method": draw(st.sampled_from(["sft", "dpo"])),
    }
    return Plan(
        form,
        tuple(files),
        settings,
        chunk=draw(st.sampled_from([1 << 20, 4096, 100, 7])),
        tokens=draw(st.sampled_from(["", "", "estimated", "exact"])),
    )


# --- writing it, and saying what must be told


class _Source(NamedTuple):
    """A good row that a copy may be made of."""

    row: Row
    file: str
    place: int


class _Written(NamedTuple):
    """A row, what must be told of it, and what must be told of a row on the other side."""

    row: Row | bytes | None
    told: tuple[tuple[str, str], ...] = ()
    leak: tuple[str, _Source] | None = None
    name: str = "good"


class _Writer:
    """Makes rows one after another, in the order in which they will be read."""

    def __init__(self, plan: Plan, expected: Expected) -> None:
        self._plan = plan
        self._expected = expected
        self._number = 0
        self._sources: dict[str, list[_Source]] = {"train": [], "eval": []}
        self.copied = False

    def row(self, row_plan: RowPlan, side: str, file: str, place: int) -> _Written:
        """The next row of a file."""
        self._number += 1
        seed, what, form = Seed(self._number, row_plan.style), row_plan.what, self._plan.form
        if isinstance(what, Plant):
            # What comes first is the format; only later rows can be of another one. And a tokenizer at hand
            # has control tokens of its own.
            if not (what.code == "FORMAT_MIXED" and not self._expected.form) and not (
                what.code == "RESERVED_TOKEN" and self._plan.tokens == "exact"
            ):
                made = what.make(form, seed)
                if tells_format(what, made):
                    self._expected.see(form)
                return _Written(made.body, made.told, name=what.name)
        elif what == "BLANK_LINE":
            return _Written(None, (("BLANK_LINE", ""),))
        elif what in COPIES and (own := self._take(side, what)):
            return _Written(copy_of(form, own.row, what, seed), ((what, ""),))
        elif what in LEAKS and side == "train" and (own := self._take("eval", what)):
            return _Written(copy_of(form, own.row, what, seed), (), (what, own))
        row = good(form, seed)
        self._expected.see(form)
        if what in (TOO_LONG, REFUSED) and (code := self._of_tokens(what)):
            insert = "tedious " * (_LONG // 8) if what == TOO_LONG else REFUSED_WORD
            return _Written(put_into(row, seed, insert)[0], ((code, ""),), name=code)
        self._sources[side].append(_Source(row, file, place))
        return _Written(row)

    def _of_tokens(self, what: str) -> str:
        """What is told of a row that is too long or refused, under this plan."""
        if what == REFUSED and self._plan.form == "text":
            # No template is asked about text without roles.
            return ""
        if self._plan.tokens == "exact":
            return what
        return "OVER_LENGTH_ESTIMATED" if what == TOO_LONG and self._plan.tokens else ""

    def _take(self, side: str, what: str) -> _Source | None:
        """A row that was not copied before, so that it is told of once."""
        for place, source in enumerate(self._sources[side]):
            if what != "CONFLICTING_ANSWERS" or answers_in_words(source.row):
                self.copied = True
                return self._sources[side].pop(place)
        return None


def tells_format(plant: Plant, made: Made) -> bool:
    """Whether the row is whole enough to say which format the dataset has."""
    if plant.code == "JSON_DUPLICATE_KEY":
        return True
    return isinstance(made.body, dict) and plant.code not in ("FORMAT_UNKNOWN", "UTF8_INVALID")


def _talk_of(row: Row) -> list[Any]:
    found = row.get("messages", row.get("conversations", row.get("completion", row.get("chosen"))))
    return found if isinstance(found, list) else []


def answers_in_words(row: Row) -> bool:
    """Whether the last message is text, not a call."""
    said = _talk_of(row)
    return not said or isinstance(said[-1].get("content", said[-1].get("value")), str)


def copy_of(form: str, row: Row, what: str, seed: Seed) -> Row:
    """A row that repeats another one's prompt, or everything, or nearly so."""
    if what == "DUPLICATE_ROW" or (what == "LEAKAGE_EXACT" and form == "text"):
        return row
    if what in ("NEAR_DUPLICATE", "LEAKAGE_NEAR"):
        return {name: value if name == "meta" else _renumbered(value) for name, value in row.items()}
    said = _talk_of(row)
    answer = seed.says("z")
    if "messages" in row:
        return {**row, "messages": [*said[:-1], {**said[-1], "content": answer}]}
    if "conversations" in row:
        return {**row, "conversations": [*said[:-1], {**said[-1], "value": answer}]}
    name = next(name for name in ("completion", "output", "chosen") if name in row)
    if said:
        return {**row, name: [*said[:-1], {**said[-1], "content": answer}]}
    return {**row, name: answer}


def _renumbered(value: Any) -> Any:
    if isinstance(value, str):
        return renumbered(value)
    if isinstance(value, list):
        return [_renumbered(inner) for inner in value]
    if isinstance(value, dict) and "function" not in value:
        return {name: _renumbered(inner) for name, inner in value.items()}
    return value


def realise(plan: Plan) -> Dataset:
    """Write the files, and gather what must be said of them, in the order of reading."""
    severity = {code: kind.severity for code, kind in CODES.items()} | plan.settings["checks"]
    expected = Expected(dict(severity))
    writer = _Writer(plan, expected)
    named = sorted(_named(plan), key=lambda one: (one.side, one.name))
    bodies: dict[str, bytes] = {}
    lines: dict[str, list[int]] = {}
    leaks: list[tuple[str, _Source]] = []
    where: dict[tuple[str, int], str] = {}
    for one in named:
        if one.faulty is not None:
            bodies[one.name] = one.faulty.body
            expected.tell(one.faulty.code, one.name, one.faulty.line, one.faulty.path)
            expected.take(one.side, good_rows=len(one.faulty.rows))
            if one.faulty.rows:
                expected.see(plan.form)
            # An unclosed quote is a row that could not be read, and so is a value that JSON lacks.
            expected.take(one.side, bad_rows=int(one.faulty.code in {"CSV_BROKEN", "PARQUET_VALUE"}))
            continue
        written = [
            writer.row(row_plan, one.side, one.name, place) for place, row_plan in enumerate(one.file.rows)
        ]
        if all(row.row is None for row in written) or (one is named[-1] and writer.copied):
            # A file needs a row, and a hold-out one that nothing resembles.
            written.append(writer.row(RowPlan("good", 0), one.side, one.name, len(written)))
        leaks += [row.leak for row in written if row.leak]
        bodies[one.name], lines[one.name] = write([row.row for row in written], one.file.layout)
        if one.file.layout.bom and one.file.layout.container != "parquet":
            expected.tell("BOM", one.name, 1)
        for place, (row, line) in enumerate(zip(written, lines[one.name], strict=True)):
            where[one.name, line] = row.name
            shares = lines[one.name].count(line) > 1
            _expect_row(expected, one, row, line, place if shares else None)
    for code, source in leaks:
        if severity[code] != "off":
            expected.leaking.setdefault(code, set()).add((source.file, source.place))
        expected.tell(code, source.file, lines[source.file][source.place])
    _expect_whole(expected, plan, {one.side for one in named})
    files = [in_memory(body, name, plan.chunk) for name, body in bodies.items()]
    rules = {name: value for name, value in plan.settings.items() if name != "method"}
    recipe = Recipe.model_validate(
        {
            "base_model": "org/name",
            "method": plan.settings["method"],
            "dataset": rules,
            "training": {"max_seq_len": LIMIT if plan.tokens else 131_072},
            "evaluation": {"min_holdout": 1},
            "gate": {"min_examples": 1},
        }
    )
    tokenizer = byte_tokenizer() if plan.tokens == "exact" else None
    return Dataset(files, recipe, tokenizer, expected, bodies, where)


class _Named(NamedTuple):
    side: str
    name: str
    file: FilePlan
    faulty: FaultyFile | None


def _named(plan: Plan) -> Iterator[_Named]:
    for place, file in enumerate(plan.files):
        side = "train" if len(plan.files) == 1 else file.side
        if file.faulty is None:
            yield _Named(side, file.name + file.layout.suffix, file, None)
        else:
            # Numbers far from those of rows, so that no sentence comes twice.
            made = file.faulty.make(plan.form, Seed(20_000 + 100 * place, file.rows[0].style))
            yield _Named(side, file.name + made.suffix, file, made)


def _expect_row(expected: Expected, one: _Named, row: _Written, line: int, element: int | None) -> None:
    for code, path in row.told:
        shown = path
        if element is not None and code not in COPIES:
            shown = f"[{element}].{path}".rstrip(".")
        expected.tell(code, one.name, line + lines_down(row.row, one.file.layout, path), shown)
    if row.row is None:
        return
    wrong = any(expected.severity[code] == "error" and code not in COPIES for code, _ in row.told)
    expected.take(one.side, good_rows=int(not wrong), bad_rows=int(wrong))


def _expect_whole(expected: Expected, plan: Plan, sides: set[str]) -> None:
    settings = plan.settings
    valid = sum(expected.valid.values())
    if not plan.files:
        expected.tell("FILE_NONE")
    if valid < settings["min_rows"]:
        expected.tell("ROWS_TOO_FEW")
    if valid > settings["max_rows"]:
        expected.tell("ROWS_TOO_MANY")
    if valid and not expected.valid["train"]:
        expected.tell("TRAIN_EMPTY")
    if valid and "eval" in sides and not expected.valid["eval"]:
        expected.tell("EVAL_EMPTY")
    if expected.form is not None:
        pairs = expected.form == "preference"
        if pairs and settings["method"] == "sft":
            expected.tell("PREFERENCE_UNUSED")
        if not pairs and settings["method"] == "dpo":
            expected.tell("METHOD_FORMAT")
    if settings["on_invalid"] == "drop" and expected.faulty:
        expected.drop(settings["max_dropped_share"])
