"""Slots: how many jobs may take their instances at a time, and whose turn it is.

A run takes a slot before its training job and before its evaluation job, and waits for it at no cost. A slot
belongs to a pool, which is one quota of the account: kind of job, instance type, spot or not. Quotas count
instances, and so do pools: a job of two instances takes two. How many a pool has is learned: where SageMaker refuses a
job for its quota, the pool has less than our jobs and this one together would take. From time to time more is tried, so
that a quota that was raised, or that others have left, is found.

Whose turn: the models take turns, and within a model the oldest upload is first. A job that is larger than what is free
is waited for by those behind it, or smaller ones would keep it waiting for ever. Times are seconds since 1970.
Every function takes a queue and gives a new one; where it is kept, and who is told, is decided elsewhere.
"""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from typing import Final

from dropforge_core.model import Frozen

LOOK_AGAIN_S: Final = 1800
"""A run that waits asks again this often, so that a slot whose release was lost is found."""
FORGOTTEN_S: Final = 3 * LOOK_AGAIN_S
"""A waiting run that has not asked for so long is gone, and its ticket with it."""
PROBE_S: Final = 600
"""How long a pool's learned size is believed before one more is tried; twice as long after each that was refused."""
LONGEST_PROBE_S: Final = 3600
QUOTA_AGE_S: Final = 24 * 3600
"""A pool that refused everybody for this long, while no job of ours was in it, has no quota."""
HELD_AT_MOST: Final = 3000
"""Tickets in one queue: some 60 bytes each once packed, in a DynamoDB item of 400 KB. Who comes later asks again."""


class Ticket(Frozen):
    """A run that waits."""

    run_id: str
    model: str
    pool: str
    since: float
    """When the run's upload arrived: its place among those of its model, also after a refusal."""
    asked: float
    """When it last asked."""
    hold_s: float
    """How long it may hold the slot."""
    instances: int = 1
    """That its job takes of the pool."""


class Lease(Frozen):
    """A run that holds a slot."""

    run_id: str
    model: str
    pool: str
    until: float
    """A holder that died without a word gives the slot back then."""
    since: float
    hold_s: float
    turn: int
    """Its model's turn before it was served: a job that is refused has not been served."""
    instances: int = 1


class Size(Frozen):
    """What is known of a pool whose quota has refused somebody."""

    limit: int
    """Instances that it has."""
    until: float
    """Then more are tried."""
    step: int = 1
    """How many more: doubles while nobody is refused."""
    span_s: float = PROBE_S
    """How long it is believed."""
    empty_since: float | None = None
    """Since when it refuses although no job of ours is in it; None where one was."""


class Queue(Frozen):
    """Who waits and who holds."""

    waiting: tuple[Ticket, ...] = ()
    leases: tuple[Lease, ...] = ()
    turns: Mapping[str, int] = {}
    """By model and pool that it waits for: the turn at which it was served there last, or came."""
    turn: int = 0
    sizes: Mapping[str, Size] = {}


def pool_of(stage: str, instance_type: str, *, spot: bool) -> str:
    """One quota of Service Quotas: training, spot training and transform count apart, and so does each type."""
    return f"{stage}:{instance_type}:{'spot' if spot else 'on-demand'}"


def enter(queue: Queue, ticket: Ticket) -> Queue:
    """Let a run wait. One that holds a slot of this pool keeps it; one of another pool is given back.

    Who asks again keeps the place that it has. A queue that is full stays as it is.
    """
    held = lease_of(queue, ticket.run_id)
    if held is not None and held.pool == ticket.pool:
        return queue
    is_new = all(_place(other) != _place(ticket) for other in queue.waiting)
    queue = leave(queue, ticket.run_id)
    if len(queue.waiting) >= HELD_AT_MOST:
        return queue
    turns = dict(queue.turns)
    if is_new:
        # Whoever comes now stands behind all who wait, or a stream of newcomers would keep them waiting.
        turns[_place(ticket)] = queue.turn
    waiting = tuple(sorted((*queue.waiting, ticket), key=lambda one: (one.since, one.run_id)))
    return queue.model_copy(update={"waiting": waiting, "turns": turns})


