"""Recipes: layers, every fault at once with its line, and what is refused and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.dataset.codes import CODES
from dropforge_core.recipe import Recipe, RecipeInvalid, parse_recipe

MINIMAL = "base_model: org/name\n"


def faults_of(text, default=None):
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(text, default)
    return caught.value.faults


def test_a_recipe_with_only_a_base_model_is_whole():
    """Everything else has a default; an empty recipe is one where the stack has a default."""
    assert parse_recipe(MINIMAL).base_model.repo == "org/name"
    assert parse_recipe("", MINIMAL) == parse_recipe(None, MINIMAL) == parse_recipe(MINIMAL)


def test_every_fault_is_told_at_once_with_its_line():
    """Misspelt fields, bad values, and fields that contradict one another come in one answer."""
    text = (
        "traning: {}\n"
        "training:\n"
        "  learning_rate: -1\n"
        "  epoch: 3\n"
        "compute:\n"
        "  max_cost_usd: .inf\n"
        "  evaluation_instance_types: [ml.p5.4xlarge]\n"
        "evaluation: {min_holdout: 9000}\n"
    )
    assert {(f.code, f.path, f.line) for f in faults_of(text)} == {
        ("RECIPE_FIELD_UNKNOWN", "traning", 1),
        ("RECIPE_VALUE", "training.learning_rate", 3),
        ("RECIPE_FIELD_UNKNOWN", "training.epoch", 4),
        ("RECIPE_VALUE", "compute.max_cost_usd", 6),
        ("RECIPE_MISSING", "base_model", None),
        ("RECIPE_CONFLICT", "compute.evaluation_instance_types.0", 7),
        ("RECIPE_CONFLICT", "evaluation.min_holdout", 8),
    }


def test_a_misspelt_field_is_told_its_neighbour():
    """`epoch` is answered by `epochs`."""
    (fault,) = faults_of(MINIMAL + "training: {epoch: 3}\n")
    assert "epochs" in fault.expected


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: &x [1]\nb: *x\n", 2),
        ("base_model: a/b\nmethod: sft\nmethod: dpo\n", 3),
        ("- a\n", 1),
        ("a: [\n", 2),
        ("a: b: c\n", 1),
        ("--- \na: 1\n---\nb: 2\n", 3),
        ("a: !!python/object/apply:os.system [ls]\n", 1),
        ("\ta: 1\n", 1),
    ],
)
def test_what_is_no_plain_yaml_is_refused_at_its_line(text, line):
    """Aliases, repeated keys, tags, several documents: each one fault with its line."""
    (fault,) = faults_of(text)
    assert fault.code == "RECIPE_YAML"
    assert fault.line == line


def test_a_billion_laughs_are_refused_before_they_are_built():
    """Aliases of aliases never grow."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (fault,) = faults_of("\n".join(lines))
    assert fault.line == 2


def test_nesting_and_size_are_bounded():
    """Neither depth nor length brings the parser down."""
    assert faults_of("a: " + "[" * 20_000)[0].code == "RECIPE_YAML"
    assert faults_of("#" * 70_000)[0].code == "RECIPE_YAML"


@given(st.text(max_size=200))
def test_any_text_is_a_recipe_or_has_faults(text):
    """No text ends in anything but a recipe or a list of faults with known codes."""
    faults = faults_or_none(text)
    assert faults is None or {fault.code for fault in faults} <= set(CODES)
    assert faults != ()


def faults_or_none(text):
    try:
        parse_recipe(text)
    except RecipeInvalid as invalid:
        return invalid.faults
    return None


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("method: dpo\ntraining: {packing: true}", "training.packing"),
        ("training: {dpo_beta: 0.2}", "training.dpo_beta"),
        ("adapter: {lora_plus_ratio: 16}\ntraining: {learning_rate: 0.1}", "adapter.lora_plus_ratio"),
        ("adapter: {targets: [q_proj, lm_head]}", "adapter.targets.1"),
        ("adapter: {targets: [q_proj, q_proj]}", "adapter.targets"),
        ("gate: {min_examples: 2501}", "gate.min_examples"),
        (
            "gate: {primary: exact_match, min_examples: 50}\nevaluation: {generate_at_most: 10}",
            "evaluation.generate_at_most",
        ),
        ("dataset: {min_rows: 10, max_rows: 9}", "dataset.min_rows"),
        ("compute: {instance_types: [ml.g5.xlarge, ml.g5.xlarge]}", "compute.instance_types"),
        ("tags: {'aws:x': y}", "tags"),
        ("tags: {" + ", ".join(f"k{n}: v" for n in range(41)) + "}", "tags"),
    ],
)
def test_fields_that_can_not_both_be_meant_are_refused_with_the_reason(text, path):
    """A contradiction names the field to change and what it would have to agree with."""
    (fault,) = faults_of(MINIMAL + text)
    assert (fault.code, fault.path) == ("RECIPE_CONFLICT", path)
    assert fault.expected


