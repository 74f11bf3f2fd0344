"""A day of uploads against quotas, on a virtual clock: do they get through, in turn, within the caps?

    python benchmarks/queue.py [--quick] [--json]

The queue and the caps are those of the service (`dropforge_core.ladder.slots`, `dropforge_core.budget`), which
know nothing of a quota until a job is refused. Simulated are the uploads, the jobs, the account's quotas, which
change twice in the day, jobs of one and of two instances, and runs that die without giving anything back. Everything is seeded.

The lower bound of the makespan is what no order could beat: for every moment, the work that arrives from then on,
divided by the quota from then on; and every single run's own length. Waiting is
counted in turns: between a run's coming and its start each model may start one job for each upload of the run's own
model that is older, and one more. First come, first served under known quotas, which nobody has, is shown beside it.
"""

import argparse
import bisect
import heapq
import itertools
import json
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

# The scripts beside this one come last: their names are not to hide a library's.
sys.path.append(sys.path.pop(0))
sys.path.insert(0, str(Path(__file__).parents[1] / "functions"))

from dropforge_core.budget import Caps, Reservation, accounts, reserving, settling
from dropforge_core.ladder import slots
from dropforge_core.ladder.slots import LOOK_AGAIN_S, Queue, Ticket, pool_of

HOUR: Final = 3600.0
DAY: Final = 24 * HOUR
BEGIN: Final = datetime(2026, 3, 2, tzinfo=UTC)
TRAIN: Final = pool_of("TRAIN", "ml.g5.xlarge", spot=True)
EVALUATE: Final = pool_of("EVALUATE", "ml.g5.xlarge", spot=False)
STATE_S: Final = 3.0
"""From one state of the machine to the next."""
PREPARE_S: Final = 15.0
"""From the end of training to the question for the evaluation's slot."""
AGAIN_S: Final = 15.0
"""From a refusal to the next question."""
USD_HOUR: Final = 1.408

Quota = Callable[[str, float], int]


@dataclass
class Upload:
    """One dataset and what becomes of it. Seconds from the beginning of the day."""

    run_id: str
    model: str
    arrived: float
    train_s: float
    evaluate_s: float
    dies: bool
    limit_usd: float
    hosts: int = 1
    """Instances of its training job."""
    stage: str = "TRAIN"
    asked: int = 0
    waited_s: float = 0.0
    waits_since: float = 0.0
    ended: float | None = None
    entered_at: int = -1
    """Turns for training that were given before it came to wait."""
    served_at: int = -1
    """Its own turn."""
    older: int = 0
    """Of its model, that waited then."""
    is_refused: bool = False
    is_asking: bool = False

    @property
    def pool(self) -> str:
        return TRAIN if self.stage == "TRAIN" else EVALUATE

    @property
    def instances(self) -> int:
        """Of the job of its stage."""
        return self.hosts if self.stage == "TRAIN" else 1

    @property
    def cost_usd(self) -> float:
        return (self.train_s * self.hosts + self.evaluate_s) / HOUR * USD_HOUR


