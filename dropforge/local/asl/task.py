"""What the interpreter asks of whoever does the work of Task states."""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from dropforge.local.asl.history import History
from dropforge.local.asl.waiting import Control

Pattern = Literal["", "sync", "waitForTaskToken"]

_RESOURCE: Final = re.compile(
    r"arn:aws[a-z-]*:states:[a-z0-9-]*:[0-9]*:(?P<sdk>aws-sdk:)?(?P<service>[a-z0-9]+):"
    r"(?P<action>[A-Za-z0-9]+)(?:\.(?P<pattern>sync|waitForTaskToken))?"
)


@dataclass(frozen=True)
class Resource:
    """A task's Resource, taken apart: `arn:aws:states:::[aws-sdk:]<service>:<action>[.<pattern>]`."""

    service: str
    action: str
    """camelCase."""
    pattern: Pattern = ""
    sdk: bool = False

    @classmethod
    def parse(cls, arn: str) -> "Resource | None":
        """None where it is not a service integration (a bare Lambda ARN, an activity)."""
        found = _RESOURCE.fullmatch(arn)
        if found is None:
            return None
        pattern: Pattern = ""
        if found["pattern"] == "sync":
            pattern = "sync"
        elif found["pattern"] == "waitForTaskToken":
            pattern = "waitForTaskToken"
        return cls(found["service"], found["action"], pattern, bool(found["sdk"]))

    def __str__(self) -> str:
        """As history events name it."""
        return self.action + (f".{self.pattern}" if self.pattern else "")

    @property
    def kind(self) -> str:
        """`resourceType` of history events."""
        return f"aws-sdk:{self.service}" if self.sdk else self.service


@dataclass(frozen=True)
class TaskCall:
    """One attempt of one Task state."""

    state: str
    """Its name."""
    resource: Resource
    arguments: Any
    token: str | None
    """The task token, where the pattern waits for one."""
    execution_arn: str
    machine_arn: str
    until: float | None
    """On the control's monotonic clock; past it the attempt ends in States.Timeout."""
    heartbeat_s: float | None
    control: Control
    history: History


class Tasks(Protocol):
    """The work of Task states."""

    def run(self, call: TaskCall) -> Any:
        """Do it and return the result, any JSON value.

        Raises:
            Failure: the attempt failed; `failure.TIMEOUT` where `call.until` passed.
            Aborted, MachineTimedOut: from `call.control`; whatever was started has been told to stop.
        """
