"""One batch transform job: the model's server answers every input file; all outputs are stored at the end."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from botocore.exceptions import BotoCoreError, ClientError

from dropforge.local.sagemaker import archives
from dropforge.local.sagemaker.errors import JobFailed
from dropforge.local.sagemaker.invocations import InvocationFailed, ModelServer, free_port
from dropforge.local.sagemaker.jobs import Job, JobHalted
from dropforge.local.sagemaker.logs import LogStream
from dropforge.local.sagemaker.payloads import MEGABYTE, RecordTooLarge, assembled, payloads
from dropforge.local.sagemaker.process import Container
from dropforge.local.sagemaker.requests import ModelRequest, TransformRequest
from dropforge.local.sagemaker.storage import files_below
from dropforge.local.sagemaker.workspace import Host, Workspace

_DEFAULT_PAYLOAD_MB: Final = 6
_SERVER_GRACE_S: Final = 10.0
"""A server that has nothing left to answer need not be waited for as long as a trainer."""
_POLL_S: Final = 0.1
_EXIT_SEEN_S: Final = 2.0
_MOST_WORKERS: Final = 100
"""MaxConcurrentTransforms x MaxPayloadInMB is at most 100; threads are only made when there is work."""
_SEE_LOGS: Final = "See job logs for more information"


@dataclass(frozen=True)
class Batching:
    """How bodies are made and sent: the request's word, else the container's, else the default."""

    concurrency: int
    strategy: Literal["MultiRecord", "SingleRecord"]
    max_bytes: int


def transform(job: Job, request: TransformRequest, model: ModelRequest, host: Host) -> None:
    """Run the job to its end.

    Raises:
        JobFailed: with the FailureReason; the outputs of files that went well are stored before.
        JobHalted: stopped; then no output is stored.
    """
    name = request.transform_job_name
    workspace = host.workspace("transform", name)
    stream = f"{name}/algo-1-{round(host.clock() * 1000)}"
    log = LogStream(host.logs, job.kind.log_group, stream)
    data_log = LogStream(host.logs, job.kind.log_group, f"{stream}/data-log")
    job.move(TransformStartTime=host.clock())
    try:
        workspace.create()
        source = request.transform_input.data_source.s3_data_source.s3_uri
        host.store.download_prefix(source, workspace.data, shared=True)
        _load_model(model, host, workspace)
        failed = _serve_and_answer(job, request, model, host, workspace, (log.line, data_log.line))
        # A file that was answered whole is stored though another one failed.
        host.store.upload_folder(workspace.output, request.transform_output.s3_output_path)
        if failed:
            raise JobFailed.algorithm(_SEE_LOGS)
        log.close()
        job.move("Completed")
    finally:
        log.close()
        data_log.close()
        workspace.remove()


def _load_model(model: ModelRequest, host: Host, workspace: Workspace) -> None:
    url = model.container.model_data_url
    if url is None:
        return
    archive = workspace.scratch / "model.tar.gz"
    try:
        host.store.download(url, archive)
    except (BotoCoreError, ClientError) as error:
        raise JobFailed.client(f"Could not find model data at {url}: {error}") from error
    try:
        archives.unpack(archive, workspace.model)
    except archives.ArchiveRefused as error:
        raise JobFailed.client(
            f'Failed to extract model data archive from URL "{url}": {error}. '
            "Please ensure that the object located at the URL is a valid tar.gz archive."
        ) from error


def _serve_and_answer(  # noqa: PLR0913, PLR0917  # the parts of one job, handed through
    job: Job,
    request: TransformRequest,
    model: ModelRequest,
    host: Host,
    workspace: Workspace,
    say: tuple[Callable[[str], None], Callable[[str], None]],
) -> bool:
    """Start the server, answer all files, stop it. True where a file failed.

    `say` are the log of the server's output and the log of what went wrong with the data.
    """
    on_line, on_fault = say
    port = free_port()
    own = {**model.container.environment, **_batch_environment(request, port), **request.environment}
    environment = host.environment(workspace, own, isolated=model.enable_network_isolation)
    argv = host.command(model.container.image or "", workspace, ("serve",))
    ended = threading.Event()
    with (
        # Left in reverse order: the server dies first, which ends the requests that the pool waits for.
        ThreadPoolExecutor(_MOST_WORKERS, thread_name_prefix="invocation") as pool,
        closing(ModelServer(port, request, ended)) as server,
        Container(argv, environment, workspace.root, on_line) as container,
    ):
        try:
            _await_ready(job, server, container, host.ping_timeout_s)
            batch = _Batch(job, request, _batching(request, server), pool, server, container)
            faults = {
                path: fault
                for path in files_below(workspace.data)
                if (fault := batch.answer_file(path, _output_of(path, workspace)))
            }
        finally:
            ended.set()
        container.stop(_SERVER_GRACE_S, job.control)
    for path, fault in faults.items():
        on_fault(f"{path.relative_to(workspace.data).as_posix()}: {fault}")
    return bool(faults)


def _output_of(path: Path, workspace: Workspace) -> Path:
    return workspace.output / f"{path.relative_to(workspace.data).as_posix()}.out"


def _batch_environment(request: TransformRequest, port: int) -> dict[str, str]:
    return {
        "SAGEMAKER_BATCH": "true",
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "SAGEMAKER_SAFE_PORT_RANGE": f"{port}-{port}",
        "SAGEMAKER_MAX_PAYLOAD_IN_MB": str(_or(request.max_payload_in_mb, _DEFAULT_PAYLOAD_MB)),
        "SAGEMAKER_BATCH_STRATEGY": request.batch_strategy or "MultiRecord",
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": str(request.max_concurrent_transforms or 1),
    }


def _batching(request: TransformRequest, server: ModelServer) -> Batching:
    proposed = server.execution_parameters()
    megabytes = _or(request.max_payload_in_mb, proposed.get("MaxPayloadInMB", _DEFAULT_PAYLOAD_MB))
    strategy = request.batch_strategy or proposed.get("BatchStrategy")
    concurrency = int(request.max_concurrent_transforms or proposed.get("MaxConcurrentTransforms") or 1)
    return Batching(
        concurrency=min(max(1, concurrency), _MOST_WORKERS),
        strategy="SingleRecord" if strategy in {"SingleRecord", "SINGLE_RECORD"} else "MultiRecord",
        max_bytes=int(megabytes) * MEGABYTE,
    )


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _await_ready(job: Job, server: ModelServer, container: Container, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while not server.is_ready():
        code = container.exit_code()
        if code is not None:
            raise JobFailed.algorithm("Model server exited before it answered /ping", code)
        if time.monotonic() > end:
            raise JobFailed.algorithm(
                f"Model server did not pass the ping health check in {timeout_s:g} seconds. {_SEE_LOGS}"
            )
        reason = job.control.wait(_POLL_S)
        if reason is not None:
            raise JobHalted(reason)


@dataclass(frozen=True)
class _Batch:
    """A ready server and how it is asked."""

    job: Job
    request: TransformRequest
    batching: Batching
    pool: ThreadPoolExecutor
    server: ModelServer
    container: Container

    def answer_file(self, path: Path, target: Path) -> str | None:
        """Answer one file into `target`, in the order of its records. What went wrong, if anything; then no target.

        Raises:
            JobHalted, JobFailed: where the whole job ends with this file.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        split: Literal["None", "Line"] = (
            "Line" if self.request.transform_input.split_type == "Line" else "None"
        )
        assemble = self.request.transform_output.assemble_with
        waiting: deque[Future[bytes]] = deque()
        try:
            with path.open("rb") as lines, target.open("wb") as out:
                bodies = payloads(lines, split, self.batching.strategy, self.batching.max_bytes)
                for answer in self._in_order(bodies, waiting):
                    out.write(assembled(answer, assemble))
        except (RecordTooLarge, InvocationFailed) as error:
            target.unlink()
            while waiting:
                # What is under way still counts against the concurrency that the container was promised.
                with suppress(InvocationFailed):
                    self._result(waiting.popleft())
            return str(error)
        return None

    def _in_order(self, bodies: Iterator[bytes], waiting: deque[Future[bytes]]) -> Iterator[bytes]:
        """Answers in the order of their bodies, with at most `concurrency` of them asked at a time."""
        for body in bodies:
            while len(waiting) >= self.batching.concurrency:
                yield self._result(waiting.popleft())
            waiting.append(self.pool.submit(self.server.invoke, body))
        while waiting:
            yield self._result(waiting.popleft())

    def _result(self, future: Future[bytes]) -> bytes:
        while True:
            reason = self.job.control.reason()
            if reason is not None:
                raise JobHalted(reason)
            try:
                return future.result(timeout=_POLL_S)
            except TimeoutError:
                continue
            except InvocationFailed as failed:
                code = self.container.exit_code() if failed.answered else self._exit_code_soon()
                if code is not None:
                    raise JobFailed.algorithm(
                        "Model server exited before it answered every record", code
                    ) from None
                raise

    def _exit_code_soon(self) -> int | None:
        """A server's connections break a moment before its process is seen to have ended."""
        end = time.monotonic() + _EXIT_SEEN_S
        while (code := self.container.exit_code()) is None and time.monotonic() < end:
            if self.job.control.wait(_POLL_S) is not None:
                break
        return code