def leave(queue: Queue, run_id: str) -> Queue:
    """Without the run: it ended, or needs no slot now."""
    held = lease_of(queue, run_id)
    size = queue.sizes.get(held.pool) if held else None
    sizes = queue.sizes
    if held and size and size.empty_since is not None:
        # It was not refused, so the pool is not as good as none.
        sizes = {**sizes, held.pool: size.model_copy(update={"empty_since": None})}
    return _without(queue, run_id).model_copy(update={"sizes": sizes})


def refuse(queue: Queue, run_id: str, now: float) -> Queue:
    """The account's quota refused this holder: its pool has less than it and the others would take together.

    It waits again at once, where it stood before.
    """
    held = lease_of(queue, run_id)
    queue = _without(queue, run_id)
    if held is None:
        return queue
    known = queue.sizes.get(held.pool)
    others = in_pool(queue, held.pool)
    empty_since = None if others else (known.empty_since if known else None) or now
    span = known.span_s if known else PROBE_S
    if known and known.step > 1:
        # It was the one more that was tried.
        span = min(LONGEST_PROBE_S, 2 * span)
    limit = others + held.instances - 1
    size = Size(limit=limit, until=now + span, span_s=span, empty_since=empty_since)
    queue = queue.model_copy(update={"sizes": {**queue.sizes, held.pool: size}})
    again = Ticket(
        run_id=run_id,
        model=held.model,
        pool=held.pool,
        since=held.since,
        asked=now,
        hold_s=held.hold_s,
        instances=held.instances,
    )
    queue = enter(queue, again)
    turn = min(held.turn, queue.turns.get(_place(again), held.turn))
    return queue.model_copy(update={"turns": {**queue.turns, _place(again): turn}})


def grant(queue: Queue, now: float, at_most: int) -> tuple[Queue, tuple[Ticket, ...]]:
    """Give every free slot to whose turn it is. `at_most` jobs over all pools; 0 for no bound but the quotas."""
    queue = _swept(queue, now)
    granted: list[Ticket] = []
    leases = list(queue.leases)
    held: dict[str, int] = {}
    for lease in queue.leases:
        held[lease.pool] = held.get(lease.pool, 0) + lease.instances
    sizes, turns, turn = dict(queue.sizes), dict(queue.turns), queue.turn
    waiting = list(queue.waiting)
    free = at_most - len(queue.leases) if at_most else len(waiting)
    while free > 0:
        for ticket in _heads(waiting, turns, {}):
            sizes.update(_tried(sizes, ticket, held.get(ticket.pool, 0), now))
        first = _first(waiting, turns, sizes, held)
        if first is None:
            break
        waiting.remove(first)
        granted.append(first)
        leases.append(_lease(first, now, turns.get(_place(first), 0)))
        held[first.pool] = held.get(first.pool, 0) + first.instances
        turn += 1
        turns[_place(first)] = turn
        free -= 1
    wait = {_place(ticket) for ticket in waiting}
    settled = queue.model_copy(
        update={
            "waiting": tuple(waiting),
            "leases": tuple(leases),
            "turns": {place: at for place, at in turns.items() if place in wait},
            "turn": turn,
            "sizes": sizes,
        }
    )
    return settled, tuple(granted)


def lease_of(queue: Queue, run_id: str) -> Lease | None:
    """The slot that the run holds."""
    return next((one for one in queue.leases if one.run_id == run_id), None)


def in_pool(queue: Queue, pool: str) -> int:
    """How many instances of the pool are held."""
    return sum(one.instances for one in queue.leases if one.pool == pool)


def is_hopeless(queue: Queue, pool: str, now: float) -> bool:
    """Whether the pool refused for a day although none of its quota was ours: waiting on would help nobody."""
    size = queue.sizes.get(pool)
    return size is not None and size.empty_since is not None and now - size.empty_since >= QUOTA_AGE_S


