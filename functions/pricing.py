"""The prices that the stack goes by: those that were fetched for its region, else those that ship."""

from datetime import UTC, datetime

from pydantic import ValidationError

from dropforge_core.aws import Bucket, ObjectVanished
from dropforge_core.layout import PRICES
from dropforge_core.planning.catalogue import Catalogue, load_catalogue
from runtime import logger


def catalogue(runs: Bucket) -> Catalogue:
    """GPUs and prices, without prices that are too old to be believed."""
    today = datetime.now(UTC).date()
    try:
        return Catalogue.model_validate_json(runs.read(PRICES)).believed(today)
    except ObjectVanished:
        pass
    except ValidationError:
        logger.warning("the fetched prices can't be used; those that ship are", key=PRICES, exc_info=True)
    return load_catalogue().believed(today)
