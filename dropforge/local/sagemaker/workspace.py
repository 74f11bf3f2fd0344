"""The private `/opt/ml` of one job and the surroundings of its process."""

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from dropforge.local.sagemaker.errors import JobFailed
from dropforge.local.sagemaker.storage import ObjectStore

if TYPE_CHECKING:
    from mypy_boto3_logs import CloudWatchLogsClient

    from dropforge.local.sagemaker.jobs import Job

OPT_ML: Final = PurePosixPath("/opt/ml")
_FROM_HOST: Final = (
    "PATH",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
)
"""All that a job sees of the engine's environment; the rest of it is nobody's business in a container."""


@dataclass(frozen=True)
class Host:
    """What every job gets from the engine, and how it is treated."""

    endpoint: str
    region: str
    account: str
    root: Path
    store: ObjectStore
    logs: "CloudWatchLogsClient"
    entry_point: Callable[[str], list[str]]
    """Image URI to the argv of its entry point."""
    image_environment: Mapping[str, str] = field(default_factory=dict)
    grace_s: float = 120.0
    """Between SIGTERM and SIGKILL, as SageMaker gives."""
    mirror_every_s: float = 2.0
    ping_timeout_s: float = 900.0
    interruptions: Callable[[str], Sequence[float]] = lambda _: ()
    """Training job name to the seconds after which each of its spot machines is taken away."""
    on_training_line: Callable[["Job", str], None] = lambda _job, _line: None
    """Told each line that a training container writes."""
    clock: Callable[[], float] = time.time
    """Seconds since the epoch, for stamps."""

    def workspace(self, kind: str, name: str) -> "Workspace":
        return Workspace(self.root / "jobs" / f"{kind}-{name}")

    def environment(
        self, workspace: "Workspace", own: Mapping[str, str], *, isolated: bool
    ) -> dict[str, str]:
        """A process's whole environment: the image's ENV, the request's Environment over it, and AWS.

        An isolated container gets neither credentials nor an endpoint.
        """
        environment = {name: os.environ[name] for name in _FROM_HOST if name in os.environ}
        environment |= {
            "HOME": str(workspace.scratch),
            "TMPDIR": str(workspace.scratch),
            "PYTHONUNBUFFERED": "1",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        if not isolated:
            environment |= {
                "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_ACCESS_KEY_ID": self.account,
                "AWS_SECRET_ACCESS_KEY": "local",
            }
        return {**environment, **self.image_environment, **own}

    def command(
        self,
        image: str,
        workspace: "Workspace",
        arguments: Sequence[str],
        entrypoint: Sequence[str] = (),
    ) -> list[str]:
        """The argv: entry point, verb, `--root` with the private root, the other arguments.

        An entry point of the request takes the place of the image's; its `python` is this engine's.

        Raises:
            JobFailed: ClientError, where the engine knows no such image.
        """
        try:
            program = self.entry_point(image)
        except LookupError as error:
            raise JobFailed.client(f"Cannot find the image {image}: {error}") from error
        if entrypoint:
            first = PurePosixPath(entrypoint[0]).name
            program = [program[0] if first.startswith("python") else entrypoint[0], *entrypoint[1:]]
        return [*program, *arguments[:1], "--root", str(workspace.root), *arguments[1:]]


class Workspace:
    """The tree that SageMaker mounts at /opt/ml. Gone when the job ends, as the machine's volume is."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def config(self) -> Path:
        return self.root / "input" / "config"

    @property
    def data(self) -> Path:
        return self.root / "input" / "data"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def output(self) -> Path:
        return self.root / "output" / "data"

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    def create(self) -> None:
        """An empty tree, whatever was there."""
        self.remove()
        for folder in (self.config, self.data, self.model, self.output, self.scratch):
            folder.mkdir(parents=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def path_of(self, container_path: str | PurePosixPath) -> Path:
        """Where a path below the container's /opt/ml lies.

        Raises:
            ValueError: when it lies elsewhere.
        """
        inside = PurePosixPath(container_path).relative_to(OPT_ML)
        if ".." in inside.parts:
            raise ValueError(f"{container_path} leaves {OPT_ML}")
        return self.root.joinpath(*inside.parts)

    def message(self, name: str) -> str:
        """The text of `output/<name>` (`failure`, `message`), at most 1024 characters; empty where there is none."""
        try:
            with (self.root / "output" / name).open("rb") as file:
                # 4 bytes is the longest character of UTF-8.
                return file.read(4 * 1024).decode("utf-8", "replace").strip()[:1024]
        except OSError:
            return ""


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), "utf-8")


def resource_config(instance_type: str | None) -> dict[str, Any]:
    """`resourceconfig.json` of a job on one machine."""
    group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": ["algo-1"]}
    return {
        "current_host": "algo-1",
        "current_instance_type": instance_type,
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1"],
        "instance_groups": [group],
        "network_interface_name": "lo",
    }
