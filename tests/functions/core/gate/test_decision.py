"""Verdicts: what passes, what fails closed, what stays open, and that nothing else moves them."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge_core.gate.judgement import metrics_json, outcome
from dropforge_core.recipe import Evaluation, Gate


def rule(judgement, name):
    """The one rule of that name."""
    (found,) = [one for one in judgement.gate.rules if one.name == name]
    return found


def test_a_lower_loss_passes(improved):
    """A candidate whose held-out loss is lower on nearly every row passes, and the summary says by how much."""
    judgement = improved().judged()
    assert judgement.gate.verdict == "PASS"
    assert rule(judgement, "better_than_base").lower > 0
    assert "Held-out loss went from" in judgement.gate.summary
    assert "champion" not in judgement.gate.summary
    assert "95%" in judgement.gate.summary


def test_no_difference_fails(evaluated):
    """A candidate that is the base model under another name never passes."""
    same = evaluated()
    for i in range(200):
        same.ask(f"r{i}", "yes", base=("yes", 1.0 + i % 3), candidate=("yes", 1.0 + i % 3))
    assert same.judged().gate.verdict == "FAIL"


def test_worse_fails(evaluated):
    """A candidate that is shown to be worse fails."""
    worse = evaluated()
    for i in range(50):
        worse.ask(f"r{i}", "yes", base=("yes", 1.0), candidate=("no", 2.0 + i % 3))
    assert worse.judged().gate.verdict == "FAIL"


def test_few_rows_are_inconclusive_however_good(improved):
    """Fewer rows than the recipe asks for never pass, and the number that is needed is said."""
    judgement = improved(rows=20).judged()
    assert judgement.gate.verdict == "INCONCLUSIVE"
    assert rule(judgement, "sample_size").n_needed == 30


def test_an_undecided_difference_names_the_rows_that_would_decide(evaluated):
    """Where the interval holds the margin and the sample is small, the verdict is open with the n needed."""
    unclear = evaluated()
    for i in range(40):
        unclear.ask(f"r{i}", "four", base=("x", 4.0), candidate=("x", 4.0 + (-1) ** i * 2 - 0.1))
    found = rule(unclear.judged(), "better_than_base")
    assert found.verdict == "INCONCLUSIVE"
    assert found.n_needed > 40
    assert f"{found.n_needed:,}" in found.reason


@pytest.mark.parametrize(
    "spoil",
    [
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]],
        lambda lines: [*lines, b"\xff\xfe"],
        lambda lines: [*lines, json.dumps({"id": "ghost", "variant": "base", "nll": 1.0}).encode()],
        lambda lines: [json.dumps({**json.loads(lines[0]), "nll": None}).encode(), *lines[1:]],
        lambda lines: [lines[0].replace(b'"nll": 20.0', b'"nll": NaN'), *lines[1:]],
        lambda lines: [json.dumps({**json.loads(lines[0]), "nll": -5}).encode(), *lines[1:]],
        lambda lines: [json.dumps({**json.loads(lines[0]), "reference_bytes": 1}).encode(), *lines[1:]],
        lambda lines: [json.dumps({**json.loads(lines[0]), "error": "out of memory"}).encode(), *lines[1:]],
        lambda lines: [json.dumps({**json.loads(lines[0]), "text": None}).encode(), *lines[1:]],
        lambda lines: [line for line in lines if b'"candidate"' not in line],
        lambda _: [],
    ],
    ids=[
        "missing", "duplicated", "truncated", "not utf-8", "never asked", "no likelihood", "NaN", "negative",
        "another reference", "error", "no text of the base", "no candidate", "nothing",
    ],
)  # fmt: skip
def test_incomplete_answers_fail_closed(improved, spoil):
    """One bad line among good ones is enough: the gate never passes on what it could not see."""
    found = improved()
    assert found.judged().gate.verdict == "PASS"
    found.predictions = spoil(found.predictions)
    judgement = found.judged()
    assert judgement.gate.verdict == "FAIL"
    assert rule(judgement, "validity").verdict == "FAIL"
    outcome(judgement, Gate(), "runs")


def test_an_empty_evaluation_fails(evaluated):
    """No prompts, no verdict but FAIL."""
    assert evaluated().judged().gate.verdict == "FAIL"


def test_a_failed_generation_of_the_candidate_counts_against_it(improved):
    """The candidate's missing text scores the worst value and is counted; it breaks nothing else."""
    found = improved()
    spoilt = [json.loads(line) for line in found.predictions]
    answer = next(line for line in spoilt if line["variant"] == "candidate")
    answer["text"] = None
    found.predictions = [json.dumps(line).encode() for line in spoilt]
    judgement = found.judged()
    assert judgement.gate.verdict == "PASS"
    assert judgement.gate.coverage.failed_generations["candidate"] == 1
    (flips,) = judgement.gate.flips
    assert answer["id"] in flips.broken


