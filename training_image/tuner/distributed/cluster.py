"""Which hosts train together, and how many processes each of them has. No torch until a GPU is asked for."""

import os
from typing import Final, Self

from pydantic import ValidationError, model_validator

from dropforge_core.model import Tolerant
from tuner.contract import Container
from tuner.failure import Failure

LOOPBACK: Final = "127.0.0.1"
PROCESSES: Final = "PET_NPROC_PER_NODE"
"""torchrun's own variable: processes of a host, where its GPUs don't say how many (a machine without GPUs)."""


class Cluster(Tolerant):
    """`resourceconfig.json`: the hosts of a job, the same on each but for `current_host`."""

    hosts: tuple[str, ...] = (LOOPBACK,)
    current_host: str = LOOPBACK
    network_interface_name: str = ""

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        if self.current_host not in self.hosts:
            raise ValueError(f"hosts that hold current_host; {self.current_host!r} is not in {self.hosts}")
        return self

    @property
    def order(self) -> tuple[str, ...]:
        """Hosts in the order in which their processes are numbered; the first one keeps the rendezvous."""
        return tuple(sorted(self.hosts))

    @property
    def place(self) -> int:
        """Of this host, from 0."""
        return self.order.index(self.current_host)


def read_cluster(container: Container) -> Cluster:
    """The job's hosts; this machine alone where nothing was said.

    Raises:
        Failure: CODE where the file is not SageMaker's.
    """
    try:
        return Cluster.model_validate_json(container.resource_config.read_bytes())
    except FileNotFoundError:
        return Cluster()
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise Failure("CODE", f"{container.resource_config}: {faults}") from None


def processes_per_host() -> int:
    """One for each GPU, one where there is none; `PET_NPROC_PER_NODE` has the last word.

    Raises:
        Failure: CODE where the variable is no number.
    """
    told = os.environ.get(PROCESSES, "")
    if told:
        if not told.isdecimal() or int(told) < 1:
            raise Failure("CODE", f"{PROCESSES} is {told[:20]!r}; a number of processes was expected")
        return int(told)
    import torch  # noqa: PLC0415  # a host that is told its number needs no torch to start its processes

    return max(1, torch.cuda.device_count())


def is_rank() -> bool:
    """Whether this process is one of several that train together (torchrun's environment)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
