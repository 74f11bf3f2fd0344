"""One execution environment: a process that runs one function, one invocation at a time."""

import importlib.util
import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dropforge.local.lambda_runtime import bootstrap_path
from dropforge.local.lambda_runtime.api import Invocation, RuntimeApi
from dropforge.local.sagemaker import launch

INIT_LIMIT_S: Final = 60.0
"""AWS allows 10 s and then tries again within the invocation; a laptop that trains meanwhile is slower."""
_POLL_S: Final = 0.1
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "SSL_CERT_FILE")

# Linux ties a worker's life to the thread that started it, so one thread that lives on starts them all.
_starter: Final = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lambda-starter")


@dataclass(frozen=True)
class FunctionSpec:
    """What an execution environment is made of; equal specs may share one."""

    name: str
    handler: str
    code: Path
    """The unpacked deployment package."""
    environment: tuple[tuple[str, str], ...]
    timeout_s: float
    memory_mb: int
    log_group: str
    version: str = "$LATEST"


@dataclass(frozen=True)
class Result:
    """Of one invocation."""

    payload: bytes
    failed: bool
    log: str
    alive: bool
    """False where the process is gone and can't serve another invocation."""


class Worker:
    """Starts at its first invocation. Not safe to use from two threads at once; the pool sees to that."""

    def __init__(self, spec: FunctionSpec, aws: Mapping[str, str], log_file: Path) -> None:
        """Prepare the environment.

        Args:
            spec: the function.
            aws: AWS_* variables: endpoint, region, credentials.
            log_file: where the process writes; a file, so that whatever it wrote before it
                answered is there when the answer comes.
        """
        self.spec = spec
        self._aws = aws
        self._log_file = log_file
        self._api = RuntimeApi()
        self._process: subprocess.Popen[bytes] | None = None
        self._read = 0

    def invoke(self, invocation: Invocation) -> Result:
        """Run the handler once."""
        process = self._ensure()
        self._api.offer(invocation)
        started = time.monotonic()
        deadline: float | None = None
        while True:
            try:
                reply = self._api.replies.get(timeout=_POLL_S)
            except queue.Empty:
                if process.poll() is not None:
                    return self._dead(invocation, process.returncode)
                if deadline is None and self._api.fetched.is_set():
                    deadline = time.monotonic() + invocation.timeout_s
                limit = deadline if deadline is not None else started + INIT_LIMIT_S
                if time.monotonic() >= limit:
                    return self._timed_out(invocation, initialising=deadline is None)
                continue
            if reply.kind == "init":
                self.close()
                return Result(reply.body, True, self._log(), False)
            if reply.request_id == invocation.request_id:
                return Result(reply.body, reply.kind == "error", self._log(), True)

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._api.close()

    def _ensure(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            self._process = _starter.submit(self._start).result()
        return self._process

    def _start(self) -> "subprocess.Popen[bytes]":
        spec = self.spec
        environment = {
            **{name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            "TZ": ":UTC",
            "PYTHONPATH": str(spec.code),
            "PYTHONUNBUFFERED": "1",
            "LAMBDA_TASK_ROOT": str(spec.code),
            "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
            "AWS_LAMBDA_FUNCTION_NAME": spec.name,
            "AWS_LAMBDA_FUNCTION_VERSION": spec.version,
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(spec.memory_mb),
            "AWS_LAMBDA_LOG_GROUP_NAME": spec.log_group,
            "AWS_LAMBDA_LOG_STREAM_NAME": self._log_file.stem,
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            # There is no X-Ray here; without these the SDK would send segments into the void.
            "POWERTOOLS_TRACE_DISABLED": "true",
            "AWS_XRAY_SDK_ENABLED": "false",
            **self._aws,
            **dict(spec.environment),
            "_HANDLER": spec.handler,
            "AWS_LAMBDA_RUNTIME_API": self._api.address,
        }
        with self._log_file.open("wb") as output:
            return subprocess.Popen(  # noqa: S603  # our own interpreter and launcher
                [
                    sys.executable,
                    "-I",
                    "-S",
                    launch.__file__,
                    str(os.getpid()),
                    "open",
                    sys.executable,
                    *_runtime(spec),
                ],
                env=environment,
                cwd=spec.code,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self) -> str:
        with self._log_file.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        return text.decode("utf-8", "replace")

    def _dead(self, invocation: Invocation, code: int) -> Result:
        how = f"signal: {-code}" if code < 0 else f"exit status {code}"
        message = f"RequestId: {invocation.request_id} Error: Runtime exited with error: {how}"
        self.close()
        return self._failed("Runtime.ExitError", message)

    def _timed_out(self, invocation: Invocation, *, initialising: bool) -> Result:
        self.close()
        limit = INIT_LIMIT_S if initialising else invocation.timeout_s
        what = "Initialization" if initialising else "Task"
        message = f"RequestId: {invocation.request_id} Error: {what} timed out after {limit:.2f} seconds"
        return self._failed("Sandbox.Timedout", message)

    def _failed(self, error_type: str, message: str) -> Result:
        body = json.dumps({"errorType": error_type, "errorMessage": message}).encode()
        return Result(body, True, f"{self._log()}{message}\n", False)


def _runtime(spec: FunctionSpec) -> list[str]:
    if importlib.util.find_spec("awslambdaric") is not None:
        return ["-m", "awslambdaric", spec.handler]
    return [str(bootstrap_path()), spec.handler]
