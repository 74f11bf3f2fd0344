"""A local stack whose jobs meet planned faults, asked the way a person would look at it."""

import json
import time
from pathlib import Path

DATA = Path(__file__).parents[2] / "examples" / "us-addresses" / "addresses.jsonl"
LIMIT_S = 400


class Watched:
    """The stack, asked the way a person would look at it."""

    def __init__(self, stack):
        self.stack = stack
        self.sagemaker, self.dynamodb = stack.client("sagemaker"), stack.client("dynamodb")
        self.states, self.ssm = stack.client("stepfunctions"), stack.client("ssm")

    def plan_faults(self, faults):
        (self.stack.state_dir / "sagemaker" / "faults.json").write_text(json.dumps({"faults": faults}))

    def upload(self, model, recipe=""):
        s3, bucket = self.stack.client("s3"), self.stack.outputs["buckets"]["datasets"]
        if recipe:
            s3.put_object(Bucket=bucket, Key=f"datasets/{model}/recipe.yaml", Body=recipe.encode())
        s3.upload_file(str(DATA), bucket, f"datasets/{model}/train.jsonl")

    def upload_with_limit(self, model, state, seconds):
        """Upload, and let this run's state time out so soon. An execution keeps the definition that it began with."""
        arn = self.stack.outputs["state_machine"]
        whole = self.states.describe_state_machine(stateMachineArn=arn)["definition"]
        hasty = json.loads(whole)
        hasty["States"][state]["TimeoutSeconds"] = seconds
        self.states.update_state_machine(stateMachineArn=arn, definition=json.dumps(hasty))
        self.upload(model)
        eventually(lambda: self.run(model).get("execution_arn"), f"the execution of {model}")
        self.states.update_state_machine(stateMachineArn=arn, definition=whole)

    def items(self, prefix):
        found = self.dynamodb.scan(TableName=self.stack.outputs["table"], ConsistentRead=True)["Items"]
        plain = [{name: str(next(iter(value.values()))) for name, value in item.items()} for item in found]
        return [item for item in plain if item["pk"].startswith(prefix)]

    def run(self, model):
        return next((item for item in self.items("RUN#") if item["model"] == model), {})

    def ended(self, model):
        """The run's item, once it has ended."""
        return found if (found := self.run(model)).get("ended_at") else None

    def cancel(self, model):
        """Stop its execution, as `dropforge cancel` does."""
        executions = self.states.list_executions(
            stateMachineArn=self.stack.outputs["state_machine"], statusFilter="RUNNING"
        )["executions"]
        (found,) = [one for one in executions if one["name"] == self.run(model)["run_id"]]
        self.states.stop_execution(executionArn=found["executionArn"])

    def jobs(self, model):
        """Descriptions of its training jobs, oldest first."""
        names = [
            found["TrainingJobName"]
            for found in self.sagemaker.list_training_jobs(
                NameContains=model, SortBy="CreationTime", SortOrder="Ascending"
            )["TrainingJobSummaries"]
        ]
        return [self.sagemaker.describe_training_job(TrainingJobName=name) for name in names]

    def copies(self, model):
        """Descriptions of its processing jobs."""
        found = self.sagemaker.list_processing_jobs(NameContains=model)["ProcessingJobSummaries"]
        return [
            self.sagemaker.describe_processing_job(ProcessingJobName=one["ProcessingJobName"])
            for one in found
        ]

    def evaluations(self, model):
        """Descriptions of its transform jobs."""
        found = self.sagemaker.list_transform_jobs(NameContains=model)["TransformJobSummaries"]
        return [
            self.sagemaker.describe_transform_job(TransformJobName=one["TransformJobName"]) for one in found
        ]

    def assert_all_money_is_settled(self, runs):
        """Nothing is reserved any more, and the accounts hold what was spent. A run that was cancelled is told before."""

        def settled():
            found = [json.loads(item["reservation"]) for item in self.items("RESERVATION#")]
            return found if all(one["reserved_micro"] == 0 for one in found) else []

        reservations = eventually(settled, "the settled money")
        assert len(reservations) == runs
        accounts = {int(item["taken"]) for item in self.items("SPENT#stack#")}
        assert accounts == {sum(one["spent_micro"] for one in reservations)}


def eventually(ask, what):
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if answer := ask():
            return answer
        time.sleep(0.3)
    raise AssertionError(f"{what}: nothing came within {LIMIT_S} s")
