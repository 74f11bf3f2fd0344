"""Where runs take a slot for a job, wait for one, and give it back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from botocore.exceptions import ClientError

from dropforge_core.aws import Contended, Ledger, error_code
from dropforge_core.ladder import slots
from dropforge_core.ladder.slots import Queue, Ticket
from patience import patiently
from runtime import count, logger

QUEUE: Final = "QUEUE"
_GONE: Final = frozenset({"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"})


@dataclass(frozen=True)
class SlotDesk:
    """The queue of a stack, one item of the run table. Every call may be repeated after a crash at any point."""

    ledger: Ledger
    machine: Any
    """Step Functions' client, which lets a waiting run go on."""
    at_most: int
    now: float

    def ask(self, ticket: Ticket, token: str) -> bool:
        """Let the run wait for its turn; its state goes on when `token` is answered. Whether it got a slot at once.

        Raises:
            Contended: when others changed the queue at every try; the run may ask again.
        """
        self._keep_token(ticket.run_id, token)
        after, granted = self._change(lambda queue: slots.enter(queue, ticket))
        held = slots.lease_of(after, ticket.run_id) is not None
        if held and ticket.run_id not in granted:
            # It was given before, and the word of it was lost.
            self._let_go_on(ticket.run_id)
        return held

    def release(self, run_id: str) -> None:
        """The run needs no slot any more; who is next gets it.

        Raises:
            Contended: when others changed the queue at every try.
        """
        self._change(lambda queue: slots.leave(queue, run_id))

    def refused(self, run_id: str, *, by_quota: bool) -> bool:
        """AWS did not take the run's job: it gives its slot back, and the account's quota teaches the pool's size.

        Returns whether waiting for that quota is hopeless.

        Raises:
            Contended: when others changed the queue at every try.
        """
        pools: list[str] = []

        def without(queue: Queue) -> Queue:
            held = slots.lease_of(queue, run_id)
            pools[:] = [held.pool] if held and by_quota else []
            return slots.refuse(queue, run_id, self.now) if by_quota else slots.leave(queue, run_id)

        after, _ = self._change(without)
        return any(slots.is_hopeless(after, pool, self.now) for pool in pools)

    def _change(self, change: Callable[[Queue], Queue]) -> tuple[Queue, frozenset[str]]:
        """Change the queue, give away what is free, and let those go on who got it: their runs are returned too."""

        def attempt() -> tuple[Queue, tuple[Ticket, ...]]:
            seen = self.ledger.note(QUEUE)
            before = slots.unpacked(seen.get("queue", ""))
            after, granted = slots.grant(change(before), self.now, self.at_most)
            if after != before and not self.ledger.write_note(QUEUE, {"queue": slots.packed(after)}, seen):
                raise Contended("the queue")
            return after, granted

        after, granted = patiently(attempt)
        for ticket in granted:
            self._let_go_on(ticket.run_id)
        return after, frozenset(ticket.run_id for ticket in granted)

    def _keep_token(self, run_id: str, token: str) -> None:
        name = _token_note(run_id)
        if not self.ledger.write_note(name, {"token": token}, self.ledger.note(name)):
            raise Contended(f"the token of {run_id}")

    def _let_go_on(self, run_id: str) -> None:
        token = self.ledger.note(_token_note(run_id)).get("token", "")
        try:
            self.machine.send_task_success(taskToken=token, output="{}")
        except ClientError as error:
            if error_code(error) not in _GONE:
                raise
            # Its state has ended, or asks anew just now: it holds the slot, and will be told then.
            logger.info("a run that got a slot does not wait for it", got=run_id)
        else:
            count("SlotsGiven")


def _token_note(run_id: str) -> str:
    return f"SLOT#{run_id}"
