"""PlanTraining: what the run needs, which instance it takes, what it will cost; nothing is spent yet."""

from datetime import UTC, datetime
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import ValidationError

from announce import announce
from base_model import locate
from checkpoints import newest_step
from dropforge_core.approval import LIMIT_FIELD
from dropforge_core.aws import Bucket, Bus, Ledger, ObjectVanished, Purse, client
from dropforge_core.budget import MICRO, Caps, allowed_only, judge_refused, type_names
from dropforge_core.contracts import DatasetFacts, Plan, PlanInput, Residency, TrainingConfig
from dropforge_core.events import RunEvent
from dropforge_core.layout import RunLayout
from dropforge_core.ledger import Status
from dropforge_core.planning import headline, plan
from dropforge_core.planning.calibration import SPEEDS_NOTE, Speed, read_speeds
from dropforge_core.planning.explain import Earlier
from dropforge_core.recipe import Recipe
from hub import Hub
from money import reserve
from pricing import catalogue
from runtime import Settings, instrumented, logger

LEAST_CHECKPOINT_S: Final = 60
MOST_CHECKPOINT_S: Final = 300


class Env(Settings):
    run_table: str
    run_bucket: str
    event_bus: str
    image_uri: str = "unknown"
    hf_endpoint: str = "https://huggingface.co"
    hub_token_secret_arn: str = ""
    cache_instance_type: str = ""
    allowed_instance_types: str = ""
    """Separated by commas; empty where every type is allowed."""
    model_daily_cap_usd: float = 0.0
    model_monthly_cap_usd: float = 0.0
    stack_daily_cap_usd: float = 0.0
    stack_monthly_cap_usd: float = 0.0
    mlflow_tracking_uri: str = ""
    """The only MLflow server that is told of runs; empty for none."""
    judge_model_id: str = ""
    """The only model that may judge answers; empty for none."""


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `PlanInput`, output `Plan`; writes `plan.json` and the trainer's `training.json`.

    Raises:
        BaseModelUnavailable: when the base model is not there or may not be read.
        BaseModelUnsuitable: when it can't be tuned here.
        HubUnreachable: when the hub does not answer.
    """
    env = Env.load()
    asked = PlanInput.model_validate(event)
    runs = Bucket(env.run_bucket)
    layout = RunLayout(run_id=asked.run_id)
    ledger = Ledger(env.run_table)
    ledger.move(asked.run_id, Status.PLANNING, redrive=asked.redrive)
    recipe = Recipe.model_validate_json(runs.read(layout.recipe))
    allowed, refused = allowed_only(recipe, type_names(env.allowed_instance_types))
    refused = refused or judge_refused(recipe, env.judge_model_id)
    base, shape = locate(recipe.base_model, runs, Hub(env.hf_endpoint, _token(env.hub_token_secret_arn)))
    made = plan(
        recipe=allowed,
        dataset=asked.dataset,
        shape=shape,
        base=base,
        run_id=asked.run_id,
        model=asked.model,
        catalogue=catalogue(runs),
        measured=measured(ledger),
        cache_instance_type=env.cache_instance_type,
        mlflow_uri=env.mlflow_tracking_uri,
        earlier=_earlier(asked.run_id, runs, Purse(env.run_table)),
    )
    if refused:
        made = made.model_copy(update={"fits": False, "within_budget": False, "reason": refused})
    made = _reserved(made, asked.model, recipe, env)
    ledger.annotate(asked.run_id, {LIMIT_FIELD: str(made.spend_limit_usd)})
    config = TrainingConfig(
        run_id=asked.run_id,
        model=asked.model,
        recipe=recipe.model_dump(mode="json"),
        recipe_digest=recipe.digest,
        dataset_digest=asked.dataset.digest,
        base_model_name=base.name,
        base_model_revision=base.prefix.rstrip("/").rsplit("/", 1)[-1],
        gradient_checkpointing=made.gradient_checkpointing,
        residency=_residency(made),
        checkpoint_every_s=_checkpoint_every_s(made),
        image=env.image_uri,
    )
    runs.write(layout.plan, made.model_dump_json(indent=2).encode())
    runs.write(layout.training_config + "training.json", config.model_dump_json(indent=2).encode())
    announce(Bus(env.event_bus), "RunPlanned", _planned(asked.model, made, asked.dataset))
    return made.model_dump(mode="json")


def _earlier(run_id: str, runs: Bucket, purse: Purse) -> Earlier:
    """What the run did before it was started again; nothing where it was not."""
    layout = RunLayout(run_id=run_id)
    spent = purse.held(run_id).spent_micro / MICRO
    step = newest_step(runs, layout.checkpoints) if spent else 0
    if not step:
        return Earlier(spent_usd=spent)
    try:
        steps = Plan.model_validate_json(runs.read(layout.plan)).steps
    except (ObjectVanished, ValidationError):
        # Another version's: what is trained is trained all the same, only nobody can say how much it is.
        return Earlier(spent_usd=spent)
    return Earlier(spent_usd=spent, done=min(1.0, step / max(1, steps)))


def _checkpoint_every_s(made: Plan) -> int:
    """A twentieth of what the cap pays: a machine that is taken away costs no more of it than that, and its start."""
    return max(LEAST_CHECKPOINT_S, min(MOST_CHECKPOINT_S, made.compute.max_runtime_s // 20))


def measured(ledger: Ledger) -> tuple[Speed, ...]:
    """How fast the stack's runs trained so far; nothing where the note is of another version."""
    try:
        return read_speeds(ledger.note(SPEEDS_NOTE).get("speeds", ""))
    except ValidationError:
        logger.warning("the measured speeds can't be read; the plan goes without them", exc_info=True)
        return ()