def test_flips_are_listed_by_id(improved):
    """Rows that turned right and rows that turned wrong are told apart by id."""
    (flips,) = improved().judged().gate.flips
    assert flips.metric == "exact_match"
    assert flips.broken == ()
    assert len(flips.fixed) == 42
    assert "row-0001" in flips.fixed
    assert "row-0000" not in flips.fixed


def test_minimum_is_reached_by_the_bound_not_by_the_estimate(improved):
    """A threshold that the estimate meets and its bound does not is not reached."""
    judged = improved().judged
    assert rule(judged(Gate(minimum={"exact_match": 0.6})), "minimum").verdict == "PASS"
    close = rule(judged(Gate(minimum={"exact_match": 0.74})), "minimum")
    assert close.value > 0.74 > close.lower
    assert close.verdict == "INCONCLUSIVE"
    assert rule(judged(Gate(minimum={"exact_match": 0.95})), "minimum").verdict == "FAIL"
    assert rule(judged(Gate(minimum={"nll_per_byte": 1.5})), "minimum").verdict == "PASS"
    assert rule(judged(Gate(minimum={"nll_per_byte": 0.5})), "minimum").verdict == "FAIL"


def test_the_champion_must_be_matched(improved):
    """Without guarded metrics the primary one is guarded against the champion; a clear loss fails."""
    every = ("base", "champion", "candidate")
    even = improved(rows=210, variants=every).judged(Gate(delta=0.2))
    assert rule(even, "not_worse_than_champion").metric == "nll_per_byte"
    assert even.gate.verdict == "PASS"
    assert "loses no more than 0.2 to the champion in: Held-out loss." in even.gate.summary
    worse = improved(rows=210, variants=every, shift=6.0).judged(Gate(delta=0.2))
    assert rule(worse, "better_than_base").verdict == "PASS"
    assert rule(worse, "not_worse_than_champion").verdict == "FAIL"
    assert worse.gate.verdict == "FAIL"


def test_equal_to_the_champion_on_few_rows_is_not_shown_to_be_no_worse(improved):
    """No discordant pair in 60 is no proof that there is none in a thousand."""
    found = improved(rows=60, variants=("base", "champion", "candidate"))
    lines = [json.loads(line) for line in found.predictions]
    text = {line["id"]: line["text"] for line in lines if line["variant"] == "champion"}
    found.predictions = [
        json.dumps({**line, "text": text[line["id"]]} if line["variant"] == "candidate" else line).encode()
        for line in lines
    ]
    guarded = rule(found.judged(Gate(guarded=("exact_match",))), "not_worse_than_champion")
    assert (guarded.value, guarded.method, guarded.verdict) == (0, "tango", "INCONCLUSIVE")


def like_the_champion(found, rows=60, repeated=0):
    """Rows on which champion and candidate say the same; the first ones ask one question twice."""
    for i in range(rows):
        who = {
            "base": ("no idea", 20.0 + i % 5),
            "champion": ("yes it is", 8.0),
            "candidate": ("yes it is", 8.0),
        }
        found.ask(f"r{i:03d}", "yes", question=f"q{i // 2 if i < 2 * repeated else i}", **who)
    return found


@pytest.mark.parametrize("repeated", [0, 1, 12])
@pytest.mark.parametrize("metric", ["exact_match", "token_f1"])
def test_the_same_answers_as_the_champion_s_are_no_proof_on_few_rows(evaluated, metric, repeated):
    """Right or wrong or a share, asked once or twice: 60 rows that do not differ show nothing at a margin of 0.02."""
    found = like_the_champion(evaluated(variants=("base", "champion", "candidate")), repeated=repeated)
    guarded = rule(found.judged(Gate(guarded=(metric,))), "not_worse_than_champion")
    assert guarded.value == 0
    assert -0.06 < guarded.lower < -0.04
    assert guarded.verdict == "INCONCLUSIVE"
    assert guarded.n_needed > 60
    many = like_the_champion(
        evaluated(variants=("base", "champion", "candidate")), rows=400, repeated=repeated
    )
    assert rule(many.judged(Gate(guarded=(metric,))), "not_worse_than_champion").verdict == "PASS"


