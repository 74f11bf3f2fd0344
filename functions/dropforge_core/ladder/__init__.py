"""What a failure means and what to try next: `examine` the cause, `classify` it, take the `next_step`.

Pure: what has to be looked up (the job's description, its log, what was spent) is an argument.
"""

from dropforge_core.contracts import Fault
from dropforge_core.ladder.cause import Evidence, JobFacts, examine
from dropforge_core.ladder.faults import classify
from dropforge_core.ladder.steps import Circumstances, next_step

__all__ = ("Circumstances", "Evidence", "Fault", "JobFacts", "classify", "examine", "next_step")
