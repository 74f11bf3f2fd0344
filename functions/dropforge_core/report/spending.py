"""What a run's jobs took and cost."""

from dropforge_core.report.documents import JobFacts, RunDocuments


def training_seconds(run: RunDocuments) -> float | None:
    """Seconds of the training loop as the trainer measured them."""
    return run.training.seconds if run.training else None


def job_cost(job: JobFacts) -> float | None:
    """US dollars of one job: billed seconds at the on-demand price. None where the price is not known.

    Savings of spot capacity are in the billed seconds already.
    """
    return None if job.usd_hour is None else job.usd_hour * job.billable_s / 3600


def actual_cost(run: RunDocuments) -> float | None:
    """US dollars of all jobs; None where there is none, or one has no price."""
    costs = [job_cost(job) for job in run.jobs]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if known and len(known) == len(costs) else None