def test_a_few_repeated_questions_hardly_move_a_bound(evaluated):
    """One question that is asked twice among 100 leaves the method, and the bound within a tenth of a point."""

    def bound(repeated):
        found = evaluated(variants=("base", "champion", "candidate"))
        for i in range(100):
            texts = {
                "base": "x",
                "champion": "yes" if i % 20 else "no",
                "candidate": "yes" if i % 25 else "no",
            }
            asked = f"q{i - 1 if repeated and i == 57 else i}"
            found.ask(f"r{i:03d}", "yes", question=asked, **{who: (text, 9.0) for who, text in texts.items()})
        return rule(found.judged(Gate(guarded=("exact_match",))), "not_worse_than_champion")

    once, twice = bound(repeated=False), bound(repeated=True)
    assert once.method == twice.method == "tango"
    assert twice.lower == pytest.approx(once.lower, abs=1e-3)


def test_scores_that_are_all_the_best_do_not_reach_a_threshold_by_that(evaluated):
    """Forty perfect scores do not show 0.99 on average: a share of the rows was not seen."""
    found = evaluated()
    for i in range(40):
        found.ask(f"r{i:02d}", f"yes {i}", base=("no", 9.0 + i % 3), candidate=(f"yes {i}", 1.0))
    judged = found.judged(Gate(minimum={"token_f1": 0.99, "exact_match": 0.99}))
    lowers = [one.lower for one in judged.gate.rules if one.name == "minimum"]
    assert lowers == [pytest.approx(0.9366, abs=1e-3)] * 2


@pytest.mark.parametrize("variant", ["base", "champion", "candidate"])
def test_a_variant_that_lost_its_questions_with_its_answers_fails_closed(improved, variant):
    """A shard that is gone on both sides leaves no line behind that misses it, and still nothing passes."""
    found = improved(rows=60, variants=("base", "champion", "candidate"))
    assert found.judged(Gate(delta=0.9)).gate.verdict == "PASS"

    def lost(line):
        told = json.loads(line)
        return told["variant"] == variant and told["id"] < "row-0010"

    found.prompts = [line for line in found.prompts if not lost(line)]
    found.predictions = [line for line in found.predictions if not lost(line)]
    judgement = found.judged(Gate(delta=0.9))
    assert judgement.gate.verdict == "FAIL"
    assert judgement.gate.coverage.missing == 10


@pytest.mark.parametrize(
    "change", [{"reference": "easier"}, {"messages": [{"role": "user", "content": "?"}]}]
)
def test_variants_that_were_asked_different_things_fail_closed(improved, change):
    """One question put otherwise to one variant: no comparison rests on it."""
    found = improved()
    found.prompts[0] = json.dumps({**json.loads(found.prompts[0]), **change}).encode()
    judgement = found.judged()
    assert judgement.gate.verdict == "FAIL"
    assert "otherwise" in " ".join(judgement.gate.coverage.listed)


def test_a_champion_that_could_not_be_asked_leaves_it_open(improved):
    """An approved package on another base model makes a good candidate INCONCLUSIVE, with the reason."""
    judgement = improved().judged(champion_comparable=False, champion_note="Another base model.")
    assert judgement.gate.verdict == "INCONCLUSIVE"
    assert judgement.gate.summary == "Not decided. Another base model."


def test_a_metric_that_does_not_exist_fails(improved):
    """A typo in the recipe fails closed and lists the names that exist."""
    judgement = improved().judged(Gate(primary="acuracy"))
    assert judgement.gate.verdict == "FAIL"
    assert "exact_match" in rule(judgement, "known_metrics").reason


def test_a_metric_without_answers_fails(evaluated):
    """A primary metric of generation where nothing was generated fails, and says how to mend it."""
    found = evaluated()
    for i in range(40):
        found.ask(f"r{i}", "yes", generate=False, base=("", 3.0), candidate=("", 1.0))
    judgement = found.judged(Gate(primary="exact_match"))
    assert judgement.gate.verdict == "FAIL"
    assert "generate_at_most" in rule(judgement, "better_than_base").reason


