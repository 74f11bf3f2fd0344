"""`prices refresh`: the Price List of the stack's region in the place of the prices that ship."""

from collections.abc import Iterator
from datetime import date
from typing import Any, Final

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dropforge.cli.console import USAGE, CommandFailed, said
from dropforge.cli.stack import Stack
from dropforge_core.layout import PRICES
from dropforge_core.model import Frozen
from dropforge_core.planning.catalogue import Catalogue, load_catalogue
from dropforge_core.planning.prices import SOURCE, PricesRefused, renewed, request

PRICE_LIST_REGION: Final = "us-east-1"
"""The Price List answers in few regions only, and for all of them."""


class Change(Frozen):
    """One type's price before and now, US dollars an hour; None where there is none."""

    instance_type: str
    shipped_usd_hour: float | None
    usd_hour: float | None
    transform_usd_hour: float | None


class Changes(Frozen):
    """What a refresh brought."""

    region: str
    as_of: str
    instances: tuple[Change, ...]
    processing: int
    """Types that have a price for processing jobs."""


def price_list() -> Any:
    """A client of the Price List."""
    return boto3.client("pricing", region_name=PRICE_LIST_REGION)


def region_of(asked: str | None) -> str:
    """The region that was asked for, else the environment's.

    Raises:
        CommandFailed: when neither says one.
    """
    region = asked or boto3.session.Session().region_name
    if not region:
        raise CommandFailed("No region is set. Name one with --region or AWS_REGION.", USAGE)
    return str(region)


def fetch(client: Any, region: str, today: date) -> Catalogue:
    """The table with the region's prices.

    Raises:
        CommandFailed: when AWS does not answer, or not with prices that can be believed.
    """
    try:
        return renewed(load_catalogue(), _products(client, region), region, today)
    except PricesRefused as error:
        raise CommandFailed(f"The prices were not taken: {error}", 1) from error
    except (ClientError, BotoCoreError) as error:
        raise CommandFailed(
            f"The Price List can't be asked: {error} It takes the permission pricing:GetProducts; the local AWS has "
            "no Price List.",
            USAGE,
        ) from error


def _products(client: Any, region: str) -> Iterator[str]:
    for page in client.get_paginator("get_products").paginate(**_without_page_size(request(region))):
        yield from page["PriceList"]


def _without_page_size(asked: dict[str, Any]) -> dict[str, Any]:
    size = asked.pop("MaxResults")
    return {**asked, "PaginationConfig": {"PageSize": size}}


def keep(stack: Stack, fetched: Catalogue) -> None:
    """Leave the table where the stack's functions look for it.

    Raises:
        CommandFailed: when the run bucket can't be written.
    """
    try:
        stack.runs_bucket.write(PRICES, fetched.model_dump_json(indent=1).encode())
    except (ClientError, BotoCoreError) as error:
        raise CommandFailed(
            f"s3://{stack.resources.run_bucket}/{PRICES} can't be written: {error}", USAGE
        ) from error


def compare(fetched: Catalogue, today: date) -> Changes:
    """The fetched prices beside those that ship."""
    shipped = load_catalogue().believed(today)
    return Changes(
        region=fetched.region,
        as_of=fetched.sources[SOURCE].as_of,
        instances=tuple(
            Change(
                instance_type=new.type,
                shipped_usd_hour=old.usd_hour,
                usd_hour=new.usd_hour,
                transform_usd_hour=new.transform_usd_hour,
            )
            for old, new in zip(shipped.instances, fetched.instances, strict=True)
        ),
        processing=len(fetched.processing),
    )


def read(path: Any) -> Catalogue:
    """A table that `prices refresh --out` wrote.

    Raises:
        CommandFailed: when it is something else.
    """
    try:
        return Catalogue.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandFailed(
            f"{path} is no table of prices: {error} `dropforge prices refresh --out` writes one.", USAGE
        ) from error


def view(changes: Changes) -> RenderableType:
    """The prices for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("instance", "shipped", "training", "transform"):
        table.add_column(heading, justify="left" if heading == "instance" else "right")
    for change in changes.instances:
        table.add_row(
            change.instance_type,
            *(
                f"${usd:.3f}" if usd is not None else "-"
                for usd in (change.shipped_usd_hour, change.usd_hour, change.transform_usd_hour)
            ),
        )
    head = f"{changes.region}, published {changes.as_of}; {changes.processing} types for processing jobs"
    return Group(said(head), Text(), table)
