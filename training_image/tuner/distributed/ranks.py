"""What the trainer asks of its fellow processes; a process alone answers all of it by itself.

The adapter lies whole in every process and its gradients are summed, so optimizer, checkpoints and the
artifact know nothing of how many there are. A step's examples are shared out by tokens, and each loss is
divided by the label weight of the whole step, so the sum is the gradient that one process would have.
"""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Final, Protocol

import torch
import torch.distributed as dist
from torch import nn

from dropforge_core.contracts import Parallelism
from tuner.checkpoint import Checkpoint, CheckpointStore
from tuner.contract import Say
from tuner.data import Example
from tuner.distributed.exchange import receive_checkpoint, send_checkpoint
from tuner.failure import Failure, is_out_of_memory
from tuner.model import LanguageModel, pick_device
from tuner.objective import Part
from tuner.residency import Resident
from tuner.signals import Stopped, StopRequest

Loaded = tuple[LanguageModel, Resident]
Pass = tuple[Part, Sequence[Example]]
"""A micro-batch and the examples that it indexes."""

PATIENCE: Final = timedelta(minutes=30)
"""How long a process waits for the others before it takes them for lost; loading a large base takes minutes."""
LENGTHS: Final = 1_000_003
"""A prime that spreads (seed, step, rank) over the generator's seeds."""


class OutOfMemoryElsewhere(RuntimeError):
    """Another process ran out of memory: all take the step again in smaller passes."""


class Checkpoints(Protocol):
    """Where checkpoints go and come from."""

    def save(self, checkpoint: Checkpoint) -> object:
        """Keep one."""

    def newest(self, say: Say) -> Checkpoint | None:
        """The newest whole one."""