def test_a_harmed_slice_blocks(evaluated):
    """An average that rises hides no slice that falls: harm beyond delta in a large slice fails."""
    found = evaluated()
    for i in range(400):
        french = i % 4 == 0
        found.ask(
            f"r{i:03d}",
            "yes",
            meta={"language": "fr" if french else "en"},
            base=("yes", 6.0 + i % 3),
            candidate=("yes", (9.0 if french else 1.0) + i % 3),
        )
    assert found.judged().gate.verdict == "PASS"
    judgement = found.judged(evaluation=Evaluation(slices=("language",)))
    assert judgement.gate.verdict == "FAIL"
    assert [(s.value, s.harmed) for s in judgement.gate.slices] == [("en", False), ("fr", True)]
    assert "language = fr" in rule(judgement, "slices").reason


def test_a_slice_that_no_row_is_in_leaves_it_open(improved):
    """A misspelt field of evaluation.slices shows nothing about the parts that were meant, and says so."""
    found = improved()
    found.meta = {row_id: {"language": "en"} for row_id in found.meta}
    judgement = found.judged(evaluation=Evaluation(slices=("language", "langauge")))
    assert judgement.gate.verdict == "INCONCLUSIVE"
    assert "langauge" in rule(judgement, "slices").reason
    assert found.judged(evaluation=Evaluation(slices=("language",))).gate.verdict == "PASS"


def test_a_small_slice_is_reported_and_never_blocks(improved):
    """Slices below 100 rows are told as too small."""
    found = improved()
    found.meta = {row_id: {"kind": "a"} for row_id in found.meta}
    judgement = found.judged(evaluation=Evaluation(slices=("kind",)))
    assert not judgement.gate.slices[0].powered
    assert judgement.gate.verdict == "PASS"


def test_rows_of_one_question_are_one_observation(evaluated):
    """Forty answers to one question are one independent row: inconclusive, not a pass."""
    found = evaluated()
    for i in range(40):
        found.ask(f"r{i}", "yes", question="same", base=("no", 9.0 + i % 2), candidate=("yes", 1.0))
    judgement = found.judged()
    assert rule(judgement, "sample_size").value == 1
    assert judgement.gate.verdict == "INCONCLUSIVE"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shuffler=st.randoms(use_true_random=False))
def test_order_and_sharding_change_no_bit(improved, shuffler):
    """However the lines are ordered, gate.json and metrics.json are the same bytes."""
    found = improved(variants=("base", "champion", "candidate"))
    expected = found.judged()
    shuffler.shuffle(found.prompts)
    shuffler.shuffle(found.predictions)
    again = found.judged()
    assert again.gate_json == expected.gate_json
    assert metrics_json(again.metrics) == metrics_json(expected.metrics)
    assert again.examples == expected.examples


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nlls=st.lists(st.tuples(st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=60))
def test_no_pass_without_a_mean_improvement(evaluated, nlls):
    """Whatever the numbers, PASS implies enough rows and a mean improvement."""
    found = evaluated()
    for i, (base, candidate) in enumerate(nlls):
        found.ask(f"r{i}", "answer", base=("", base), candidate=("", candidate))
    judgement = found.judged()
    json.loads(judgement.gate_json, parse_constant=pytest.fail)
    if judgement.gate.verdict == "PASS":
        assert len(nlls) >= 30
        assert sum(base - candidate for base, candidate in nlls) > 0


def test_policy_decides_what_is_registered(improved, evaluated):
    """PASS and INCONCLUSIVE follow the recipe's policy, FAIL registers nothing."""
    policy = Gate(on_pass="Approved", on_inconclusive="nothing")
    assert outcome(improved().judged(policy), policy, "runs").approval_status == "Approved"
    assert outcome(improved(rows=9).judged(policy), policy, "runs").approval_status == "nothing"
    assert outcome(evaluated().judged(policy), policy, "runs").approval_status == "nothing"


def test_partial_training_is_said(improved):
    """A candidate whose training was cut at its cap says so wherever the verdict is told."""
    judgement = improved().judged(partial_training=True)
    assert "stopped at its cap" in judgement.gate.summary
    assert outcome(judgement, Gate(), "runs").metadata["training"] == "stopped at its cap"
