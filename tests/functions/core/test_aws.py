"""The gateways, against a real HTTP endpoint."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from functools import partial

import boto3
import pyarrow as pa
import pytest
from botocore.stub import Stubber
from pyarrow import parquet as pq

from dropforge_core.aws import Bucket, Bus, Ledger, ObjectVanished, newest_approved_package
from dropforge_core.dataset.reading.blocks import PartReader
from dropforge_core.dataset.reading.parts import outline_file, split
from dropforge_core.dataset.reading.source import SourceFile
from dropforge_core.events import RunEvent
from dropforge_core.ledger import Status

RUN = "a" * 26


@pytest.fixture(scope="module")
def connect(empty_aws):
    def client(service):
        return boto3.client(
            service,
            endpoint_url=empty_aws,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    return client


@pytest.fixture
def ledger(connect):
    db = connect("dynamodb")
    db.create_table(
        TableName="runs",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    yield Ledger("runs", db)
    db.delete_table(TableName="runs")


def test_a_run_is_opened_once(ledger):
    """Of many simultaneous uploads of one thing exactly one opens the run."""
    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(lambda _: ledger.open_run(RUN, "m", Status.RECEIVED, {}), range(50)))
    assert won.count(True) == 1


def test_a_run_only_moves_forward(ledger):
    """A status that comes late, or a second end, is not written."""
    ledger.open_run(RUN, "m", Status.RECEIVED, {"received_at": "now"})
    assert ledger.move(RUN, Status.TRAINING, {"job_name": "j"})
    assert not ledger.move(RUN, Status.PLANNING)
    assert ledger.move(RUN, Status.REGISTERED)
    assert not ledger.move(RUN, Status.FAILED_INTERNAL)
    run = ledger.run(RUN)
    assert run is not None
    assert (run["status"], run["job_name"], run["received_at"]) == ("REGISTERED", "j", "now")


def test_an_unknown_run_is_never_made_by_a_move(ledger):
    """A late event about a run that the ledger never saw writes nothing."""
    assert not ledger.move("b" * 26, Status.TRAINING)
    assert ledger.run("b" * 26) is None


def test_a_claim_names_its_first_holder(ledger):
    """Whoever claims a taken name learns who has it, and only the holder's place can be taken over."""
    assert ledger.claim("CONTENT#x", "first") == "first"
    assert ledger.claim("CONTENT#x", "second") == "first"
    assert not ledger.take_over("CONTENT#x", "nobody", "third")
    assert ledger.take_over("CONTENT#x", "first", "second")
    assert ledger.claim("CONTENT#x", "third") == "second"


def test_an_object_is_read_at_its_version(connect):
    """An overwrite after the upload does not change what a pinned version reads."""
    s3 = connect("s3")
    s3.create_bucket(Bucket="data")
    s3.put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="data", Key="k", Body=b"one")["VersionId"]
    s3.put_object(Bucket="data", Key="k", Body=b"two")
    bucket = Bucket("data", s3)
    assert bucket.read("k", first) == b"one"
    assert bucket.read("k") == b"two"
    with pytest.raises(ObjectVanished):
        bucket.read("gone")
    assert bucket.head("gone") is None


def test_an_object_is_read_from_any_byte_on(connect):
    """A stream begins where it is asked to, at a pinned version too, and is empty behind the object's end."""
    s3 = connect("s3")
    s3.create_bucket(Bucket="data")
    s3.put_bucket_versioning(Bucket="data", VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket="data", Key="k", Body=b"0123456789")["VersionId"]
    s3.put_object(Bucket="data", Key="k", Body=b"another")
    s3.put_object(Bucket="data", Key="nothing", Body=b"")
    bucket = Bucket("data", s3)
    for start in (0, 1, 9, 10, 11):
        assert b"".join(bucket.stream("k", first, start)) == b"0123456789"[start:]
    assert b"".join(bucket.stream("k", start=3)) == b"ther"
    assert list(bucket.stream("nothing")) == []
    with pytest.raises(ObjectVanished):
        next(bucket.stream("gone", start=5))


