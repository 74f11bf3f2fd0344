"""One AWS over HTTP for every test that asks for S3, DynamoDB and the like, emptied before each module."""

from collections.abc import Iterator

import httpx
import pytest
from hypothesis import is_hypothesis_test, settings
from moto.server import ThreadedMotoServer

# Before any test module is read: how long an example takes is the machine's affair.
settings.register_profile("dropforge", deadline=None)
settings.load_profile("dropforge")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage is counted on examples alone: it makes thousands of drawn cases take three times as long."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("no_cover")


@pytest.fixture(scope="session")
def aws_server() -> Iterator[str]:
    """The endpoint. All servers in a process would share one state, so there is only this one."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def empty_aws(aws_server: str) -> str:
    """The endpoint, with nothing left of the modules before."""
    httpx.post(f"{aws_server}/moto-api/reset").raise_for_status()
    return aws_server
