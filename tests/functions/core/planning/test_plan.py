"""The plan: what it promises of memory, money and time, whatever is asked."""

import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_cases import LLAMA_3_8B, RUN, facts

from dropforge_core.identity import job_name
from dropforge_core.planning import BaseSource, headline, load_catalogue, plan, shape_of, source_revision
from dropforge_core.planning.arithmetic import arithmetic
from dropforge_core.planning.catalogue import Catalogue
from dropforge_core.planning.duration import ESTIMATE_ERROR, LEAST_RUNTIME_S, Workload, training_seconds
from dropforge_core.planning.explain import Earlier
from dropforge_core.planning.memory import MARGIN
from dropforge_core.recipe import Recipe

TYPES = tuple(row.type for row in load_catalogue().instances)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
BIG = {
    **LLAMA_3_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
}
MIDDLE = {**BIG, "num_hidden_layers": 40}


@RELAXED
@given(
    types=st.lists(st.sampled_from([*TYPES, "ml.m5.large"]), min_size=1, max_size=5, unique=True),
    rank=st.integers(1, 256),
    length=st.integers(16, 32_768),
    tokens=st.integers(1, 10**9),
    cap=st.floats(0.5, 5000),
    hours=st.floats(0.1, 600),
    spot=st.booleans(),
    asks=st.sampled_from(["never", "over_cap", "always"]),
)
def test_a_plan_never_takes_what_does_not_fit_or_break_its_cap(
    *, make_plan, types, rank, length, tokens, cap, hours, spot, asks
):
    """A fitting choice is under the margin, and run time at the on-demand price plus evaluation is paid by the limit."""
    made = make_plan(
        {
            "adapter": {"r": rank},
            "training": {"max_seq_len": length},
            "compute": {"instance_types": types, "max_cost_usd": cap, "max_hours": hours, "spot": spot},
            "approval": {"spend": asks},
        },
        tokens=tokens,
    )
    chosen = next(o for o in made.options if o.instance_type == made.compute.instance_type)
    assert made.compute.max_wait_s >= made.compute.max_runtime_s >= 0
    for option in made.options:
        for interval in filter(None, (option.hours, option.cost_usd)):
            assert 0 <= interval.low <= interval.expected <= interval.high
        assert not option.fits or option.predicted_memory_gib <= MARGIN * option.gpu_memory_gib
    if made.fits:
        assert chosen.fits
        assert made.compute.micro_batch_tokens >= length
        paid = made.compute.max_runtime_s / 3600 * (chosen.price_usd_hour or 0) + made.evaluation_reserve_usd
        assert paid <= made.spend_limit_usd + 1e-6 or made.compute.max_runtime_s == 0
    if made.within_budget:
        assert made.fits
        assert made.cost_usd.expected <= cap
        assert made.spend_limit_usd == cap
    if made.spend_limit_usd > cap:
        assert made.needs_approval
    assert made.reason
    assert headline(made)


@RELAXED
@given(st.integers(1, 10**8), st.integers(1, 10**8), st.sampled_from(TYPES))
def test_more_tokens_never_take_less_time_or_money(make_plan, some, more, instance_type):
    """Hours and dollars climb with the dataset."""
    compute = {"compute": {"instance_types": [instance_type]}}
    small, large = (make_plan(compute, tokens=n).options[0] for n in sorted((some, more)))
    if small.hours is not None:
        assert small.hours.expected <= large.hours.expected
    if small.cost_usd is not None:
        assert small.cost_usd.expected <= large.cost_usd.expected


@RELAXED
@given(st.integers(1, 256), st.integers(1, 256), st.integers(16, 65_536), st.integers(16, 65_536))
def test_what_fits_with_more_rank_and_length_fits_with_less(make_plan, r1, r2, l1, l2):
    """Fitting is antitone in rank and sequence length on every type."""

    def fits(rank, length):
        recipe = {"adapter": {"r": rank}, "training": {"max_seq_len": length}}
        return [o.fits for o in make_plan(recipe).options]

    less, more = fits(min(r1, r2), min(l1, l2)), fits(max(r1, r2), max(l1, l2))
    assert all(a or not b for a, b in zip(less, more, strict=True))


@pytest.mark.parametrize(
    ("exact", "error", "share", "told"),
    [
        (True, None, 0.0, "counted with the base model's tokenizer"),
        (False, 0.02, 0.02, "2.00% either way at 95 %"),
        (False, None, ESTIMATE_ERROR, "estimated from bytes, not counted"),
    ],
)
def test_what_is_not_known_of_the_tokens_widens_the_plan(exact, error, share, told):
    """A sample's error, or an estimate's, is in the interval of the time, and `--why` tells it."""
    counted = facts(tokens=50_000_000)
    dataset = counted.model_copy(update={"tokens_exact": exact, "tokens_error": error})
    recipe, shape = Recipe.model_validate({"base_model": "org/model"}), shape_of(LLAMA_3_8B)
    gpu = load_catalogue().find("ml.g6.xlarge").gpu
    sure, unsure = (
        training_seconds(Workload(recipe=recipe, dataset=one, shape=shape), gpu, checkpointing=True)
        for one in (counted, dataset)
    )
    assert unsure.expected == sure.expected
    assert unsure.low / sure.low == pytest.approx(1 - share, rel=0.01)
    assert unsure.high / sure.high == pytest.approx(1 + share, rel=0.01)
    base = BaseSource(name="m", source="hub:m", prefix="p/", cached=True)
    made = plan(recipe=recipe, dataset=dataset, shape=shape, base=base, run_id=RUN, model="m")
    lines = arithmetic(made, recipe=recipe, dataset=dataset, shape=shape, catalogue=load_catalogue())
    assert told in lines[0].source
    assert lines[0].value.count(" - ") == (0 if exact else 2)


