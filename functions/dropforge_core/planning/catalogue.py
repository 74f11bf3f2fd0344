"""GPU instances: memory, speed and price, from `instances.json`, where every figure names its source and date."""

import re
from datetime import date
from functools import cache
from importlib import resources
from typing import Annotated, Final

from pydantic import StringConstraints, model_validator

from dropforge_core.model import Frozen

P_CUT: Final = "2025-06"
"""AWS cut the prices of P instances in June 2025 (p4d from 37.69 to 25.25 USD an hour): older ones are wrong."""
NEWEST_CAPABILITY: Final = (9, 0)
"""Of the GPUs that the training image's torch has kernels for: a build for CUDA 12.6 ends with Hopper, Blackwell needs
12.8 or later (pytorch.org, RELEASE.md, CUDA support matrix)."""
STALE_DAYS: Final = 400
"""A price older than this is not believed any more."""


class Source(Frozen):
    as_of: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}(-\d{2})?$")]
    """`YYYY-MM` or `YYYY-MM-DD`."""
    what: str

    def age_days(self, today: date) -> int:
        """Days since then; a month counts from its first day."""
        return (today - date.fromisoformat(self.as_of if len(self.as_of) == 10 else f"{self.as_of}-01")).days


class Gpu(Frozen):
    memory_gib: float
    """Nominal; what a process may use is 1-2 GiB less, which the planner's margin covers."""
    capability: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+$")] = "0.0"
    """CUDA's compute capability; 0.0 where an older table does not tell."""
    bf16_tflops: float
    """Peak of the tensor cores, dense."""
    gb_per_s: float
    """Memory bandwidth, 10^9 bytes."""
    source: str

    @property
    def runs_image(self) -> bool:
        """Whether the training image has kernels for it."""
        major, _, minor = self.capability.partition(".")
        return (int(major), int(minor)) <= NEWEST_CAPABILITY


class InstanceRow(Frozen):
    type: str
    gpu: str
    gpus: int
    usd_hour: float | None
    """SageMaker training, on demand; None where no price is known."""
    source: str | None
    transform: bool
    """Batch transform takes this family."""
    transform_usd_hour: float | None = None
    """SageMaker batch transform, from the same source; None where the table has none."""


class ProcessingRow(Frozen):
    """The price of a processing job's instance."""

    type: str
    usd_hour: float
    source: str


class Instance(Frozen):
    """One instance type with what its GPU can do."""

    type: str
    gpu_name: str
    gpu: Gpu
    usd_hour: float | None
    transform: bool
    transform_usd_hour: float | None = None
    gpus: int = 1


class Catalogue(Frozen):
    """The whole table."""

    schema_version: int
    currency: str
    region: str
    refresh: str
    sources: dict[str, Source]
    gpus: dict[str, Gpu]
    instances: tuple[InstanceRow, ...]
    processing: tuple[ProcessingRow, ...] = ()

    @model_validator(mode="after")
    def _everything_is_sourced(self) -> "Catalogue":
        for row in self.instances:
            if row.gpu not in self.gpus:
                raise ValueError(f"{row.type} names the GPU {row.gpu!r}, which the table does not have")
            if (row.usd_hour is None) != (row.source is None) or (
                row.source is not None and row.source not in self.sources
            ):
                raise ValueError(f"{row.type}: a price needs a source of the table, and no price needs none")
            if row.source and is_p(row.type) and self.sources[row.source].as_of < P_CUT:
                raise ValueError(
                    f"{row.type}: the price is of {self.sources[row.source].as_of}, before AWS cut those of P "
                    f"instances ({P_CUT}). Renew it with `dropforge prices refresh`, or leave it out."
                )
        for priced in self.processing:
            if priced.source not in self.sources:
                raise ValueError(f"{priced.type}: a price needs a source of the table")
        return self

    def believed(self, today: date) -> "Catalogue":
        """The same table without prices that are older than `STALE_DAYS`: such a type is listed without one."""
        stale = {name for name, source in self.sources.items() if source.age_days(today) > STALE_DAYS}
        nothing = {"usd_hour": None, "source": None, "transform_usd_hour": None}
        return self.model_copy(
            update={
                "instances": tuple(
                    row.model_copy(update=nothing) if row.source in stale else row for row in self.instances
                ),
                "processing": tuple(row for row in self.processing if row.source not in stale),
            }
        )

    def price(self, instance_type: str, kind: str) -> float | None:
        """US dollars an hour of a job of `caching`, `training` or `evaluation`; None where it is not known.

        Where the table has no price of batch transform, the type's training rate stands for it.
        """
        if kind == "caching":
            return self.processing_price(instance_type)
        found = self.find(instance_type)
        if found is None:
            return None
        return (found.transform_usd_hour if kind == "evaluation" else None) or found.usd_hour

    def processing_price(self, instance_type: str) -> float | None:
        """US dollars an hour of a processing job, or None where it is not known."""
        return next((row.usd_hour for row in self.processing if row.type == instance_type), None)

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
                    transform_usd_hour=row.transform_usd_hour,
                    gpus=row.gpus,
                )
        return None


def is_p(instance_type: str) -> bool:
    """A type of the P family, whose prices AWS cut in 2025."""
    return re.match(r"ml\.p\d", instance_type) is not None


@cache
def load_catalogue() -> Catalogue:
    """The table that ships with this version."""
    text = resources.files(__package__).joinpath("instances.json").read_text(encoding="utf-8")
    return Catalogue.model_validate_json(text)
