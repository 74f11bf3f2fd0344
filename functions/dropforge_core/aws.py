"""The only door to AWS. Small gateways, one a service, each given its client.

Every method is one or two calls; what to do about an answer is decided in the pure modules.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from dropforge_core.budget import Account, Change, Reservation
from dropforge_core.events import SOURCE, DetailType, RunEvent
from dropforge_core.ledger import Status, rank

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

READ_BYTES: Final = 1024 * 1024
"""Size of a streamed read, also the least that is fetched of a range; `iter_lines` is quadratic on long lines (botocore#2774)."""


@cache
def client(service: str) -> Any:
    """A boto3 client whose endpoint comes from the environment, with adaptive retries."""
    return boto3.client(service, config=Config(retries={"mode": "adaptive", "max_attempts": 6}))  # type: ignore[call-overload]


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "Unknown"))


class ObjectVanished(Exception):
    """The object, or this version of it, is not there any more."""


class Bucket:
    """One S3 bucket."""

    def __init__(self, name: str, s3: S3Client | None = None) -> None:
        self.name = name
        self._s3: S3Client = s3 if s3 is not None else client("s3")

    def read(self, key: str, version_id: str | None = None) -> bytes:
        """The whole object.

        Raises:
            ObjectVanished: when it is not there.
        """
        return b"".join(self.stream(key, version_id))

    def stream(self, key: str, version_id: str | None = None, start: int = 0) -> Generator[bytes, None, None]:
        """Chunks of up to 1 MiB from a byte offset to the end; nothing where the object ends before that.

        The connection goes back when the iterator is closed, read to its end or not.

        Raises:
            ObjectVanished: when it is not there.
        """
        extra: dict[str, Any] = {"VersionId": version_id} if version_id and version_id != "null" else {}
        if start:
            extra["Range"] = f"bytes={start}-"
        try:
            body = self._s3.get_object(Bucket=self.name, Key=key, **extra)["Body"]
        except ClientError as error:
            if error_code(error) in {"NoSuchKey", "NoSuchVersion", "404", "MethodNotAllowed"}:
                raise ObjectVanished(f"s3://{self.name}/{key}") from error
            if error_code(error) in {"InvalidRange", "416"}:
                return
            raise
        with closing(body):
            while chunk := body.read(READ_BYTES):
                yield chunk

    def write(self, key: str, body: bytes, content_type: str = "application/json") -> None:
        self._s3.put_object(Bucket=self.name, Key=key, Body=body, ContentType=content_type)

    def upload(self, key: str, file: Path, content_type: str = "application/octet-stream") -> None:
        """A file of this machine's disk, at most 5 GB (the limit of one request)."""
        with file.open("rb") as body:
            self._s3.put_object(Bucket=self.name, Key=key, Body=body, ContentType=content_type)

    def download(self, key: str, file: Path) -> None:
        """The whole object, into a new file.

        Raises:
            ObjectVanished: when it is not there.
        """
        with file.open("xb") as body, closing(self.stream(key)) as chunks:
            for chunk in chunks:
                body.write(chunk)

    def delete(self, key: str) -> None:
        """Delete it, whether or not it is there. In a versioned bucket its versions stay."""
        self._s3.delete_object(Bucket=self.name, Key=key)

    def head(self, key: str) -> Mapping[str, Any] | None:
        """Size, ETag, VersionId of the newest version, or None where there is none."""
        try:
            return dict(self._s3.head_object(Bucket=self.name, Key=key))
        except ClientError as error:
            if error_code(error) in {"404", "NoSuchKey", "NotFound"}:
                return None
            raise

    def list(self, prefix: str) -> Iterator[Mapping[str, Any]]:
        """Newest versions under a prefix: Key, Size, ETag, LastModified (aware, to the second)."""
        for page in self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix):
            for entry in page.get("Contents", []):
                yield dict(entry)


