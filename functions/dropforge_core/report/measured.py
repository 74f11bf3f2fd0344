"""What a finished run took, beside what was foretold."""

from dropforge_core.planning.calibration import Measurement
from dropforge_core.planning.catalogue import Catalogue
from dropforge_core.planning.duration import scaled
from dropforge_core.report.documents import JobFacts, RunDocuments
from dropforge_core.report.spending import actual_cost


def measurement(run: RunDocuments, catalogue: Catalogue, ended_at: str) -> Measurement | None:
    """The measurement that a run leaves; None where it did not train, or was planned without a forecast.

    Args:
        run: what it left.
        catalogue: in which its instance type stands.
        ended_at: ISO 8601, UTC.
    """
    plan, done, job = run.plan, run.training, measured_job(run)
    if plan is None or plan.forecast is None or done is None or done.tokens_per_s <= 0:
        return None
    instance = catalogue.find(job.instance_type if job else plan.compute.instance_type)
    if instance is None:
        return None
    forecast = plan.forecast
    gpus = instance.gpus * plan.compute.instance_count
    peak_tflops = instance.gpu.bf16_tflops * gpus
    phases = {"loop": done.seconds}
    for kind in ("caching", "training", "evaluation"):
        if billed := [one.billable_s for one in run.jobs if one.kind == kind]:
            phases[kind] = float(sum(billed))
    return Measurement(
        run_id=run.run_id,
        ended_at=ended_at,
        base_model=plan.base_model.name,
        parameters=plan.base_model.parameters,
        instance_type=instance.type,
        device=done.device,
        flop_per_token=forecast.flop_per_token,
        gpus=gpus,
        peak_tflops=peak_tflops,
        tokens=done.tokens,
        tokens_per_s=done.tokens_per_s,
        forecast_tokens_per_s=scaled(forecast.mfu, peak_tflops * 1e12 / forecast.flop_per_token),
        peak_memory_gib=done.peak_memory_gib,
        forecast_memory_gib=forecast.memory_gib,
        phase_s=phases,
        forecast_phase_s=forecast.phase_s,
        cost_usd=actual_cost(run),
        forecast_cost_usd=plan.cost_usd,
    )


def measured_job(run: RunDocuments) -> JobFacts | None:
    """The training job whose adapter was judged, or the last that ran; None where none is known."""
    trained = [job for job in run.jobs if job.kind == "training"]
    judged = [job for job in trained if run.setup and job.name == run.setup.training_job_name]
    return next(iter(judged or reversed(trained)), None)