def test_the_first_type_that_fits_and_is_paid_is_taken(make_plan):
    """Types that don't fit are passed over; those behind the choice remain for the ladder."""
    types = ["ml.g6.xlarge", "ml.p5e.48xlarge", "ml.g6e.xlarge", "ml.p5.4xlarge"]
    recipe = {
        "training": {"max_seq_len": 32_768},
        "compute": {"instance_types": types, "evaluation_instance_types": ["ml.g6e.xlarge"]},
    }
    made = make_plan(recipe)
    assert made.compute.instance_type == "ml.g6e.xlarge"
    assert made.compute.remaining_types == ("ml.p5.4xlarge",)
    assert made.compute.job_name == job_name("support-bot", RUN, 1)
    assert [o.price_usd_hour for o in made.options][1] is None
    assert made.gradient_checkpointing


def test_a_gpu_that_is_newer_than_the_image_is_never_taken(make_plan):
    """Its job would end at the first kernel: it is passed over with the reason, by choice and by the ladder."""
    beside = make_plan({"compute": {"instance_types": ["ml.g7e.2xlarge", "ml.g6e.xlarge", "ml.g7e.4xlarge"]}})
    assert beside.fits
    assert beside.compute.instance_type == "ml.g6e.xlarge"
    assert beside.compute.remaining_types == ()
    assert any(note.startswith("ml.g7e.2xlarge, ml.g7e.4xlarge can't be taken") for note in beside.notes)
    alone = make_plan({"compute": {"instance_types": ["ml.g7e.2xlarge"]}})
    assert not alone.fits
    assert "ml.g7e.2xlarge can't be taken: the training image's CUDA" in alone.reason


def test_a_small_model_trains_without_recomputation(make_plan):
    """Recomputation, which costs a third more time, is only taken where memory asks for it."""
    small = {
        **LLAMA_3_8B,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    }
    assert not make_plan(config=small).gradient_checkpointing


@pytest.mark.parametrize(
    ("recipe", "config", "says"),
    [
        ({}, BIG, "evaluation_instance_types"),
        (
            {"compute": {"evaluation_instance_types": ["ml.g6e.xlarge"], "instance_types": ["ml.g6.xlarge"]}},
            MIDDLE,
            "Allow a larger",
        ),
        ({"compute": {"instance_types": ["ml.p5e.48xlarge"]}}, None, "no price is known"),
        ({"compute": {"max_cost_usd": 1}, "training": {"epochs": 100}}, None, "It would take max_cost_usd"),
    ],
)
def test_a_plan_that_cannot_go_says_what_is_missing(make_plan, recipe, config, says):
    """Nothing is spent, and the sentence names the setting to change."""
    made = make_plan(recipe, config, tokens=5_000_000)
    assert not made.within_budget
    assert says in made.reason


def test_the_sum_that_would_be_enough_is_enough(make_plan):
    """Following the advice of an over-budget plan makes it go."""
    recipe = {"compute": {"max_cost_usd": 1, "max_hours": 1, "instance_types": ["ml.g6.xlarge"]}}
    refused = make_plan(recipe, tokens=20_000_000)
    dollars, hours = re.search(r"max_cost_usd (\d+) and max_hours ([\d.]+)\.$", refused.reason).groups()
    recipe["compute"] |= {"max_cost_usd": float(dollars), "max_hours": float(hours)}
    assert make_plan(recipe, tokens=20_000_000).within_budget


@RELAXED
@given(spent=st.floats(0, 60), done=st.floats(0, 1), cap=st.floats(1, 50), tokens=st.integers(10**5, 10**8))
def test_a_run_that_is_started_again_has_what_is_left_of_its_cap(*, make_plan, spent, done, cap, tokens):
    """Run time, evaluation and all that was spent before stay within one cap; what was trained is not paid again."""
    recipe = {"compute": {"max_cost_usd": cap, "spot": False}}
    made = make_plan(recipe, tokens=tokens, known={"earlier": Earlier(spent_usd=spent, done=done)})
    price = next(o.price_usd_hour for o in made.options if o.instance_type == made.compute.instance_type)
    if made.within_budget:
        whole = made.compute.max_runtime_s / 3600 * price + made.evaluation_reserve_usd + spent
        assert whole <= cap + 1e-6
        assert made.compute.max_runtime_s >= LEAST_RUNTIME_S or made.compute.max_runtime_s >= (
            made.forecast.phase_s["training"].expected - 1
        )
    elif spent:
        assert f"${spent:.2f} are spent" in made.reason or made.cost_usd.expected > cap