class Ledger:
    """The run table: one item a run, moved forward only, and the claims that make runs unique."""

    def __init__(self, table: str, dynamodb: DynamoDBClient | None = None) -> None:
        self._table = table
        self._db: DynamoDBClient = dynamodb if dynamodb is not None else client("dynamodb")

    @staticmethod
    def run_key(run_id: str) -> dict[str, Any]:
        return {"pk": {"S": f"RUN#{run_id}"}}

    def open_run(self, run_id: str, model: str, status: Status, fields: Mapping[str, str]) -> bool:
        """Insert the run's item. False where the run is known already."""
        item: dict[str, Any] = {
            **self.run_key(run_id),
            "run_id": {"S": run_id},
            "model": {"S": model},
            "status": {"S": status},
            "rank": {"N": str(rank(status))},
            **{name: {"S": value} for name, value in fields.items()},
        }
        try:
            self._db.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)"
            )
        except ClientError as error:
            if error_code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def move(
        self, run_id: str, status: Status, fields: Mapping[str, str] | None = None, redrive: int = 0
    ) -> bool:
        """Move the run to a later status. False where it is there or beyond already (nothing is written)."""
        names = {"#status": "status", "#rank": "rank"}
        values: dict[str, Any] = {":status": {"S": status}, ":rank": {"N": str(rank(status, redrive))}}
        sets = ["#status = :status", "#rank = :rank"]
        for index, (name, value) in enumerate((fields or {}).items()):
            names[f"#f{index}"], values[f":f{index}"] = name, {"S": value}
            sets.append(f"#f{index} = :f{index}")
        try:
            self._db.update_item(
                TableName=self._table,
                Key=self.run_key(run_id),
                UpdateExpression="SET " + ", ".join(sets),
                ConditionExpression="attribute_exists(pk) AND #rank < :rank",
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=values,
            )
        except ClientError as error:
            if error_code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def annotate(self, run_id: str, fields: Mapping[str, str]) -> None:
        """Add facts to the run's item without moving it."""
        if not fields:
            return
        names = {f"#f{i}": name for i, name in enumerate(fields)}
        values: dict[str, Any] = {f":f{i}": {"S": value} for i, value in enumerate(fields.values())}
        self._db.update_item(
            TableName=self._table,
            Key=self.run_key(run_id),
            UpdateExpression="SET " + ", ".join(f"#f{i} = :f{i}" for i in range(len(fields))),
            ExpressionAttributeNames=names,
            ExpressionAttributeValues=values,
        )

    def run(self, run_id: str) -> dict[str, str] | None:
        """The run's item as plain text fields, or None."""
        item = self._db.get_item(TableName=self._table, Key=self.run_key(run_id), ConsistentRead=True).get(
            "Item"
        )
        return plain(item) if item else None

    def claim(self, name: str, value: str, fields: Mapping[str, str] | None = None) -> str:
        """Claim a unique name (content digest, event id, slot). Returns the holder: `value`, or who was first."""
        item: dict[str, Any] = {"pk": {"S": name}, "holder": {"S": value}}
        item.update({key: {"S": text} for key, text in (fields or {}).items()})
        try:
            self._db.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)"
            )
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            found = self._db.get_item(
                TableName=self._table, Key={"pk": {"S": name}}, ConsistentRead=True
            ).get("Item")
            return plain(found).get("holder", value) if found else self.claim(name, value, fields)
        return value

    def holder(self, name: str) -> str | None:
        """Who holds a claim; None where nobody does."""
        found = self._db.get_item(TableName=self._table, Key={"pk": {"S": name}}, ConsistentRead=True).get(
            "Item"
        )
        return plain(found).get("holder") if found else None

    def take_over(self, name: str, holder: str, value: str) -> bool:
        """Replace the holder of a claim. False where somebody else did so first."""
        try:
            self._db.put_item(
                TableName=self._table,
                Item={"pk": {"S": name}, "holder": {"S": value}},
                ConditionExpression="holder = :holder",
                ExpressionAttributeValues={":holder": {"S": holder}},
            )
        except ClientError as error:
            if error_code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True

    def note(self, name: str) -> dict[str, str]:
        """A named note's fields as plain text; empty where there is none."""
        item = self._db.get_item(TableName=self._table, Key={"pk": {"S": name}}, ConsistentRead=True).get(
            "Item"
        )
        return plain(item) if item else {}

    def write_note(self, name: str, fields: Mapping[str, str], seen: Mapping[str, str]) -> bool:
        """Replace a named note. False where somebody wrote it since `seen` was read; nothing is written then."""
        revision = int(seen.get("revision", "0"))
        item: dict[str, Any] = {"pk": {"S": name}, "revision": {"N": str(revision + 1)}}
        item.update({key: {"S": text} for key, text in fields.items()})
        try:
            self._db.put_item(
                TableName=self._table,
                Item=item,
                ConditionExpression="attribute_not_exists(pk) OR revision = :seen",
                ExpressionAttributeValues={":seen": {"N": str(revision)}},
            )
        except ClientError as error:
            if error_code(error) == "ConditionalCheckFailedException":
                return False
            raise
        return True


