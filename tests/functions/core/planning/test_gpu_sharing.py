"""Several GPUs and hosts in the plan: nothing is recommended that does not fit, and all instances are paid."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planning_cases import LLAMA_3_8B, facts

from dropforge_core.planning import load_catalogue, shape_of
from dropforge_core.planning.duration import Workload
from dropforge_core.planning.memory import GIB, MARGIN, training_memory
from dropforge_core.planning.parallel import EFFICIENCY, efficiency, sharded_memory, shards_of, share
from dropforge_core.recipe import Recipe

TABLE = load_catalogue()
TYPES = tuple(row.type for row in TABLE.instances)
SEVERAL = tuple(row.type for row in TABLE.instances if row.gpus > 1)
EIGHT = shape_of(LLAMA_3_8B)
SEVENTY = shape_of(
    {
        **LLAMA_3_8B,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
    }
)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
ranks = st.integers(1, 256)
lengths = st.integers(64, 16_384)
hosts = st.integers(1, 4)


def recipe_of(*, rank=16, length=1024, count=1, batch=8192, **more):
    return Recipe.model_validate(
        {
            "base_model": "org/model",
            "adapter": {"r": rank, "dora": more.pop("dora", False)},
            "training": {"max_seq_len": length, "effective_batch_tokens": max(batch, length)},
            "compute": {"instance_count": count, "instance_types": list(TYPES)},
            **more,
        }
    )


@RELAXED
@given(
    shape=st.sampled_from([EIGHT, SEVENTY]),
    name=st.sampled_from(TYPES),
    rank=ranks,
    length=lengths,
    count=hosts,
    batch=st.integers(64, 200_000),
    quantization=st.sampled_from(["nf4", "none"]),
)
def test_what_is_said_to_fit_fits_by_the_same_formula(
    *, shape, name, rank, length, count, batch, quantization
):
    """The micro-batch holds the longest row, is no more than a step needs, and its memory is under the margin."""
    instance = TABLE.find(name)
    recipe = recipe_of(rank=rank, length=length, count=count, batch=batch, quantization=quantization)
    sharing = share(shape, recipe, instance)
    assert sharing.ranks == instance.gpus * count
    tokens = sharing.layout.micro_batch_tokens
    if tokens is None:
        return
    assert length <= tokens <= max(length, recipe.training.effective_batch_tokens)
    assert sharing.memory.gib <= MARGIN * instance.gpu.memory_gib
    if sharing.parallelism == "fsdp":
        again = sharded_memory(
            shape,
            recipe,
            shards=shards_of(instance, recipe),
            micro_batch_tokens=tokens,
            checkpointing=sharing.layout.checkpointing,
        )
    else:
        again = training_memory(
            shape,
            recipe,
            micro_batch_tokens=tokens,
            checkpointing=sharing.layout.checkpointing,
            residency=sharing.layout.residency,
        )
    assert sharing.memory == again


@RELAXED
@given(
    shape=st.sampled_from([EIGHT, SEVENTY]),
    name=st.sampled_from(SEVERAL),
    sizes=st.tuples(ranks, ranks, lengths, lengths),
    count=hosts,
)
def test_what_fits_with_more_fits_with_less(shape, name, sizes, count):
    """On types with several GPUs fitting is antitone in rank and row length, and more hosts take nothing away."""
    small, large, short, long = sizes[0], sizes[1], sizes[2], sizes[3]
    (small, large), (short, long) = sorted((small, large)), sorted((short, long))

    def fits(rank, length, hosts):
        sharing = share(shape, recipe_of(rank=rank, length=length, count=hosts), TABLE.find(name))
        return sharing.layout.micro_batch_tokens is not None

    if fits(large, long, count):
        assert fits(small, short, count)
        assert fits(large, long, count + 1)


@RELAXED
@given(shards=st.integers(1, 63), tokens=st.integers(0, 9000), recomputed=st.booleans(), rank=ranks)
def test_more_shards_never_take_more_memory(shards, tokens, recomputed, rank):
    """Each part of a sharded base is smaller, and what lies whole in every GPU stays."""
    recipe = recipe_of(rank=rank)
    few, many = (
        sharded_memory(SEVENTY, recipe, shards=n, micro_batch_tokens=tokens, checkpointing=recomputed)
        for n in (shards, shards + 1)
    )
    assert many.weights < few.weights
    assert many.total - many.weights == few.total - few.weights
    assert many.weights > SEVENTY.embedding_parameters * 2


def test_a_base_is_sharded_only_where_one_gpu_is_too_small():
    """8 B go into each of four L4; 70 B in parts; with DoRA, which needs whole weights, they don't fit at all."""
    four = TABLE.find("ml.g6.12xlarge")
    assert share(EIGHT, recipe_of(), four).parallelism == "dp"
    sharded = share(SEVENTY, recipe_of(), four)
    assert (sharded.parallelism, sharded.ranks) == ("fsdp", 4)
    whole = training_memory(SEVENTY, recipe_of(), micro_batch_tokens=1024, checkpointing=True).total
    assert sharded.memory.total < whole
    assert whole > MARGIN * four.gpu.memory_gib * GIB
    assert share(SEVENTY, recipe_of(dora=True), four).layout.micro_batch_tokens is None


