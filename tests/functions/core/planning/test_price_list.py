"""The Price List's answer as a table of prices: what is taken, what is left without a price, what is refused."""

import json
from datetime import date

import botocore.session
import pytest
from botocore.validate import ParamValidator
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import planned

from dropforge_core.planning import load_catalogue
from dropforge_core.planning.catalogue import P_CUT, STALE_DAYS, Catalogue
from dropforge_core.planning.prices import SOURCE, PricesRefused, renewed, request

TODAY = date(2026, 11, 21)
REGION = "eu-west-1"


def product(instance_type="ml.g6.xlarge", usd="1.25", component="Training", **changed) -> str:
    """One product in the format aws_v1."""
    told = {"regionCode": REGION, "unit": "Hrs", "published": "2026-11-01T00:00:00Z", **changed}
    return json.dumps(
        {
            "product": {
                "productFamily": "ML Instance",
                "sku": "X",
                "attributes": {
                    "instanceName": instance_type,
                    "instanceType": f"{instance_type}-{component}",
                    "component": component,
                    "regionCode": told["regionCode"],
                },
            },
            "serviceCode": "AmazonSageMaker",
            "terms": {
                "OnDemand": {
                    "X.J": {
                        "effectiveDate": told["published"],
                        "priceDimensions": {"X.J.6": {"unit": told["unit"], "pricePerUnit": {"USD": usd}}},
                    }
                }
            },
            "version": "1",
            "publicationDate": told["published"],
        }
    )


def refreshed(*products: str) -> Catalogue:
    return renewed(load_catalogue(), products, REGION, TODAY)


def test_the_request_is_one_that_botocore_takes():
    """Service, filters and page size are those of GetProducts."""
    model = botocore.session.get_session().get_service_model("pricing")
    asked = request(REGION)
    assert not ParamValidator().validate(asked, model.operation_model("GetProducts").input_shape).has_errors()
    kinds = model.shape_for("FilterType").enum
    assert all(part["Type"] in kinds for part in asked["Filters"])


def test_prices_are_the_region_s_and_no_other():
    """What the list has is taken, for training, transform and processing; every other type is left without a price."""
    table = refreshed(
        product(),
        product(usd="1.3", component="Batch Transform"),
        product("ml.m5.xlarge", "0.25", component="Processing"),
        product("ml.g5.xlarge", "9", regionCode="us-east-1"),
        product("ml.g5.xlarge", "9", component="Hosting"),
        product("ml.g5.xlarge", "9", unit="GB"),
        product("ml.t9.nano", "9"),
    )
    assert table.region == REGION
    priced = {row.type: (row.usd_hour, row.transform_usd_hour) for row in table.instances if row.usd_hour}
    assert priced == {"ml.g6.xlarge": (1.25, 1.3)}
    assert table.processing_price("ml.m5.xlarge") == 0.25
    assert table.price("ml.g6.xlarge", "evaluation") == 1.3
    assert table.sources[SOURCE].as_of == "2026-11-01"
    assert [row.type for row in table.instances] == [row.type for row in load_catalogue().instances]


def test_a_type_with_two_prices_has_none():
    """Which of two prices holds is never guessed; the same price twice is one."""
    table = refreshed(product(), product(), product("ml.g5.xlarge", "1.5"), product("ml.g5.xlarge", "1.6"))
    assert table.find("ml.g6.xlarge").usd_hour == 1.25
    assert table.find("ml.g5.xlarge").usd_hour is None


@pytest.mark.parametrize(
    ("products", "says"),
    [
        ([], "no training price"),
        ([product(component="Hosting")], "no training price"),
        ([product(published="2025-01-01T00:00:00Z")], "days ago"),
        (["{}"], "format aws_v1"),
        (["[]"], "format aws_v1"),
        ([product(usd="dear")], "format aws_v1"),
    ],
)
def test_a_list_that_cannot_be_believed_is_refused(products, says):
    """No price for any type, an old list, or another format: the prices in use stay what they are."""
    with pytest.raises(PricesRefused, match=says):
        refreshed(*products)


def test_p_prices_from_before_the_cut_are_refused():
    """A list or a table of before June 2025 asks 37.69 for a p4d: neither is taken."""
    old = [product("ml.p4d.24xlarge", "37.688", published="2025-05-30T00:00:00Z")]
    with pytest.raises(PricesRefused, match=P_CUT):
        renewed(load_catalogue(), old, REGION, date(2025, 6, 10))
    rows = load_catalogue().model_dump()
    rows["sources"]["price-list-2026-09"]["as_of"] = "2025-05"
    with pytest.raises(ValueError, match="before AWS cut"):
        Catalogue.model_validate(rows)


@given(st.dates(date(2026, 9, 1), date(2040, 1, 1)))
def test_prices_that_grew_old_are_not_believed(today):
    """A type whose price is older than STALE_DAYS is listed without one, and so is never chosen."""
    shipped = load_catalogue()
    believed = shipped.believed(today)
    for before, now in zip(shipped.instances, believed.instances, strict=True):
        old = before.source is not None and shipped.sources[before.source].age_days(today) > STALE_DAYS
        assert now.usd_hour == (None if old else before.usd_hour)
    if all(row.usd_hour is None for row in believed.instances):
        made = planned(known={"catalogue": believed})
        assert not made.within_budget
        assert all(option.cost_usd is None for option in made.options)


def test_fetching_the_base_model_is_priced_where_a_price_is_known():
    """A processing price counts the copy into cost and reserve; without one it is told; a cached base costs nothing."""
    table = refreshed(product(), product("ml.m5.xlarge", "0.25", component="Processing"))
    recipe = {"compute": {"instance_types": ["ml.g6.xlarge"], "evaluation_instance_types": ["ml.g6.xlarge"]}}
    known = {"catalogue": table, "cache_instance_type": "ml.m5.xlarge"}
    fetched = planned(recipe, known=known)
    cached = planned(recipe, cached=True, known=known)
    unpriced = planned(recipe, known={"cache_instance_type": "ml.m5.xlarge"})
    seconds = fetched.forecast.phase_s["caching"].expected
    assert fetched.cost_usd.expected - cached.cost_usd.expected == pytest.approx(seconds / 3600 * 0.25)
    assert fetched.evaluation_reserve_usd > cached.evaluation_reserve_usd
    assert "caching" not in cached.forecast.phase_s
    assert [note for note in unpriced.notes if "has no price here" in note]
    assert not [note for note in fetched.notes if "has no price here" in note]


def test_cheapest_and_fastest_are_those_of_the_options():
    """Of the types that fit, the named ones have the least expected cost and time, and the reason names them."""
    types = ["ml.g6.xlarge", "ml.g5.xlarge", "ml.g6e.xlarge", "ml.p5e.48xlarge"]
    made = planned({"compute": {"instance_types": types}})
    fitting = [option for option in made.options if option.fits]
    assert (
        made.cheapest
        == min((o for o in fitting if o.cost_usd), key=lambda o: o.cost_usd.expected).instance_type
    )
    assert made.fastest == min(fitting, key=lambda o: o.hours.expected).instance_type
    assert made.fastest in made.reason or "it is the fastest" in made.reason.lower()
    assert made.cheapest in made.reason or "cheapest" in made.reason
