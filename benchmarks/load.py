"""A burst of uploads: does each reach exactly one end, is each told once, and how long does that take?

    python benchmarks/load.py [--quick] [--json]

Every upload is refused, for one of three reasons, so that no training hides what intake, validation, ledger
and notification do. The same events are then delivered a second time, as EventBridge may: nothing may change.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import Any

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))

from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes

from dropforge.local.stack import LocalStack, start

GOOD_ROW = '{{"prompt": "{n} plus {k}", "completion": "{s}"}}\n'
PATIENCE_S = 300


def upload(stack: LocalStack, number: int) -> str:
    """One dataset that will be refused: a broken row, too few rows, or a name that can't be used."""
    rows = [GOOD_ROW.format(n=n, k=number, s=n + number) for n in range(60)]
    key = f"datasets/load-{number % 7}/{number}.jsonl"
    if number % 3 == 0:
        rows[31] = '{"prompt": "cut off\n'
    elif number % 3 == 1:
        rows = rows[:3]
    else:
        key = f"datasets/load-{number % 7}/a b {number}.jsonl"
    stack.client("s3").put_object(
        Bucket=stack.outputs["buckets"]["datasets"], Key=key, Body="".join(rows).encode()
    )
    return key


def items(stack: LocalStack) -> dict[str, dict[str, Any]]:
    """The ledger's runs by id."""
    pages = (
        stack.client("dynamodb")
        .get_paginator("scan")
        .paginate(TableName=stack.outputs["table"], ConsistentRead=True)
    )
    found = [item for page in pages for item in page["Items"] if item["pk"]["S"].startswith("RUN#")]
    return {item["pk"]["S"]: item for item in found}


def deliver_again(stack: LocalStack, keys: list[str]) -> None:
    """Each object's event once more, straight to the function, as a second delivery would come."""
    names = [f["FunctionName"] for f in stack.client("lambda").list_functions()["Functions"]]
    (intake,) = [name for name in names if "intake" in name.lower()]
    bucket = stack.outputs["buckets"]["datasets"]
    for key in keys:
        head = stack.client("s3").head_object(Bucket=bucket, Key=key)
        stored = {
            "key": key,
            "size": head["ContentLength"],
            "etag": head["ETag"].strip('"'),
            "version-id": head["VersionId"],
            "sequencer": "00",
        }
        event = {
            "source": "aws.s3",
            "detail-type": "Object Created",
            "id": f"again-{key}",
            "time": "2026-01-01T00:00:00Z",
            "detail": {
                "bucket": {"name": bucket},
                "object": stored,
                "requester": "000000000000",
                "reason": "PutObject",
            },
        }
        answer = stack.client("lambda").invoke(FunctionName=intake, Payload=json.dumps(event).encode())
        if "FunctionError" in answer:
            raise RuntimeError(answer["Payload"].read().decode())


def measure(uploads: int) -> dict[str, Any]:
    """Upload, wait for the ends, deliver again, count."""
    with start(fast=True) as stack:
        began = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            keys = list(pool.map(lambda number: upload(stack, number), range(uploads)))
        uploaded = time.perf_counter() - began
        ended_after: dict[str, float] = {}
        while len(ended_after) < uploads and time.perf_counter() - began < PATIENCE_S:
            for name, item in items(stack).items():
                if item["status"]["S"] == "DATASET_REJECTED":
                    ended_after.setdefault(name, time.perf_counter() - began)
            time.sleep(0.2)
        before = {name: (item["status"]["S"], item["rank"]["N"]) for name, item in items(stack).items()}
        deliver_again(stack, keys)
        time.sleep(2)
        after = {name: (item["status"]["S"], item["rank"]["N"]) for name, item in items(stack).items()}
        mails = [message_from_bytes(path.read_bytes()) for path in stack.outbox.glob("*.eml")]
    times = sorted(ended_after.values())
    endings = [str(mail["Subject"]) for mail in mails if "rejected" in str(mail["Subject"])]
    return {
        "figures": {
            "uploads": uploads,
            "upload_s": round(uploaded, 2),
            "ended_p50_s": round(statistics.median(times), 2),
            "ended_last_s": round(times[-1], 2),
            "ends_per_s": round(len(times) / times[-1], 2),
            "mails_of_an_end": len(endings),
        },
        "ratios": {
            "ended_of_uploads": ratio(len(times) / uploads, "runs that are due: one for each upload"),
            "runs_of_uploads": ratio(len(after) / uploads, "runs that are due: one for each upload"),
            "unchanged_by_second_delivery": ratio(float(before == after), "the ledger before"),
            "told_once": ratio(len(endings) / uploads, "one message for each end"),
        },
    }


def ratio(value: float, peer: str) -> dict[str, Any]:
    """A share that must be exactly one."""
    return {"value": round(value, 3), "goal": 1.0, "met": value == 1.0, "peer": peer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30 uploads instead of 200")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    document = {"name": "load", "machine": machine, **measure(30 if options.quick else 200)}
    print(json.dumps(document, indent=None if options.json else 2))
    return 0 if all(found["met"] for found in document["ratios"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
