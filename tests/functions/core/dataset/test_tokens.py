"""Counting tokens: exact with a tokenizer, honest without."""

import json

import pytest
from dataset_cases import as_lines, chat, in_memory, question
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from dropforge_core.dataset.tokens import TemplateRefused, load_tokenizer
from dropforge_core.dataset.validation import examine, validate

TEMPLATE = (
    "{% for m in messages %}<|a|>{{ m['role'] }}\n{{ m['content'] }}<|z|>\n{% endfor %}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)


def tokenizer_json():
    """One token a byte, so that a test can count with len()."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|a|>", "<|z|>"])
    return made.to_str().encode()


@pytest.fixture(scope="module")
def counter():
    return load_tokenizer(tokenizer_json(), json.dumps({"chat_template": TEMPLATE}).encode())


def length(row):
    return sum(len(m["role"].encode()) + len(m["content"].encode()) + 4 for m in row["messages"])


def test_a_conversation_is_counted_as_its_template_renders_it(counter):
    """Control tokens count one each, text its bytes."""
    row = chat("héllo", "wörld")
    assert counter.count(row["messages"]) == length(row)
    assert counter.special == {"<|a|>", "<|z|>"}


def test_over_length_is_exact_to_the_token(counter, recipe):
    """A row of the limit passes, one of a token more is an error with its number of tokens."""
    fits = chat("a" * 50, "b" * 20)
    long = chat("a" * 51, "b" * 20)
    limit = length(fits)
    report = validate(
        [in_memory(as_lines(fits, long))], recipe(training={"max_seq_len": limit}), tokenizer=counter
    )
    (problem,) = [p for p in report.errors if p.code == "OVER_LENGTH"]
    assert problem.lines == (2,)
    assert f"{limit + 1} tokens" in problem.message


def test_totals_are_exact_where_all_rows_were_counted(counter, recipe):
    """The report's total is the sum over all rows, and says that it is exact."""
    rows = [chat(question(n)) for n in range(60)]
    found = examine([in_memory(as_lines(*rows))], recipe(), tokenizer=counter)
    assert found.report.tokens["total"] == sum(map(length, rows))
    assert found.report.tokens["exact"] is True
    assert found.facts.tokens_exact
    assert found.facts.longest_tokens == max(map(length, rows))


def test_without_a_tokenizer_lengths_are_estimates_and_say_so(recipe):
    """A row that is probably too long is a warning, never an error, and totals are not called exact."""
    report = validate(
        [in_memory(as_lines(chat("word " * 500), chat("x y")))], recipe(training={"max_seq_len": 128})
    )
    assert report.valid
    assert {p.code: p.lines for p in report.warnings}["OVER_LENGTH_ESTIMATED"] == (1,)
    assert report.tokens["exact"] is False


def test_a_template_that_refuses_a_row_is_a_problem_of_the_row(counter, recipe):
    """What would fail in training fails here, with the template's own words."""
    row = {"messages": [{"role": "system", "content": "s"}, *chat("a b")["messages"]]}
    (problem,) = validate([in_memory(as_lines(chat("c d"), row))], recipe(), tokenizer=counter).errors
    assert (problem.code, problem.line) == ("TEMPLATE_REFUSED", 2)
    assert "System role not supported" in problem.message


def test_the_base_models_own_control_tokens_are_reserved(counter, recipe):
    """With a tokenizer at hand, its control tokens are looked for, and no others."""
    rows = as_lines(chat("the <|z|> token"), chat("the <|im_end|> token of another model"))
    report = validate([in_memory(rows)], recipe(), tokenizer=counter)
    assert [(p.code, p.lines) for p in report.errors] == [("RESERVED_TOKEN", (1,))]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{% for m in messages %}{{ m.update({'role': 'x'}) }}{% endfor %}",
    ],
)
def test_a_hostile_template_reaches_nothing(template):
    """Templates run in a sandbox: no way to Python's objects, no change to the data."""
    config = json.dumps({"chat_template": template}).encode()
    with pytest.raises((ValueError, TemplateRefused)):
        load_tokenizer(tokenizer_json(), config).count(chat("a")["messages"])


def test_a_model_without_a_template_has_no_counter():
    """Without a chat template nothing can be counted exactly."""
    assert load_tokenizer(tokenizer_json(), b"{}") is None
