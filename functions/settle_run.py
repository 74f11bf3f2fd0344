"""SettleRun: give back what the run holds, its slot and the money that it did not spend."""

from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from closing import close_accounts
from dropforge_core.contracts import StateInput
from runtime import Settings, instrumented


class Env(Settings):
    run_table: str
    run_bucket: str
    max_concurrent_jobs: int = 0


@instrumented
def handler(event: dict[str, Any], _context: LambdaContext) -> dict[str, Any]:
    """Input `StateInput`, output `{"cost_usd"}`: what all jobs of the run have cost.

    Raises:
        Contended: when too many runs ended at once; the state tries again.
    """
    env = Env.load()
    asked = StateInput.model_validate(event)
    cost = close_accounts(
        asked.run_id, table=env.run_table, bucket=env.run_bucket, at_most=env.max_concurrent_jobs
    )
    return {"cost_usd": cost}
