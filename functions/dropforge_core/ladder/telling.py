"""The message of a diagnosis: what happened, what AWS said, what comes next, what a person can do."""

from collections.abc import Sequence
from typing import Final

from dropforge_core.contracts import Fault
from dropforge_core.identity import printable
from dropforge_core.ladder.cause import Evidence
from dropforge_core.ladder.faults import FAULTS
from dropforge_core.ladder.steps import NextStep
from dropforge_core.ledger import Status

CAUSE_CHARS: Final = 600
LOG_LINES: Final = 20
LINE_CHARS: Final = 200
_WHERE: Final = {
    "CACHE": "Caching the base model",
    "TRAIN": "Training",
    "EVALUATE": "The evaluation",
    "REGISTER": "Registering the model",
}


_COUNTED: Final = ("", "", "for the second time", "for the third time")


def message(  # noqa: PLR0913  # by name only
    evidence: Evidence, fault: Fault, step: NextStep, *, run_id: str, log: Sequence[str], failed: int = 0
) -> str:
    """Finished sentences; the log's last lines only where the run ends or its code failed.

    `failed` is how often the same happened in this stage before.
    """
    about = FAULTS[fault]
    where = _WHERE.get(evidence.stage, f"The step {printable(evidence.state, 80)}")
    if step.action == "USE_CHECKPOINT":
        parts = [f"{where} was cut short by its time or dollar limit. {step.said}"]
    else:
        again = _COUNTED[failed + 1] if failed + 1 < len(_COUNTED) else f"for the {failed + 1}th time"
        parts = [f"{where} did not succeed: {' '.join(filter(None, (about.what, again)))}. {step.said}"]
    said = printable(evidence.text.strip(), CAUSE_CHARS)
    if said:
        parts.append(f"Cause ({printable(evidence.error, 80)}): {said}")
    if step.action == "FAIL":
        tail = [printable(line.rstrip(), LINE_CHARS) for line in log if line.strip()][-LOG_LINES:]
        if tail:
            parts.append("Last lines of the log:\n" + "\n".join(f"  {line}" for line in tail))
        parts.append(f"What to do: {about.mend}{_command(about.status, run_id)}")
    return "\n".join(parts)


def _command(status: Status, run_id: str) -> str:
    if status == Status.FAILED_DATA:
        return ""
    return f" To start this run again where it stopped: dropforge redrive {run_id}"
