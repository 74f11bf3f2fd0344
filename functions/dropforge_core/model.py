"""The one base class of everything that crosses a boundary."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields: a typo in a contract is an error, not a silence."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Tolerant(BaseModel):
    """Immutable, and tolerant of fields that AWS adds later: for what AWS sends us."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)
