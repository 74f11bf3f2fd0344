"""Runs to be told: one that was registered, with every document, and what is left of it by stages."""

import json
import math
from dataclasses import replace

import pytest

from dropforge_core.contracts import (
    BaseModelManifest,
    BaseModelPlan,
    ComputeChoice,
    DatasetManifest,
    EvaluationSetup,
    InstanceOption,
    Interval,
    Plan,
    Problem,
    RunRequest,
    UploadedObject,
    ValidationReport,
)
from dropforge_core.evaluation.join import join
from dropforge_core.gate.judgement import Subject, judge
from dropforge_core.gate.slices import Slicing
from dropforge_core.recipe import BaseModelRef, Gate, Recipe
from dropforge_core.report.documents import JobFacts, RunDocuments, TrainingSummary

RUN = "k7q2m4x5w3r6t2p7n4b5c6d2fa"
BASE = "base-models/HuggingFaceTB/SmolLM2-135M-Instruct/" + "12fd25f7" * 5 + "/"
STREETS = ("Oak Ave", "Main St", "W Lake Dr", "County Rd 9", "Elm Ct")
CITIES = (("Austin", "TX"), ("Dayton", "OH"), ("Reno", "NV"), ("Salem", "OR"))


def evaluation_lines(rows=72):
    """Addresses to JSON: the base rambles, the champion errs often, the candidate seldom."""
    prompts, predictions = [], []
    for i in range(rows):
        street, (city, state) = STREETS[i % 5], CITIES[i % 4]
        asked = f"{100 + 7 * i} {street}, {city} {state} {40000 + 13 * i}"
        reference = json.dumps(
            {
                "number": str(100 + 7 * i),
                "street": street,
                "city": city,
                "state": state,
                "zip": str(40000 + 13 * i),
            }
        )
        near = reference.replace(f'"{street}"', f'"{street.split()[0]}"')
        texts = {
            "base": reference
            if i % 24 == 5
            else f"The address is {asked}.\nIt has a number, a street and a city.",
            "champion": near if i % 3 == 1 else reference,
            "candidate": near if i % 4 == 1 else reference,
        }
        losses = {
            "base": 88.0 + 9 * math.sin(i),
            "champion": 17 + 2 * math.sin(3 * i),
            "candidate": 13 + 2 * math.cos(i),
        }
        for variant, text in texts.items():
            about = {"id": f"{i:016x}", "variant": variant}
            turns = [
                {"role": "system", "content": "Extract the parts of the address as JSON."},
                {"role": "user", "content": asked},
            ]
            prompts.append(
                json.dumps({**about, "messages": turns, "reference": reference, "generate": True}).encode()
            )
            predictions.append(
                json.dumps({**about, "text": text, "finish_reason": "stop", "nll": losses[variant]}).encode()
            )
    return prompts, predictions


def recipe():
    return Recipe(
        base_model=BaseModelRef(repo="HuggingFaceTB/SmolLM2-135M-Instruct"),
        gate=Gate(minimum={"json_valid": 0.9}, guarded=("field_f1",), delta=0.05),
    )


def judged():
    setup = EvaluationSetup(
        job_name=f"us-addresses-{RUN}-e1",
        sagemaker_model_name=f"us-addresses-{RUN}-e1",
        prompts=216,
        variants=("base", "champion", "candidate"),
        champion_package_arn="arn:aws:sagemaker:us-east-1:000000000000:model-package/us-addresses/4",
        champion_model_data="s3://dropforge-runs/runs/old/model.tar.gz",
        training_job_name=f"us-addresses-{RUN}-t1",
        model_data=f"s3://dropforge-runs/runs/{RUN}/training/output/us-addresses-{RUN}-t1/output/model.tar.gz",
        base_model_prefix=BASE,
    )
    subject = Subject(
        RUN, "us-addresses", "sha256:" + "5ac1" * 16, "HuggingFaceTB/SmolLM2-135M-Instruct", setup
    )
    prompts, predictions = evaluation_lines()
    return setup, judge(join(prompts, predictions, setup.variants), recipe(), subject, Slicing())


def plan():
    names = (("ml.g6.xlarge", "L4", 22.0, 1.006), ("ml.g5.xlarge", "A10G", 22.0, 1.408))
    return Plan(
        run_id=RUN,
        fits=True,
        within_budget=True,
        needs_approval=False,
        reason="ml.g6.xlarge is the first of the allowed types that holds the training (2.4 of 22 GiB).",
        base_model=BaseModelPlan(
            name="HuggingFaceTB/SmolLM2-135M-Instruct",
            source="hub:HuggingFaceTB/SmolLM2-135M-Instruct@main",
            cached=True,
            prefix=BASE,
            parameters=134_515_008,
            cache_job_name="b",
        ),
        compute=ComputeChoice(
            attempt=1, job_name=f"us-addresses-{RUN}-t1", instance_type="ml.g6.xlarge", spot=True, max_runtime_s=7200,
            max_wait_s=9000, volume_gb=30, micro_batch_tokens=0, remaining_types=("ml.g5.xlarge",),
        ),
        evaluation_instance_type="ml.g5.xlarge",
        gradient_checkpointing=False,
        steps=132,
        tokens_total=391_000,
        cost_usd=Interval(low=0.11, expected=0.19, high=0.42),
        hours=Interval(low=0.05, expected=0.09, high=0.2),
        max_cost_usd=5.0,
        notes=("The evaluation is priced at the training rate of its instance type.",),
        options=tuple(
            InstanceOption(
                instance_type=name, gpu=gpu, gpu_memory_gib=memory, predicted_memory_gib=2.4, fits=True,
                price_usd_hour=price, hours=Interval(low=0.05, expected=0.09, high=0.2),
                cost_usd=Interval(low=0.11, expected=0.19, high=0.42),
            )
            for name, gpu, memory, price in names
        ),
    )  # fmt: skip