class Contended(Exception):
    """Others changed the same items in the meantime: what was decided on them has to be decided anew."""


class Purse:
    """What runs have reserved and spent, and the sums that they count into; all in the run table."""

    def __init__(self, table: str, dynamodb: DynamoDBClient | None = None) -> None:
        self._table = table
        self._db: DynamoDBClient = dynamodb if dynamodb is not None else client("dynamodb")

    def held(self, run_id: str) -> Reservation:
        """What the run has reserved and spent; nothing where it has not reserved yet."""
        item = self._read(_reservation_key(run_id))
        return Reservation.model_validate_json(item["reservation"]) if item else Reservation()

    def taken(self, account: str) -> int:
        """What of an account is reserved or spent, in millionths of a dollar."""
        return int(self._read({"pk": {"S": account}}).get("taken", "0"))

    def exchange(
        self, run_id: str, held: Reservation, change: Change, capped: Sequence[Account]
    ) -> Account | None:
        """Write the changed reservation and move its accounts, all or nothing.

        `held` is what was read; `capped` are the accounts that must not pass their caps. Returns the one that
        would have, and then nothing was written.

        Raises:
            Contended: when the reservation or an account was written by others meanwhile.
        """
        caps = {account.name: account for account in capped if account.cap_micro}
        writes: list[Any] = [
            {
                "Put": {
                    "TableName": self._table,
                    "Item": {
                        **_reservation_key(run_id),
                        "reservation": {"S": change.after.model_dump_json()},
                    },
                    "ConditionExpression": "attribute_not_exists(pk) OR reservation = :held",
                    "ExpressionAttributeValues": {":held": {"S": held.model_dump_json()}},
                }
            }
        ]
        for name in change.after.accounts:
            update: dict[str, Any] = {
                "TableName": self._table,
                "Key": {"pk": {"S": name}},
                "UpdateExpression": "ADD taken :delta",
                "ExpressionAttributeValues": {":delta": {"N": str(change.delta_micro)}},
            }
            if name in caps:
                room = caps[name].cap_micro - change.delta_micro
                if room < 0:
                    return caps[name]
                update["ConditionExpression"] = "attribute_not_exists(taken) OR taken <= :room"
                update["ExpressionAttributeValues"][":room"] = {"N": str(room)}
            writes.append({"Update": update})
        try:
            self._db.transact_write_items(TransactItems=writes)
        except ClientError as error:
            if error_code(error) != "TransactionCanceledException":
                raise
            reasons: Any = error.response.get("CancellationReasons", [])
            codes = [str(reason.get("Code")) for reason in reasons]
            failed = [index for index, code in enumerate(codes) if code == "ConditionalCheckFailed"]
            if failed and failed[0] > 0:
                return caps[change.after.accounts[failed[0] - 1]]
            raise Contended(f"the reservation of {run_id}: {', '.join(codes)}") from error
        return None

    def _read(self, key: dict[str, Any]) -> dict[str, str]:
        item = self._db.get_item(TableName=self._table, Key=key, ConsistentRead=True).get("Item")
        return plain(item) if item else {}


def _reservation_key(run_id: str) -> dict[str, Any]:
    return {"pk": {"S": f"RESERVATION#{run_id}"}}


