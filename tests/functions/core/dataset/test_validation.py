"""The whole examination: planted faults, repetitions, leaks, limits, policies."""

import json

import pytest
from dataset_cases import as_lines, chat, in_memory, question
from hypothesis import given, settings
from hypothesis import strategies as st

from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.dataset.recipe_problems import read_recipe
from dropforge_core.dataset.validation import examine, validate
from dropforge_core.recipe import Recipe


def user_row(content, **more):
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "ok"}],
        **more,
    }


PLANTS = {
    "JSON_INVALID": b'{"messages": [',
    "JSON_NAN": b'{"messages": [], "score": NaN}',
    "UTF8_INVALID": b'{"messages": "\xff"}',
    "ROW_TYPE": b"[]",
    "FORMAT_UNKNOWN": b'{"question": "x"}',
    "FORMAT_MIXED": b'{"text": "x"}',
    "MESSAGES_EMPTY": b'{"messages": []}',
    "CONTENT_EMPTY": json.dumps(user_row(" ")).encode(),
    "ROLE_ORDER": json.dumps({"messages": [{"role": "assistant", "content": "x"}]}).encode(),
    "JSON_DUPLICATE_KEY": b'{"messages": [], ' + json.dumps(user_row("x")).encode()[1:],
    "NUL_CHARACTER": json.dumps(user_row("a\0b")).encode(),
    "RESERVED_TOKEN": json.dumps(user_row("<|im_start|>")).encode(),
}


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from([None, None, *PLANTS]), min_size=1, max_size=30),
    st.integers(1, 4000),
)
def test_exactly_the_planted_faults_are_told_at_their_lines(plan, chunk):
    """Whatever is planted where, and however the file is cut into pieces, that and nothing else is an error."""
    lines = [json.dumps(user_row(question(0))).encode()]
    lines += [
        PLANTS[fault] if fault else json.dumps(user_row(question(n))).encode()
        for n, fault in enumerate(plan, 1)
    ]
    report = validate(
        [in_memory(b"\n".join(lines), chunk=chunk)],
        Recipe.model_validate({"base_model": "a/b", "dataset": {"min_rows": 1, "near_duplicates": "off"}}),
    )
    told = sorted((problem.code, line) for problem in report.errors for line in problem.lines)
    assert told == sorted((fault, number) for number, fault in enumerate(plan, 2) if fault)
    assert report.rows == len(lines)
    assert report.error_count == len(told)
    assert report.valid == (not told)


def test_alike_problems_are_one_entry_with_a_true_count(recipe):
    """Twenty thousand bad rows are one entry: ten thousand lines listed, all counted."""
    body = b'{"messages": []}\n' * 20_000
    report = validate([in_memory(body)], recipe())
    (entry,) = [problem for problem in report.errors if problem.code == "MESSAGES_EMPTY"]
    assert entry.count == 20_000
    assert entry.lines == tuple(range(1, 10_001))
    assert entry.mend in entry.message


def test_the_line_of_a_mixed_format_names_the_other_line(recipe):
    """Both lines that disagree are named, with their file where that is another one."""
    files = [
        in_memory(as_lines(chat("a b"), chat("c d")), "train-1.jsonl"),
        in_memory(as_lines(chat("e f"), {"text": "x"}), "train-2.jsonl"),
    ]
    (problem,) = validate(files, recipe()).errors
    assert (problem.file, problem.line) == ("train-2.jsonl", 2)
    assert "line 1 of train-1.jsonl" in problem.message


def test_recipe_and_data_are_judged_together(recipe):
    """Faults of the recipe come with those of the data, each with its own file and line."""
    broken, problems = read_recipe("base_model: a/b\ntrainng: {}\nmethod: ppo\n")
    assert broken is None
    report = validate([in_memory(b"{\n")], broken, recipe_problems=problems)
    assert {(p.file, p.line, p.code) for p in report.errors} >= {
        ("recipe.yaml", 2, "RECIPE_FIELD_UNKNOWN"),
        ("recipe.yaml", 3, "RECIPE_VALUE"),
        ("train.jsonl", 1, "JSON_INVALID"),
    }
    assert not report.valid


