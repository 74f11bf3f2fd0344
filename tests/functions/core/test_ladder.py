"""The ladder, row by row, and what holds along every path through it."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.contracts import ComputeChoice
from dropforge_core.identity import JOB_NAME_MAX, REDRIVE_ROOM, job_name
from dropforge_core.ladder import Circumstances, Evidence, JobFacts, classify, examine, next_step
from dropforge_core.ladder.faults import FAULTS, RULES
from dropforge_core.ladder.steps import STOP_GRACE_S, TRIES, quota_is_too_small
from dropforge_core.ladder.telling import message
from dropforge_core.ledger import Status
from dropforge_core.planning import load_catalogue
from dropforge_core.planning.duration import STOP_S

RUN = "b" * 26
TABLE = load_catalogue()
NO_QUOTA = (
    "The account-level service limit 'ml.g6.xlarge for spot training job usage' is 0 Instances, with current "
    "utilization of 0 Instances and a request delta of 1 Instances. (Service: SageMaker; Error Code: "
    "ResourceLimitExceeded)"
)
BUSY_QUOTA = NO_QUOTA.replace("is 0 Instances", "is 2 Instances").replace("of 0 Inst", "of 2 Inst")


def failed(reason, kind="TrainingJob"):
    """The cause of a job that ran and failed."""
    return json.dumps(
        {f"{kind}Name": "j", f"{kind}Status": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason}
    )


def stopped(secondary, kind="TrainingJob"):
    return json.dumps({f"{kind}Name": "j", f"{kind}Status": "Stopped", "SecondaryStatus": secondary})


def evidence(stage, error, cause, told=None):
    return examine(stage=stage, state="S", error=error, cause=cause, describe=lambda: told)


def compute(**changes):
    fields = {
        "attempt": 1,
        "job_name": job_name("m", RUN, 1),
        "instance_type": "ml.g6.xlarge",
        "spot": True,
        "max_runtime_s": 36_000,
        "max_wait_s": 43_200,
        "volume_gb": 50,
        "micro_batch_tokens": 8192,
        "remaining_types": ("ml.g5.xlarge", "ml.g6e.xlarge"),
    }
    return ComputeChoice(**(fields | changes))


def circumstances(**changes):
    fields = {
        "run_id": RUN,
        "model": "m",
        "compute": compute(),
        "failures": {},
        "jitter": 0.5,
        "training_usd": 20.0,
        "needed_hours": {"ml.g6.xlarge": 1.0, "ml.g5.xlarge": 1.0, "ml.g6e.xlarge": 1.0},
        "shortest_micro_batch": 2048,
        "instance_type": "ml.g6.xlarge",
        "evaluation_usd": 5.0,
    }
    return Circumstances(**(fields | changes))


FAILED_TASK = "States.TaskFailed"
ROWS = [
    (
        "TRAIN",
        FAILED_TASK,
        failed("CapacityError: Unable to provision requested ML compute capacity."),
        "CAPACITY",
        "RETRY",
    ),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: OOM_GPU: step 3, exit code: 1"), "OOM_GPU", "RETRY"),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: NAN_LOSS: at step 7, exit code: 1"), "NAN_LOSS", "FAIL"),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: BAD_DATA: row 3, exit code: 1"), "DATA", "FAIL"),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: DISK_FULL: no space, exit code: 1"), "DISK_FULL", "FAIL"),
    (
        "TRAIN",
        FAILED_TASK,
        failed("AlgorithmError: CODE: KeyError: Rate exceeded, exit code: 1"),
        "CODE",
        "FAIL",
    ),
    (
        "TRAIN",
        FAILED_TASK,
        failed(
            "AlgorithmError: RANK_LOST: process 1 was ended by SIGKILL from outside (the host's memory, or its hardware), exit code: 1"
        ),
        "INTERNAL",
        "RETRY",
    ),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: , exit code: 1"), "CODE", "FAIL"),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: , exit code: 143"), "INTERNAL", "RETRY"),
    (
        "TRAIN",
        FAILED_TASK,
        failed("InternalServerError: We encountered an internal error. Please try again."),
        "INTERNAL",
        "RETRY",
    ),
    ("TRAIN", FAILED_TASK, stopped("MaxWaitTimeExceeded"), "SPOT_INTERRUPTED", "RETRY"),
    ("TRAIN", FAILED_TASK, stopped("MaxRuntimeExceeded"), "TIME_LIMIT", "FAIL"),
    ("TRAIN", FAILED_TASK, stopped("Stopped"), "STOPPED", "FAIL"),
    ("TRAIN", "SageMaker.ResourceLimitExceededException", BUSY_QUOTA, "QUOTA", "RETRY"),
    (
        "TRAIN",
        "SageMaker.AmazonSageMakerException",
        "Rate exceeded (Error Code: ThrottlingException)",
        "THROTTLED",
        "RETRY",
    ),
    (
        "TRAIN",
        "SageMaker.AmazonSageMakerException",
        "(Error Code: AccessDeniedException)",
        "PERMISSION",
        "FAIL",
    ),
    ("TRAIN", "SageMaker.AmazonSageMakerException", "(Error Code: ValidationException)", "CODE", "FAIL"),
    (
        "TRAIN",
        "SageMaker.AmazonSageMakerException",
        "training-job/ml.p2 is not available in this region (ResourceLimitExceeded)",
        "CAPACITY",
        "RETRY",
    ),
    ("TRAIN", "SageMaker.ResourceInUseException", "Job name must be unique", "INTERNAL", "RETRY"),
    ("TRAIN", "States.Timeout", "", "TIMEOUT", "RETRY"),
    (
        "CACHE",
        FAILED_TASK,
        failed("AlgorithmError: BASE_MODEL: gated, exit code: 1", "ProcessingJob"),
        "BASE_MODEL",
        "FAIL",
    ),
    (
        "CACHE",
        FAILED_TASK,
        '{"ProcessingJobName": "b1", "ProcessingJobStatus": "Failed", "ExitMessage": "BASE_MODEL: gated", "Cut": "of',
        "BASE_MODEL",
        "FAIL",
    ),
    ("CACHE", FAILED_TASK, failed("CapacityError: none", "ProcessingJob"), "CAPACITY", "RETRY"),
    ("EVALUATE", FAILED_TASK, failed("InternalServerError: try again", "TransformJob"), "INTERNAL", "RETRY"),
    ("EVALUATE", FAILED_TASK, stopped("", "TransformJob"), "STOPPED", "FAIL"),
    ("EVALUATE", FAILED_TASK, failed("ClientError: See job logs", "TransformJob"), "CODE", "FAIL"),
    ("EVALUATE", "SageMaker.ResourceLimitExceededException", NO_QUOTA, "QUOTA", "FAIL"),
    ("REGISTER", "SageMaker.ConflictException", "InternalFailure", "INTERNAL", "FAIL"),
    (
        "FUNCTION",
        "BaseModelUnavailable",
        '{"errorMessage": "gated", "errorType": "BaseModelUnavailable"}',
        "BASE_MODEL",
        "FAIL",
    ),
    *(
        ("FUNCTION", name, json.dumps({"errorMessage": "x", "errorType": name}), fault, "FAIL")
        for name, fault in (
            ("BaseModelUnsuitable", "BASE_MODEL"),
            ("TokenizerGone", "BASE_MODEL"),
            ("HubUnreachable", "INTERNAL"),
            ("ObjectVanished", "DATA"),
            ("RecipeInvalid", "DATA"),
            ("DatasetInvalid", "DATA"),
            ("DatasetChanged", "DATA"),
            ("HoldoutBroken", "DATA"),
            ("Contended", "THROTTLED"),
            ("Runtime.OutOfMemory", "CODE"),
        )
    ),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: RANK_LOST: host 2, exit code: 1"), "INTERNAL", "RETRY"),
    ("TRAIN", FAILED_TASK, failed("Spot capacity was interrupted"), "SPOT_INTERRUPTED", "RETRY"),
    ("TRAIN", FAILED_TASK, failed("AlgorithmError: torch.OutOfMemoryError"), "OOM_GPU", "RETRY"),
    ("TRAIN", FAILED_TASK, failed("OSError: No space left on device"), "DISK_FULL", "FAIL"),
    ("REGISTER", "SageMaker.ResourceInUse", "the package group is in use", "INTERNAL", "FAIL"),
    ("FUNCTION", "Error", "Task timed out after 960.00 seconds", "TIMEOUT", "FAIL"),
    ("FUNCTION", "KeyError", '{"errorMessage": "x", "errorType": "KeyError"}', "CODE", "FAIL"),
    ("FUNCTION", "Lambda.TooManyRequestsException", "", "THROTTLED", "FAIL"),
    ("FUNCTION", "Lambda.Unknown", "", "INTERNAL", "FAIL"),
    ("FUNCTION", "Sandbox.Timedout", "Task timed out after 3.00 seconds", "INTERNAL", "FAIL"),
    ("FUNCTION", "something else", "no idea", "UNKNOWN", "FAIL"),
]


@pytest.mark.parametrize(("stage", "error", "cause", "fault", "action"), ROWS)
def test_every_row_of_the_table(stage, error, cause, fault, action):
    """Each failure that AWS or the image is known to give has its fault and its first step."""
    seen = evidence(stage, error, cause)
    assert classify(seen) == fault
    assert next_step(seen, fault, circumstances(), TABLE).action == action


def test_every_rule_is_the_one_that_decides_in_some_row():
    """A rule that another hides, or that no row needs, is found."""
    decides = {
        next(index for index, rule in enumerate(RULES) if rule.matches(seen))
        for stage, error, cause, fault, _ in ROWS
        if fault != "UNKNOWN" and (seen := evidence(stage, error, cause))
    }
    idle = [(RULES[index].fault, index) for index in set(range(len(RULES))) - decides]
    assert idle == []


def step_for(fault, seen=None, **changes):
    seen = seen or Evidence(stage="TRAIN", state="TrainAdapter", error="E", text="")
    return next_step(seen, fault, circumstances(**changes), TABLE)


def test_a_cause_cut_off_in_its_middle_is_described_again_or_read_in_pieces():
    """32,768 characters end wherever they end: the job is asked, and what is readable serves if it can't be."""
    whole = failed("CapacityError: none free")
    cut = whole + ', "Tags": [{"Key": "'
    cut = cut.replace('"}, "Tags"', '", "Tags"')
    asked = evidence("TRAIN", FAILED_TASK, cut, told=json.loads(stopped("MaxWaitTimeExceeded")))
    assert classify(asked) == "SPOT_INTERRUPTED"
    alone = evidence("TRAIN", FAILED_TASK, cut)
    assert alone.job == JobFacts(
        name="j", status="Failed", secondary="Failed", reason="CapacityError: none free"
    )
    assert classify(alone) == "CAPACITY"


