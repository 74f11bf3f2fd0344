"""Several instance types in one request: each of them bears the request, and the cap pays the dearest."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropforge_core.planning import load_catalogue
from dropforge_core.planning.preferences import MOST

TYPES = tuple(row.type for row in load_catalogue().instances)
RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@RELAXED
@given(
    types=st.lists(st.sampled_from([*TYPES, "ml.m5.large"]), min_size=1, max_size=9, unique=True),
    length=st.integers(16, 16_384),
    tokens=st.integers(1, 10**8),
    cap=st.floats(1, 2000),
)
def test_every_type_of_a_request_bears_it(make_plan, types, length, tokens, cap):
    """Each fits, has the same layout, finishes within the run time, and at its price that time is within the cap."""
    made = make_plan(
        {
            "training": {"max_seq_len": length},
            "compute": {
                "instance_types": types,
                "max_cost_usd": cap,
                "spot": False,
                "instance_preferences": True,
            },
        },
        tokens=tokens,
    )
    compute = made.compute
    asked = (compute.instance_type, *compute.preferences)
    assert len(asked) <= MOST
    assert not set(asked) & set(compute.remaining_types)
    assert [name for name in types if name in asked] == list(asked)
    if not compute.preferences:
        return
    options = [next(o for o in made.options if o.instance_type == name) for name in asked]
    for option in options:
        assert option.fits
        assert option.parallelism == options[0].parallelism
        paid = compute.max_runtime_s / 3600 * option.price_usd_hour + made.evaluation_reserve_usd
        assert paid <= made.spend_limit_usd + 1e-6
    assert length <= compute.micro_batch_tokens


def test_a_list_is_only_asked_for_where_the_recipe_says_so(make_plan):
    """By default one type is named, also on demand, and the others wait for the ladder."""
    types = ["ml.g6.xlarge", "ml.g5.xlarge", "ml.g6e.xlarge"]
    plain = make_plan({"compute": {"instance_types": types, "spot": False}}).compute
    assert (plain.preferences, plain.remaining_types) == ((), tuple(types[1:]))
    listed = make_plan(
        {"compute": {"instance_types": types, "spot": False, "instance_preferences": True}}
    ).compute
    assert listed.preferences
    assert listed.max_runtime_s <= plain.max_runtime_s