@dataclass
class Day:
    """The service, its account and its clock."""

    quota: Quota
    caps: Caps
    at_most: int
    queue: Queue = field(default_factory=Queue)
    taken: dict[str, int] = field(default_factory=dict)
    held: dict[str, Reservation] = field(default_factory=dict)
    in_use: dict[str, int] = field(default_factory=lambda: {TRAIN: 0, EVALUATE: 0})
    refusals: int = 0
    over_cap: int = 0
    over_quota: int = 0
    most_taken: float = 0.0
    turns: list[str] = field(default_factory=list)
    """Models in the order of their turns for training; empty for a turn whose job was refused."""
    _heap: list[tuple[float, int, Callable[[float], None]]] = field(default_factory=list)
    _serial: Any = field(default_factory=itertools.count)
    _runs: dict[str, Upload] = field(default_factory=dict)

    def play(self, uploads: Iterable[Upload]) -> None:
        """From the first upload to the last end."""
        for upload in uploads:
            self._runs[upload.run_id] = upload
            self._at(upload.arrived, partial(self._plan, upload))
        while self._heap:
            now, _, happen = heapq.heappop(self._heap)
            happen(now)

    def _at(self, when: float, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._heap, (when, next(self._serial), happen))

    def _plan(self, run: Upload, now: float) -> None:
        named = accounts(run.model, BEGIN + timedelta(seconds=now), self.caps)
        change = reserving(Reservation(), run.limit_usd, tuple(one.name for one in named))
        for one in named:
            if one.cap_micro and self.taken.get(one.name, 0) + change.delta_micro > one.cap_micro:
                run.is_refused = True
                return
        self.held[run.run_id] = change.after
        self._move(change.after.accounts, change.delta_micro, {one.name: one.cap_micro for one in named})
        self._at(now + STATE_S, lambda at: self._ask(run, at))

    def _move(self, names: Sequence[str], delta: int, caps: dict[str, int]) -> None:
        for name in names:
            self.taken[name] = self.taken.get(name, 0) + delta
            if cap := caps.get(name):
                self.over_cap += self.taken[name] > cap
                self.most_taken = max(self.most_taken, self.taken[name] / cap)

    def turns_share(self, run: Upload) -> float:
        """Turns that the run saw go by, of those that age and the other models may take before it."""
        seen = [model for model in self.turns[run.entered_at : run.served_at] if model]
        return len(seen) / ((run.older + 1) * len({*seen, run.model}))

    def _ask(self, run: Upload, now: float) -> None:
        run.asked += 1
        if not run.waits_since:
            run.waits_since = now
        ticket = Ticket(
            run_id=run.run_id,
            model=run.model,
            pool=run.pool,
            since=run.arrived,
            asked=now,
            hold_s=run.limit_usd / USD_HOUR * HOUR + HOUR,
            instances=run.instances,
        )
        run.is_asking = True
        self.queue = slots.enter(self.queue, ticket)
        if slots.lease_of(self.queue, run.run_id):
            # Given while it was on its way here.
            self._at(now + STATE_S, lambda at: self._start(run, at))
            return
        if run.stage == "TRAIN" and run.entered_at < 0:
            run.entered_at = len(self.turns)
            run.older = sum(
                one.model == run.model and one.since < run.arrived and one.pool == TRAIN
                for one in self.queue.waiting
            )
        turn = run.asked
        self._at(now + LOOK_AGAIN_S, lambda at: self._look_again(run, turn, at))
        self._grant(now)

    def _look_again(self, run: Upload, turn: int, now: float) -> None:
        if run.asked == turn and any(one.run_id == run.run_id for one in self.queue.waiting):
            self._ask(run, now)

    def _grant(self, now: float) -> None:
        self.queue, granted = slots.grant(self.queue, now, self.at_most)
        for ticket in granted:
            if ticket.pool == TRAIN:
                self._runs[ticket.run_id].served_at = len(self.turns)
                self.turns.append(ticket.model)
            if self._runs[ticket.run_id].is_asking:
                self._at(now + STATE_S, partial(self._start, self._runs[ticket.run_id]))

    def _start(self, run: Upload, now: float) -> None:
        run.is_asking = False
        if self.in_use[run.pool] + run.instances > self.quota(run.pool, now):
            self.refusals += 1
            if run.stage == "TRAIN":
                self.turns[run.served_at] = ""
            self.queue = slots.refuse(self.queue, run.run_id, now)
            self._grant(now)
            self._at(now + AGAIN_S, lambda at: self._ask(run, at))
            return
        run.waited_s += now - run.waits_since
        run.waits_since = 0.0
        self.in_use[run.pool] += run.instances
        seconds = run.train_s if run.stage == "TRAIN" else run.evaluate_s
        self._at(now + seconds, lambda at: self._done(run, at))

    def _done(self, run: Upload, now: float) -> None:
        self.in_use[run.pool] -= run.instances
        if run.dies:
            # Nobody gives its slot back: the lease ends by itself. Its money is settled by its execution's end.
            self._settle(run)
            run.ended = now
        elif run.stage == "TRAIN":
            run.stage = "EVALUATE"
            self._at(now + PREPARE_S, lambda at: self._ask(run, at))
        else:
            run.ended = now
            self._at(now + STATE_S, lambda at: self._end(run, at))

    def _end(self, run: Upload, now: float) -> None:
        self.queue = slots.leave(self.queue, run.run_id)
        self._grant(now)
        self._settle(run)

    def _settle(self, run: Upload) -> None:
        cost = run.cost_usd if not run.dies else run.train_s * run.hosts / HOUR * USD_HOUR
        change = settling(self.held[run.run_id], cost)
        self.held[run.run_id] = change.after
        self._move(change.after.accounts, change.delta_micro, {})