def test_a_file_goes_up_and_comes_down_as_it_is(connect, tmp_path):
    """Files travel whole, by way of the disk; what is deleted is gone, and may be deleted again."""
    s3 = connect("s3")
    s3.create_bucket(Bucket="files")
    bucket, here, there = Bucket("files", s3), tmp_path / "here", tmp_path / "there"
    here.write_bytes(bytes(range(256)) * 1000)
    bucket.upload("work/one", here)
    bucket.download("work/one", there)
    assert there.read_bytes() == here.read_bytes()
    for _ in range(2):
        bucket.delete("work/one")
    with pytest.raises(ObjectVanished):
        bucket.download("work/one", tmp_path / "again")


def test_a_stream_that_is_dropped_gives_its_connection_back(connect):
    """Any number of beginnings can be read without reading the rest."""
    s3 = connect("s3")
    s3.create_bucket(Bucket="data")
    s3.put_object(Bucket="data", Key="k", Body=bytes(20 << 20))
    bucket = Bucket("data", s3)
    for _ in range(30):
        with closing(bucket.stream("k", start=1)) as chunks:
            assert len(next(chunks)) == 1 << 20


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl"])
def test_parts_of_a_dataset_are_read_from_a_bucket(connect, name):
    """Each part is read by ranges of the object, and together they are its rows."""
    rows = [{"text": f"row {n}"} for n in range(1000)]
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if name == "train.parquet":
        table = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=100)
        body = table.getvalue()
    s3 = connect("s3")
    s3.create_bucket(Bucket="data")
    s3.put_object(Bucket="data", Key=name, Body=body)
    file = SourceFile(name, partial(Bucket("data", s3).stream, name, None), len(body))
    outline = outline_file(file)
    parts = split([outline], len(body) // 4)
    assert len(parts) > 3
    found = []
    for part in parts:
        for block in PartReader(file, outline, part, lambda *told: pytest.fail(str(told))):
            found += [json.loads(row) for row in block.rows]
    assert found == rows


def test_a_bus_that_refuses_is_an_error(connect):
    """An event that the bus did not take is never lost in silence."""
    bus = Bus("no-such-bus", connect("events"))
    with pytest.raises(Exception, match=r"(?i)bus|RunEnded"):
        bus.publish("RunEnded", RunEvent(run_id=RUN, model="m", status="REGISTERED"))


def test_a_first_model_has_no_champion(connect):
    """Where no package group exists yet, there is no champion, and that is no error."""
    assert newest_approved_package("new-model", connect("sagemaker")) is None


def test_an_empty_page_is_not_the_end_of_the_registry():
    """The service filters by status behind the page: an approved package on the second page is the champion."""
    sagemaker = boto3.client("sagemaker", region_name="us-east-1")
    arn = "arn:aws:sagemaker:us-east-1:000000000000:model-package/m/3"
    with Stubber(sagemaker) as answers:
        asked = {
            "ModelPackageGroupName": "m",
            "ModelApprovalStatus": "Approved",
            "SortBy": "CreationTime",
            "SortOrder": "Descending",
            "MaxResults": 100,
        }
        answers.add_response("list_model_packages", {"ModelPackageSummaryList": [], "NextToken": "2"}, asked)
        answers.add_response(
            "list_model_packages",
            {
                "ModelPackageSummaryList": [
                    {
                        "ModelPackageArn": arn,
                        "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
                        "ModelPackageStatus": "Completed",
                    }
                ]
            },
            {**asked, "NextToken": "2"},
        )
        described = {
            "ModelPackageName": "m/3",
            "ModelPackageArn": arn,
            "CreationTime": datetime(2026, 1, 1, tzinfo=UTC),
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
        }
        answers.add_response("describe_model_package", described, {"ModelPackageName": arn})
        assert newest_approved_package("m", sagemaker)["ModelPackageArn"] == arn
        answers.assert_no_pending_responses()