@pytest.mark.parametrize("template", ["{% for m in messages %}", "{{ messages | nosuchfilter }}", "{{ }}"])
def test_a_chat_template_that_is_none_is_told_before_anything_is_spent(template):
    """A recipe's own template is read with the recipe, at its line: not when the GPU that renders by it is paid for."""
    broken, (problem,) = read_recipe(f"base_model: a/b\nchat_template: {json.dumps(template)}\n")
    assert broken is None
    assert (problem.code, problem.line, problem.path) == ("RECIPE_VALUE", 2, "chat_template")
    good, none = read_recipe('base_model: a/b\nchat_template: "{{ messages[0].content }}"\n')
    assert (good is not None, none) == (True, ())


@pytest.mark.parametrize(("names", "told"), [(("f", "g"), 0), (("f", "f"), 1)])
def test_with_other_tools_another_answer_is_no_contradiction(recipe, names, told):
    """Rows that teach when a tool is missing ask the same with and without it; the same tools make the same prompt."""
    tools = [
        [{"type": "function", "function": {"name": name, "parameters": {"a": 1, "b": 2}}}] for name in names
    ]
    tools[1][0]["function"]["parameters"] = {"b": 2, "a": 1}
    rows = [{**chat("which tool", f"answer {n}"), "tools": offered} for n, offered in enumerate(tools)]
    rows += [chat(question(n)) for n in range(20)]
    report = validate([in_memory(as_lines(*rows))], recipe())
    assert report.duplicates["conflicting"] == told


def test_the_cause_is_told_before_what_follows(recipe):
    """The first fault, which messages quote, is one of a file: too few rows are left because of it."""
    report = validate([in_memory(b"{\n")], recipe(dataset={"min_rows": 5}))
    assert [p.code for p in report.errors] == ["JSON_INVALID", "ROWS_TOO_FEW"]


def test_elements_on_one_line_are_counted_and_named(recipe):
    """An array as most programs write it is one line: each faulty element counts, and the first one is named."""
    rows = [chat(question(n)) for n in range(60)]
    for place in (6, 7, 40):
        rows[place]["messages"].pop()
    (fault,) = validate([in_memory(json.dumps(rows).encode(), "train.json")], recipe()).errors
    assert (fault.line, fault.path, fault.lines, fault.count) == (1, "[6].messages[0].role", (1,), 3)


def test_a_given_evaluation_file_is_the_hold_out_and_leaks_are_errors(recipe):
    """Rows of eval files are held out; a prompt that is also trained on is an error at the eval row's line."""
    train = in_memory(as_lines(*[chat(question(n)) for n in range(20)]), "train.jsonl")
    held = in_memory(as_lines(chat(question(40)), chat(question(3), "another answer")), "eval.jsonl")
    report = validate([train, held], recipe())
    (leak,) = report.errors
    assert (leak.code, leak.file, leak.line) == ("LEAKAGE_EXACT", "eval.jsonl", 2)
    assert "line 4 of train.jsonl" in leak.message
    assert report.leakage["exact"] == 1
    assert report.holdout == {"basis": "given", "train": 20, "eval": 2, "left_out": 0}


def test_a_near_leak_is_told(recipe):
    """An eval prompt that differs from a trained one in numbers and case only is a warning."""
    text = "What does the number {} bus from the old harbour to the northern cemetery cost on a weekday?"
    train = in_memory(as_lines(chat(text.format(17)), chat(question(1))), "train.jsonl")
    held = in_memory(as_lines(chat(text.format(4).upper())), "test.jsonl")
    report = validate([train, held], recipe())
    assert [p.code for p in report.warnings] == ["LEAKAGE_NEAR"] or "LEAKAGE_NEAR" in {
        p.code for p in report.warnings
    }
    assert report.leakage["near"] == 1


