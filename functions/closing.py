"""What a run gives back when it ends, however it ends."""

from datetime import UTC, datetime

from dropforge_core.aws import Bucket, Ledger, Purse, client
from dropforge_core.budget import JUDGE_FIELD
from jobs import Jobs
from money import cost_of_run, settle
from pricing import catalogue
from slot_desk import SlotDesk


def close_accounts(run_id: str, *, table: str, bucket: str, at_most: int) -> float:
    """Release the run's slot and settle its reservation. Returns what its jobs and its judge have cost, in US dollars.

    A job that is still stopping keeps the slot, as it keeps its quota: whoever came next would be refused.

    Raises:
        Contended: when others wrote the same items at every try; it may be repeated.
    """
    now, jobs, ledger = datetime.now(UTC).timestamp(), Jobs.connect(), Ledger(table)
    if not jobs.run_still_has(run_id):
        SlotDesk(ledger, client("stepfunctions"), at_most, now).release(run_id)
    judge_usd = float((ledger.run(run_id) or {}).get(JUDGE_FIELD, 0.0))
    cost = cost_of_run(jobs, run_id, catalogue(Bucket(bucket))) + judge_usd
    settle(Purse(table), run_id=run_id, cost_usd=cost)
    return cost