def validation(**changes):
    return ValidationReport(
        **{
            "valid": True,
            "format": "messages",
            "rows": 782,
            "bytes": 331_204,
            "error_count": 0,
            "errors": (),
            "warnings": (
                Problem(
                    file="addresses.jsonl",
                    line=88,
                    path="messages[1].content",
                    code="NEAR_DUPLICATE",
                    message="41 rows resemble another row; they are kept on one side of the hold-out.",
                    count=41,
                ),
            ),
            "tokens": {"total": 130_310, "exact": True, "longest": 213, "limit": 512},
            "duplicates": {"exact": 0, "near": 41},
            "leakage": {"exact": 0, "near": 0},
            "pii": {"rows": {}},
            "holdout": {"basis": "similarity", "train": 710, "eval": 72, "left_out": 0},
            **changes,
        }
    )


def training():
    steps = 132
    noise = [0.07 * math.sin(12.9 * i) * math.exp(-i / 90) for i in range(steps)]
    return TrainingSummary(
        steps=steps,
        epochs=3.0,
        tokens=390_930,
        seconds=412.6,
        tokens_per_s=947.5,
        peak_memory_gib=2.31,
        best_step=110,
        best_eval_loss=0.094,
        first_eval_loss=0.883,
        loss_curve=tuple((i + 1, 0.09 + 0.95 * math.exp(-i / 17) + noise[i]) for i in range(steps)),
        eval_curve=(
            (0, 0.883),
            (22, 0.291),
            (44, 0.158),
            (66, 0.121),
            (88, 0.101),
            (110, 0.094),
            (132, 0.096),
        ),
    )


@pytest.fixture(scope="session")
def registered():
    """A run with every document."""
    setup, judgement = judged()
    return RunDocuments(
        run_id=RUN,
        model="us-addresses",
        status="REGISTERED",
        package_arn="arn:aws:sagemaker:us-east-1:000000000000:model-package/us-addresses/5",
        bucket="dropforge-runs",
        request=RunRequest(
            run_id=RUN,
            model="us-addresses",
            version=None,
            bucket="dropforge-datasets",
            objects=(
                UploadedObject(
                    key="datasets/us-addresses/addresses.jsonl", version_id="v1", size=331_204, etag="e"
                ),
            ),
            recipe_key=None,
            recipe_text=None,
            recipe_default="",
            received_at="2026-11-21T09:14:03+00:00",
            requester="000000000000",
        ),
        recipe=recipe(),
        validation=validation(),
        manifest=DatasetManifest(digest="sha256:" + "5ac1" * 16, train=(), holdout=(), holdout_source="cut"),
        plan=plan(),
        training=training(),
        base_manifest=BaseModelManifest(
            name="SmolLM2", revision="12fd25f7" * 5, source="hub", files={}, bytes=1, licence="apache-2.0"
        ),
        setup=setup,
        metrics=judgement.metrics,
        gate=judgement.gate,
        examples=judgement.examples,
        jobs=(
            JobFacts(
                name=setup.training_job_name,
                kind="training",
                instance_type="ml.g6.xlarge",
                billable_s=571,
                usd_hour=1.006,
            ),
            JobFacts(
                name=setup.job_name,
                kind="evaluation",
                instance_type="ml.g5.xlarge",
                billable_s=208,
                usd_hour=1.408,
            ),
        ),
        gate_sha256="9b" * 32,
    )


@pytest.fixture(scope="session")
def rejected(registered):
    """A run whose dataset was full of faults."""
    faults = tuple(
        Problem(
            file="addresses.jsonl",
            line=7 * n,
            path=path,
            code=code,
            message=message,
            mend=mend,
            count=n,
        )
        for n, (code, path, message, mend) in enumerate(
            (
                (
                    "INVALID_JSON",
                    "",
                    "The line ends in the middle of a string.",
                    "Write one whole JSON object a line.",
                ),
                (
                    "UNKNOWN_ROLE",
                    "messages[2].role",
                    "Found 'bot', expected system, user, assistant or tool.",
                    "Rename it.",
                ),
                (
                    "EMPTY_CONTENT",
                    "messages[1].content",
                    "The content is empty.",
                    "Remove the message, or fill it.",
                ),
            ),
            start=1,
        )
    )
    return replace(
        registered,
        status="DATASET_REJECTED",
        message="3 kinds of faults in 6 of 782 lines. The first: line 7 of addresses.jsonl is no JSON.",
        package_arn=None,
        validation=validation(valid=False, error_count=6, errors=faults, warnings=(), holdout={}),
        manifest=None,
        plan=None,
        training=None,
        base_manifest=None,
        setup=None,
        metrics=None,
        gate=None,
        examples=None,
        jobs=(),
        gate_sha256="",
    )


@pytest.fixture(scope="session")
def failed(registered):
    """A run whose training crashed."""
    return replace(
        registered,
        status="FAILED_CODE",
        message=(
            "The training job failed in its own code, and would again: no retry.\n"
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied (4x576 and 512x64)\n"
            "Next: mend training_image/, build the image, then `dropforge redrive`."
        ),
        package_arn=None,
        training=None,
        setup=None,
        metrics=None,
        gate=None,
        examples=None,
        jobs=(),
        gate_sha256="",
    )
