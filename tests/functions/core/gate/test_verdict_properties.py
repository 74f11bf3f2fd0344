"""What never moves a verdict, and which way a better candidate can move it."""

import json
import math
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge_core.gate.evidence import Paired, compare
from dropforge_core.gate.judgement import metrics_json
from dropforge_core.metrics.registry import REGISTRY
from dropforge_core.recipe import Evaluation, Gate

EVERY = ("base", "champion", "candidate")
ORDER = {"FAIL": 0, "INCONCLUSIVE": 1, "PASS": 2}
AGAIN = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@AGAIN
@given(st.randoms(use_true_random=False), st.integers(1, 9))
def test_order_sharding_and_batching_change_no_bit(improved, shuffler, batch):
    """Answers in any order and shards of any size give the same bytes; other spaces and key orders, other digests only."""
    found = improved(rows=40, variants=EVERY)
    expected = found.judged()
    shuffler.shuffle(found.predictions)
    found.predictions = [
        line
        for at in range(0, len(found.predictions), batch)
        for line in found.predictions[at : at + batch][::-1]
    ]
    shuffler.shuffle(found.prompts)
    again = found.judged()
    assert again.gate_json == expected.gate_json
    assert metrics_json(again.metrics) == metrics_json(expected.metrics)
    found.predictions = [
        json.dumps(dict(sorted(json.loads(line).items(), reverse=True)), indent=None).encode() + b"  "
        for line in found.predictions
    ]
    rewritten = found.judged().gate
    kept = {"provenance"}
    assert rewritten.model_dump(exclude=kept) == expected.gate.model_dump(exclude=kept)


