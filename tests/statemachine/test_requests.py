"""Every request that the machine makes, held against the service models: what is sent would be taken."""

import copy
import json
import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import pytest
from asl_answers import GATE, HAPPY, INPUT, MODEL, PLAN, RUN_ID, SETUP, payload
from asl_cases import CASES
from asl_interpreter import Call, run
from asl_machine import deployed, states
from request_constraints import faults

from dropforge.local.asl import wire
from dropforge.local.asl.expression import Evaluator
from dropforge_core.contracts import InstanceOption, Residency
from dropforge_core.identity import MODEL_NAME, job_name

LONGEST_MODEL: Final = "m23456789-" * 3 + "a123456789"
CASES_WITH_CALLS: Final = (
    "registered",
    "registered from a large dataset",
    "a part can't be checked",
    "registered after a person approved the cost",
    "caching takes too long",
    "training takes too long",
    "training is tried on the next instance",
    "the answer to CreateModel was lost",
    "evaluation takes too long",
)
BOTO_NAMES: Final = {"sfn": "stepfunctions"}
"""Services whose name in a Resource is not botocore's."""

RESULT_LIMIT: Final = 262_144


WARM: Final = "KeepAlivePeriodInSeconds"


@cache
def requests(name: str, model: str) -> list[Call]:
    """The requests of a case, for a model of the given name, in a run that was started again eleven times."""
    case = CASES[name]
    compute = PLAN.compute.model_copy(update={"job_name": job_name(model, RUN_ID, 1)})
    base = PLAN.base_model.model_copy(update={"cache_job_name": job_name(model, RUN_ID, 1, "b")})
    evaluation = job_name(model, RUN_ID, 1, "e")
    setup = {"job_name": evaluation, "sagemaker_model_name": evaluation}
    approval = name == "registered after a person approved the cost"
    answers = {
        **HAPPY,
        **case.answers,
        "PlanTraining": [payload(PLAN, compute=compute, base_model=base, needs_approval=approval)],
        "PrepareEvaluation": [payload(SETUP, **setup)],
    }
    return run(deployed(), {**INPUT, **case.input, "model": model, "redrive": 11}, answers).calls


def _wire(call: Call) -> tuple[str, str, dict[str, Any]]:
    """Service, action and request as the integration sends it."""
    service, action = call.resource.removeprefix("aws-sdk:").split(":")
    request = copy.deepcopy(call.arguments)
    if call.resource.startswith("aws-sdk:"):
        # SDK integrations write members with a capital, whatever the API does.
        shape = wire.operation(service, action)
        assert shape is not None
        request = wire.to_api(request, shape.input_shape)
    if service == "lambda":
        request["Payload"] = json.dumps(request["Payload"])
    if service == "events":
        for entry in request["Entries"]:
            entry["Detail"] = json.dumps(entry["Detail"])
    return BOTO_NAMES.get(service, service), action.split(".")[0], request


@pytest.mark.parametrize("model", [LONGEST_MODEL, "a"])
@pytest.mark.parametrize("name", CASES_WITH_CALLS)
def test_aws_would_take_every_request(name: str, model: str) -> None:
    """Members, types, lengths, ranges, patterns and enumerations hold, with the shortest and longest names too."""
    assert MODEL_NAME.fullmatch(model)
    calls = requests(name, model)
    assert calls
    for call in calls:
        service, action, request = _wire(call)
        assert faults(service, action, request) == [], call.state


def test_the_checker_finds_what_botocore_does_not() -> None:
    """A name that is one character too long, a pattern and an enumeration are found: the test above can fail."""
    found = faults(
        "sagemaker",
        "createTransformJob",
        {
            "TransformJobName": "a" * 64,
            "ModelName": "under_score",
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "Prefix", "S3Uri": "s3://b/k"}},
                "Splitting": "Line",
            },
            "TransformOutput": {"S3OutputPath": "s3://b/o"},
            "TransformResources": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1},
        },
    )
    for part in ("64 is above 63", "'under_score' does not match", "'Prefix' is none of", "Splitting"):
        assert any(part in fault for fault in found), part


def test_every_state_that_calls_is_covered() -> None:
    """The cases above make every kind of request that the machine can make."""
    made = {call.state for name in CASES_WITH_CALLS for call in requests(name, MODEL)}
    calling = {name for name, state in states().items() if state["Type"] == "Task"}
    assert made == calling


