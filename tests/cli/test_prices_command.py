"""`prices refresh` and the plans that go by it."""

import json
from datetime import date

import boto3
import pytest
from aws_answers import answering

from dropforge.cli import prices
from dropforge.cli.console import CommandFailed
from dropforge.cli.stack import Stack
from dropforge_core.layout import PRICES
from dropforge_core.planning.calibration import SPEEDS_NOTE, Speed, write_speeds
from dropforge_core.planning.catalogue import Catalogue, load_catalogue

TODAY = date(2026, 11, 21)
LLAMA = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 4096,
}
OFFER = {
    "product": {
        "attributes": {"instanceName": "ml.g6.xlarge", "component": "Training", "regionCode": "eu-west-1"}
    },
    "terms": {
        "OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": "1.25"}}}}}
    },
    "publicationDate": "2026-11-01T00:00:00Z",
}


def test_every_page_is_read_and_kept_where_the_stack_looks(world):
    """The answer's pages are followed, the request is botocore's, and the run bucket has the table."""
    asked = []

    def reply(operation, arguments):
        asked.append(arguments)
        last = "NextToken" in arguments
        return {"PriceList": [json.dumps(OFFER)] if last else [], **({} if last else {"NextToken": "more"})}

    with answering("pricing", reply) as client:
        fetched = prices.fetch(client, "eu-west-1", TODAY)
    assert [part.get("NextToken") for part in asked] == [None, "more"]
    assert asked[0]["Filters"][0]["Value"] == "eu-west-1"
    prices.keep(Stack.find("dropforge"), fetched)
    kept = boto3.client("s3").get_object(Bucket="runs", Key=PRICES)["Body"].read()
    assert Catalogue.model_validate_json(kept).find("ml.g6.xlarge").usd_hour == 1.25
    changed = prices.compare(fetched, TODAY)
    assert [c.usd_hour for c in changed.instances if c.instance_type == "ml.g6.xlarge"] == [1.25]


def test_an_empty_list_changes_nothing(world):
    """What can't be believed is refused with a sentence."""
    with (
        answering("pricing", lambda _operation, _arguments: {"PriceList": []}) as client,
        pytest.raises(CommandFailed, match="no training price"),
    ):
        prices.fetch(client, "eu-west-1", TODAY)


def test_a_plan_shows_its_arithmetic_by_the_prices_it_was_given(dropforge, rows, tmp_path):
    """`plan --why` has a line for every number, each with its source, and they are the plan's own numbers."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    with answering("pricing", lambda _operation, _arguments: {"PriceList": [json.dumps(OFFER)]}) as client:
        table = prices.fetch(client, "eu-west-1", TODAY)
    file = tmp_path / "prices.json"
    file.write_text(table.model_dump_json())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("compute: {evaluation_instance_types: [ml.g6.xlarge]}\n")
    options = ("--base-config", config, "--recipe", recipe, "--prices", file)
    said = dropforge("plan", rows, *options, "--why", "--json")
    assert said.code == 0, said.err
    why = {line["name"]: line for line in said.document["why"]}
    assert all(line["source"] and line["value"] for line in why.values())
    assert why["price"]["value"] == "$1.25 an hour"
    assert "eu-west-1" in why["price"]["source"]
    assert f"{said.document['cost_usd']['expected']:.2f}" in why["cost of the run"]["value"]
    assert f"{said.document['steps']:,}" == why["optimiser steps"]["value"]
    assert "why" not in dropforge("plan", rows, *options, "--json").document
    assert "cost of the run" in dropforge("plan", rows, *options, "--why").out
    assert dropforge("plan", rows, "--base-config", config, "--prices", config).code == 2


def test_a_plan_goes_by_what_the_stack_s_runs_taught(world, dropforge, rows, tmp_path):
    """Its speeds narrow the interval and its prices are taken; without it, no stack is asked and that is said."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(LLAMA))
    options = ("--base-config", config, "--why", "--json")
    alone = dropforge("plan", rows, *options)
    assert "not by those of your own runs" in alone.err
    lines = {line["name"]: line for line in alone.document["why"]}
    assert "no finished run" in lines["share of the peak"]["made_of"]
    made = alone.document
    speeds = [
        Speed(
            run_id=f"r{number}",
            ended_at="2026-11-20T00:00:00+00:00",
            parameters=made["base_model"]["parameters"],
            instance_type=made["compute"]["instance_type"],
            device="cuda",
            flop_per_token=1e9,
            peak_tflops=100.0,
            tokens_per_s=30_000,
        )
        for number in range(5)
    ]
    world.ledger.write_note(SPEEDS_NOTE, {"speeds": write_speeds(speeds)}, {})
    said = dropforge("plan", rows, *options, "--stack", "dropforge")
    assert "the speeds of 5 finished runs" in said.err
    assert "the prices that ship" in said.err
    taught, before = said.document["forecast"]["mfu"], made["forecast"]["mfu"]
    assert taught["high"] / taught["low"] < before["high"] / before["low"]
    world.s3.put_object(Bucket="runs", Key=PRICES, Body=load_catalogue().model_dump_json().encode())
    assert "its region's prices" in dropforge("plan", rows, *options, "--stack", "dropforge").err
    world.ledger.write_note(SPEEDS_NOTE, {"speeds": "[{}]"}, {"revision": "1"})
    broken = dropforge("plan", rows, *options, "--stack", "dropforge")
    assert broken.code == 2
    assert "another version" in broken.err


def test_a_plan_goes_by_what_the_stack_allows(world, dropforge, rows, tmp_path):
    """Types that the stack does not take are not weighed; where none of the recipe's is left, that is why it can't run."""
    config, recipe = tmp_path / "config.json", tmp_path / "recipe.yaml"
    config.write_text(json.dumps(LLAMA))
    recipe.write_text("base_model: org/name\ncompute: {instance_types: [ml.g5.xlarge, ml.g6.xlarge]}\n")
    asked = ("plan", rows, "--recipe", recipe, "--base-config", config, "--stack", "dropforge", "--json")
    weighed = [option["instance_type"] for option in dropforge(*asked).document["options"]]
    assert weighed == ["ml.g5.xlarge", "ml.g6.xlarge"]
    world.deploy(AllowedInstanceTypes="ml.g6.xlarge, ml.p4d.24xlarge")
    said = dropforge(*asked)
    assert (said.code, [option["instance_type"] for option in said.document["options"]]) == (
        0,
        ["ml.g6.xlarge"],
    )
    world.deploy(AllowedInstanceTypes="ml.p4d.24xlarge")
    said = dropforge(*asked)
    assert said.code == 1
    assert (
        "None of the recipe's compute.instance_types (ml.g5.xlarge, ml.g6.xlarge) is allowed"
        in said.document["reason"]
    )
