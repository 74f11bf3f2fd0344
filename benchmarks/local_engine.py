"""What the local AWS costs: per state, per execution, and from an upload to the first state of its run.

    python benchmarks/local_engine.py [--quick] [--json]

Deploys the real template, without a base model: runs are stopped as soon as their first state is entered.
The peer is the host itself, MiniStack with its own interpreter, in a process of its own.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))

import boto3

from dropforge.local.deploy import deploy
from dropforge.local.engine import REGION, Settings
from dropforge.local.stack import IMAGE, RECIPES, ROOT, Engine, default_recipe, described, run_bucket

ROLE = "arn:aws:iam::000000000000:role/benchmark"
TYPICAL_STATES = 25
"""States that a run which registers its model passes through."""

Client = Callable[[str], Any]


def chain(states: int) -> str:
    """A machine of Pass states, each with one expression and one assignment."""
    body: dict[str, Any] = {
        f"S{n}": {"Type": "Pass", "Assign": {"n": "{% $n + 1 %}"}, "Next": f"S{n + 1}"}
        for n in range(1, states)
    }
    body["S0"] = {"Type": "Pass", "Assign": {"n": 0}, "Next": "S1"}
    body[f"S{states}"] = {"Type": "Succeed"}
    return json.dumps({"QueryLanguage": "JSONata", "StartAt": "S0", "States": body})


def execution_ms(client: Client, states: int, repeats: int) -> float:
    """Median wall time from StartExecution to the end told by DescribeExecution, in milliseconds."""
    sfn = client("stepfunctions")
    name = f"chain-{states}"
    machine = sfn.create_state_machine(name=name, definition=chain(states), roleArn=ROLE)["stateMachineArn"]
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        execution = sfn.start_execution(stateMachineArn=machine)["executionArn"]
        while sfn.describe_execution(executionArn=execution)["status"] == "RUNNING":
            time.sleep(0.001)
        times.append((time.perf_counter() - began) * 1000)
    # The first one loads what is loaded lazily.
    return statistics.median(times[1:])


def first_state_s(client: Client, outputs: dict[str, Any], number: int) -> float:
    """Seconds from the start of an upload until its run's execution has entered its first state."""
    sfn, machine = client("stepfunctions"), outputs["state_machine"]
    known = {found["executionArn"] for found in sfn.list_executions(stateMachineArn=machine)["executions"]}
    rows = "".join(f'{{"prompt": "{n} plus {number}", "completion": "{n + number}"}}\n' for n in range(50))
    began = time.perf_counter()
    client("s3").put_object(
        Bucket=outputs["buckets"]["datasets"], Key=f"datasets/bench/{number}.jsonl", Body=rows.encode()
    )
    while True:
        listed = {
            found["executionArn"] for found in sfn.list_executions(stateMachineArn=machine)["executions"]
        }
        for execution in listed - known:
            events = sfn.get_execution_history(executionArn=execution)["events"]
            if any(event["type"].endswith("StateEntered") for event in events):
                passed = time.perf_counter() - began
                sfn.stop_execution(executionArn=execution)
                return passed
        time.sleep(0.002)


@contextmanager
def peer() -> Iterator[Client]:
    """MiniStack alone."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "LOG_LEVEL": "ERROR",
        "IOT_MTLS_ENABLED": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "ministack"], env={**os.environ, **settings}, stdout=subprocess.DEVNULL
    )
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        session = boto3.Session("local", "local", region_name=REGION)
        clients: dict[str, Any] = {}
        yield lambda name: clients.setdefault(
            name, session.client(name, endpoint_url=f"http://127.0.0.1:{port}")
        )
    finally:
        process.terminate()
        process.wait()


def measure(*, quick: bool) -> dict[str, Any]:
    """The whole benchmark as one document."""
    repeats, uploads, states = (5, 3, 200) if quick else (20, 10, 500)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with Engine(Settings(folder, str(ROOT / "training_image" / "Dockerfile"))) as engine:
            figures["start_s"] = time.perf_counter() - began
            began = time.perf_counter()
            parameters = {
                "ImageUri": IMAGE,
                "DefaultRecipe": default_recipe(RECIPES / "demo-fast.yaml", run_bucket()),
            }
            outputs = described(engine.endpoint, deploy(ROOT / "template.yaml", parameters, engine.client))
            figures["deploy_s"] = time.perf_counter() - began
            short, long = (execution_ms(engine.client, size, repeats) for size in (2, states))
            typical = execution_ms(engine.client, TYPICAL_STATES, repeats)
            figures["execution_fixed_ms"] = short
            figures["per_transition_ms"] = (long - short) / (states - 2)
            figures["typical_execution_ms"] = typical
            figures["upload_to_first_state_cold_s"] = first_state_s(engine.client, outputs, 0)
            warm = [first_state_s(engine.client, outputs, number) for number in range(1, uploads + 1)]
            figures["upload_to_first_state_warm_s"] = statistics.median(warm)
    with peer() as client:
        short, long = (execution_ms(client, size, repeats) for size in (2, states))
        figures["peer_execution_fixed_ms"] = short
        figures["peer_per_transition_ms"] = (long - short) / (states - 2)
        figures["peer_typical_execution_ms"] = execution_ms(client, TYPICAL_STATES, repeats)
    return {
        "name": "local_engine",
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "figures": {name: round(value, 3) for name, value in figures.items()},
        "ratios": {
            "typical_execution": ratio(
                figures["typical_execution_ms"] / figures["peer_typical_execution_ms"],
                0.5,
                "MiniStack's interpreter",
            ),
            "per_transition": ratio(
                figures["per_transition_ms"] / figures["peer_per_transition_ms"],
                1.0,
                "MiniStack's interpreter",
            ),
        },
    }


def ratio(value: float, goal: float, against: str) -> dict[str, Any]:
    """Ours divided by the peer's: below the goal is good."""
    return {"value": round(value, 3), "goal": goal, "met": value <= goal, "peer": against}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="fewer repetitions; under two minutes on two cores"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    arguments = parser.parse_args()
    document = measure(quick=arguments.quick)
    if arguments.json:
        print(json.dumps(document, indent=2))
        return
    for name, value in document["figures"].items():
        print(f"{name:32} {value:10.3f}")
    for name, found in document["ratios"].items():
        print(f"{name:32} {found['value']:10.3f} of {found['peer']} (goal {found['goal']})")


if __name__ == "__main__":
    main()