@pytest.mark.parametrize(
    "text", ["adapter: {lora_plus_ratio: 1}", "chat_template: ''", "training: {dpo_beta: 0}"]
)
def test_settings_that_would_do_nothing_are_refused(text):
    """A ratio of 1 is plain LoRA, an empty template shows nothing: each is a fault at its field."""
    (fault,) = faults_of(MINIMAL + text)
    assert fault.code == "RECIPE_VALUE"


def test_a_chat_template_may_have_many_lines():
    """YAML's block text keeps the template as it is written."""
    recipe = parse_recipe(
        MINIMAL + "chat_template: |\n  {% for m in messages %}\n  {{ m.content }}\n  {% endfor %}\n"
    )
    assert recipe.chat_template == "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n"


def test_preference_training_is_not_packed_by_default():
    """Packing is on by default and off for pairs, without a word needed."""
    assert parse_recipe(MINIMAL + "method: dpo").training.packing is False


def test_preference_training_is_judged_by_preferences():
    """DPO makes chosen answers no likelier by itself: where no metric is named the one of pairs decides, and is kept."""
    assert parse_recipe(MINIMAL).gate.primary == "nll_per_byte"
    made = parse_recipe(MINIMAL + "method: dpo\ngate: {delta: 0.05}")
    assert (made.gate.primary, made.gate.delta) == ("preference_accuracy", 0.05)
    assert Recipe.model_validate_json(made.model_dump_json()) == made
    assert parse_recipe(MINIMAL + "method: dpo\ngate: {primary: nll_per_byte}").gate.primary == "nll_per_byte"


def test_a_recipe_is_laid_over_the_default_field_by_field():
    """What the person says wins; the rest stays; a base model is replaced whole; steps replace epochs."""
    default = "base_model: {repo: org/name, revision: v1}\ntraining: {epochs: 2, seed: 5}\n"
    made = parse_recipe("base_model: {repo: org/other}\ntraining: {steps: 10}", default)
    assert (made.base_model.repo, made.base_model.revision) == ("org/other", "main")
    assert (made.training.steps, made.training.epochs, made.training.seed) == (10, None, 5)


def test_yaml_off_is_off():
    """YAML reads a bare `off` as false; a severity takes it as what was meant."""
    made = parse_recipe(MINIMAL + "dataset: {leakage: off, checks: {PII_EMAIL: off, BOM: error}}")
    assert made.dataset.leakage == "off"
    assert made.dataset.checks == {"PII_EMAIL": "off", "BOM": "error"}


@pytest.mark.parametrize("code", ["NOPE", "JSON_INVALID"])
def test_only_known_and_excusable_checks_can_be_changed(code):
    """What can't be read can't be switched off."""
    (fault,) = faults_of(MINIMAL + f"dataset: {{checks: {{{code}: off}}}}")
    assert code in fault.expected


def test_two_spellings_have_one_digest_and_tags_have_none():
    """The digest is of the meaning; labels don't make another training."""
    one = parse_recipe("base_model: org/name@v1\ntraining: {seed: 17}\n")
    other = parse_recipe("tags: {team: a}\nbase_model:\n  revision: v1\n  repo: org/name\n")
    assert one.digest == other.digest
    assert one.digest != parse_recipe("base_model: org/name@v2").digest


def test_a_recipe_survives_its_json():
    """`recipe.json` reads back as the recipe that was written."""
    made = parse_recipe(MINIMAL + "method: dpo\ngate: {minimum: {exact_match: 0.5}}")
    assert Recipe.model_validate_json(made.model_dump_json()) == made


def test_a_metric_that_does_not_exist_is_named_before_anything_is_spent():
    """Wherever a recipe names a metric, a misspelt one is a fault with the name that was meant."""
    text = """
base_model: org/name
evaluation: {metrics: [exact_mach, nll_per_byte]}
gate: {primary: nll_per_bite, guarded: [qwertz], minimum: {json_walid: 0.5}}
"""
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(text)
    faults = {fault.path: fault.expected for fault in caught.value.faults}
    assert "'exact_match'" in faults["evaluation.metrics.0"]
    assert "'nll_per_byte'" in faults["gate.primary"]
    assert "one of " in faults["gate.guarded.0"]
    assert "'json_valid'" in faults["gate.minimum"]


@pytest.mark.parametrize("value", ["3", "[a, b]", "true"])
def test_a_base_model_of_the_wrong_kind_is_told_in_words(value):
    """What is no name and no reference is answered with the forms that are."""
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(f"base_model: {value}")
    (fault,) = caught.value.faults
    assert fault.line == 1
    assert "org/name" in fault.expected
    assert "BaseModelRef" not in fault.expected
