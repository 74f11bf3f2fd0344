"""One AWS over HTTP for every test that asks for S3, DynamoDB and the like, emptied before each module."""

import signal
from collections.abc import Iterable, Iterator
from threading import Lock, Thread
from typing import Any

import httpx
import pytest
from hypothesis import is_hypothesis_test, settings
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

# Before any test module is read: how long an example takes is the machine's affair.
settings.register_profile("dropforge", deadline=None)
settings.load_profile("dropforge")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores it, and so would every process that a test starts and interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is counted on examples alone: it makes thousands of drawn cases take three times as long."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("no_cover")


class Isolated:
    """The AWS of the tests, which takes DynamoDB's requests one after the other.

    DynamoDB checks a condition and writes, or writes a whole transaction, with nobody in between. Moto's threads
    let others in between, so that of two writers under the same condition both may win.
    """

    def __init__(self) -> None:
        self._aws = DomainDispatcherApplication(create_backend_app)
        self._one_at_a_time = Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB"):
            return self._aws(environ, start_response)
        with self._one_at_a_time:
            return list(self._aws(environ, start_response))


@pytest.fixture(scope="session")
def aws_server() -> Iterator[str]:
    """The endpoint. All servers in a process would share one state, so there is only this one."""
    server = make_server("127.0.0.1", 0, Isolated(), threaded=True, request_handler=MotoRequestHandler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def empty_aws(aws_server: str) -> str:
    """The endpoint, with nothing left of the modules before."""
    httpx.post(f"{aws_server}/moto-api/reset").raise_for_status()
    return aws_server
