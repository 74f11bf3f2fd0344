"""The ladder: which step a fault takes next, how often, and within which money.

Every rung is bounded, every attempt has a new name, and what an attempt may spend is what is left.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from dropforge_core.contracts import ComputeChoice, Fault
from dropforge_core.identity import job_name
from dropforge_core.ladder.cause import Evidence
from dropforge_core.model import Frozen
from dropforge_core.planning.catalogue import Catalogue, Instance
from dropforge_core.planning.duration import LEAST_RUNTIME_S, SPOT_SHARE
from dropforge_core.planning.plan import affordable_seconds, wait_seconds, warm_usd

TRIES: Final[Mapping[Fault, int]] = {
    "THROTTLED": 6,
    "QUOTA": 60,
    "CAPACITY": 12,
    "SPOT_INTERRUPTED": 6,
    "OOM_GPU": 4,
    "INTERNAL": 2,
    "TIMEOUT": 1,
}
"""How many failures of a kind one stage gets over; a fault that is not here stops at once.

Waits for a quota outside of the queue come to a day with their last try.
"""
MAX_ATTEMPTS: Final = 99
"""Of one stage, over all faults."""
QUOTA_TRIES: Final = 600
"""Where slots bound the tries of a quota to one in a while, so that only a month of them is too many."""
CACHE_TYPES: Final = ("ml.m5.xlarge", "ml.m5.2xlarge", "ml.r5.xlarge", "ml.c5.2xlarge")
"""What a job that copies files may as well run on, where the first type has no capacity."""
LONGEST_EVALUATION_S: Final = 24 * 3600
"""However much is left of the cap."""
STOP_GRACE_S: Final = 150
"""SageMaker gives a stopped container 120 s; two jobs must never write one checkpoint prefix."""


class Circumstances(Frozen):
    """What the next step depends on beside the fault."""

    run_id: str
    model: str
    compute: ComputeChoice | None
    failures: Mapping[str, int]
    """Earlier failures by `<stage>:<fault>`."""
    jitter: float
    """In [0, 1): waits are spread by it."""
    is_still_running: bool = False
    """The failed job was found running, and was told to stop."""
    spent_usd: float = 0.0
    """By the jobs of the run so far, what its plan put aside for them left out."""
    training_usd: float = 0.0
    """What training may spend: the run's limit without the evaluation's reserve."""
    needed_hours: Mapping[str, float] = {}
    """Expected hours by instance type, of those that were planned."""
    max_hours: float = 24.0
    shortest_micro_batch: int = 1
    """Tokens of the longest row: a micro-batch can't be smaller."""
    artifact_left: bool = False
    """The failed training job left a model.tar.gz."""
    is_in_turn: bool = False
    """The job had a slot, so that the queue decides when the quota is asked again."""
    is_quota_hopeless: bool = False
    """For a day the quota has refused everybody, though no job of this stack used it."""
    instance_type: str = ""
    """Of the failed caching or evaluation job."""
    allowed_types: tuple[str, ...] = ()
    """Those that such a job may take, in order."""
    evaluation_usd: float = 0.0
    """What an evaluation may spend: all that is left of the run's limit."""
    evaluation_hours: float = 0.0
    """Of the evaluation, at most."""
    checkpoint_step: int = 0
    """The last step that is saved whole; 0 where there is none."""
    steps: int = 0
    """Of the whole training; 0 where it is not known."""


class NextStep(Frozen):
    """What to do. `said` is the step in words."""

    action: Literal["RETRY", "USE_CHECKPOINT", "FAIL"]
    wait_s: int = 0
    compute: ComputeChoice | None = None
    instance_type: str = ""
    """What the next caching or evaluation job takes; empty where nothing is to change."""
    limit_s: int = 0
    """What an evaluation job may take; 0 for other jobs."""
    said: str


