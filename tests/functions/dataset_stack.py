"""An account with a versioned dataset bucket, and runs of which intake has written the request."""

import json

import reduce_findings
import seal_dataset
import split_dataset
import survey_part
import validate_dataset
import write_part
from dropforge_core.aws import Ledger
from dropforge_core.contracts import (
    DatasetManifest,
    DatasetSplit,
    RunRequest,
    UploadedObject,
    ValidationReport,
    ValidationVerdict,
)
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status

RECIPE = "base_model: org/name\ndataset: {min_rows: 5}\n"
ANIMALS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kiwi", "lynx"]


def rows(count=40, answer="yes"):
    lines = []
    for n in range(count):
        prompt = f"{ANIMALS[n % 12]}{'abcdefgh'[n // 12]} {ANIMALS[n * 5 % 12]}{'stuvwxyz'[n % 8]}"
        lines.append(json.dumps({"prompt": prompt, "completion": f"{answer} {prompt}"}).encode())
    return b"\n".join(lines) + b"\n"


class Stack:
    def __init__(self, account, published, context):
        self.account, self.published, self.context = account, published, context
        self.ledger = Ledger("runs")
        account.s3.create_bucket(Bucket="datasets")
        account.s3.put_bucket_versioning(Bucket="datasets", VersioningConfiguration={"Status": "Enabled"})

    def put(self, name, body):
        key = f"datasets/bot/{name}"
        version = self.account.s3.put_object(Bucket="datasets", Key=key, Body=body)["VersionId"]
        return UploadedObject(key=key, version_id=version, size=len(body), etag="e")

    def request(self, letter, *objects, recipe=None, default=RECIPE, again=False):
        """Open a run named by one letter, as intake does."""
        run_id = letter * 26
        made = RunRequest(
            run_id=run_id,
            model="bot",
            version=None,
            bucket="datasets",
            objects=objects,
            recipe_key="datasets/bot/recipe.yaml" if recipe else None,
            recipe_text=recipe,
            recipe_default=default,
            received_at="2026-11-01T10:00:00Z",
            requester="1",
            again=again,
        )
        self.account.put(RunLayout(run_id=run_id).request, made.model_dump_json())
        self.ledger.open_run(run_id, "bot", Status.RECEIVED, {"received_at": made.received_at})
        return run_id

    def call(self, module, run_id, **more):
        """Invoke a handler as a state does: JSON in, JSON out."""
        asked = {"run_id": run_id, "model": "bot", "redrive": 0, **more}
        return json.loads(json.dumps(module.handler(json.loads(json.dumps(asked)), self.context)))

    def validate(self, run_id):
        """The one function, for what it can check by itself."""
        return ValidationVerdict.model_validate(self.call(validate_dataset, run_id))

    def survey(self, run_id):
        """The large dataset's way up to the findings; answers how many parts there are."""
        parts = DatasetSplit.model_validate(self.call(split_dataset, run_id)).parts
        # A Map runs its children in any order.
        for part in reversed(range(parts)):
            assert self.call(survey_part, run_id, part=part) == {}
        return parts

    def validate_in_parts(self, run_id):
        """The way that the state machine takes a large dataset."""
        parts = self.survey(run_id)
        verdict = ValidationVerdict.model_validate(self.call(reduce_findings, run_id))
        if verdict.outcome == "VALID":
            for part in reversed(range(parts)):
                assert self.call(write_part, run_id, part=part) == {}
            facts = verdict.dataset.model_dump(mode="json")
            assert self.call(seal_dataset, run_id, dataset=facts) == {}
        return verdict

    def keys(self, run_id):
        found = self.account.s3.list_objects_v2(Bucket="runs", Prefix=f"runs/{run_id}/").get("Contents", [])
        return {entry["Key"].removeprefix(f"runs/{run_id}/") for entry in found}

    def manifest(self, run_id):
        return DatasetManifest.model_validate_json(self.account.get(RunLayout(run_id=run_id).manifest))

    def lines(self, entries):
        """The rows of shards, in the order of the manifest."""
        return [line for entry in entries for line in self.account.get(entry.key).splitlines()]

    def report(self, run_id):
        return ValidationReport.model_validate_json(self.account.get(RunLayout(run_id=run_id).validation))

    def destroy(self):
        for entry in self.account.s3.list_object_versions(Bucket="datasets").get("Versions", []):
            self.account.s3.delete_object(Bucket="datasets", Key=entry["Key"], VersionId=entry["VersionId"])
        self.account.s3.delete_bucket(Bucket="datasets")