class Ranks(Protocol):
    """The processes that train together."""

    @property
    def leads(self) -> bool:
        """Whether this process writes checkpoints, artifact and metrics."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""

    @property
    def lockstep(self) -> bool:
        """Whether the base is sharded, so that every process must make the same passes."""

    def load(self, load: Callable[[torch.device], Loaded]) -> Loaded:
        """The base: loaded onto the device, or to the host and from there in shards onto the devices.

        Raises:
            Failure: where it can't be loaded or spread.
        """

    def stop(self, own: StopRequest) -> StopRequest:
        """A request to end that all processes obey at the same point."""

    def checkpoints(self, store: CheckpointStore) -> Checkpoints:
        """One process writes, all resume from what it read."""

    def equalise(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """The same adapter everywhere, before the first step."""

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        """This process's part of a step or of the hold-out; it may be empty."""

    def reseed(self, seed: int, step: int) -> None:
        """Dropout must differ between processes, and be the same when a step is done again."""

    def passes(
        self, own: Sequence[Pass], stop: StopRequest, spare: Callable[[], Pass] | None
    ) -> Iterator[tuple[Part, Sequence[Example], float]]:
        """This process's passes, each with 1, and then those that only keep step with the others, with 0.

        There is a look at `stop` before each and, where there are several processes, after the last.

        Args:
            own: of this process.
            stop: as `Ranks.stop` made it.
            spare: makes a pass that changes nothing; None where all processes have equally many.

        Raises:
            Stopped: in all processes at once.
            OutOfMemoryElsewhere: likewise, after an `attempt` of any of them ran out of memory.
        """

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        """Inside, running out of memory is kept until all processes know of it.

        Raises:
            Failure: OOM_GPU where the base is sharded: a pass that broke off can't be made again.
        """

    def add_gradients(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        """Sum gradients over the processes in place, and answer the sum of the losses."""

    def total(self, value: float) -> float:
        """Sum over the processes."""


class Alone:
    """One process: everything is its own."""

    leads = True
    lockstep = False

    @property
    def device(self) -> torch.device:
        return pick_device()

    def load(self, load: Callable[[torch.device], Loaded]) -> Loaded:
        return load(self.device)

    def stop(self, own: StopRequest) -> StopRequest:
        return own

    def checkpoints(self, store: CheckpointStore) -> Checkpoints:
        return store

    def equalise(self, parameters: Mapping[str, nn.Parameter]) -> None:
        del parameters

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        return examples

    def reseed(self, seed: int, step: int) -> None:
        del seed, step

    def passes(
        self, own: Sequence[Pass], stop: StopRequest, spare: Callable[[], Pass] | None
    ) -> Iterator[tuple[Part, Sequence[Example], float]]:
        del spare
        for part, examples in own:
            stop.check()
            yield part, examples, 1.0

    def attempt(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def add_gradients(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        del parameters
        return loss

    def total(self, value: float) -> float:
        return value


ALONE: Final[Ranks] = Alone()


class Together:
    """One of several processes, joined by torch.distributed: NCCL between GPUs, gloo for the rest."""

    def __init__(self, parallelism: Parallelism) -> None:
        """Join the others, as torchrun's environment says.

        Raises:
            RuntimeError: where they don't come within `PATIENCE`.
        """
        self.device = pick_device()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo", timeout=PATIENCE
        )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.per_host = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self.lockstep = parallelism == "fsdp"
        self._short_of_memory = False

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def load(self, load: Callable[[torch.device], Loaded]) -> Loaded:
        if not self.lockstep:
            return load(self.device)
        from tuner.distributed.sharding import Mesh, shard_base  # noqa: PLC0415  # only where it is needed

        # What takes seconds to import is imported by all at once, before the first turn.
        importlib.import_module("transformers.integrations.bitsandbytes")
        mesh = Mesh.over(self.device, hosts=self.size // self.per_host, per_host=self.per_host)
        # In turns: a host need not have memory for one whole base per GPU.
        for turn in range(self.per_host):
            if self.rank % self.per_host == turn:
                base, residency = load(torch.device("cpu"))
                base = shard_base(base, mesh)
            self._most([turn])
        return base, residency

    def stop(self, own: StopRequest) -> StopRequest:
        return _Agreed(own, self)

    def checkpoints(self, store: CheckpointStore) -> Checkpoints:
        return _Shared(store, self)

    def equalise(self, parameters: Mapping[str, nn.Parameter]) -> None:
        with torch.no_grad():
            for parameter in parameters.values():
                dist.broadcast(parameter, src=0)

    def share(self, examples: Sequence[Example]) -> Sequence[Example]:
        return shares([example.length for example in examples], examples, self.size)[self.rank]

    def reseed(self, seed: int, step: int) -> None:
        torch.manual_seed((seed * LENGTHS + step) * LENGTHS + self.rank)

    def passes(
        self, own: Sequence[Pass], stop: StopRequest, spare: Callable[[], Pass] | None
    ) -> Iterator[tuple[Part, Sequence[Example], float]]:
        for turn in range(int(self._most([len(own)])[0])):
            stop.check()
            if turn < len(own):
                yield *own[turn], 1.0
            elif self.lockstep and spare is not None:
                yield *spare(), 0.0
        stop.check()

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        if self.lockstep:
            with _in_step():
                yield
            return
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._short_of_memory = True

    def agree(self, *, asked: bool) -> None:
        """Tell the others what this process met, and hear what they did.

        Raises:
            Stopped: when any was asked to end.
            OutOfMemoryElsewhere: when any ran out of memory.
        """
        ended, short = self._most([int(asked), int(self._short_of_memory)])
        self._short_of_memory = False
        if ended:
            raise Stopped
        if short:
            raise OutOfMemoryElsewhere("out of memory in one of the processes")

    def add_gradients(self, parameters: Mapping[str, nn.Parameter], loss: float) -> float:
        held = list(parameters.values())
        with _in_step():
            flat = torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in held]
            )
        dist.all_reduce(flat)
        for parameter, part in zip(held, torch.split(flat, [p.numel() for p in held]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)
        return self.total(loss)

    def total(self, value: float) -> float:
        summed = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(summed)
        return float(summed)

    def leave(self) -> None:
        """Part in peace; a process that failed must not wait for the others."""
        dist.barrier()
        dist.destroy_process_group()

    def _most(self, values: Sequence[int]) -> Sequence[float]:
        found = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        most: list[float] = found.tolist()
        return most


@contextlib.contextmanager
def _in_step() -> Iterator[None]:
    """Where the others wait inside the same collective, running out of memory can't be made good in this job.

    Raises:
        Failure: OOM_GPU in place of what the device raised, so that nobody tries again alone.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise Failure(
            "OOM_GPU",
            "a pass that all processes make together did not fit one of them, and can't be made again while the "
            "others wait in it; the next attempt takes a smaller micro-batch or a larger instance",
        ) from error


class _Agreed(StopRequest):
    """Asked as soon as one of the processes is; obeyed by all of them at the same look."""

    def __init__(self, own: StopRequest, ranks: Together) -> None:
        super().__init__()
        self._own, self._ranks = own, ranks

    def check(self) -> None:
        self._ranks.agree(asked=self._own.asked)


class _Shared:
    """The first process writes and reads; the others are told what it read."""

    def __init__(self, store: CheckpointStore, ranks: Together) -> None:
        self._store, self._ranks = store, ranks

    def save(self, checkpoint: Checkpoint) -> None:
        if self._ranks.leads:
            self._store.save(checkpoint)

    def newest(self, say: Say) -> Checkpoint | None:
        if self._ranks.leads:
            found = self._store.newest(say)
            send_checkpoint(found)
            return found
        return receive_checkpoint()


def shares(lengths: Sequence[int], examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Examples dealt to `count` processes: the longest first, each to whoever has the fewest tokens.

    No share is heavier than the mean and the longest example together (Graham 1966, list scheduling).
    Within a share the order of the step is kept.
    """
    dealt: list[list[int]] = [[] for _ in range(count)]
    tokens = [0] * count
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        least = min(range(count), key=lambda rank: (tokens[rank], rank))
        dealt[least].append(index)
        tokens[least] += lengths[index]
    return [[examples[index] for index in sorted(share)] for share in dealt]
