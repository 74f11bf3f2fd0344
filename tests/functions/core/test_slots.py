"""Slots: nobody is lost, nobody starves, no pool is overfull, whatever the order of things."""

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dropforge_core.ladder import slots
from dropforge_core.ladder.slots import Queue, Ticket, pool_of

POOL = pool_of("TRAIN", "ml.g5.xlarge", spot=True)


def ticket(run_id, model="m", since=0.0, *, pool=POOL, asked=None, hold_s=3600.0, instances=1):
    return Ticket(
        run_id=run_id,
        model=model,
        pool=pool,
        since=since,
        asked=since if asked is None else asked,
        hold_s=hold_s,
        instances=instances,
    )


def entered(*tickets):
    queue = Queue()
    for one in tickets:
        queue = slots.enter(queue, one)
    return queue


def served(queue, at_most, now=0.0):
    """The runs in the order of their turns: who got a slot gives it back at once."""
    order = []
    while queue.waiting:
        queue, granted = slots.grant(queue, now, at_most)
        assert granted
        order += [one.run_id for one in granted]
        for one in granted:
            queue = slots.leave(queue, one.run_id)
    return order


def test_models_take_turns_and_the_oldest_of_each_is_first():
    """A burst of one model does not keep another's upload waiting behind it."""
    burst = [ticket(f"a{n}", "a", since=n) for n in (2, 0, 1)]
    queue = entered(*burst, ticket("b0", "b", since=10), ticket("c0", "c", since=11))
    assert served(queue, at_most=1) == ["a0", "b0", "c0", "a1", "a2"]


def test_newcomers_stand_behind_all_who_wait():
    """A stream of models that never were there before does not starve one that waits."""
    queue = entered(ticket("a0", "a"), ticket("a1", "a", since=1))
    queue, granted = slots.grant(queue, 2, 1)
    assert [one.run_id for one in granted] == ["a0"]
    for number in range(5):
        queue = slots.enter(queue, ticket(f"n{number}", f"n{number}", since=3 + number))
    order = served(slots.leave(queue, "a0"), 1, now=10)
    assert order.index("a1") <= 1


def test_asking_again_keeps_the_place():
    """A run that looks again loses neither its turn nor its slot."""
    queue = entered(ticket("a0", "a"), ticket("b0", "b", since=1))
    again = slots.enter(queue, ticket("a0", "a", asked=1800))
    assert served(again, 1) == served(queue, 1)
    held, _ = slots.grant(queue, 0, 1)
    assert slots.enter(held, ticket("a0", "a", asked=1800)) == held


def test_a_slot_of_another_pool_is_given_back_before_waiting():
    """Nobody holds one quota while waiting for another, so no two can wait for each other."""
    queue, _ = slots.grant(entered(ticket("a0")), 0, 0)
    other = pool_of("EVALUATE", "ml.g5.xlarge", spot=False)
    queue = slots.enter(queue, ticket("a0", pool=other))
    assert slots.lease_of(queue, "a0") is None
    assert [one.pool for one in queue.waiting] == [other]


def test_a_refusal_teaches_the_size_of_the_pool():
    """Four fit, ten were let in: after six refusals nobody more is let in until one leaves."""
    queue = entered(*(ticket(f"a{n}", since=n) for n in range(12)))
    queue, granted = slots.grant(queue, 0, 10)
    for one in granted[4:]:
        queue = slots.enter(slots.refuse(queue, one.run_id, 1.0), one)
    queue, more = slots.grant(queue, 2.0, 10)
    assert not more
    assert slots.in_pool(queue, POOL) == 4
    queue, more = slots.grant(slots.leave(queue, "a0"), 3.0, 10)
    # The oldest that was refused, not one that never was tried.
    assert [one.run_id for one in more] == ["a4"]


def test_a_job_weighs_its_instances():
    """Two of two fill a quota of four; a third that was refused teaches that, and a job of one instance goes in beside one."""
    queue = entered(*(ticket(f"a{n}", since=n, instances=2) for n in range(3)))
    queue, granted = slots.grant(queue, 3, 0)
    assert [one.run_id for one in granted] == ["a0", "a1", "a2"]
    queue = slots.refuse(queue, "a2", 4)
    assert slots.in_pool(queue, POOL) == 4
    queue, granted = slots.grant(queue, 5, 0)
    assert not granted
    queue, granted = slots.grant(slots.leave(queue, "a0"), 6, 0)
    assert [(one.run_id, one.instances) for one in granted] == [("a2", 2)]
    # Less than six: whether five are there is not known, so one more may try.
    queue = slots.enter(queue, ticket("b0", "b", since=7))
    assert [one.run_id for one in slots.grant(queue, 8, 0)[1]] == ["b0"]