def _reserved(made: Plan, model: str, recipe: Recipe, env: Env) -> Plan:
    """The plan, with its money taken from the caps over runs; where there is not enough, it is over budget.

    Beyond the recipe's own cap nothing is taken before a person has said yes.
    """
    if not (made.fits and made.within_budget):
        return made
    caps = Caps(
        model_day_usd=env.model_daily_cap_usd,
        model_month_usd=env.model_monthly_cap_usd,
        stack_day_usd=env.stack_daily_cap_usd,
        stack_month_usd=env.stack_monthly_cap_usd,
    )
    full = reserve(
        Purse(env.run_table),
        run_id=made.run_id,
        model=model,
        limit_usd=made.spend_limit_usd,
        caps=caps,
        at=datetime.now(UTC),
    )
    if not full:
        return made
    asks = recipe.approval.spend != "never"
    mend = "" if asks else " Upload it again when there is room, or raise the cap in the stack's parameters."
    return made.model_copy(
        update={"within_budget": False, "needs_approval": asks, "reason": f"{full}.{mend}"}
    )


def _residency(made: Plan) -> Residency:
    """As it is recommended on the chosen type."""
    chosen = made.compute.instance_type
    return next((one.residency for one in made.options if one.instance_type == chosen), "auto")


def _planned(model: str, made: Plan, dataset: DatasetFacts) -> RunEvent:
    cost, hours = made.cost_usd, made.hours
    return RunEvent(
        run_id=made.run_id,
        model=model,
        status=Status.PLANNING,
        message=headline(made),
        data={
            "instance_type": made.compute.instance_type,
            "cost_low": round(cost.low, 4) if cost else None,
            "cost_expected": round(cost.expected, 4) if cost else None,
            "cost_high": round(cost.high, 4) if cost else None,
            "hours": round(hours.expected, 4) if hours else None,
            "steps": made.steps,
            "rows_train": dataset.rows_train,
            "rows_eval": dataset.rows_eval,
            "max_cost_usd": made.max_cost_usd,
        },
    )


def _token(secret_arn: str) -> str:
    """The hub's access token. It lives in this call only, never in an event, a name or a log line."""
    if not secret_arn:
        return ""
    return str(client("secretsmanager").get_secret_value(SecretId=secret_arn)["SecretString"]).strip()