def test_a_timeout_s_own_stop_is_no_person_s():
    """The state machine stops a job that timed out; that the job is Stopped then says nothing of a person."""
    assert classify(evidence("TRAIN", "States.Timeout", "", told=json.loads(stopped("Stopped")))) == "TIMEOUT"


def test_capacity_goes_to_the_next_type_and_at_last_on_demand():
    """Types are taken in order, each once; the last resort keeps the type and drops spot; then it ends."""
    first = step_for("CAPACITY")
    assert (first.compute.instance_type, first.compute.remaining_types) == (
        "ml.g5.xlarge",
        ("ml.g6e.xlarge",),
    )
    last = step_for("CAPACITY", compute=compute(remaining_types=()))
    assert (last.compute.instance_type, last.compute.spot) == ("ml.g6.xlarge", False)
    assert last.compute.max_wait_s == last.compute.max_runtime_s
    assert step_for("CAPACITY", compute=compute(remaining_types=(), spot=False)).action == "FAIL"


def test_spot_that_never_came_goes_on_demand_where_the_cap_pays_it():
    """Otherwise the next type is asked for."""
    assert not step_for("SPOT_INTERRUPTED").compute.spot
    dear = step_for("SPOT_INTERRUPTED", needed_hours={"ml.g6.xlarge": 100.0, "ml.g5.xlarge": 1.0})
    assert (dear.compute.spot, dear.compute.instance_type) == (True, "ml.g5.xlarge")