def uploads_of_a_day(count: int, rng: random.Random) -> list[Upload]:
    """Three fifths in working hours, a fifth at any time, a fifth in one burst; twenty models, a few of them busy.

    Every fifth model trains on two instances.
    """
    models = [f"model-{number:02}" for number in range(20)]
    weights = [1 / (1 + number) for number in range(20)]
    made = []
    for number in range(count):
        share = number / count
        arrived = (
            rng.uniform(0, DAY)
            if share < 0.2
            else 10 * HOUR + share
            if share < 0.4
            else rng.gauss(13 * HOUR, 3 * HOUR)
        )
        model = "model-00" if 0.2 <= share < 0.4 else rng.choices(models, weights)[0]
        train_s = min(4 * HOUR, max(240.0, rng.lognormvariate(7.1, 0.6)))
        evaluate_s = rng.uniform(240, 720)
        hosts = 2 if models.index(model) % 5 == 2 else 1
        made.append(
            Upload(
                run_id=f"run-{number:05}",
                model=model,
                arrived=min(DAY, max(1.0, arrived)),
                train_s=train_s,
                evaluate_s=evaluate_s,
                dies=rng.random() < 0.01,
                limit_usd=2.0 * (train_s * hosts + evaluate_s) / HOUR * USD_HOUR,
                hosts=hosts,
            )
        )
    return sorted(made, key=lambda one: one.arrived)


def quota_of_a_day(train: int, evaluate: int) -> Quota:
    """Training loses a third in the morning, to others in the account, and has a half more in the evening."""

    def quota(pool: str, at: float) -> int:
        if pool == EVALUATE:
            return evaluate
        if 8 * HOUR <= at < 11 * HOUR:
            return train - train // 3
        return train + train // 2 if at >= 18 * HOUR else train

    return quota


def lower_bound(runs: Sequence[Upload], quota: Quota) -> float:
    """Seconds before which no order and no foresight could end the last of these runs."""
    alone = max(run.arrived + run.train_s + (0 if run.dies else run.evaluate_s) for run in runs)
    bounds = [alone]
    for pool in (TRAIN, EVALUATE):
        work = 0.0
        shortest_tail = (
            min((run.evaluate_s for run in runs if not run.dies), default=0.0) if pool == TRAIN else 0.0
        )
        for run in sorted(runs, key=lambda one: -one.arrived):
            work += run.train_s * run.hosts if pool == TRAIN else 0.0 if run.dies else run.evaluate_s
            ready = run.arrived + (0 if pool == TRAIN else min(one.train_s for one in runs))
            bounds.append(_done_at(ready, work, pool, quota) + shortest_tail)
    return max(bounds)


def _done_at(begin: float, work: float, pool: str, quota: Quota) -> float:
    """When `work` seconds of jobs are done that use the whole quota from `begin` on."""
    now = begin
    for change in (8 * HOUR, 11 * HOUR, 18 * HOUR):
        if now < change:
            able = quota(pool, now) * (change - now)
            if able >= work:
                return now + work / quota(pool, now)
            work, now = work - able, change
    return now + work / quota(pool, now)


def first_come(runs: Sequence[Upload], quota: Quota) -> list[float]:
    """What each run waits for training where everybody knows the quota and the first that came is the first served."""
    running: list[float] = []
    waits = []
    now = 0.0
    for run in runs:
        now = max(now, run.arrived)
        while True:
            running = [end for end in running if end > now]
            if len(running) + run.hosts <= quota(TRAIN, now):
                break
            changes = [at for at in (8 * HOUR, 11 * HOUR, 18 * HOUR) if at > now]
            now = min([*running, *changes])
        waits.append(now - run.arrived)
        for _ in range(run.hosts):
            bisect.insort(running, now + run.train_s)
    return waits


