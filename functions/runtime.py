"""What every handler shares: structured logs with the run's id, traces, metrics, typed settings."""

import os
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

from dropforge_core.model import Frozen

# Not every call has something to count.
warnings.filterwarnings("ignore", message="No application metrics to publish")

logger = Logger()
tracer = Tracer()
metrics = Metrics(namespace="Dropforge")

Handler = Callable[[dict[str, Any], LambdaContext], dict[str, Any]]


class Settings(Frozen):
    """A handler's environment. Each handler declares the variables that it reads, and no others."""

    @classmethod
    def load(cls) -> Self:
        """Read the declared fields from the environment, upper-cased.

        Raises:
            pydantic.ValidationError: naming every variable that is missing.
        """
        return cls.model_validate(
            {name: os.environ[name.upper()] for name in cls.model_fields if name.upper() in os.environ}
        )


def instrumented(handler: Handler) -> Handler:
    """Wrap a handler: every log line carries run_id and model, every call is traced, metrics are flushed."""

    def with_run(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        detail = event.get("detail", event) if isinstance(event, dict) else {}
        about = detail if isinstance(detail, dict) else {}
        logger.append_keys(
            run_id=str(about.get("run_id", "unknown")), model=str(about.get("model", "unknown"))
        )
        return handler(event, context)

    with_run.__name__ = handler.__name__
    wrapped: Any = metrics.log_metrics(tracer.capture_lambda_handler(with_run, capture_response=False))
    outermost: Handler = logger.inject_lambda_context(wrapped, clear_state=True, log_event=False)
    return outermost


def count(name: str, value: float = 1) -> None:
    """One CloudWatch metric in the stack's namespace."""
    metrics.add_metric(name=name, unit=MetricUnit.Count, value=value)


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
