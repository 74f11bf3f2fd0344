"""The process behind the endpoint. Started by `stack.start`; lives exactly as long as its standard input is open."""

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Final, Literal

LOOPBACK: Final = "127.0.0.1"
REGION: Final = "us-east-1"
ACCOUNT: Final = "000000000000"
ACCESS_KEY: Final = "local"
_GRACE_S: Final = 1.0
_log = logging.getLogger("dropforge.local")


@dataclass(frozen=True)
class Settings:
    """What the parent tells the engine, one JSON line on its standard input."""

    state_dir: str
    dockerfile: str
    """The image's; its ENTRYPOINT runs the jobs."""
    port: int | None = None
    stopped_job: Literal["fails", "succeeds"] = "fails"
    temporary: bool = False
    """Whether the state folder goes with the engine."""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def aws_variables(endpoint: str) -> dict[str, str]:
    """The environment that sends any AWS SDK here. The credentials are not secret: nobody checks them."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class CannotListen(RuntimeError):
    """The port is taken, or not for this user."""


def listen(port: int | None) -> socket.socket:
    """A socket on the loopback interface; on any free port where None.

    Raises:
        CannotListen: with the port and what to do.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port or 0))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "ports end at 65535"
        raise CannotListen(
            f"Port {port} of {LOOPBACK} can't be had: {why}. Another local AWS may be running there; end it, or "
            "name another port. 0 takes a free one."
        ) from error
    return listener


def serve(settings: Settings, lifeline: IO[bytes], tell: Callable[[Mapping[str, Any]], None]) -> None:
    """Serve until `lifeline` ends or SIGTERM comes, then end every process that was started."""
    listener = listen(settings.port)
    port = listener.getsockname()[1]
    endpoint = f"http://{LOOPBACK}:{port}"
    # MiniStack reads these when it is imported.
    os.environ.update(
        aws_variables(endpoint),
        GATEWAY_PORT=str(port),
        BIND_HOST=LOOPBACK,
        MINISTACK_HOST=LOOPBACK,
        MINISTACK_ACCOUNT_ID=ACCOUNT,
        MINISTACK_REGION=REGION,
        LOG_LEVEL="WARNING",
        SFTP_ENABLED="0",
        IOT_MTLS_ENABLED="0",
    )
    services = Services(settings, endpoint)
    asyncio.run(_serve_http(listener, services, lifeline, lambda: tell({"endpoint": endpoint})))


class Services:
    """Our services, mounted in MiniStack."""

    def __init__(self, settings: Settings, endpoint: str) -> None:
        # Imported late: MiniStack takes its settings from the environment at import.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415

        from dropforge.local import hooks, mount, mount_states  # noqa: PLC0415
        from dropforge.local.callbacks import Callbacks  # noqa: PLC0415
        from dropforge.local.email_outbox import Outbox  # noqa: PLC0415
        from dropforge.local.integrations import Integrations  # noqa: PLC0415
        from dropforge.local.lambda_runtime.pool import CodeStore, WorkerPool  # noqa: PLC0415
        from dropforge.local.sagemaker import LocalSageMaker, entry_point_of, environment_of  # noqa: PLC0415
        from dropforge.local.states import Executions  # noqa: PLC0415

        hooks.check()
        root = Path(settings.state_dir)
        session = boto3.Session(ACCESS_KEY, ACCESS_KEY, region_name=REGION)
        config = Config(
            # A function may take 15 minutes; Step Functions itself decides what is tried again.
            read_timeout=930,
            retries={"total_max_attempts": 1},
            max_pool_connections=50,
            s3={"addressing_style": "path"},
        )

        making = threading.Lock()

        @cache
        def client(service: str) -> Any:
            # Sessions are not for several threads at once; clients are.
            with making:
                return session.client(service, endpoint_url=endpoint, config=config)  # type: ignore[call-overload]

        callbacks = Callbacks()
        self.executions = Executions(
            Integrations(client, callbacks, settings.stopped_job),
            callbacks,
            mount.publish,
            mount_states.keep_map_run,
        )

        def emit(detail_type: str, arn: str, detail: Mapping[str, Any]) -> None:
            mount.publish("aws.sagemaker", detail_type, arn, detail)
            callbacks.changed(arn)

        dockerfile = Path(settings.dockerfile)
        self.sagemaker = LocalSageMaker(
            endpoint,
            REGION,
            ACCOUNT,
            root / "sagemaker",
            emit,
            lambda _image: entry_point_of(dockerfile, sys.executable),
            image_environment=environment_of(dockerfile),
        )
        self.pool = WorkerPool(root / "lambda" / "logs", aws_variables(endpoint))
        mount.mount_sagemaker(self.sagemaker)
        mount.mount_lambda(self.pool, CodeStore(root / "lambda" / "code"))
        mount.mount_object_versions()
        mount.mount_ranges_of_versions()
        mount.mount_email(Outbox(root / "outbox"))
        mount.mount_alarms(REGION, ACCOUNT)
        mount_states.StatesDoor(self.executions).mount()

    def close(self) -> None:
        """End every process."""
        for part in (self.sagemaker, self.pool):
            try:
                part.close()
            except Exception:  # noqa: BLE001  # the other part must still be closed
                _log.exception("closing %s", type(part).__name__)