def next_step(evidence: Evidence, fault: Fault, now: Circumstances, catalogue: Catalogue) -> NextStep:
    """The next rung for this fault, or the end of the ladder."""
    stage = evidence.stage
    failed = now.failures.get(f"{stage}:{fault}", 0)
    if stage == "TRAIN" and now.artifact_left and fault in {"TIME_LIMIT", "TIMEOUT"}:
        return NextStep(
            action="USE_CHECKPOINT",
            compute=now.compute,
            said="The best checkpoint is evaluated; the report says that training was cut short.",
        )
    if barred := _bar(stage, fault, failed, now):
        return _end(barred)
    if stage == "TRAIN" and now.compute is not None:
        compute = _taken(evidence, fault, now.compute)
        step = _RUNGS[fault](_Rung(fault, evidence, now, compute, catalogue))
    else:
        step = _other_stage(evidence, fault, now, catalogue)
        if stage == "EVALUATE":
            step = _paid(step, now, catalogue)
    if now.is_still_running and step.action == "RETRY":
        return step.model_copy(update={"wait_s": max(step.wait_s, STOP_GRACE_S)})
    return step


def _bar(stage: str, fault: Fault, failed: int, now: Circumstances) -> str:
    """Why the ladder ends here, or nothing."""
    total = sum(
        count
        for name, count in now.failures.items()
        if name.startswith(f"{stage}:") and not (now.is_in_turn and name.endswith(":QUOTA"))
    )
    tries = QUOTA_TRIES if now.is_in_turn and fault == "QUOTA" else TRIES.get(fault, 0)
    barred = ""
    if stage not in {"CACHE", "TRAIN", "EVALUATE"}:
        barred = "A state that starts no job is not tried again from here."
    elif fault not in TRIES:
        barred = "Trying again would not help."
    elif failed >= tries or total >= MAX_ATTEMPTS:
        barred = f"It was tried {max(failed, total) + 1} times."
    elif fault == "QUOTA" and now.is_quota_hopeless:
        barred = "The quota did not come free within a day."
    elif stage == "TRAIN" and now.compute is None:
        barred = "The attempt's compute is not known, so no further attempt can be named."
    return barred


def _other_stage(evidence: Evidence, fault: Fault, now: Circumstances, catalogue: Catalogue) -> NextStep:
    """A caching or evaluation job: the same again, or on another type."""
    stage, failed = evidence.stage, now.failures.get(f"{evidence.stage}:{fault}", 0)
    needs_other = fault == "OOM_GPU" or (fault == "QUOTA" and quota_is_too_small(evidence.text))
    if needs_other or fault == "CAPACITY":
        here = catalogue.find(now.instance_type)
        least = here.gpu.memory_gib if here and fault == "OOM_GPU" else 0.0
        for name in now.allowed_types[_place(now.instance_type, now.allowed_types) + 1 :]:
            found = catalogue.find(name)
            if stage == "EVALUATE" and not (
                found and found.transform and found.gpu.memory_gib > least and _pays(found, now)
            ):
                continue
            return NextStep(action="RETRY", instance_type=name, said=f"The next attempt takes {name}.")
    if needs_other:
        return _end("No other allowed instance type is left that suits and that the cap pays.")
    return NextStep(action="RETRY", wait_s=_wait(fault, now, failed), said="It is tried again.")


def _paid(step: NextStep, now: Circumstances, catalogue: Catalogue) -> NextStep:
    """The step with the time that is left of the cap on its type, or the end where that is too little."""
    if step.action != "RETRY":
        return step
    found = catalogue.find(step.instance_type or now.instance_type)
    price = (found.transform_usd_hour or found.usd_hour) if found else None
    limit_s = affordable_seconds(now.evaluation_usd, LONGEST_EVALUATION_S / 3600, price)
    if limit_s < LEAST_RUNTIME_S:
        return _end(
            f"Of the cap ${max(0.0, now.evaluation_usd):.2f} are left, too little for another evaluation."
        )
    return step.model_copy(update={"limit_s": limit_s})


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else -1


def _pays(instance: Instance, now: Circumstances) -> bool:
    """Whether what is left pays the longest that the evaluation was planned to take, there."""
    price = instance.transform_usd_hour or instance.usd_hour
    return price is not None and price * now.evaluation_hours <= now.evaluation_usd + 1e-9


