"""Tell people: every event of a run becomes an edit in Slack and, where it matters, an e-mail.

Nothing here can change a run's outcome: the event was already published when this begins. What may
succeed later is raised, so that Lambda tries again and the dead-letter queue keeps what never went out;
what never can is logged and counted.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import Field, ValidationError

from dropforge_core import aws
from dropforge_core.events import DetailType, RunEvent
from dropforge_core.ledger import REDRIVE_STEP
from dropforge_core.messages import email, slack
from dropforge_core.messages.card import RunCard, load_card
from dropforge_core.messages.told import told_as
from dropforge_core.model import Tolerant
from runtime import Settings, count, instrumented, logger
from slack import SlackBot, SlackRefused, SlackUnavailable, SlackWebhook

LEASE_S: Final = 120
"""How long another invocation may be sending before it counts as dead; above the function's time-out."""
CARD_TRIES: Final = 8
TOLD: Final = "told"
REFUSED: Final = "refused"
FAILED: Final = "failed"
SNS_PERMANENT: Final = frozenset(
    {"AuthorizationError", "InvalidParameter", "InvalidParameterValue", "NotFound", "NotFoundException"}
)


class Env(Settings):
    run_table: str
    topic_arn: str = ""
    slack_secret_arn: str = ""
    slack_api_url: str = "https://slack.com/api"
    slack_webhook_origin: str = "https://hooks.slack.com"
    aws_region: str = ""
    """Lambda sets it."""


class BusEvent(Tolerant):
    """An event of the stack's own bus, as EventBridge delivers it."""

    id: str
    detail_type: DetailType = Field(alias="detail-type")
    detail: RunEvent


class SlackSecret(Tolerant):
    """The secret's JSON: a bot's token and channel, or a webhook's address."""

    bot_token: str = ""
    channel: str = ""
    webhook_url: str = ""


class NotificationFailed(Exception):
    """Somebody was not told, and trying again may help."""


class NeverToBeTold(Exception):
    """Somebody can't be told until a setting is mended; trying again is useless."""


@dataclass(frozen=True)
class Telling:
    """One event on its way to people."""

    event: BusEvent
    env: Env
    ledger: aws.Ledger
    request_id: str
    card: RunCard
    name: str

    def once(self, channel: str, send: Callable[[], None]) -> bool:
        """Send unless this was told on the channel already. True where it need not be tried again.

        The claim is a lease: an invocation that died while sending gives way to its own retry at once, and
        to another one's after `LEASE_S`.
        """
        claim = f"{self.name}#{channel}"
        mine = f"sending {self.request_id} {time.time():.0f}"
        held = self.ledger.claim(claim, mine)
        if held != mine and not (
            self._may_take_over(held) and self.ledger.take_over(claim, holder=held, value=mine)
        ):
            return True
        try:
            send()
        except NeverToBeTold as error:
            logger.error("notification refused", channel=channel, reason=str(error))
            self.ledger.take_over(claim, holder=mine, value=REFUSED)
            count("NotificationRefused")
        except NotificationFailed as error:
            logger.warning("notification failed", channel=channel, reason=str(error))
            self.ledger.take_over(claim, holder=mine, value=FAILED)
            count("NotificationFailed")
            return False
        else:
            self.ledger.take_over(claim, holder=mine, value=TOLD)
        return True

    def _may_take_over(self, held: str) -> bool:
        if held == FAILED:
            return True
        words = held.split(" ")
        if len(words) != 3 or words[0] != "sending":
            return False
        return words[1] == self.request_id or time.time() - float(words[2]) > LEASE_S

    def to_slack(self) -> None:
        try:
            sender = slack_sender(self.env)
            if isinstance(sender, SlackWebhook):
                if body := self._reply():
                    sender.post({**body, "text": slack.headline(self.card)})
            else:
                self._edit_message(sender)
        except SlackRefused as error:
            raise NeverToBeTold(str(error)) from error
        except (SlackUnavailable, ClientError, BotoCoreError) as error:
            raise NotificationFailed(str(error)) from error

    def _reply(self) -> dict[str, Any] | None:
        return slack.reply(self.event.detail_type, self.event.detail, self.card, self.env.aws_region)

    def _edit_message(self, bot: SlackBot) -> None:
        note = f"SLACK#{self.card.run_id}"
        shown: RunCard | None = None
        ts = self.ledger.note(note).get("holder", "")
        if not ts:
            posted = bot.post(slack.message(self.card, self.env.aws_region))
            ts = self.ledger.claim(note, posted)
            if ts == posted:
                shown = self.card
            else:  # another event was faster: one message a run
                bot.delete(posted)
        for _ in range(CARD_TRIES):
            newest = load_card(self.ledger.note(f"CARD#{self.card.run_id}").get("card"), self.event.detail)
            if newest == shown:
                break
            bot.update(ts, slack.message(newest, self.env.aws_region))
            shown = newest
        if body := self._reply():
            bot.post(body, thread_ts=ts)

    def by_email(self) -> None:
        mail = email.compose(self.event.detail_type, self.card, self.env.aws_region)
        if mail is None:
            return
        try:
            aws.client("sns").publish(TopicArn=self.env.topic_arn, Subject=mail.subject, Message=mail.body)
        except ClientError as error:
            permanent = aws.error_code(error) in SNS_PERMANENT
            raise (NeverToBeTold if permanent else NotificationFailed)(str(error)) from error
        except BotoCoreError as error:
            raise NotificationFailed(str(error)) from error


