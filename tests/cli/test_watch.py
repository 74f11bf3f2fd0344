"""Watching ends whenever the run has ended, however it did, and finds the run that an upload started."""

import boto3
import pytest

from dropforge.cli.console import CommandFailed
from dropforge.cli.stack import Stack
from dropforge.cli.upload import Pushed
from dropforge.cli.watch import PATIENCE, SETTLE_S, Watcher, snapshots, wait_for_run
from dropforge_core.contracts import RunRequest, UploadedObject

RUN = "abcdefghijklmnopqrstuvwxyz"
OTHER = "zyxwvutsrqponmlkjihgfedcba"


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self):
        self.now = 1_790_000_000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


def request(run_id: str, *versions: str) -> dict:
    return RunRequest(
        run_id=run_id,
        model="support-bot",
        version=None,
        bucket="datasets",
        objects=tuple(UploadedObject(key="k", version_id=v, size=1, etag="e") for v in versions),
        recipe_key=None,
        recipe_text=None,
        recipe_default="",
        received_at="2026-11-21T05:00:00+00:00",
        requester="me",
    ).model_dump(mode="json")


def pushed(version: str) -> Pushed:
    return Pushed(
        bucket="datasets",
        model="support-bot",
        version=None,
        keys=("k",),
        version_ids=(version,),
        bytes=1,
        uri="s3://datasets/k",
    )


def test_training_is_read_from_the_jobs_log(world):
    """Step, loss and speed come from the newest lines of the job that the ledger names."""
    world.run(job_name="support-bot-x-t1")
    world.execution()
    watcher = Watcher(Stack.find("dropforge"), RUN)
    assert watcher.look().progress.training is None
    world.log(
        "/aws/sagemaker/TrainingJobs", "support-bot-x-t1/algo-1-1", "step=1/4 loss=2.0", "step=2/4 loss=1.5"
    )
    first = watcher.look()
    world.log("/aws/sagemaker/TrainingJobs", "support-bot-x-t1/algo-1-1", "step=3/4 loss=1.0")
    second = watcher.look()
    assert [shot.progress.training.step for shot in (first, second)] == [2, 3]
    assert not second.ended


def test_evaluation_is_read_over_all_attempts(world):
    """The transform's second attempt has another name and is read all the same."""
    world.run(status="EVALUATING")
    world.execution()
    world.document("evaluation_setup", {"job_name": "support-bot-x-e1", "prompts": 100})
    watcher = Watcher(Stack.find("dropforge"), RUN)
    world.log("/aws/sagemaker/TransformJobs", "support-bot-x-e1/a", "answered=9", "answered=12")
    first = watcher.look().progress
    world.log("/aws/sagemaker/TransformJobs", "support-bot-x-e2/a", "answered=40", "answered=60")
    second = watcher.look().progress
    assert [(found.done, found.total) for found in (first, second)] == [(21, 100), (100, 100)]


def test_a_terminal_ledger_ends_the_watch(world, clock):
    """A run that ended without an execution (a duplicate, say) is over at once."""
    world.run(status="DUPLICATE", duplicate_of=OTHER)
    taken = list(snapshots(Watcher(Stack.find("dropforge"), RUN, clock), 1, clock.sleep))
    assert [(shot.ended, shot.is_lost, shot.run.duplicate_of) for shot in taken] == [(True, False, OTHER)]


def test_an_execution_that_died_ends_the_watch(world, clock):
    """Where the ledger never hears of the end, the watch ends after a while and says so."""
    world.run(status="TRAINING")
    arn = world.execution()
    boto3.client("stepfunctions").stop_execution(executionArn=arn, error="Boom", cause="gone")
    taken = list(snapshots(Watcher(Stack.find("dropforge"), RUN, clock), 5, clock.sleep))
    assert taken[-1].is_lost
    assert taken[-1].execution == "ABORTED"
    assert len(taken) <= SETTLE_S / 5 + 3


def test_a_ledger_that_is_ahead_of_its_execution_ends_the_watch(world, clock):
    """An execution that never closes does not hold the watch for ever."""
    world.run(status="REGISTERED")
    world.execution()
    taken = list(snapshots(Watcher(Stack.find("dropforge"), RUN, clock), 5, clock.sleep))
    assert taken[-1].ended
    assert not taken[-1].is_lost


def test_an_unknown_run_is_told(world):
    """No snapshot of a run that is not there."""
    with pytest.raises(CommandFailed, match="does not know"):
        Watcher(Stack.find("dropforge"), RUN).look()


def test_aws_that_stops_answering_ends_the_watch(world, clock, monkeypatch):
    """After some failed polls in a row the watch gives up with a sentence."""
    world.run()
    watcher = Watcher(Stack.find("dropforge"), RUN, clock)
    boto3.client("dynamodb").delete_table(TableName="table")
    slept = []
    with pytest.raises(CommandFailed, match="does not answer"):
        list(snapshots(watcher, 1, slept.append))
    assert len(slept) == PATIENCE - 1


def test_the_run_of_an_upload_is_found_by_its_versions(world, clock):
    """An older run of the same model is not mistaken for the one that was just started."""
    world.run(OTHER)
    world.document("request", request(OTHER, "v1"), OTHER)
    world.run(RUN)
    world.document("request", request(RUN, "v2", "v3"))
    found = wait_for_run(Stack.find("dropforge"), pushed("v3"), clock=clock, sleep=clock.sleep)
    assert found.run_id == RUN


def test_an_upload_that_starts_nothing_is_told(world, clock):
    """Waiting for a run that never comes ends with what to look at."""
    with pytest.raises(CommandFailed, match="dropforge doctor"):
        wait_for_run(Stack.find("dropforge"), pushed("v9"), clock=clock, sleep=clock.sleep)


def test_an_upload_that_was_refused_is_found(world, clock):
    """An item that ended at once and has no request is the upload's, unless it was there before."""
    world.run(OTHER, "DATASET_REJECTED")
    world.run(RUN, "DATASET_REJECTED")
    found = wait_for_run(
        Stack.find("dropforge"), pushed("v1"), before=frozenset({OTHER}), clock=clock, sleep=clock.sleep
    )
    assert found.run_id == RUN