def quota_is_too_small(text: str) -> bool:
    """Whether the quota is below what is asked, so that no waiting can help."""
    found = re.search(r"is (\d{1,6}) Instances.{0,120}?request delta of (\d{1,6}) Instances", text, re.DOTALL)
    return found is not None and int(found[1]) < int(found[2])


class _Rung(NamedTuple):
    """One failure of a training job with all that its next step depends on."""

    fault: Fault
    evidence: Evidence
    now: Circumstances
    compute: ComputeChoice
    catalogue: Catalogue

    @property
    def failed(self) -> int:
        return self.now.failures.get(f"TRAIN:{self.fault}", 0)

    @property
    def left_usd(self) -> float:
        return max(0.0, self.now.training_usd - self.now.spent_usd)

    def together_s(self, changed: ComputeChoice) -> int:
        """Run time of an attempt: of several types, what the dearest allows."""
        return min(map(self.runtime_s, (changed.instance_type, *changed.preferences)))

    def runtime_s(self, instance_type: str) -> int:
        """What is left of the cap, as run time at the type's on-demand price."""
        price = self.usd_hour(instance_type)
        left = self.left_usd - warm_usd(self.compute.keep_alive_s, price)
        return affordable_seconds(left, self.now.max_hours, price)

    def usd_hour(self, instance_type: str) -> float | None:
        """Of all instances of the job together; None where no price is known."""
        found = self.catalogue.find(instance_type)
        if found is None or found.usd_hour is None:
            return None
        return found.usd_hour * self.compute.instance_count

    def affords(self, instance_type: str) -> bool:
        """Whether what is left pays the expected time."""
        needed = self.now.needed_hours.get(instance_type, 0.0) * 3600
        return self.runtime_s(instance_type) >= max(LEAST_RUNTIME_S, needed)

    def attempt(self, change: Mapping[str, Any], said: str, wait_s: int = 0) -> NextStep:
        """The next attempt, under a new name, with what is left to spend."""
        number = self.compute.attempt + 1
        named = {"attempt": number, "job_name": job_name(self.now.model, self.now.run_id, number)}
        changed = self.compute.model_copy(update={**change, **named})
        runtime = self.together_s(changed)
        if runtime < LEAST_RUNTIME_S:
            return _end(
                f"Of the cap ${self.left_usd:.2f} are left for training, too little for another attempt."
            )
        limits = {"max_runtime_s": runtime, "max_wait_s": wait_seconds(runtime, spot=changed.spot)}
        return NextStep(
            action="RETRY",
            wait_s=wait_s,
            compute=changed.model_copy(update=limits),
            said=" ".join(filter(None, (said, self.resumption(), self.estimate(changed)))),
        )

    def resumption(self) -> str:
        """From where training goes on; empty where nothing was saved."""
        step, steps = self.now.checkpoint_step, self.now.steps
        return f"It resumes from step {step}{f' of {steps}' if steps else ''}." if step else ""

    def estimate(self, changed: ComputeChoice) -> str:
        """What training is now expected to cost in all; empty where it was not planned for this type."""
        price = self.usd_hour(changed.instance_type)
        hours = self.now.needed_hours.get(changed.instance_type)
        if price is None or not hours:
            return ""
        left = 1 - min(1.0, self.now.checkpoint_step / self.now.steps) if self.now.steps else 1.0
        share = SPOT_SHARE[1] if changed.spot else 1.0
        usd = self.now.spent_usd + hours * left * price * share
        return f"New estimate ${min(usd, max(self.now.training_usd, self.now.spent_usd)):.2f}."

    def other_type(self, why: str, suits: Callable[[str], bool] = lambda _: True) -> NextStep | None:
        """The next allowed type that suits and is affordable. Types passed over are not met again."""
        for index, name in enumerate(self.compute.remaining_types):
            if suits(name) and self.affords(name):
                change = {"instance_type": name, "remaining_types": self.compute.remaining_types[index + 1 :]}
                return self.attempt(change, f"The next attempt takes {name}, {why}.")
        return None

    def on_demand(self) -> NextStep | None:
        name = self.compute.instance_type
        if not self.compute.spot or not self.affords(name):
            return None
        return self.attempt(
            {"spot": False}, f"The next attempt takes {name} on demand, which the cap still pays."
        )


