"""What a deployed stack plans by: speeds of its finished runs, its region's prices, the instance types it allows."""

from collections.abc import Callable
from datetime import date
from typing import Final

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import ValidationError

from dropforge.cli.console import USAGE, CommandFailed
from dropforge.cli.stack import Stack
from dropforge_core.aws import ObjectVanished
from dropforge_core.budget import type_names
from dropforge_core.layout import PRICES
from dropforge_core.model import Frozen
from dropforge_core.planning.calibration import SPEEDS_NOTE, Speed, read_speeds
from dropforge_core.planning.catalogue import Catalogue, load_catalogue

NOTHING_ASKED: Final = (
    "Planned by published speeds, not by those of your own runs; --stack NAME takes what a stack learned."
)


class Learned(Frozen):
    """By what a plan is made."""

    table: Catalogue
    """Without prices that are too old to be believed."""
    speeds: tuple[Speed, ...] = ()
    allowed: tuple[str, ...] = ()
    """Instance types; none where every type is."""


def shipped(today: date) -> Learned:
    """What this version knows, without any stack."""
    return Learned(table=load_catalogue().believed(today))


def learned(stack: Stack, today: date, note: Callable[[str], None]) -> Learned:
    """What the stack's own PlanTraining would plan by.

    Args:
        stack: that is asked.
        today: prices are believed for a while only.
        note: told what was found.

    Raises:
        CommandFailed: when the stack's table or bucket can't be read, or holds what another version wrote.
    """
    try:
        speeds = read_speeds(stack.ledger.note(SPEEDS_NOTE).get("speeds", ""))
        table = _prices(stack)
    except ValidationError as error:
        raise CommandFailed(
            f"What the stack '{stack.name}' learned was written by another version: {error}", USAGE
        ) from error
    except (ClientError, BotoCoreError) as error:
        raise CommandFailed(f"What the stack '{stack.name}' learned can't be read: {error}", USAGE) from error
    own = "its region's prices" if table else "the prices that ship"
    note(f"Planned by the speeds of {len(speeds)} finished runs of the stack '{stack.name}', and {own}.")
    return Learned(
        table=(table or load_catalogue()).believed(today),
        speeds=speeds,
        allowed=type_names(stack.parameters.get("AllowedInstanceTypes", "")),
    )


def _prices(stack: Stack) -> Catalogue | None:
    try:
        return Catalogue.model_validate_json(stack.runs_bucket.read(PRICES))
    except ObjectVanished:
        return None
