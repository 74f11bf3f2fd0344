"""One copy at a time: who holds the claim copies, everybody else waits for the manifest.

A claim is an object that S3 creates only where there is none (conditional writes), and that its holder
overwrites every few seconds. A claim that stays the same for minutes belongs to a job that was killed and
may be taken. Two holders at once would waste a download and break nothing: both write the same bytes.
"""

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from tuner.contract import Say
from tuner.failure import Failure
from tuner.signals import StopRequest

CLAIM: Final = "CLAIM"
_TAKEN: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_UNKNOWN: Final = frozenset({"NotImplemented", "501"})


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds."""

    poll: float = 10.0
    beat: float = 30.0
    abandoned: float = 180.0
    """Without a beat: six of them, so that a slow moment takes no claim away."""


@dataclass(slots=True)
class Claim:
    """The claim on one prefix, by one process."""

    s3: Any
    bucket: str
    key: str
    pace: Pace
    holder: str = field(default_factory=lambda: uuid.uuid4().hex)
    _etag: str = ""
    _beats: int = 0

    @contextlib.contextmanager
    def held(self, is_done: Callable[[], bool], stop: StopRequest, say: Say) -> Iterator[bool]:
        """Wait until the claim is ours, or `is_done`; answers whether there is still something to do.

        Raises:
            Failure: BASE_MODEL where the bucket refuses.
            Stopped: while waiting.
        """
        if not self._gain(is_done, stop, say):
            yield False
            return
        over = threading.Event()
        heart = threading.Thread(target=self._beat, args=(over,), daemon=True)
        heart.start()
        try:
            yield not is_done()
        finally:
            over.set()
            heart.join()
            self._put(released=True, IfMatch=self._etag)

    def _gain(self, is_done: Callable[[], bool], stop: StopRequest, say: Say) -> bool:
        """False where the work was done by another meanwhile."""
        seen, since, told = "", time.monotonic(), False
        while not self._put(IfNoneMatch="*"):
            stop.check()
            if is_done():
                return False
            etag, released = self._look()
            if etag != seen:
                seen, since = etag, time.monotonic()
            if etag and (released or time.monotonic() - since >= self.pace.abandoned):
                say("phase=taking_over" if not released else "phase=going_on")
                if self._put(IfMatch=etag):
                    return True
            if not told:
                say("phase=waiting another job is caching this base model")
                told = True
            time.sleep(self.pace.poll)
        return True

    def _beat(self, over: threading.Event) -> None:
        while not over.wait(self.pace.beat):
            with contextlib.suppress(Failure):
                if not self._put(IfMatch=self._etag):
                    return

    def _put(self, *, released: bool = False, **condition: str) -> bool:
        self._beats += 1
        body = json.dumps({"holder": self.holder, "beat": self._beats, "released": released})
        try:
            answer = self.s3.put_object(Bucket=self.bucket, Key=self.key, Body=body.encode(), **condition)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            # Some S3-compatible stores know no conditions: then everybody copies, as before there were claims.
            if code in _TAKEN or code in {"NoSuchKey", "404"}:
                return False
            if code in _UNKNOWN:
                return True
            raise Failure("BASE_MODEL", f"s3://{self.bucket}/{self.key} can't be written: {error}") from None
        except BotoCoreError as error:
            raise Failure("BASE_MODEL", f"s3://{self.bucket}/{self.key} can't be written: {error}") from None
        self._etag = str(answer["ETag"])
        return True

    def _look(self) -> tuple[str, bool]:
        """ETag of the claim as it lies there, and whether its holder gave it up; empty where there is none."""
        try:
            answer = self.s3.get_object(Bucket=self.bucket, Key=self.key)
            document = json.loads(answer["Body"].read())
        except (ClientError, BotoCoreError, ValueError):
            return "", False
        return str(answer["ETag"]), bool(document.get("released"))