def test_over_the_cap_a_person_is_asked_for_what_comes_on_top(make_plan):
    """Of a run that was started again the sum in the question has in it what it has spent."""
    recipe = {"compute": {"max_cost_usd": 5}, "approval": {"spend": "over_cap"}}
    made = make_plan(recipe, tokens=10**6, known={"earlier": Earlier(spent_usd=4.9)})
    assert made.needs_approval
    assert made.spend_limit_usd >= 4.9 + made.cost_usd.high
    assert any("has spent $4.90 of its cap" in note for note in made.notes)


@pytest.mark.parametrize(
    ("recipe", "config"),
    [
        ({}, BIG),
        (
            {"compute": {"evaluation_instance_types": ["ml.g6e.xlarge"], "instance_types": ["ml.g6.xlarge"]}},
            MIDDLE,
        ),
        ({"training": {"max_seq_len": 65_536}, "compute": {"instance_types": ["ml.g5.xlarge"]}}, None),
    ],
)
def test_what_would_fit_does(make_plan, recipe, config):
    """Following the advice of a plan where nothing fits, for training, evaluation or length of rows, makes it fit."""
    refused = make_plan(recipe, config)
    assert not refused.fits
    said = dict(re.findall(r"For (training|the evaluation) (ml\.\S+) \(", refused.reason))
    fields = {"training": "instance_types", "the evaluation": "evaluation_instance_types"}
    compute = {**recipe.get("compute", {}), **{fields[what]: [name] for what, name in said.items()}}
    if said:
        assert make_plan({**recipe, "compute": compute}, config).fits
    shorter = re.search(r"With training\.max_seq_len (\d+) (ml\.\S+) would do", refused.reason)
    if shorter:
        training = {**recipe.get("training", {}), "max_seq_len": int(shorter[1])}
        made = make_plan({**recipe, "training": training}, config)
        assert next(o for o in made.options if o.instance_type == shorter[2]).fits
    assert said or shorter or "Batch transform has no GPU that large" in refused.reason


def test_over_the_cap_a_person_is_asked_for_the_sum_that_it_may_take(make_plan):
    """With approval over the cap, the limit covers the expected run and is never raised silently."""
    recipe = {"compute": {"max_cost_usd": 1}, "approval": {"spend": "over_cap"}}
    made = make_plan(recipe, tokens=20_000_000)
    assert made.needs_approval
    assert not made.within_budget
    assert made.spend_limit_usd >= made.cost_usd.high > 1
    assert made.compute.max_runtime_s >= made.hours.expected * 3600 * 0.9


def test_steps_follow_epochs_or_are_given(make_plan):
    """Three epochs unless the recipe says otherwise; a fraction of a batch is a step."""
    assert make_plan(tokens=8192).steps == 3
    assert make_plan({"training": {"epochs": 0.1}}, tokens=8192).steps == 1
    given_steps = make_plan({"training": {"steps": 7, "effective_batch_tokens": 100}}, tokens=8192)
    assert (given_steps.steps, given_steps.tokens_total) == (7, 700)


def test_every_price_has_a_source_with_a_date():
    """A price without a source, or a source without a price, is refused when the table is read."""
    table = load_catalogue()
    assert all(table.sources[row.source].as_of for row in table.instances if row.usd_hour is not None)
    rows = table.model_dump()
    rows["instances"][0]["source"] = None
    with pytest.raises(ValueError, match="needs a source"):
        Catalogue.model_validate(rows)


def test_a_source_s_revision_is_its_content_s():
    """Order and quotes around ETags don't matter; sizes, names and ETags do; nothing is no model."""
    a, b = ("config.json", 3, '"e1"'), ("model.safetensors", 9, "e2")
    assert re.fullmatch(r"[0-9a-f]{40}", source_revision([a, b]))
    assert source_revision([a, b]) == source_revision([b, ("config.json", 3, "e1")])
    assert len({source_revision([a]), source_revision([b]), source_revision([("config.json", 4, "e1")])}) == 3
    with pytest.raises(ValueError, match="no object"):
        source_revision([])


@pytest.mark.parametrize(
    ("allowed", "said"),
    [
        ("https://mlflow.example.org/", "is told of the run when it has ended"),
        ("https://mlflow.example.org:443", "nothing, as it is not the one in the stack's parameter"),
        ("", "nothing, as there is none in the stack's parameter"),
        (None, "if tracking.mlflow_uri is the server of the stack's parameter"),
    ],
)
def test_who_tells_a_tracking_server_stands_in_the_plan(make_plan, allowed, said):
    """Jobs have no network: the stack tells the server that its owner allows, and no other; other recipes need no note."""
    asked = make_plan(
        {"tracking": {"mlflow_uri": "https://mlflow.example.org"}}, known={"mlflow_uri": allowed}
    )
    assert [said in note for note in asked.notes if "network" in note] == [True]
    silent = make_plan({"tracking": {"tensorboard": True}}, known={"mlflow_uri": allowed})
    assert not [note for note in silent.notes if "network" in note]
