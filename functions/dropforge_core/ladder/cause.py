"""Read what Step Functions says about a failure. Total: any text gives evidence, if only itself."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from dropforge_core.model import Frozen

_PREFIXES: Final = ("TrainingJob", "TransformJob", "ProcessingJob")
_FIELD: Final = r'"{name}"\s*:\s*"((?:[^"\\]|\\.)*)"'
CAUSE_LIMIT: Final = 32_768
"""StepFunctions cuts `Cause` here, in the middle of its JSON if need be."""


class JobFacts(Frozen):
    """What a Describe*Job answer says; empty where it is silent."""

    name: str = ""
    status: str = ""
    secondary: str = ""
    reason: str = ""
    """FailureReason, with a processing job's ExitMessage before it."""
    instance_type: str = ""
    billable_s: int = 0


class Evidence(Frozen):
    """Everything that is known of one failure."""

    stage: str
    state: str
    error: str
    text: str
    """The reason in plain words: FailureReason, a function's errorMessage, or the raw cause."""
    job: JobFacts = JobFacts()


def examine(
    *, stage: str, state: str, error: str, cause: str, describe: Callable[[], Mapping[str, Any] | None]
) -> Evidence:
    """Evidence from an error's name and cause.

    `describe` is asked for the job's description where the cause is not whole JSON of a job: cut off,
    or a message about a call. None from it means that there is no such job.
    """
    parsed = _json(cause)
    job = _job(parsed) if parsed is not None else _pieces(cause)
    if not (parsed is not None and job.status and (job.reason or job.secondary)):
        told = describe()
        if told:
            job = _merged(_job(told), job)
    if parsed is not None and isinstance(parsed.get("errorMessage"), str):
        text = f"{parsed.get('errorType', error)}: {parsed['errorMessage']}"
    else:
        text = job.reason or ("" if parsed is not None and job.status else cause)
    return Evidence(stage=stage, state=state, error=error, text=text, job=job)


def _json(cause: str) -> Mapping[str, Any] | None:
    start = cause.find("{")
    if start < 0:
        return None
    try:
        parsed = json.loads(cause[start:])
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _job(described: Mapping[str, Any]) -> JobFacts:
    kind = next((p for p in _PREFIXES if f"{p}Status" in described or f"{p}Name" in described), "TrainingJob")
    resources = described.get("ResourceConfig") or described.get("TransformResources") or {}
    billable = described.get("BillableTimeInSeconds")
    return JobFacts(
        name=_text(described, f"{kind}Name"),
        status=_text(described, f"{kind}Status"),
        secondary=_text(described, "SecondaryStatus"),
        reason=" ".join(filter(None, (_text(described, "ExitMessage"), _text(described, "FailureReason")))),
        instance_type=instance_of(resources)[0] if isinstance(resources, Mapping) else "",
        billable_s=max(0, int(billable)) if isinstance(billable, int | float) and billable < 2**31 else 0,
    )


def instance_of(resources: Mapping[str, Any]) -> tuple[str, int]:
    """(instance type, how many) of a described job: of several types that were asked for, the one that was taken.

    ("", 0) where none was taken, which costs nothing.
    """
    of_several = bool(resources.get("InstancePreferences"))
    chosen = "SelectedInstance" if of_several else "Instance"
    count = resources.get(f"{chosen}Count")
    return _text(resources, f"{chosen}Type"), count if isinstance(count, int) else int(not of_several)


def _pieces(cause: str) -> JobFacts:
    """Fields of JSON that was cut off, found one by one."""

    def field(name: str) -> str:
        found = re.search(_FIELD.format(name=name), cause)
        if found is None:
            return ""
        try:
            value = json.loads(f'"{found[1]}"', strict=False)
        except ValueError:
            return found[1]
        return str(value)

    kind = next((p for p in _PREFIXES if f'"{p}Name"' in cause or f'"{p}Status"' in cause), None)
    if kind is None:
        return JobFacts()
    return JobFacts(
        name=field(f"{kind}Name"),
        status=field(f"{kind}Status"),
        secondary=field("SecondaryStatus"),
        reason=" ".join(filter(None, (field("ExitMessage"), field("FailureReason")))),
    )


def _merged(first: JobFacts, second: JobFacts) -> JobFacts:
    return JobFacts(**{name: getattr(first, name) or getattr(second, name) for name in JobFacts.model_fields})


def _text(described: Mapping[str, Any], name: str) -> str:
    value = described.get(name)
    return value if isinstance(value, str) else ""