def test_memory_halves_the_micro_batch_and_then_takes_a_larger_gpu():
    """Half first, and 24 GiB types are passed over for the one that has more."""
    half = step_for("OOM_GPU")
    assert (half.compute.micro_batch_tokens, half.compute.instance_type) == (4096, "ml.g6.xlarge")
    assert step_for("OOM_GPU", failures={"TRAIN:OOM_GPU": 1}).compute.instance_type == "ml.g6e.xlarge"
    least = step_for("OOM_GPU", compute=compute(micro_batch_tokens=2048))
    assert least.compute.instance_type == "ml.g6e.xlarge"
    assert step_for("OOM_GPU", compute=compute(micro_batch_tokens=2048, remaining_types=())).action == "FAIL"


def test_a_quota_of_zero_is_not_waited_for():
    """A busy quota is waited for; one that is too small sends the run to another type at once."""
    waits = step_for("QUOTA", evidence("TRAIN", "E", BUSY_QUOTA))
    assert (waits.compute.instance_type, waits.wait_s >= 300) == ("ml.g6.xlarge", True)
    assert step_for("QUOTA", evidence("TRAIN", "E", BUSY_QUOTA), is_quota_hopeless=True).action == "FAIL"
    moves = step_for("QUOTA", evidence("TRAIN", "E", NO_QUOTA))
    assert (moves.compute.instance_type, moves.wait_s) == ("ml.g5.xlarge", 0)
    assert quota_is_too_small(NO_QUOTA)
    assert not quota_is_too_small(BUSY_QUOTA)