def test_a_lone_file_is_for_training_whatever_its_name(recipe):
    """`test.jsonl` uploaded alone is a whole dataset."""
    assert (
        validate([in_memory(as_lines(chat("a b"), chat("c d")), "test.jsonl")], recipe()).holdout["train"]
        >= 1
    )


def test_dropping_is_a_choice_with_a_limit(recipe):
    """`on_invalid: drop` makes faulty rows warnings and says how many, up to the allowed share, and no further."""
    body = as_lines(*[chat(question(n)) for n in range(99)]) + b'{"messages": []}\n'
    rules = {"on_invalid": "drop", "max_dropped_share": 0.01}
    kept = examine([in_memory(body)], recipe(dataset=rules))
    assert kept.report.valid
    assert kept.facts.rows_train + kept.facts.rows_eval == 99
    assert {"ROWS_DROPPED", "MESSAGES_EMPTY"} <= {p.code for p in kept.report.warnings}
    refused = validate([in_memory(body + b"{}\n")], recipe(dataset=rules))
    assert not refused.valid
    (limit,) = (p for p in refused.errors if p.code == "DROP_LIMIT")
    assert (limit.found, limit.expected) == ("2 faulty rows of 101 (1.98%)", "at most 1.00%")


def test_rows_of_a_table_are_dropped_too(recipe):
    """A line of CSV with too many fields is a faulty row like any other."""
    body = "prompt,completion\n" + "".join(f"{question(n)},answer\n" for n in range(99)) + "a,b,c\n"
    rules = {"on_invalid": "drop", "max_dropped_share": 0.01}
    report = validate([in_memory(body.encode(), "train.csv")], recipe(dataset=rules))
    assert report.valid
    assert {"ROWS_DROPPED", "CSV_FIELDS"} <= {p.code for p in report.warnings}


def test_each_check_is_error_warning_or_off(recipe):
    """`checks` decides per code, and has the last word over the broader settings."""
    body = as_lines(chat("write to jane@acme-mail.com"), chat("c d"), chat("c d"))
    found = {}
    for severity in ("error", "warning", "off"):
        rules = {
            "pii": "warning",
            "duplicates": "warning",
            "checks": {"PII_EMAIL": severity, "DUPLICATE_ROW": severity},
        }
        report = validate([in_memory(body)], recipe(dataset=rules))
        found[severity] = ({p.code for p in report.errors}, {p.code for p in report.warnings})
    both = {"PII_EMAIL", "DUPLICATE_ROW"}
    assert both <= found["error"][0]
    assert both <= found["warning"][1]
    assert not both & (found["off"][0] | found["off"][1])


@pytest.mark.parametrize("given", [False, True])
def test_what_is_the_same_is_not_told_to_be_alike(recipe, given):
    """A check that is off does not let its finds come back as likenesses."""
    one, other = chat("which bus goes to the old harbour on sundays"), chat("c d")
    again = chat("which bus goes to the old harbour on sundays", "another answer")
    files = [in_memory(as_lines(one, other, *([] if given else [again])))]
    files += [in_memory(as_lines(again), "eval.jsonl")] if given else []
    rules = {"checks": {"CONFLICTING_ANSWERS": "off", "LEAKAGE_EXACT": "off"}}
    report = validate(files, recipe(dataset=rules))
    assert (report.errors, report.warnings) == ((), ())
    assert report.leakage == {"exact": 0, "near": 0}


def test_limits_on_rows(recipe):
    """Too few and too many valid rows are errors that say how many there are."""
    body = as_lines(*[chat(question(n)) for n in range(12)])
    few = validate([in_memory(body)], recipe(dataset={"min_rows": 13}))
    many = validate([in_memory(body)], recipe(dataset={"min_rows": 1, "max_rows": 11}))
    assert [p.code for p in few.errors] == ["ROWS_TOO_FEW"]
    assert [p.code for p in many.errors] == ["ROWS_TOO_MANY"]
    assert "12" in few.errors[0].message