def _taken(evidence: Evidence, fault: Fault, compute: ComputeChoice) -> ComputeChoice:
    """The attempt as it was, of several types with the one that was taken.

    None had capacity, or each was to be tried by itself: then the request is for one type from here on.
    """
    if not compute.preferences or fault in {"THROTTLED", "INTERNAL", "TIMEOUT"}:
        return compute
    if fault == "CAPACITY":
        return compute.model_copy(update={"preferences": ()})
    asked = (compute.instance_type, *compute.preferences)
    taken = evidence.job.instance_type if evidence.job.instance_type in asked else compute.instance_type
    others = tuple(name for name in asked if name != taken)
    return compute.model_copy(
        update={
            "instance_type": taken,
            "preferences": (),
            "remaining_types": (*others, *compute.remaining_types),
        }
    )


def _again(rung: _Rung) -> NextStep:
    wait = _wait(rung.fault, rung.now, rung.failed)
    if "ResourceInUse" in rung.evidence.error:
        wait = max(wait, STOP_GRACE_S)
    return rung.attempt({}, "The same is tried again, from the last checkpoint.", wait)


def _quota(rung: _Rung) -> NextStep:
    if quota_is_too_small(rung.evidence.text):
        moved = rung.other_type("because the quota is too small for the first")
        return moved or _end(
            "The quota is below what one job needs, and no other allowed type is affordable."
        )
    return rung.attempt({}, "It waits for the quota to come free.", _wait("QUOTA", rung.now, rung.failed))


def _capacity(rung: _Rung) -> NextStep:
    moved = rung.other_type("which may have capacity") or rung.on_demand()
    return moved or _end("No other allowed type is left that the cap pays.")


def _spot(rung: _Rung) -> NextStep:
    moved = rung.on_demand() or rung.other_type("on spot")
    return moved or _end("On-demand is beyond the cap, and no other allowed type is left.")


def _memory(rung: _Rung) -> NextStep:
    before = rung.compute.micro_batch_tokens
    half = max(rung.now.shortest_micro_batch, before // 2)
    # Halving and a larger type take turns: the larger one first has to do with what did not fit the smaller.
    if rung.failed % 2 == 0 and (half < before or before == 0):
        said = f"It is tried again with micro-batches of {half} tokens at the same effective batch."
        return rung.attempt({"micro_batch_tokens": half}, said)
    here = rung.catalogue.find(rung.compute.instance_type)
    nominal = here.gpu.memory_gib if here else 0.0

    def is_larger(name: str) -> bool:
        found = rung.catalogue.find(name)
        return found is not None and found.gpu.memory_gib > nominal

    moved = rung.other_type("which has more GPU memory", is_larger)
    return moved or _end(
        "Micro-batches can't be smaller, and no allowed and affordable type has more GPU memory."
    )


def _wait(fault: Fault, now: Circumstances, failed: int) -> int:
    """Seconds: exponential and spread where a service is busy, steps of minutes where somebody must end first."""
    match fault:
        case "QUOTA" if now.is_in_turn:
            # The queue keeps it waiting, at its place.
            return round(5 + 10 * now.jitter)
        case "QUOTA":
            return round(min(1800, 300 * 2.0 ** (failed // 4)) * (1 + now.jitter / 10))
        case "CAPACITY" | "SPOT_INTERRUPTED":
            return round(min(1800, 300 * 2.0**failed) * (1 + now.jitter / 10))
        case "THROTTLED":
            return max(1, round(min(600, 10 * 2.0**failed) * (0.5 + now.jitter / 2)))
        case "TIMEOUT":
            return STOP_GRACE_S
        case _:
            return round(30 * 2.0**failed * (1 + now.jitter))


def _end(said: str) -> NextStep:
    return NextStep(action="FAIL", said=said)


_RUNGS: Final[Mapping[Fault, Callable[[_Rung], NextStep]]] = {
    "THROTTLED": _again,
    "QUOTA": _quota,
    "CAPACITY": _capacity,
    "SPOT_INTERRUPTED": _spot,
    "OOM_GPU": _memory,
    "INTERNAL": _again,
    "TIMEOUT": _again,
}