def a_day(count: int, seed: int) -> dict[str, Any]:
    """Figures of one day."""
    rng = random.Random(seed)  # noqa: S311  # a simulation
    runs = uploads_of_a_day(count, rng)
    work_h = sum(run.train_s * run.hosts for run in runs) / HOUR
    # Too little for the day: some of the night is needed, and there is always somebody who waits.
    train = max(3, round(work_h / 24))
    evaluate = max(2, round(sum(run.evaluate_s for run in runs) / HOUR / 16))
    quota = quota_of_a_day(train, evaluate)
    spend = sum(run.cost_usd for run in runs)
    caps = Caps(stack_day_usd=1.05 * spend, model_day_usd=0.6 * spend)
    day = Day(quota, caps, at_most=0)
    day.play(runs)
    accepted = [run for run in runs if not run.is_refused]
    ends = [run.ended for run in accepted if run.ended is not None]
    bound = lower_bound(accepted, quota)
    waits = [run.waited_s for run in accepted]
    busy = "model-00"
    return {
        "uploads": count,
        "models": len({run.model for run in runs}),
        "on_two_instances": sum(run.hosts == 2 for run in runs),
        "training_quota": train,
        "evaluation_quota": evaluate,
        "ended": len(ends),
        "lost": len(accepted) - len(ends),
        "refused_by_caps": count - len(accepted),
        "jobs_refused_by_quota": day.refusals,
        "makespan_h": round(max(ends) / HOUR, 3),
        "lower_bound_h": round(bound / HOUR, 3),
        "makespan_ratio": round(max(ends) / bound, 4),
        "wait_median_min": round(statistics.median(waits) / 60, 1),
        "wait_max_h": round(max(waits) / HOUR, 2),
        "wait_max_other_models_h": round(
            max(run.waited_s for run in accepted if run.model != busy) / HOUR, 2
        ),
        "turns_waited_of_those_allowed": round(max(day.turns_share(run) for run in accepted), 3),
        "first_come_wait_max_h": round(max(first_come(accepted, quota)) / HOUR, 2),
        "caps_passed": day.over_cap,
        "most_of_a_cap_taken": round(day.most_taken, 4),
        "left_in_caps_usd": round(
            sum(value for name, value in day.taken.items() if name.startswith("SPENT#stack#2026-03-")) / 1e6
            - sum(reservation.spent_micro for reservation in day.held.values()) / 1e6,
            6,
        ),
        "still_reserved": sum(reservation.reserved_micro > 0 for reservation in day.held.values()),
    }


def a_burst(count: int, quota_of_training: int) -> dict[str, Any]:
    """One model drops many at once, and five others one every half hour meanwhile."""
    rng = random.Random(3)  # noqa: S311  # a simulation
    runs = [
        Upload(
            f"burst-{n:04}", "busy", 1.0 + n / 1000, rng.uniform(1200, 2400), 300.0, dies=False, limit_usd=5.0
        )
        for n in range(count)
    ]
    runs += [
        Upload(f"other-{n:04}", f"other-{n % 5}", 600.0 + n * 1800, 1500.0, 300.0, dies=False, limit_usd=5.0)
        for n in range(count // 10)
    ]
    day = Day(lambda _pool, _at: quota_of_training, Caps(), at_most=0)
    day.play(runs)
    busy = [run for run in runs if run.model == "busy"]
    order = sorted(busy, key=lambda run: (run.ended or 0.0) - run.train_s)
    bound = lower_bound(runs, day.quota)
    ends = [run.ended for run in runs if run.ended is not None]
    late = [abs(order.index(run) - place) for place, run in enumerate(busy)]
    return {
        "uploads": len(runs),
        "training_quota": quota_of_training,
        "lost": len(runs) - len(ends),
        "makespan_ratio": round(max(ends) / bound, 4),
        "wait_max_burst_h": round(max(run.waited_s for run in busy) / HOUR, 2),
        "wait_max_others_min": round(max(run.waited_s for run in runs if run.model != "busy") / 60, 1),
        "places_out_of_order_max": max(late),
        "jobs_refused_by_quota": day.refusals,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed instead of five")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    given = parser.parse_args()
    days = [a_day(1000, seed) for seed in range(1 if given.quick else 5)]
    burst = a_burst(200, 4)
    worst = max(day["makespan_ratio"] for day in days)
    waits = max(day["turns_waited_of_those_allowed"] for day in days)
    passed = sum(day["caps_passed"] + day["still_reserved"] for day in days)
    lost = sum(day["lost"] for day in days) + burst["lost"]
    figures = {"days": days, "burst": burst}
    ratios = {
        "makespan": _ratio(worst, 1.10, "no order could end sooner"),
        "burst makespan": _ratio(burst["makespan_ratio"], 1.10, "no order could end sooner"),
        "longest wait in turns": _ratio(waits, 1.0, "each model once, for each older upload of one's own"),
        "caps passed or money left in them": _ratio(float(passed), 0.0, "none"),
        "uploads lost": _ratio(float(lost), 0.0, "none"),
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    document = {"name": "queue", "machine": machine, "figures": figures, "ratios": ratios}
    if given.json:
        print(json.dumps(document))
        return
    for name, value in [*days[-1].items(), *((f"burst: {name}", value) for name, value in burst.items())]:
        print(f"{name:32} {value}")
    for name, one in ratios.items():
        print(f"{name:40} {one['value']:8} goal {one['goal']:4} {'met' if one['met'] else 'NOT met'}")


def _ratio(value: float, goal: float, peer: str) -> dict[str, Any]:
    return {"value": value, "goal": goal, "met": value <= goal, "peer": peer}


if __name__ == "__main__":
    main()