def test_jobs_carry_the_tags_that_their_permissions_ask_for() -> None:
    """Everything that is created says whose it is; roles may only touch what carries the stack's tag."""
    created = [
        call
        for call in requests("registered", MODEL)
        if "sagemaker:create" in call.resource and not call.resource.endswith(":createModelPackage")
    ]
    assert {call.state for call in created} == {
        "CacheBaseModel",
        "TrainAdapter",
        "CreateCandidateModel",
        "EvaluateCandidate",
        "EnsureModelPackageGroup",
    }
    for call in created:
        tags = {tag["Key"]: tag["Value"] for tag in call.arguments["Tags"]}
        assert tags["dropforge:stack"] == "dropforge"
        assert tags["dropforge:model"] == MODEL


def test_training_has_no_network_and_nothing_secret() -> None:
    """The trainer can neither fetch nor send; hyperparameters are few and short, so that the answer fits."""
    request = next(call for call in requests("registered", MODEL) if call.state == "TrainAdapter").arguments
    assert request["EnableNetworkIsolation"] is True
    assert "Environment" not in request
    assert set(request["HyperParameters"]) == {
        "run_id",
        "attempt",
        "micro_batch_tokens",
        "residency",
        "parallelism",
    }
    assert all(isinstance(value, str) and len(value) <= 256 for value in request["HyperParameters"].values())
    assert len(json.dumps(request)) < RESULT_LIMIT / 20


def test_metrics_are_read_from_the_trainers_own_line() -> None:
    """Each expression finds its figure, and only its own, in a line as the trainer writes it."""
    request = next(call for call in requests("registered", MODEL) if call.state == "TrainAdapter").arguments
    line = (
        "step=10/50 epoch=0.52 loss=1.2340 grad_norm=0.913 learning_rate=1.2e-04 tokens_per_s=181 "
        "memory_gib=2.10 eta_s=130"
    )
    held_out = "step=25/50 eval_loss=0.5100"
    found = {
        metric["Name"]: [float(value) for value in re.findall(metric["Regex"], f"{line}\n{held_out}")]
        for metric in request["AlgorithmSpecification"]["MetricDefinitions"]
    }
    assert found == {
        "loss": [1.234],
        "eval_loss": [0.51],
        "grad_norm": [0.913],
        "learning_rate": [1.2e-04],
        "epoch": [0.52],
        "tokens_per_s": [181.0],
        "memory_gib": [2.1],
    }


def test_the_base_model_is_mounted_and_not_copied() -> None:
    """Beside the original lies its quantised copy, and the trainer reads one of them."""
    request = next(call for call in requests("registered", MODEL) if call.state == "TrainAdapter").arguments
    modes = {channel["ChannelName"]: channel["InputMode"] for channel in request["InputDataConfig"]}
    assert modes["base"] == "FastFile"
    assert all(
        channel["DataSource"]["S3DataSource"]["S3Uri"].endswith("/") for channel in request["InputDataConfig"]
    )


@pytest.mark.parametrize(
    ("planned", "failures", "expected"),
    [
        ("bf16", {}, "bf16"),
        ("bf16", {"TRAIN:OOM_GPU": 1}, "4bit"),
        ("bf16", {"TRAIN:CAPACITY": 1}, "bf16"),
        ("auto", {"TRAIN:OOM_GPU": 1}, "auto"),
        (None, {}, "auto"),
    ],
)
def test_the_residency_is_the_plan_s_for_the_attempt_s_type(
    planned: Residency | None, failures: Mapping[str, int], expected: Residency
) -> None:
    """Each type has its own; where memory ran out, an unpacked base is packed; without a plan the job decides."""
    chosen = PLAN.compute.instance_type
    other = InstanceOption(
        instance_type="ml.other.xlarge",
        gpu="x",
        gpu_memory_gib=1,
        predicted_memory_gib=1,
        residency="4bit",
        fits=False,
        price_usd_hour=None,
        hours=None,
        cost_usd=None,
    )
    mine = other.model_copy(update={"instance_type": chosen, "residency": planned})
    template = states()["TrainAdapter"]["Arguments"]["HyperParameters"]["residency"]
    options = [option.model_dump(mode="json") for option in ((other, mine) if planned else (other,))]
    variables = {
        "plan": {"options": options},
        "compute": {"instance_type": chosen},
        "attempts_of_class": failures,
    }
    assert Evaluator().fill(template, {}, variables) == expected


