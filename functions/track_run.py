"""TrackRun: a finished run, told to the MLflow server that its recipe names and that the stack's owner allows.

Training jobs have no network, so the stack tells it after the run's end, from what the run left in its bucket.
Nothing here can change a run's outcome: the end was published before this begins. What may succeed later is
raised, so that Lambda tries again and the dead-letter queue keeps what never went out; what never can is logged
and counted.
"""

import time
from datetime import datetime
from typing import Annotated, Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import AwareDatetime, Field, StringConstraints, ValidationError

from dropforge_core.aws import Bucket, Ledger, ObjectVanished, client, error_code
from dropforge_core.contracts import ReportInput
from dropforge_core.events import RunEvent
from dropforge_core.layout import RunLayout
from dropforge_core.model import Tolerant
from dropforge_core.recipe import Recipe, Tracking
from dropforge_core.tracking import RunRecord, mlflow_status, record
from mlflow_server import MlflowServer, TrackingRefused, TrackingUnavailable, authorization
from run_documents import gather
from runtime import Settings, count, instrumented, logger

LEASE_S: Final = 180.0
"""How long another invocation may be telling before it counts as dead; above the function's time-out."""
SECRET_PERMANENT: Final = frozenset(
    {"AccessDeniedException", "DecryptionFailure", "InvalidRequestException", "ResourceNotFoundException"}
)

ServerUri = Annotated[
    str,
    StringConstraints(
        pattern=r"^$|^https://[A-Za-z0-9.-]+(:\d+)?(/[\w./-]*)?$|^http://127\.0\.0\.1(:\d+)?(/[\w./-]*)?$"
    ),
]


class Env(Settings):
    run_table: str
    run_bucket: str
    mlflow_tracking_uri: ServerUri = ""
    """The only server that is told anything; empty for none."""
    mlflow_token_secret_arn: str = ""


class Ended(Tolerant):
    """`RunEnded` of the stack's own bus, as EventBridge delivers it."""

    id: str
    time: AwareDatetime
    detail: RunEvent


class Facts(Tolerant):
    """Of the event's data, what is told on."""

    report_uri: str = ""
    package_arn: str | None = None
    cost_usd: float | None = Field(None, allow_inf_nan=False)


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Tell one end of a run once.

    Raises:
        TrackingUnavailable: when the server may take it later.
    """
    env = Env.load()
    ended = Ended.model_validate(event)
    runs, run_id = Bucket(env.run_bucket), ended.detail.run_id
    status = mlflow_status(ended.detail.status)
    asked = tracking_of(runs, run_id) if env.mlflow_tracking_uri and status else None
    if asked is None or status is None or not asked.may_tell(env.mlflow_tracking_uri):
        return {"tracked": False}
    turn = Turn(Ledger(env.run_table), run_id, ended.id, str(context.aws_request_id))
    if not turn.taken():
        return {"tracked": False}
    facts = Facts.model_validate(ended.detail.data)
    about = ReportInput(
        run_id=run_id,
        model=ended.detail.model,
        status=ended.detail.status,
        message=ended.detail.message,
        package_arn=facts.package_arn or None,
    )
    told = record(
        gather(runs, about, ""),
        status,
        ended_ms=milliseconds(ended.time),
        report_uri=facts.report_uri,
        cost_usd=facts.cost_usd,
    )
    return {"tracked": tell(env, turn, asked.mlflow_experiment, told)}


def tell(env: Env, turn: "Turn", experiment: str, told: RunRecord) -> bool:
    """Tell the server. False where it will never take it, which is logged and counted.

    Raises:
        TrackingUnavailable: when it may later.
    """
    try:
        server = MlflowServer(
            env.mlflow_tracking_uri, authorization(secret_text(env.mlflow_token_secret_arn))
        )
        run = server.tell(experiment, told)
    except TrackingRefused as error:
        logger.error("tracking refused", reason=str(error))
        count("TrackingRefused")
        turn.over({"refused": str(error)})
        return False
    except TrackingUnavailable as error:
        logger.warning("tracking failed", reason=str(error))
        count("TrackingFailed")
        turn.give_back()
        raise
    turn.over({"mlflow_run": run})
    return True


def tracking_of(runs: Bucket, run_id: str) -> Tracking | None:
    """What the run's recipe says of tracking; None where the run has no recipe that this version reads."""
    try:
        return Recipe.model_validate_json(runs.read(RunLayout(run_id=run_id).recipe)).tracking
    except (ObjectVanished, ValidationError):
        return None


def secret_text(arn: str) -> str:
    """The secret's text; empty where there is none. It lives in this call only.

    Raises:
        TrackingRefused: when it may not be read or is not there.
        TrackingUnavailable: when Secrets Manager does not answer.
    """
    if not arn:
        return ""
    try:
        return str(client("secretsmanager").get_secret_value(SecretId=arn).get("SecretString") or "")
    except ClientError as error:
        kind = TrackingRefused if error_code(error) in SECRET_PERMANENT else TrackingUnavailable
        raise kind(f"the secret of MlflowTokenSecretArn can't be read: {error_code(error)}") from error
    except BotoCoreError as error:
        raise TrackingUnavailable(f"Secrets Manager can't be reached: {type(error).__name__}") from error


def milliseconds(moment: datetime) -> int:
    """Since 1970, UTC."""
    return round(moment.timestamp() * 1000)


class Turn:
    """One invocation at a time tells of a run, and one end is told once: a note in the ledger says so."""

    def __init__(self, ledger: Ledger, run_id: str, event_id: str, request_id: str) -> None:
        self._ledger, self._event, self._request = ledger, event_id, request_id
        self._name = f"MLFLOW#{run_id}"

    def taken(self) -> bool:
        """Take the turn. False where this end was told already, or is being told.

        The lease is kept by time: an invocation that died gives way to its own retry at once, and to another
        one's after `LEASE_S`.

        Raises:
            TrackingUnavailable: when another end of the run is being told.
        """
        seen = self._ledger.note(self._name)
        if seen.get("told") == self._event:
            return False
        event, request, since = seen.get("event"), seen.get("request"), float(seen.get("since") or 0)
        lives = bool(event) and request != self._request and time.time() - since < LEASE_S
        mine = {"event": self._event, "request": self._request, "since": f"{time.time():.0f}"}
        if not lives and self._ledger.write_note(self._name, mine, seen):
            return True
        if event == self._event:
            return False
        raise TrackingUnavailable("another end of this run is being told")

    def over(self, outcome: dict[str, str]) -> None:
        """Nothing more is to be told of this end."""
        self._leave({"told": self._event, **outcome})

    def give_back(self) -> None:
        """Another try may come at once."""
        self._leave({})

    def _leave(self, fields: dict[str, str]) -> None:
        seen = self._ledger.note(self._name)
        if seen.get("request") == self._request:
            self._ledger.write_note(self._name, fields, seen)