def test_small_jobs_do_not_keep_a_large_one_waiting():
    """Whose turn it is waits until there is room for it, and those behind it wait too, however small they are."""
    queue = entered(*(ticket(f"s{n}", "s", since=n) for n in range(3)))
    queue, _ = slots.grant(queue, 3, 0)
    queue = slots.enter(queue, ticket("extra", "s", since=3))
    queue, _ = slots.grant(queue, 4, 0)
    queue = slots.refuse(queue, "extra", 4)
    queue = slots.enter(slots.leave(queue, "extra"), ticket("large", "l", since=5, instances=2))
    for number in range(4):
        queue = slots.enter(queue, ticket(f"t{number}", "t", since=6 + number))
    order = []
    for end in ("s0", "s1", "s2"):
        queue, granted = slots.grant(slots.leave(queue, end), 20, 0)
        order += [one.run_id for one in granted]
    assert order[0] == "large"


def test_a_job_larger_than_the_pool_keeps_nobody_waiting():
    """Where two instances were refused in an empty pool, one at a time goes on meanwhile; later two are tried again."""
    queue, _ = slots.grant(entered(ticket("large", "l", instances=2)), 0, 0)
    queue = slots.refuse(queue, "large", 1)
    queue = slots.enter(queue, ticket("small", "s", since=2))
    queue, granted = slots.grant(queue, 3, 0)
    assert [one.run_id for one in granted] == ["small"]
    queue = slots.leave(queue, "small")
    assert [one.run_id for one in slots.grant(queue, 2 * slots.PROBE_S, 0)[1]] == ["large"]


def test_the_stacks_own_limit_counts_jobs():
    """MaxConcurrentJobs is a number of jobs, whatever each takes of its quota."""
    queue = entered(*(ticket(f"a{n}", since=n, instances=4) for n in range(3)))
    assert len(slots.grant(queue, 3, 2)[1]) == 2


def test_a_refused_job_has_not_been_served():
    """A model whose job met the quota keeps its turn, and its run stands where it stood."""
    queue = entered(ticket("a0", "a"), ticket("b0", "b", since=1), ticket("b1", "b", since=2))
    queue, (first,) = slots.grant(queue, 2, 1)
    assert first.run_id == "a0"
    queue, granted = slots.grant(slots.refuse(queue, "a0", 3), 3 + slots.PROBE_S, 1)
    assert [one.run_id for one in granted] == ["a0"]


def test_an_evaluation_costs_no_training_its_turn():
    """Each pool has turns of its own: a model that is evaluated often trains as often as the others."""
    other = pool_of("EVALUATE", "ml.g5.xlarge", spot=False)
    queue = entered(ticket("a0", "a", pool=other), ticket("a1", "a", since=1), ticket("b0", "b", since=2))
    queue, granted = slots.grant(queue, 3, 2)
    assert [one.run_id for one in granted] == ["a0", "a1"]


def test_a_pool_that_grew_is_found():
    """After a while one more is tried, then two, then four; a refusal starts again with one."""
    queue = entered(*(ticket(f"a{n:02}", since=n, hold_s=1e6, asked=1e5) for n in range(20)))
    queue, granted = slots.grant(queue, 0, 2)
    queue = slots.refuse(queue, granted[1].run_id, 0)
    sizes = []
    for step in range(1, 4):
        queue, granted = slots.grant(queue, step * slots.PROBE_S, 0)
        sizes.append(len(granted))
    assert sizes == [1, 2, 4]
    queue = slots.refuse(queue, granted[-1].run_id, 3 * slots.PROBE_S)
    # And what was believed wrongly is asked half as often.
    assert not slots.grant(queue, 4 * slots.PROBE_S, 0)[1]
    assert len(slots.grant(queue, 5 * slots.PROBE_S, 0)[1]) == 1


def test_other_pools_go_on_where_one_is_full():
    """A model whose oldest run waits for a full pool may use another meanwhile."""
    other = pool_of("EVALUATE", "ml.g5.xlarge", spot=False)
    queue, _ = slots.grant(entered(ticket("a0"), ticket("a1", since=1)), 2, 0)
    queue = slots.enter(slots.refuse(queue, "a1", 2), ticket("a1", since=1))
    queue = slots.enter(queue, ticket("a2", since=2, pool=other))
    _, granted = slots.grant(queue, 3, 0)
    assert [one.run_id for one in granted] == ["a2"]


def test_what_a_dead_run_held_comes_back():
    """A lease ends by itself, and a ticket that nobody renews is dropped."""
    queue, _ = slots.grant(entered(ticket("a0", hold_s=100)), 0, 1)
    queue = slots.enter(queue, ticket("a1", since=1))
    assert not slots.grant(queue, 99, 1)[1]
    assert [one.run_id for one in slots.grant(queue, 100, 1)[1]] == ["a1"]
    forgotten, granted = slots.grant(slots.enter(Queue(), ticket("b0")), slots.FORGOTTEN_S, 1)
    assert (forgotten.waiting, granted) == ((), ())