@pytest.mark.parametrize(
    ("compute", "members", "modes"),
    [
        ({}, {"InstanceCount": 1}, {"FastFile"}),
        ({"instance_count": 4, "input_mode": "File"}, {"InstanceCount": 4}, {"File"}),
        (
            {"spot": False, "keep_alive_s": 600},
            {"InstanceCount": 1, "KeepAlivePeriodInSeconds": 600},
            {"FastFile"},
        ),
        ({"spot": False}, {"InstanceCount": 1}, {"FastFile"}),
    ],
)
def test_the_recipe_s_cluster_is_asked_for(
    compute: Mapping[str, Any], members: Mapping[str, int], modes: set[str]
) -> None:
    """Instances, warm pool and input mode are sent as SageMaker takes them; what is not asked for is not sent."""
    call = next(call for call in requests("registered", MODEL) if call.state == "TrainAdapter")
    chosen = PLAN.compute.model_copy(update=compute)
    arguments = states()["TrainAdapter"]["Arguments"]
    variables = {"compute": chosen.model_dump(mode="json"), "plan": PLAN.model_dump(mode="json")}
    resources = Evaluator().fill(arguments["ResourceConfig"], {}, variables)
    assert {name: value for name, value in resources.items() if name in {"InstanceCount", WARM}} == members
    read = [channel for channel in arguments["InputDataConfig"] if channel["ChannelName"] != "config"]
    assert {Evaluator().fill(channel["InputMode"], {}, variables) for channel in read} == modes
    spot = {"EnableManagedSpotTraining": chosen.spot}
    assert (
        faults("sagemaker", "createTrainingJob", {**call.arguments, **spot, "ResourceConfig": resources})
        == []
    )


@pytest.mark.parametrize(
    ("others", "count"), [(("ml.g5.xlarge",), 1), (("ml.g5.xlarge", "ml.g6e.xlarge"), 2)]
)
def test_several_types_are_asked_for_in_their_order(others: tuple[str, ...], count: int) -> None:
    """`InstancePreferences` takes the place of what it excludes, and the job decides where its weights lie."""
    call = next(call for call in requests("registered", MODEL) if call.state == "TrainAdapter")
    chosen = PLAN.compute.model_copy(
        update={
            "instance_type": "ml.g6.xlarge",
            "preferences": others,
            "spot": False,
            "instance_count": count,
        }
    )
    arguments = states()["TrainAdapter"]["Arguments"]
    variables = {
        "compute": chosen.model_dump(mode="json"),
        "plan": PLAN.model_dump(mode="json"),
        "attempts_of_class": {},
    }
    resources = Evaluator().fill(arguments["ResourceConfig"], {}, variables)
    assert resources == {
        "InstancePreferences": [
            {"InstanceType": name, "InstanceCount": count} for name in ("ml.g6.xlarge", *others)
        ],
        "VolumeSizeInGB": chosen.volume_gb,
    }
    assert Evaluator().fill(arguments["HyperParameters"]["residency"], {}, variables) == "auto"
    on_demand = {"EnableManagedSpotTraining": False, "ResourceConfig": resources}
    assert faults("sagemaker", "createTrainingJob", {**call.arguments, **on_demand}) == []


@pytest.mark.parametrize(("planned", "expected"), [("fsdp", "fsdp"), ("dp", "dp"), (None, "dp")])
def test_how_gpus_share_the_work_is_the_plan_s_for_the_attempt_s_type(
    planned: str | None, expected: str
) -> None:
    """The next type may hold what this one has to shard."""
    template = states()["TrainAdapter"]["Arguments"]["HyperParameters"]["parallelism"]
    options = [{"instance_type": "ml.other.xlarge", "parallelism": "fsdp"}]
    options += [{"instance_type": "ml.mine.xlarge", "parallelism": planned}] if planned else []
    variables = {"plan": {"options": options}, "compute": {"instance_type": "ml.mine.xlarge"}}
    assert Evaluator().fill(template, {}, variables) == expected


def test_volumes_with_local_disks_get_no_key() -> None:
    """SageMaker refuses VolumeKmsKeyId for types whose NVMe disks encrypt themselves, and wants it for others."""
    for instance_type, has_key in (
        ("ml.g5.xlarge", False),
        ("ml.g6e.2xlarge", False),
        ("ml.g7e.2xlarge", False),
        ("ml.p5.4xlarge", False),
        ("ml.g4dn.xlarge", False),
        ("ml.m5.2xlarge", True),
        ("ml.p3.2xlarge", True),
    ):
        compute = PLAN.compute.model_copy(update={"instance_type": instance_type})
        story = run(
            deployed(),
            INPUT,
            {**HAPPY, "PlanTraining": [payload(PLAN, compute=compute)], "ScorePredictions": [payload(GATE)]},
        )
        resources = story.request("TrainAdapter")["ResourceConfig"]
        assert resources["InstanceType"] == instance_type
        assert ("VolumeKmsKeyId" in resources) is has_key, instance_type
