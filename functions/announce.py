"""Publish an event of a run without letting the bus decide the run's outcome."""

from botocore.exceptions import BotoCoreError, ClientError

from dropforge_core.aws import Bus
from dropforge_core.events import DetailType, RunEvent
from runtime import count, logger


def announce(bus: Bus, detail_type: DetailType, event: RunEvent) -> bool:
    """Put the event; a failure is logged and counted, never raised. Returns whether it went out."""
    try:
        bus.publish(detail_type, event)
    except (BotoCoreError, ClientError, RuntimeError):
        logger.exception("the event could not be published", detail_type=detail_type)
        count("EventNotPublished")
        return False
    return True