def test_a_quota_that_is_never_there_is_told():
    """Only where a pool refuses for a day and none of it is ours: then waiting is hopeless."""

    def refused_at(queue, now):
        queue = slots.enter(queue, ticket("a0", asked=now, hold_s=1e6))
        queue, _ = slots.grant(queue, now, 0)
        return slots.refuse(queue, "a0", now)

    day = slots.QUOTA_AGE_S
    queue = refused_at(refused_at(Queue(), 0.5), day / 2)
    assert not slots.is_hopeless(queue, POOL, day / 2)
    assert slots.is_hopeless(refused_at(queue, day + 1), POOL, day + 1)
    # Somebody of ours got through in between: it works, and is only busy.
    between = slots.enter(queue, ticket("b0", asked=day, hold_s=1e6))
    between, granted = slots.grant(between, day, 0)
    assert granted
    between = slots.leave(between, "b0")
    assert not slots.is_hopeless(refused_at(between, day + 2000), POOL, day + 2000)


def test_a_full_queue_refuses_newcomers_only():
    """Its item has an end; who is in stays in, and may ask again."""
    queue = Queue(waiting=tuple(ticket(f"a{n:05}", since=n) for n in range(slots.HELD_AT_MOST)))
    assert slots.enter(queue, ticket("late", since=1e6)) == queue
    renewed = slots.enter(queue, ticket("a00000", asked=5.0))
    assert len(renewed.waiting) == slots.HELD_AT_MOST


def test_a_full_queue_fits_its_item():
    """DynamoDB takes 400 KB; the longest names and random ids are within it."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    tickets = tuple(
        ticket("".join(rng.choices(letters, k=26)), f"{n % 50:040}", since=1.7e9 + rng.random() * 1e6)
        for n in range(slots.HELD_AT_MOST)
    )
    text = slots.packed(Queue(waiting=tickets))
    assert len(text) < 380_000
    assert slots.unpacked(text).waiting == tickets


def test_a_queue_that_is_none_is_an_error():
    """Broken text is told, never taken for an empty queue; no text is an empty one."""
    assert slots.unpacked("") == Queue()
    for broken in ("AAAA", "not base64!"):
        with pytest.raises(ValueError):
            slots.unpacked(broken)


class Uploads(RuleBasedStateMachine):
    """Runs of one to three instances come, ask, are refused, end and die in any order, on a pool of three in a stack of four."""

    QUOTA, AT_MOST = 3, 4

    def __init__(self):
        super().__init__()
        self.queue, self.now, self.serial = Queue(), 0.0, 0
        self.alive: dict[str, Ticket] = {}
        self.jobs: set[str] = set()
        self.ended = 0

    def grant(self):
        self.queue, granted = slots.grant(self.queue, self.now, self.AT_MOST)
        for one in granted:
            assert one.run_id in self.alive
            if self.taken() + one.instances <= self.QUOTA:
                self.jobs.add(one.run_id)
            else:
                self.queue = slots.enter(
                    slots.refuse(self.queue, one.run_id, self.now), self.alive[one.run_id]
                )

    def taken(self):
        return sum(self.alive[run_id].instances for run_id in self.jobs)

    @rule(model=st.sampled_from("abc"), instances=st.sampled_from([1, 1, 1, 2, 3]))
    def upload(self, model, instances):
        self.serial += 1
        one = ticket(f"r{self.serial}", model, since=self.now, hold_s=1e9, instances=instances)
        self.alive[one.run_id] = one
        self.queue = slots.enter(self.queue, one)
        self.grant()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def end(self, data):
        run_id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.jobs.remove(run_id)
        del self.alive[run_id]
        self.queue = slots.leave(self.queue, run_id)
        self.grant()

    @rule(seconds=st.sampled_from([1.0, 60.0, 700.0]))
    def wait(self, seconds):
        self.now += seconds
        for one in self.alive.values():
            if one.run_id not in self.jobs:
                self.alive[one.run_id] = one.model_copy(update={"asked": self.now})
                self.queue = slots.enter(self.queue, self.alive[one.run_id])
        self.grant()

    @invariant()
    def nobody_is_lost_and_nothing_is_overfull(self):
        places = Counter([one.run_id for one in (*self.queue.waiting, *self.queue.leases)])
        assert places == Counter(list(self.alive))
        assert {one.run_id for one in self.queue.leases} == self.jobs
        assert self.taken() <= self.QUOTA
        assert slots.unpacked(slots.packed(self.queue)) == self.queue

    @invariant()
    def nobody_waits_for_nothing(self):
        """Where no quota ever refused, a slot that is free is taken."""
        if not self.queue.sizes and self.queue.waiting:
            assert len(self.jobs) == self.AT_MOST

    def teardown(self):
        for _ in range(3 * len(self.alive) + 3):
            self.now += slots.LONGEST_PROBE_S + 1
            for run_id in sorted(self.jobs):
                self.end_one(run_id)
            self.wait(0.0)
        assert not self.alive

    def end_one(self, run_id):
        self.jobs.remove(run_id)
        del self.alive[run_id]
        self.queue = slots.leave(self.queue, run_id)
        self.grant()


TestUploads = Uploads.TestCase
TestUploads.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