def test_a_checkpoint_is_used_only_where_there_is_one():
    """A job that hit its limit is judged by what it left; without an adapter the run ends."""
    assert step_for("TIME_LIMIT", artifact_left=True).action == "USE_CHECKPOINT"
    assert step_for("TIME_LIMIT").action == "FAIL"
    assert step_for("STOPPED", artifact_left=True).action == "FAIL"


def test_what_was_spent_is_not_spent_again():
    """The next attempt's run time is what is left of the cap, and where too little is left there is none."""
    assert step_for("INTERNAL", spent_usd=18.873).compute.max_runtime_s == pytest.approx(3600 - STOP_S, abs=1)
    assert step_for("INTERNAL", spent_usd=20.0).action == "FAIL"


@pytest.mark.parametrize("fault", ["INTERNAL", "TIMEOUT", "THROTTLED", "CAPACITY", "OOM_GPU"])
def test_an_evaluation_takes_no_more_than_the_cap_has_left(fault):
    """Each further one may run for what is left, on its own type's price; where that is too little there is none."""
    seen = Evidence(stage="EVALUATE", state="EvaluateCandidate", error="E", text="")
    allowed = {"allowed_types": ("ml.g6.xlarge", "ml.g6e.xlarge"), "evaluation_hours": 0.5}
    step = step_for(fault, seen, evaluation_usd=2.61, **allowed)
    found = TABLE.find(step.instance_type or "ml.g6.xlarge")
    assert step.action == "RETRY"
    assert (step.limit_s + STOP_S) / 3600 * (found.transform_usd_hour or found.usd_hour) <= 2.61 + 1e-9
    over = step_for(fault, seen, evaluation_usd=0.1, **allowed)
    assert over.action == "FAIL"
    assert over.limit_s == 0


def test_waits_for_a_quota_outside_of_the_queue_come_to_a_day():
    """However old the run is when it meets the quota, it waits for a day, and no longer than two."""
    seen = evidence("CACHE", "SageMaker.ResourceLimitExceededException", BUSY_QUOTA)
    waited, failures = 0, {}
    while (step := step_for("QUOTA", seen, failures=failures, jitter=0.0)).action == "RETRY":
        waited += step.wait_s
        failures = {"CACHE:QUOTA": failures.get("CACHE:QUOTA", 0) + 1}
    assert 86_400 <= waited <= 2 * 86_400


@pytest.mark.parametrize("stage", ["CACHE", "TRAIN", "EVALUATE"])
def test_after_a_job_that_still_ran_the_next_comes_when_it_has_stopped(stage):
    """Two jobs never write one checkpoint prefix, nor is one paid for beside the other."""
    seen = Evidence(stage=stage, state="S", error="E", text="Rate exceeded")
    assert step_for("THROTTLED", seen).wait_s < STOP_GRACE_S
    assert step_for("THROTTLED", seen, is_still_running=True).wait_s >= STOP_GRACE_S


LISTED = {
    "spot": False,
    "preferences": ("ml.g5.xlarge", "ml.g6e.xlarge"),
    "remaining_types": ("ml.p5.4xlarge",),
}


