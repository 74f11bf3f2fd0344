"""What the API answers when it refuses, in SageMaker's words as far as they are known."""

from typing import Final, Self

LOCAL_LIMITS: Final = "docs/local-aws.md"


class ApiError(Exception):
    """A refusal that goes to the caller: `code` is what botocore calls the error code."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status

    @classmethod
    def invalid(cls, message: str) -> Self:
        """SageMaker answers most faults of the caller, also most missing resources, with this one."""
        return cls("ValidationException", message)

    @classmethod
    def not_found(cls, message: str) -> Self:
        return cls("ResourceNotFound", message)

    @classmethod
    def in_use(cls, message: str) -> Self:
        return cls("ResourceInUse", message)

    @classmethod
    def conflict(cls, message: str) -> Self:
        return cls("ConflictException", message)

    @classmethod
    def only_in_the_cloud(cls, what: str) -> Self:
        """A code of its own: a valid request that only this local AWS can't serve is never mistaken for a fault."""
        return cls("NotSupportedLocally", f"The local SageMaker does not offer {what}. See {LOCAL_LIMITS}.")


class JobFailed(Exception):
    """A job ends Failed; the message is its FailureReason, which begins with SageMaker's class of fault."""

    def __init__(self, reason: str) -> None:
        # DescribeTrainingJob, FailureReason: at most 1024 characters.
        super().__init__(reason[:1024])

    @classmethod
    def client(cls, message: str) -> Self:
        """Configuration, data or permission is at fault."""
        return cls(f"ClientError: {message}")

    @classmethod
    def algorithm(cls, message: str, exit_code: int | None = None) -> Self:
        """The container is at fault. The exit code is kept whole; the message gives way."""
        tail = "" if exit_code is None else f", exit code: {exit_code}"
        head = "AlgorithmError: "
        return cls(head + message[: 1024 - len(head) - len(tail)] + tail)
