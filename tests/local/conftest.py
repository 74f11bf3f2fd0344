"""One engine for all probes, with the sample stack deployed in it; everything is asked over HTTP by real boto3."""

import uuid
from collections.abc import Iterator

import pytest
from sample_stack import DOCKERFILE, EMAIL, SAMPLE, Sample

from dropforge.local.deploy import deploy
from dropforge.local.engine import Settings
from dropforge.local.stack import Engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    settings = Settings(str(tmp_path_factory.mktemp("engine")), str(DOCKERFILE))
    with Engine(settings) as running:
        yield running


@pytest.fixture(scope="session")
def sample(engine: Engine) -> Sample:
    outputs = deploy(SAMPLE / "template.yaml", {"NotificationEmail": EMAIL}, engine.client, stack="sample")
    return Sample(engine, outputs)


@pytest.fixture
def job_name() -> str:
    return f"probe-{uuid.uuid4().hex[:12]}"