@pytest.mark.parametrize(
    ("fault", "taken", "expected"),
    [
        ("CAPACITY", "", ("ml.p5.4xlarge", (), ())),
        ("OOM_GPU", "ml.g5.xlarge", ("ml.g5.xlarge", (), ("ml.g6.xlarge", "ml.g6e.xlarge", "ml.p5.4xlarge"))),
        ("OOM_GPU", "", ("ml.g6.xlarge", (), ("ml.g5.xlarge", "ml.g6e.xlarge", "ml.p5.4xlarge"))),
        ("THROTTLED", "", ("ml.g6.xlarge", LISTED["preferences"], LISTED["remaining_types"])),
        ("INTERNAL", "ml.g5.xlarge", ("ml.g6.xlarge", LISTED["preferences"], LISTED["remaining_types"])),
    ],
)
def test_of_several_types_in_one_request_the_one_that_was_taken_goes_on(fault, taken, expected):
    """Where none had capacity none is asked again; what one type could not bear is tried on it, then on others."""
    told = Evidence(
        stage="TRAIN", state="TrainAdapter", error="E", text="", job=JobFacts(instance_type=taken)
    )
    now = circumstances(compute=compute(**LISTED), needed_hours={})
    made = next_step(told, fault, now, TABLE).compute
    assert (made.instance_type, made.preferences, made.remaining_types) == expected


def test_a_quota_too_small_for_a_list_leaves_its_other_types():
    """Which type was refused is not told, so each is tried by itself."""
    told = Evidence(stage="TRAIN", state="TrainAdapter", error="E", text=NO_QUOTA)
    made = next_step(told, "QUOTA", circumstances(compute=compute(**LISTED)), TABLE).compute
    assert (made.instance_type, made.preferences) == ("ml.g5.xlarge", ())


@given(
    st.lists(st.sampled_from(sorted(TRIES)), min_size=150, max_size=150),
    st.lists(st.floats(0, 0.2), min_size=150, max_size=150),
    st.sampled_from([{}, LISTED]),
)
def test_every_path_ends_and_no_name_comes_twice(faults, costs, changes):
    """Whatever fails in whatever order: bounded attempts, new names, no more run time than the cap has left."""
    now, seen, spent = circumstances(compute=compute(**changes)), set(), 0.0
    for fault, cost in zip(faults, costs, strict=True):
        name = now.compute.job_name
        assert name not in seen
        assert len(name) <= JOB_NAME_MAX - REDRIVE_ROOM
        seen.add(name)
        spent += cost
        step = next_step(
            Evidence(stage="TRAIN", state="TrainAdapter", error="E", text=BUSY_QUOTA),
            fault,
            now.model_copy(update={"spent_usd": spent}),
            TABLE,
        )
        if step.action != "RETRY":
            break
        asked = (step.compute.instance_type, *step.compute.preferences)
        price = max(TABLE.find(name).usd_hour for name in asked)
        assert spent + step.compute.max_runtime_s / 3600 * price <= now.training_usd + 1e-6
        assert step.wait_s >= 0
        key = f"TRAIN:{fault}"
        now = now.model_copy(
            update={"compute": step.compute, "failures": {**now.failures, key: now.failures.get(key, 0) + 1}}
        )
    else:
        pytest.fail("150 failures, and still another attempt")
    assert len(seen) <= sum(TRIES.values()) + 1


@given(
    st.sampled_from(["CACHE", "TRAIN", "EVALUATE", "REGISTER", "FUNCTION"]),
    st.text(),
    st.text() | st.sampled_from([row[2] for row in ROWS]).map(lambda cause: cause[: len(cause) // 2]),
    st.none()
    | st.dictionaries(
        st.sampled_from(
            [
                "TrainingJobStatus",
                "SecondaryStatus",
                "FailureReason",
                "ResourceConfig",
                "BillableTimeInSeconds",
            ]
        ),
        st.none() | st.text() | st.integers() | st.lists(st.text()),
    ),
)
def test_any_text_has_a_diagnosis(stage, error, cause, told):
    """No error, cause or description makes the ladder fail; every end has a terminal status and words."""
    seen = evidence(stage, error, cause, told)
    fault = classify(seen)
    step = next_step(seen, fault, circumstances(), TABLE)
    assert Status(FAULTS[fault].status).is_terminal
    said = message(seen, fault, step, run_id=RUN, log=[cause])
    assert step.said in said
    assert len(said) < 8000
    assert said.replace("\n", "").isprintable()


def test_a_message_for_a_person_has_cause_log_and_command():
    """What AWS said, the last lines of the log, what to do, and the command to go on."""
    seen = evidence("TRAIN", FAILED_TASK, failed("AlgorithmError: CODE: KeyError: 'x', exit code: 1"))
    step = next_step(seen, "CODE", circumstances(), TABLE)
    said = message(seen, "CODE", step, run_id=RUN, log=[f"line {n}" for n in range(30)])
    assert "KeyError" in said
    assert f"dropforge redrive {RUN}" in said
    assert re.findall(r"line \d+", said)[0] == "line 10"
