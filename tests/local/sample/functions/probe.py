"""A function that does what its event says; real code for the engine's workers."""

import os
import time

import boto3

calls: dict[str, int] = {}


class DatasetInvalid(Exception):
    """An error with a name of its own, for Catch."""


def handler(event, context):
    """Answer, fail, sleep, count or pass a task token on."""
    what = event.get("do", "echo")
    print(f"probe does {what}")  # noqa: T201  # a function's output is its log
    if what == "fail":
        raise DatasetInvalid("three rows are broken")
    if what == "flaky":
        calls[event["id"]] = calls.get(event["id"], 0) + 1
        if calls[event["id"]] <= event["failures"]:
            raise ConnectionError("try again")
        return {"attempts": calls[event["id"]], "retry_count": event.get("retry_count")}
    if what == "sleep":
        time.sleep(event["seconds"])
    if what == "exit":
        os._exit(9)
    if what == "keep_token":
        boto3.client("dynamodb").put_item(
            TableName=os.environ["TABLE"], Item={"pk": {"S": event["id"]}, "token": {"S": event["token"]}}
        )
    return {"echo": event, "function": context.function_name}


def on_event(event, context):
    """Keep what EventBridge delivered, by the event's id; fail while told to."""
    boto3.client("dynamodb").update_item(
        TableName=os.environ["TABLE"],
        Key={"pk": {"S": event["detail"]["id"]}},
        UpdateExpression="ADD deliveries :one",
        ExpressionAttributeValues={":one": {"N": "1"}},
    )
    if event["detail"].get("fail"):
        raise RuntimeError("not yet")