@pytest.mark.parametrize(
    ("method", "row", "code"),
    [
        ("dpo", chat("a b"), "METHOD_FORMAT"),
        ("sft", {"prompt": "a", "chosen": "b", "rejected": "c"}, "PREFERENCE_UNUSED"),
    ],
)
def test_method_and_format_must_fit(recipe, method, row, code):
    """Preference optimisation without pairs is an error; pairs without it are worth a word."""
    report = validate([in_memory(as_lines(row, {**row, "meta": {"n": 1}}))], recipe(method=method))
    assert code in {p.code for p in (*report.errors, *report.warnings)}


def test_the_digest_is_of_the_content(recipe):
    """Names, key order, escapes and compression change nothing; a changed word does."""
    rows = [chat(question(n)) for n in range(10)]
    plain = examine([in_memory(as_lines(*rows), "train.jsonl")], recipe()).facts.digest
    turned = [
        {"messages": [{"content": m["content"], "role": m["role"]} for m in row["messages"]]} for row in rows
    ]
    array = json.dumps(turned, indent=2).encode()
    assert examine([in_memory(array, "other.json")], recipe()).facts.digest == plain
    rows[3]["messages"][1]["content"] += "!"
    assert examine([in_memory(as_lines(*rows))], recipe()).facts.digest != plain


def test_no_files_and_no_rows_are_problems(recipe):
    """Nothing is never valid."""
    assert [p.code for p in validate([], recipe()).errors] == ["FILE_NONE", "ROWS_TOO_FEW"]


@given(st.binary(max_size=300), st.sampled_from(["a.jsonl", "a.json", "a.csv"]))
def test_no_upload_crashes_the_examination(body, name):
    """Every file ends in a report; a report without errors has rows."""
    report = validate([in_memory(body, name)])
    assert report.valid == (report.error_count == 0)
    assert not report.valid or report.rows >= 10


def test_what_has_no_known_format_for_long_is_not_read_to_its_end(recipe, monkeypatch):
    """One fault says so, whatever comes behind; a terabyte of something else costs no more than its beginning."""
    monkeypatch.setattr("dropforge_core.dataset.outline.HEAD_BYTES", 1 << 20)
    body = b'{"temperature": 21.5}\n' * 400_000 + as_lines(chat("now a row"))
    read = []
    file = SourceFile("train.jsonl", lambda start: _told(body[start:], read), len(body))
    report = validate([file], recipe())
    assert [problem.code for problem in report.errors] == ["FORMAT_UNKNOWN", "ROWS_TOO_FEW"]
    assert sum(read) < len(body) / 2


def _told(body, read):
    for start in range(0, len(body), 1 << 16):
        read.append(1 << 16)
        yield body[start : start + (1 << 16)]


def test_thresholds_are_the_recipes(recipe):
    """What counts as near, as another language, as frequent or as long is a matter of the recipe."""
    rows = [chat(question(n), "yes" if n % 10 < 8 else "no") for n in range(200)]
    codes = {problem.code for problem in validate([in_memory(as_lines(*rows))], recipe()).warnings}
    assert "ANSWER_IMBALANCE" not in codes
    rules = recipe(dataset={"frequent_answer_share": 0.7})
    codes = {problem.code for problem in validate([in_memory(as_lines(*rows))], rules).warnings}
    assert "ANSWER_IMBALANCE" in codes
    alike = [chat(question(n)) for n in range(40)]
    alike += [
        chat("please tell me about the old stone bridge and the mill behind it"),
        chat("please tell me about the old stone bridge and the barn behind it"),
    ]
    body = in_memory(as_lines(*alike))
    near = [
        {p.code for p in validate([body], recipe(dataset={"near_duplicate_similarity": limit})).warnings}
        for limit in (0.6, 0.95)
    ]
    assert ["NEAR_DUPLICATE" in codes for codes in near] == [True, False]