@pytest.mark.parametrize("at", [0, 33, 79])
@pytest.mark.parametrize("tail", [True, False])
def test_a_retry_changes_nothing_and_a_leftover_of_one_never_helps(improved, at, tail):
    """The same output once more is the same verdict; a line twice, or half a line of a broken attempt, is no pass."""
    found = improved(rows=40)
    before = found.judged()
    assert before.gate.verdict == "PASS"
    assert found.judged().gate_json == before.gate_json
    line = found.predictions[at]
    found.predictions.append(line[: len(line) // 2] if tail else line)
    assert found.judged().gate.verdict == "FAIL"


ROWS = st.lists(
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), min_size=30, max_size=140
)


@settings(AGAIN, max_examples=30)
@given(ROWS, st.sampled_from([0.02, 0.1, 0.3]))
def test_more_right_answers_never_lower_the_verdict(evaluated, rows, delta):
    """On right-or-wrong answers a candidate that is right wherever another is ranks at least as high as that one."""
    policy = Gate(primary="exact_match", guarded=("exact_match",), minimum={"exact_match": 0.4}, delta=delta)

    def judged(improve):
        found = evaluated(variants=EVERY)
        for i, (base, champion, candidate, mended) in enumerate(rows):
            right = {"base": base, "champion": champion, "candidate": candidate or (improve and mended)}
            found.ask(
                f"r{i:03d}", "yes", **{who: ("yes" if good else "no", 3.0) for who, good in right.items()}
            )
        return found.judged(policy).gate.verdict

    assert ORDER[judged(improve=True)] >= ORDER[judged(improve=False)]


DIFFERENCES = st.lists(
    st.tuples(st.sampled_from([-1.0, -0.5, 0.0, 0.1, 1.0]), st.integers(0, 40)), min_size=1, max_size=80
)


@given(
    DIFFERENCES,
    st.sampled_from(["exact_match", "token_f1", "nll_per_byte"]),
    st.randoms(use_true_random=False),
)
def test_bounds_enclose_the_estimate_in_any_order(rows, name, shuffler):
    """However rows repeat and differ, the bounds hold the estimate, stay on the scale, and no order moves a bit."""
    metric = REGISTRY[name]
    if metric.kind == "binary":
        rows = [(math.copysign(math.ceil(abs(value)), value), group) for value, group in rows]

    def compared(drawn):
        values, groups = zip(*drawn, strict=True)
        return compare(Paired(metric, values, groups), "base", 0.05, 0.02)

    found = compared(rows)
    shuffler.shuffle(rows)
    assert compared(rows) == found
    low, high = (
        (-math.inf if found.lower is None else found.lower),
        (math.inf if found.upper is None else found.upper),
    )
    assert low <= found.difference + 1e-9
    assert found.difference <= high + 1e-9
    if found.method != "t":
        assert low >= -1
        assert high <= 1
    if metric.needs != "likelihood":
        assert high - low > 1e-3


LOSSES = st.lists(
    st.tuples(st.floats(0, 9), st.floats(0, 9), st.floats(0, 9), st.floats(0, 9)), min_size=30, max_size=90
)


@settings(AGAIN, max_examples=30)
@given(LOSSES, st.sampled_from([0.02, 0.2, 0.9]), st.floats(0, 4))
def test_lower_losses_never_fail_where_higher_ones_passed(evaluated, rows, delta, head_start):
    """A candidate whose loss is lower on every row never fails where the other passed, however uneven the gains are."""
    policy = Gate(delta=delta, minimum={"nll_per_byte": 2.0})

    def judged(improve):
        found = evaluated(variants=EVERY)
        for i, (base, champion, candidate, gain) in enumerate(rows):
            loss = candidate - gain if improve else candidate
            answers = {
                "base": base + head_start + 4,
                "champion": champion + head_start,
                "candidate": max(0, loss),
            }
            found.ask(f"r{i:03d}", "four", **{who: ("x", value) for who, value in answers.items()})
        return found.judged(policy).gate.verdict

    worse = judged(improve=False)
    if worse == "PASS":
        assert judged(improve=True) != "FAIL"


def test_uneven_gains_leave_a_verdict_open_and_never_fail_it(evaluated):
    """A few huge gains widen the interval: the candidate that passed is then undecided, but it is not refused."""

    def judged(huge):
        found = evaluated()
        for i in range(400):
            gain = 400.0 if huge and i == 7 else 0.04 + 0.01 * (i % 2)
            found.ask(f"r{i:03d}", "four", base=("x", 500.0), candidate=("x", 500.0 - gain))
        return found.judged(Gate(delta=0.9)).gate

    assert judged(huge=False).verdict == "PASS"
    assert judged(huge=True).verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("rows", [60, 600])
def test_an_undecided_candidate_is_told_the_rows_that_would_decide(evaluated, rows):
    """Below the planned size that size is told; above it the number for the difference that was seen."""
    unclear = evaluated()
    for i in range(rows):
        unclear.ask(f"r{i:03d}", "four", base=("x", 9.0), candidate=("x", 9.0 + (-1) ** i * 0.4 - 0.008))
    judgement = unclear.judged(Gate(delta=0.02))
    (found,) = [one for one in judgement.gate.rules if one.name == "better_than_base"]
    assert found.verdict == "INCONCLUSIVE"
    assert found.n_needed > rows
    assert f"{found.n_needed:,}" in judgement.gate.summary


@pytest.mark.parametrize("variants", [("base", "candidate"), EVERY])
def test_every_decision_follows_the_published_schema(improved, variants):
    """With slices, with and without a champion: nothing in gate.json lacks a place in its schema."""
    schema = json.loads((Path(__file__).parents[4] / "docs/schemas/gate.schema.json").read_text())
    found = improved(rows=40, variants=variants)
    found.meta = {row_id: {"kind": row_id[-1]} for row_id in found.meta}
    document = json.loads(found.judged(evaluation=Evaluation(slices=("kind",))).gate_json)
    jsonschema.Draft202012Validator(schema).validate(document)
    assert document.keys() == schema["properties"].keys()
    assert document["slices"][0].keys() == schema["$defs"]["SliceResult"]["properties"].keys()
