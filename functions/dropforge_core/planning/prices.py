"""The Price List's answer as a catalogue: what AWS asks for each type today, in one region.

`GetProducts` answers with JSON documents, one a product. Nothing is carried over from the table that
ships: a type for which the answer has no price, or more than one, is listed without one.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from typing import Any, Final, NamedTuple

from dropforge_core.planning.catalogue import (
    P_CUT,
    STALE_DAYS,
    Catalogue,
    InstanceRow,
    ProcessingRow,
    Source,
    is_p,
)

SERVICE_CODE: Final = "AmazonSageMaker"
SOURCE: Final = "price-list-api"
COMPONENTS: Final[Mapping[str, str]] = {
    "training": "training",
    "batchtransform": "transform",
    "processing": "processing",
}
"""What a product is for, its `component` in small letters without blanks, to what it is here."""
SHORTEST_LIST: Final = 1
"""GPU types of the table that an answer must price at least to be believed."""


class PricesRefused(ValueError):
    """The answer can't be used. The message says what was found and what was expected."""


class Price(NamedTuple):
    """One product's price on demand."""

    instance_type: str
    kind: str
    """`training`, `transform` or `processing`."""
    usd_hour: float
    published: str
    """`YYYY-MM-DD`."""


def request(region: str) -> dict[str, Any]:
    """Arguments of `GetProducts` for every SageMaker instance of a region."""
    return {
        "ServiceCode": SERVICE_CODE,
        "FormatVersion": "aws_v1",
        "Filters": [
            {"Type": "TERM_MATCH", "Field": "regionCode", "Value": region},
            {"Type": "TERM_MATCH", "Field": "productFamily", "Value": "ML Instance"},
        ],
        "MaxResults": 100,
    }


def renewed(shipped: Catalogue, products: Iterable[str], region: str, today: date) -> Catalogue:
    """The table with the region's own prices, and with no other.

    Args:
        shipped: the types and GPUs that are known.
        products: `PriceList` of all pages, a JSON text each.
        region: that was asked for.
        today: the day of asking.

    Raises:
        PricesRefused: when the list is older than `STALE_DAYS`, or has P prices from before AWS cut them,
            or no price for any type of the table.
    """
    found = [price for text in products for price in _prices(text, region)]
    known = {row.type for row in shipped.instances}
    priced = [price for price in found if price.instance_type in known and price.kind == "training"]
    if len({price.instance_type for price in priced}) < SHORTEST_LIST:
        raise PricesRefused(
            f"the Price List has no training price in {region} for any type of the table ({len(found)} SageMaker "
            "prices in all). Is the region right, and does it offer GPU instances?"
        )
    published = min(price.published for price in priced)
    source = Source(
        as_of=published,
        what=f"AWS Price List, offer {SERVICE_CODE}, region {region}, on demand; asked on {today.isoformat()}",
    )
    if source.age_days(today) > STALE_DAYS:
        raise PricesRefused(
            f"the Price List for {region} was published on {published}, more than {STALE_DAYS} days ago."
        )
    if published < P_CUT and any(is_p(price.instance_type) for price in priced):
        raise PricesRefused(
            f"the Price List for {region} is of {published}: its prices of P instances are from before AWS cut "
            f"them in {P_CUT}."
        )
    of = {kind: _unambiguous(found, kind) for kind in COMPONENTS.values()}
    return Catalogue(
        schema_version=shipped.schema_version,
        currency=shipped.currency,
        region=region,
        refresh=shipped.refresh,
        sources={**shipped.sources, SOURCE: source},
        gpus=shipped.gpus,
        instances=tuple(_row(row, of) for row in shipped.instances),
        processing=tuple(
            ProcessingRow(type=name, usd_hour=usd, source=SOURCE)
            for name, usd in sorted(of["processing"].items())
        ),
    )


def _row(row: InstanceRow, of: Mapping[str, Mapping[str, float]]) -> InstanceRow:
    usd = of["training"].get(row.type)
    return row.model_copy(
        update={
            "usd_hour": usd,
            "source": SOURCE if usd is not None else None,
            "transform_usd_hour": of["transform"].get(row.type) if usd is not None else None,
        }
    )


def _unambiguous(prices: Iterable[Price], kind: str) -> dict[str, float]:
    """Prices of a kind by type; a type with two different ones has none."""
    by_type: dict[str, set[float]] = {}
    for price in prices:
        if price.kind == kind:
            by_type.setdefault(price.instance_type, set()).add(price.usd_hour)
    return {name: next(iter(found)) for name, found in by_type.items() if len(found) == 1}


def _prices(text: str, region: str) -> Iterator[Price]:
    """The hourly prices of one product in that region; nothing where it is something else."""
    try:
        offer = json.loads(text)
        product = offer["product"]
        attributes = product["attributes"]
        kind = COMPONENTS.get(re.sub(r"[^a-z]", "", str(attributes.get("component", "")).lower()))
        name = str(attributes.get("instanceName", ""))
        if kind is None or attributes.get("regionCode") != region or not name.startswith("ml."):
            return
        published = date.fromisoformat(str(offer["publicationDate"])[:10]).isoformat()
        for term in offer["terms"]["OnDemand"].values():
            for dimension in term["priceDimensions"].values():
                usd = float(dimension["pricePerUnit"]["USD"])
                if str(dimension["unit"]).lower() in {"hrs", "hour", "hours"} and usd > 0:
                    yield Price(name, kind, usd, published)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PricesRefused(
            f"a product of the Price List is not as its format aws_v1 says: {type(error).__name__} {error}."
        ) from error
