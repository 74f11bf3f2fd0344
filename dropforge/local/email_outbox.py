"""What SNS would have mailed, kept as files that any mail program opens."""

import itertools
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Final

SENDER: Final = "AWS Notifications <no-reply@sns.amazonaws.com>"
DEFAULT_SUBJECT: Final = "AWS Notification Message"


class Outbox:
    """A folder of `.eml` files, named so that they sort by time. Safe to use from any thread."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder, self._now = folder, now
        self._numbers = itertools.count(1)

    def put(self, to: str, subject: str, text: str, topic_arn: str) -> Path:
        """Keep one mail and return its path."""
        moment = datetime.fromtimestamp(self._now(), UTC)
        mail = EmailMessage()
        mail["Date"] = format_datetime(moment)
        mail["From"] = SENDER
        mail["To"] = to
        mail["Subject"] = subject or DEFAULT_SUBJECT
        mail["X-Amz-Sns-Topic-Arn"] = topic_arn
        mail.set_content(text)
        self._folder.mkdir(parents=True, exist_ok=True)
        words = re.sub(r"[^a-z0-9]+", "-", (subject or "message").lower()).strip("-")[:60]
        path = self._folder / f"{moment:%Y%m%dT%H%M%S}-{next(self._numbers):04d}-{words}.eml"
        unfinished = path.with_suffix(".part")
        unfinished.write_bytes(mail.as_bytes())
        unfinished.rename(path)
        return path