async def _serve_http(
    listener: socket.socket, services: Services, lifeline: IO[bytes], ready: Callable[[], None]
) -> None:
    from hypercorn.asyncio import serve as hypercorn_serve  # noqa: PLC0415
    from hypercorn.config import Config as HypercornConfig  # noqa: PLC0415
    from ministack.app import app  # noqa: PLC0415

    loop = asyncio.get_running_loop()
    over = asyncio.Event()

    def end() -> None:
        # Processes first: what they still ask of the endpoint is answered or refused, not waited for.
        services.close()
        loop.call_soon_threadsafe(over.set)

    def watch() -> None:
        while lifeline.read(1):
            continue
        end()

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
    loop.add_signal_handler(signal.SIGTERM, lambda: threading.Thread(target=end).start())
    config = HypercornConfig()
    config.bind = [f"fd://{listener.fileno()}"]
    config.loglevel = "WARNING"
    config.keep_alive_timeout = 75
    config.graceful_timeout = _GRACE_S
    serving = asyncio.create_task(hypercorn_serve(app, config, shutdown_trigger=over.wait))
    await _answering(listener.getsockname())
    ready()
    await serving


async def _answering(address: tuple[str, int]) -> None:
    """Wait until the server answers; the socket alone listens before it does."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /_ministack/health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            await writer.drain()
            line = await asyncio.wait_for(reader.readline(), 5)
            writer.close()
        except (OSError, TimeoutError):
            line = b""
        if b" 200 " in line:
            return
        await asyncio.sleep(0.02)


def main() -> None:
    """Read the settings, serve, and leave no thread or process behind."""
    # The terminal's ^C goes to everybody; the parent alone decides when it is over.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline = sys.stdin.buffer
    report = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    # Whatever a library prints goes to the log; only the report speaks to the parent.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(document: Mapping[str, Any]) -> None:
        report.write(json.dumps(document) + "\n")
        report.flush()

    code, settings = 0, None
    try:
        settings = Settings(**json.loads(lifeline.readline()))
        serve(settings, lifeline, tell)
    except BaseException as error:  # noqa: BLE001  # told to the parent, whatever it is
        _log.exception("the local AWS failed")
        tell({"error": f"{type(error).__name__}: {error}"})
        code = 1
    logging.shutdown()
    if settings is not None and settings.temporary:
        # The parent does this too; but it may have been killed.
        shutil.rmtree(settings.state_dir, ignore_errors=True)
    # MiniStack's pools have threads that would hold the interpreter back.
    os._exit(code)


if __name__ == "__main__":
    main()