def slack_sender(env: Env) -> SlackBot | SlackWebhook:
    """Who speaks to Slack, as the secret says.

    Raises:
        SlackRefused: when the secret is not of either form. Its text is never shown.
    """
    stored = aws.client("secretsmanager").get_secret_value(SecretId=env.slack_secret_arn)
    try:
        secret = SlackSecret.model_validate_json(stored.get("SecretString") or "")
    except ValidationError:
        secret = SlackSecret()
    if secret.bot_token and secret.channel:
        return SlackBot(token=secret.bot_token, channel=secret.channel, api_url=env.slack_api_url)
    if secret.webhook_url:
        return SlackWebhook(url=secret.webhook_url, origin=env.slack_webhook_origin)
    raise SlackRefused(
        'the Slack secret must be JSON: {"bot_token": "xoxb-...", "channel": "C..."} or '
        '{"webhook_url": "https://hooks.slack.com/..."}. Put a new value into Secrets Manager.'
    )


def fold_into_card(ledger: aws.Ledger, event: BusEvent, redrive: int) -> RunCard:
    """Add the event to the run's stored card and return the card.

    Raises:
        NotificationFailed: when so many events are told at once that this one never got its turn.
    """
    note = f"CARD#{event.detail.run_id}"
    for _ in range(CARD_TRIES):
        seen = ledger.note(note)
        card = load_card(seen.get("card"), event.detail)
        grown = card.after(event.detail_type, event.detail, redrive)
        if seen.get("card") and grown == card:
            return card
        if ledger.write_note(note, {"card": grown.model_dump_json()}, seen):
            return grown
    raise NotificationFailed(f"the card of run {event.detail.run_id} is being written by others")


@instrumented
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Tell one event once on every channel that is set up.

    Raises:
        NotificationFailed: when a channel may take it later.
    """
    env = Env.load()
    heard = BusEvent.model_validate(event)
    ledger = aws.Ledger(env.run_table)
    redrive = int((ledger.run(heard.detail.run_id) or {}).get("rank", "0")) // REDRIVE_STEP
    telling = Telling(
        event=heard,
        env=env,
        ledger=ledger,
        request_id=str(context.aws_request_id),
        card=fold_into_card(ledger, heard, redrive),
        name=told_as(heard.detail_type, heard.detail, heard.id, redrive),
    )
    settled = {
        **({"slack": telling.once("slack", telling.to_slack)} if env.slack_secret_arn else {}),
        **({"email": telling.once("email", telling.by_email)} if env.topic_arn else {}),
    }
    if not all(settled.values()):
        raise NotificationFailed(
            f"not told yet: {', '.join(sorted(c for c, ok in settled.items() if not ok))}"
        )
    return {"told": sorted(settled)}