def test_one_gpu_is_as_fast_as_itself_and_many_never_faster_together():
    """Alone it loses nothing; together each loses a share; those without a row of the step have nothing to do."""
    alone, four = TABLE.find("ml.g6.xlarge"), TABLE.find("ml.g6.12xlarge")

    def speed(instance, recipe):
        work = Workload(recipe=recipe, dataset=facts(tokens=512_000, rows=500), shape=EIGHT)
        return efficiency(work, share(EIGHT, recipe, instance))

    assert speed(alone, recipe_of()).expected == 1.0
    assert speed(four, recipe_of(batch=65_536)) == EFFICIENCY["dp"]
    one_row = speed(four, recipe_of(batch=1024))
    assert one_row.expected == pytest.approx(EFFICIENCY["dp"].expected / 4, rel=0.1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_instance_is_paid(make_plan, count):
    """The price of an hour, the cost and the cap count all hosts."""
    compute = {"instance_types": ["ml.g6.12xlarge"], "instance_count": count, "spot": False}
    made = make_plan({"compute": {**compute, "max_cost_usd": 200}}, tokens=2_000_000)
    option = made.options[0]
    single = TABLE.find("ml.g6.12xlarge").usd_hour
    assert option.price_usd_hour == pytest.approx(single * count)
    assert option.ranks == 4 * count
    seconds = made.forecast.phase_s["training"].expected
    paid = seconds / 3600 * single * count
    assert option.cost_usd.expected == pytest.approx(paid + evaluation_usd(made), rel=1e-6)
    assert (
        made.compute.max_runtime_s / 3600 * single * count + made.evaluation_reserve_usd
        <= made.spend_limit_usd
    )


def evaluation_usd(made):
    """Expected, on the type that was planned."""
    price = TABLE.find(made.evaluation_instance_type).usd_hour
    return made.forecast.phase_s["evaluation"].expected / 3600 * price


def test_instances_that_stay_warm_are_paid_and_kept_within_the_cap(make_plan):
    """An hour of warmth costs an hour, and what it costs is not there for training."""
    compute = {"instance_types": ["ml.g6.12xlarge"], "instance_count": 2, "spot": False, "max_cost_usd": 60}
    cold = make_plan({"compute": compute})
    warm = make_plan({"compute": {**compute, "keep_alive_s": 3600}})
    hour = 2 * TABLE.find("ml.g6.12xlarge").usd_hour
    for bound in ("low", "expected", "high"):
        assert getattr(warm.cost_usd, bound) - getattr(cold.cost_usd, bound) == pytest.approx(hour)
    spent = warm.compute.max_runtime_s / 3600 * hour + hour + warm.evaluation_reserve_usd
    assert spent <= warm.spend_limit_usd
    assert warm.compute.max_runtime_s < cold.compute.max_runtime_s