def plain(item: Mapping[str, Any]) -> dict[str, str]:
    """A DynamoDB item's scalar attributes as text."""
    return {key: str(next(iter(value.values()))) for key, value in item.items()}


class Bus:
    """The stack's own event bus."""

    def __init__(self, name: str, events: EventBridgeClient | None = None) -> None:
        self._name = name
        self._events: EventBridgeClient = events if events is not None else client("events")

    def publish(self, detail_type: DetailType, event: RunEvent) -> None:
        """Put one event.

        Raises:
            RuntimeError: when the bus took the call but refused the entry.
        """
        answer = self._events.put_events(
            Entries=[
                {
                    "EventBusName": self._name,
                    "Source": SOURCE,
                    "DetailType": detail_type,
                    "Detail": event.model_dump_json(),
                }
            ]
        )
        if answer.get("FailedEntryCount"):
            raise RuntimeError(f"the event bus refused {detail_type}: {json.dumps(answer['Entries'][0])}")


class ExecutionConflict(Exception):
    """An execution of this name runs or ran with another input."""


class Executions:
    """Executions of one state machine, named by their run."""

    def __init__(self, state_machine_arn: str, stepfunctions: SFNClient | None = None) -> None:
        self._machine = state_machine_arn
        self._sfn: SFNClient = stepfunctions if stepfunctions is not None else client("stepfunctions")

    def start(self, name: str, body: str) -> str:
        """Start the execution, or find that it was started with the same input. Returns its ARN.

        Raises:
            ExecutionConflict: when the name is taken by an execution with another input.
        """
        try:
            return self._sfn.start_execution(stateMachineArn=self._machine, name=name, input=body)[
                "executionArn"
            ]
        except ClientError as error:
            if error_code(error) != "ExecutionAlreadyExists":
                raise
        # arn:aws:states:REGION:ACCOUNT:stateMachine:NAME, with `:ALIAS` behind it where there is one.
        parts = self._machine.split(":")
        arn = ":".join([*parts[:5], "execution", parts[6], name])
        if json.loads(self._sfn.describe_execution(executionArn=arn)["input"]) != json.loads(body):
            raise ExecutionConflict(f"{arn} has another input than this run")
        return arn


def parameter(name: str, ssm: Any | None = None) -> str:
    """The text of a parameter of Systems Manager."""
    found = (ssm if ssm is not None else client("ssm")).get_parameter(Name=name)
    return str(found["Parameter"]["Value"])


class Converse:
    """Models of Amazon Bedrock, asked through its one interface for all of them."""

    def __init__(self) -> None:
        self._bedrock = client("bedrock-runtime")

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a request of Converse. Needs `bedrock:InvokeModel` on the model, and on its inference profile."""
        return dict(self._bedrock.converse(**request))


def newest_approved_package(group: str, sagemaker: Any | None = None) -> Mapping[str, Any] | None:
    """DescribeModelPackage of the champion: the newest Approved package of the group, or None."""
    sm = sagemaker if sagemaker is not None else client("sagemaker")
    # The service filters by status after it has cut a page: one may be empty although the next one is not.
    pages = sm.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group,
        ModelApprovalStatus="Approved",
        SortBy="CreationTime",
        SortOrder="Descending",
        PaginationConfig={"PageSize": 100},
    )
    try:
        found = next((one for page in pages for one in page["ModelPackageSummaryList"]), None)
    except ClientError as error:
        # No group yet: the first model has no champion. Of this request only the group can be invalid.
        if error_code(error) in {"ValidationException", "ResourceNotFound", "ResourceNotFoundException"}:
            return None
        raise
    return dict(sm.describe_model_package(ModelPackageName=found["ModelPackageArn"])) if found else None


__all__: Sequence[str] = (
    "Bucket",
    "Bus",
    "Contended",
    "ExecutionConflict",
    "Executions",
    "Ledger",
    "ObjectVanished",
    "Purse",
    "client",
    "error_code",
    "newest_approved_package",
    "parameter",
    "plain",
)