def packed(queue: Queue) -> str:
    """The queue as text, about 60 bytes a ticket."""
    return b64encode(zlib.compress(queue.model_dump_json().encode())).decode("ascii")


def unpacked(text: str) -> Queue:
    """The queue of a text; an empty one of none.

    Raises:
        ValueError: when it is no packed queue.
    """
    try:
        return Queue.model_validate_json(zlib.decompress(b64decode(text))) if text else Queue()
    except zlib.error as error:
        raise ValueError("the queue's item can't be read") from error


def _without(queue: Queue, run_id: str) -> Queue:
    return queue.model_copy(
        update={
            "waiting": tuple(one for one in queue.waiting if one.run_id != run_id),
            "leases": tuple(one for one in queue.leases if one.run_id != run_id),
        }
    )


def _swept(queue: Queue, now: float) -> Queue:
    """Without leases that have run out, tickets of runs that are gone, and pools that nobody wants."""
    waiting = tuple(one for one in queue.waiting if now - one.asked < FORGOTTEN_S)
    leases = tuple(one for one in queue.leases if one.until > now)
    wanted = {ticket.pool for ticket in waiting} | {lease.pool for lease in leases}
    sizes = {
        pool: size for pool, size in queue.sizes.items() if pool in wanted or now - size.until < QUOTA_AGE_S
    }
    return queue.model_copy(update={"waiting": waiting, "leases": tuple(leases), "sizes": sizes})


def _lease(ticket: Ticket, now: float, turn: int) -> Lease:
    return Lease(
        run_id=ticket.run_id,
        model=ticket.model,
        pool=ticket.pool,
        until=now + ticket.hold_s,
        since=ticket.since,
        hold_s=ticket.hold_s,
        turn=turn,
        instances=ticket.instances,
    )


def _tried(sizes: Mapping[str, Size], first: Ticket, held: int, now: float) -> Mapping[str, Size]:
    """The size of the pool of whose turn it is, grown where it was believed for long enough and has no room."""
    size = sizes.get(first.pool)
    if size is None or now < size.until or held + first.instances <= size.limit:
        return {}
    span = size.span_s if size.step == 1 else PROBE_S
    grown = Size(
        limit=held + max(size.step, first.instances),
        until=now + span,
        step=2 * size.step,
        span_s=span,
        empty_since=None if held else size.empty_since,
    )
    return {first.pool: grown}


def _first(
    waiting: Iterable[Ticket], turns: Mapping[str, int], sizes: Mapping[str, Size], held: Mapping[str, int]
) -> Ticket | None:
    """Whose turn it is, over all pools that have room for the one whose turn it is there."""

    def has_room(one: Ticket) -> bool:
        size = sizes.get(one.pool)
        return size is None or held.get(one.pool, 0) + one.instances <= size.limit

    fitting = [one for one in _heads(waiting, turns, sizes) if has_room(one)]
    return min(fitting, key=lambda one: _order(one, turns), default=None)


def _heads(
    waiting: Iterable[Ticket], turns: Mapping[str, int], sizes: Mapping[str, Size]
) -> tuple[Ticket, ...]:
    """Of each pool whose turn it is: of each model the oldest, of the models who waited longest.

    One that takes more than the whole pool has, as far as that is known, keeps nobody waiting.
    """
    oldest: dict[str, Ticket] = {}
    for ticket in waiting:
        size = sizes.get(ticket.pool)
        if size is None or ticket.instances <= size.limit:
            oldest.setdefault(_place(ticket), ticket)
    heads: dict[str, Ticket] = {}
    for ticket in sorted(oldest.values(), key=lambda one: _order(one, turns)):
        heads.setdefault(ticket.pool, ticket)
    return tuple(heads.values())


def _order(one: Ticket, turns: Mapping[str, int]) -> tuple[int, float, str]:
    return turns.get(_place(one), 0), one.since, one.run_id


def _place(ticket: Ticket) -> str:
    """Turns are taken by models, in each pool: an evaluation that was served costs no training its turn."""
    return f"{ticket.model} {ticket.pool}"
