"""What a run's jobs took and cost."""

from dropforge_core.report.documents import JobFacts, RunDocuments


def training_seconds(run: RunDocuments) -> float | None:
    """Seconds of the training loop as the trainer measured them."""
    return run.training.seconds if run.training else None


def job_cost(job: JobFacts) -> float | None:
    """US dollars of one job with its warm instances: billed seconds at the on-demand price. None where it is not known.

    Savings of spot capacity are in the billed seconds already.
    """
    hours = (job.billable_s + job.warm_s) / 3600 * job.instances
    return None if job.usd_hour is None else job.usd_hour * hours


def actual_cost(run: RunDocuments) -> float | None:
    """US dollars of all jobs, and of the judge's verdicts; None where there is no job, or one has no price.

    The table that ships has no price for fetching a base model; without one that job is left out, as the caps do.
    """
    costs = [job_cost(job) for job in run.jobs if job.usd_hour is not None or job.kind != "caching"]
    known = [cost for cost in costs if cost is not None]
    judge_usd = run.gate.judge.cost_usd if run.gate and run.gate.judge else 0.0
    return sum(known) + judge_usd if known and len(known) == len(costs) else None
