"""GPU instances: memory, speed and price, from `instances.json`, where every figure names its source and date."""

from functools import cache
from importlib import resources

from pydantic import model_validator

from dropforge_core.model import Frozen


class Source(Frozen):
    as_of: str
    what: str


class Gpu(Frozen):
    memory_gib: float
    """Nominal; what a process may use is 1-2 GiB less, which the planner's margin covers."""
    bf16_tflops: float
    """Peak of the tensor cores, dense."""
    gb_per_s: float
    """Memory bandwidth, 10^9 bytes."""
    source: str


class InstanceRow(Frozen):
    type: str
    gpu: str
    gpus: int
    usd_hour: float | None
    """SageMaker training, on demand; None where no price is known."""
    source: str | None
    transform: bool
    """Batch transform takes this family."""


class Instance(Frozen):
    """One instance type with what its GPU can do."""

    type: str
    gpu_name: str
    gpu: Gpu
    usd_hour: float | None
    transform: bool


class Catalogue(Frozen):
    """The whole table."""

    schema_version: int
    currency: str
    region: str
    refresh: str
    sources: dict[str, Source]
    gpus: dict[str, Gpu]
    instances: tuple[InstanceRow, ...]

    @model_validator(mode="after")
    def _everything_is_sourced(self) -> "Catalogue":
        for row in self.instances:
            if row.gpu not in self.gpus:
                raise ValueError(f"{row.type} names the GPU {row.gpu!r}, which the table does not have")
            if (row.usd_hour is None) != (row.source is None) or (
                row.source is not None and row.source not in self.sources
            ):
                raise ValueError(f"{row.type}: a price needs a source of the table, and no price needs none")
        return self

    def find(self, instance_type: str) -> Instance | None:
        """The type with its GPU, or None where the table does not have it."""
        for row in self.instances:
            if row.type == instance_type:
                return Instance(
                    type=row.type,
                    gpu_name=row.gpu if row.gpus == 1 else f"{row.gpus}x {row.gpu}",
                    gpu=self.gpus[row.gpu],
                    usd_hour=row.usd_hour,
                    transform=row.transform,
                )
        return None


@cache
def load_catalogue() -> Catalogue:
    """The table that ships with this version."""
    text = resources.files(__package__).joinpath("instances.json").read_text(encoding="utf-8")
    return Catalogue.model_validate_json(text)
