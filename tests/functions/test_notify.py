"""The notifier against real HTTP: DynamoDB, SNS and Secrets Manager over boto3, and a Slack of our own."""

import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import boto3
import pytest

import notify
from dropforge_core import aws
from dropforge_core.ledger import Status
from slack import SlackBot, SlackRefused, SlackUnavailable, SlackWebhook

RUN = "abcdefghijklmnopqrstuvwxyz"


class FakeSlack:
    """Answers as Slack does; `script` holds (status, headers, body) to answer with first."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any], str]] = []
        self.script: list[tuple[int, dict[str, str], dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the base class's name
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.calls.append(
                    (self.path.rsplit("/", 1)[-1], body, self.headers.get("Authorization", ""))
                )
                answer = {"ok": True, "ts": f"17.{len(outer.calls)}"}
                status, headers, said = outer.script.pop(0) if outer.script else (200, {}, answer)
                raw = json.dumps(said).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.calls]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def slack() -> Iterator[FakeSlack]:
    fake = FakeSlack()
    yield fake
    fake.close()


class Stack:
    """The notifier's surroundings: table, topic with one listening queue, secret."""

    def __init__(self, patch: pytest.MonkeyPatch, slack: FakeSlack) -> None:
        self.patch = patch
        boto3.client("dynamodb").create_table(
            TableName="runs",
            KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.topic = boto3.client("sns").create_topic(Name="told")["TopicArn"]
        self.sqs = boto3.client("sqs")
        self.queue = self.sqs.create_queue(QueueName="inbox")["QueueUrl"]
        boto3.client("sns").subscribe(
            TopicArn=self.topic, Protocol="sqs", Endpoint="arn:aws:sqs:us-east-1:123456789012:inbox"
        )
        self.secret({"bot_token": "xoxb-1", "channel": "C1"}, create=True)
        self.ledger = aws.Ledger("runs")
        self.ledger.open_run(RUN, "support-bot", Status.RECEIVED, {})
        for name, value in {
            "RUN_TABLE": "runs",
            "TOPIC_ARN": self.topic,
            "SLACK_SECRET_ARN": "slack",
            "SLACK_API_URL": f"{slack.url}/api",
        }.items():
            patch.setenv(name, value)

    def secret(self, value: dict[str, str], *, create: bool = False) -> None:
        secrets = boto3.client("secretsmanager")
        if create:
            secrets.create_secret(Name="slack", SecretString=json.dumps(value))
        else:
            secrets.put_secret_value(SecretId="slack", SecretString=json.dumps(value))

    def mails(self) -> list[dict[str, Any]]:
        found = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages", [])
        return [json.loads(message["Body"]) for message in found]


@pytest.fixture
def stack(aws_server: str, monkeypatch: pytest.MonkeyPatch, slack: FakeSlack) -> Iterator[Stack]:
    monkeypatch.setenv("AWS_ENDPOINT_URL", aws_server)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("POWERTOOLS_TRACE_DISABLED", "true")
    monkeypatch.setattr("slack._RETRY_S", 0.0)
    aws.client.cache_clear()
    boto3.setup_default_session()
    urllib.request.urlopen(urllib.request.Request(f"{aws_server}/moto-api/reset", method="POST")).close()
    yield Stack(monkeypatch, slack)
    aws.client.cache_clear()


def tell(
    kind: str, status: str, message: str = "It is so.", event_id: str = "e1", request: str = "r1", **data: Any
) -> Any:
    event = {
        "id": event_id,
        "detail-type": kind,
        "source": "dropforge",
        "detail": {"run_id": RUN, "model": "support-bot", "status": status, "message": message, "data": data},
    }
    context = SimpleNamespace(
        aws_request_id=request,
        function_name="notify",
        memory_limit_in_mb=256,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:notify",
    )
    return notify.handler(event, context)  # type: ignore[arg-type]


def test_one_message_a_run_edited_in_place(stack: Stack, slack: FakeSlack) -> None:
    """The first event posts, later ones edit that message and reply in its thread."""
    tell("RunReceived", "RECEIVED", objects=1, bytes=10)
    tell("RunPlanned", "PLANNING", event_id="e2", instance_type="ml.g6.xlarge", cost_expected=0.4)
    tell("RunEnded", "REGISTERED", event_id="e3", package_arn="arn:p")
    assert slack.methods() == [
        "chat.postMessage",
        "chat.update",
        "chat.postMessage",
        "chat.update",
        "chat.postMessage",
    ]
    first, edit, reply = slack.calls[0][1], slack.calls[1][1], slack.calls[2][1]
    assert "thread_ts" not in first
    assert edit["ts"] == reply["thread_ts"] == "17.1"
    assert {body["channel"] for _, body, _ in slack.calls} == {"C1"}
    assert {token for _, _, token in slack.calls} == {"Bearer xoxb-1"}
    assert "ml.g6.xlarge" in json.dumps(slack.calls[3][1])


def test_emails_are_sent_when_it_matters(stack: Stack, slack: FakeSlack) -> None:
    """Plan, approval and end come by e-mail; progress does not."""
    for index, (kind, status) in enumerate(
        [
            ("RunReceived", "RECEIVED"),
            ("RunPlanned", "PLANNING"),
            ("TrainingProgressed", "TRAINING"),
            ("GateDecided", "GATING"),
            ("RunEnded", "GATE_FAILED"),
        ]
    ):
        tell(kind, status, event_id=f"e{index}")
    assert sorted(mail["Subject"] for mail in stack.mails()) == [
        f"[dropforge] support-bot: not good enough ({RUN[:8]})",
        f"[dropforge] support-bot: planned, cost unknown ({RUN[:8]})",
    ]


def test_the_same_event_twice_is_told_once(stack: Stack, slack: FakeSlack) -> None:
    """A second delivery, and a second event with the same news, say nothing again."""
    tell("RunEnded", "REGISTERED")
    said = list(slack.calls)
    tell("RunEnded", "REGISTERED", request="r2")
    tell("RunEnded", "REGISTERED", event_id="e9", request="r3")
    assert slack.calls == said
    assert len(stack.mails()) == 1


def test_a_redriven_run_tells_its_end_again(stack: Stack, slack: FakeSlack) -> None:
    """The end of a redrive is news although its status is the old one."""
    tell("RunEnded", "FAILED_CODE")
    stack.ledger.move(RUN, Status.FAILED_CODE, redrive=1)
    tell("RunEnded", "FAILED_CODE", event_id="e2")
    assert len(stack.mails()) == 2


def test_slack_down_is_raised_and_healed_by_the_retry(stack: Stack, slack: FakeSlack) -> None:
    """While Slack is down the e-mail goes out once; the retry tells Slack and mails nobody again."""
    slack.script = [(503, {}, {})] * 3
    with pytest.raises(notify.NotificationFailed, match="not told yet: slack"):
        tell("RunEnded", "REGISTERED")
    assert len(slack.calls) == 3
    assert tell("RunEnded", "REGISTERED") == {"told": ["email", "slack"]}
    assert slack.methods()[3:] == ["chat.postMessage", "chat.postMessage"]
    assert len(stack.mails()) == 1


def test_a_wrong_token_is_not_tried_again(stack: Stack, slack: FakeSlack) -> None:
    """What no retry heals is counted and let go; the e-mail is not held back by it."""
    slack.script = [(200, {}, {"ok": False, "error": "invalid_auth"})]
    assert tell("RunEnded", "REGISTERED") == {"told": ["email", "slack"]}
    assert tell("RunEnded", "REGISTERED", request="r2") == {"told": ["email", "slack"]}
    assert len(slack.calls) == 1
    assert len(stack.mails()) == 1


def test_an_invocation_that_died_gives_way_to_its_own_retry(stack: Stack, slack: FakeSlack) -> None:
    """A lease of the same request is taken over at once; a stranger's fresh lease is respected."""
    claim = f"TOLD#{RUN}#0#RunEnded#REGISTERED#slack"
    stack.ledger.claim(claim, f"sending r1 {notify.time.time():.0f}")
    tell("RunEnded", "REGISTERED", request="r2")
    assert slack.calls == []
    tell("RunEnded", "REGISTERED", request="r1")
    assert slack.methods() == ["chat.postMessage", "chat.postMessage"]


def test_a_stale_lease_expires(stack: Stack, slack: FakeSlack) -> None:
    """An invocation that never came back does not silence the run for ever."""
    claim = f"TOLD#{RUN}#0#RunEnded#REGISTERED#slack"
    stack.ledger.claim(claim, f"sending lost {notify.time.time() - notify.LEASE_S - 5:.0f}")
    tell("RunEnded", "REGISTERED", request="r2")
    assert slack.methods() == ["chat.postMessage", "chat.postMessage"]


def test_the_loser_of_a_race_takes_its_message_back(stack: Stack, slack: FakeSlack) -> None:
    """Two events that both post first leave one message, and both edit that one."""
    posted = SlackBot.post

    def slow_post(self: SlackBot, body: Any, thread_ts: str | None = None) -> str:
        ts = posted(self, body, thread_ts)
        if thread_ts is None:
            stack.ledger.claim(f"SLACK#{RUN}", "17.first")
        return ts

    stack.patch.setattr(SlackBot, "post", slow_post)
    tell("RunReceived", "RECEIVED", objects=1, bytes=1)
    assert [(m, b.get("ts")) for m, b, _ in slack.calls] == [
        ("chat.postMessage", None),
        ("chat.delete", "17.1"),
        ("chat.update", "17.first"),
    ]


def test_without_slack_and_topic_nothing_is_sent(stack: Stack, slack: FakeSlack) -> None:
    """Channels that are not set up are no failure."""
    stack.patch.setenv("SLACK_SECRET_ARN", "")
    stack.patch.setenv("TOPIC_ARN", "")
    assert tell("RunEnded", "REGISTERED") == {"told": []}
    assert slack.calls == []


def test_a_missing_topic_is_not_tried_for_ever(stack: Stack, slack: FakeSlack) -> None:
    """A topic that was deleted is a setting to mend, not a reason to retry."""
    boto3.client("sns").delete_topic(TopicArn=stack.topic)
    assert tell("RunEnded", "REGISTERED") == {"told": ["email", "slack"]}
    assert stack.ledger.note(f"TOLD#{RUN}#0#RunEnded#REGISTERED#email")["holder"] == notify.REFUSED


def test_a_webhook_gets_one_message_an_event(stack: Stack, slack: FakeSlack) -> None:
    """A webhook can't edit: news that has a thread line is posted, mere progress is not."""
    stack.secret({"webhook_url": f"{slack.url}/services/T/B/x"})
    stack.patch.setenv("SLACK_WEBHOOK_ORIGIN", slack.url)
    tell("TrainingProgressed", "TRAINING", secondary_status="Training", job_name="j")
    tell("RunEnded", "REGISTERED", message="<!here> done", event_id="e2")
    assert len(slack.calls) == 1
    _, body, token = slack.calls[0]
    assert token == ""
    assert body["text"] == "support-bot: registered"
    assert body["blocks"][0]["text"]["type"] == "plain_text"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example/services/x",
        "https://hooks.slack.com.evil.example/x",
        "https://hooks.slack.com@evil.example/x",
        "http://hooks.slack.com/x",
        "https://hooks.slack.com:444/x",
        "file:///etc/passwd",
    ],
)
def test_a_webhook_goes_to_slack_only(url: str) -> None:
    """No secret can make the notifier speak to another host, port or scheme, and none is quoted."""
    with pytest.raises(SlackRefused) as refused:
        SlackWebhook(url=url, origin="https://hooks.slack.com")
    assert url not in str(refused.value)


def test_a_secret_of_another_form_is_refused_without_being_shown(
    stack: Stack, slack: FakeSlack, caplog: Any
) -> None:
    """The log says which form is expected and never what the secret holds."""
    stack.secret({"token": "xoxb-hidden"})
    assert tell("RunEnded", "REGISTERED") == {"told": ["email", "slack"]}
    assert "xoxb-hidden" not in caplog.text
    assert slack.calls == []


def test_rate_limits_are_honoured(slack: FakeSlack) -> None:
    """The wait is the one that Slack asks for, and the message arrives after it."""
    slack.script = [(429, {"Retry-After": "7"}, {})]
    waits: list[float] = []
    bot = SlackBot(token="t", channel="C", api_url=slack.url, sleep=waits.append)
    assert bot.post({"text": "x"}) == "17.2"
    assert waits == [7.0]


def test_patience_is_bounded(slack: FakeSlack) -> None:
    """A wait longer than an invocation's patience is left to the queue."""
    slack.script = [(429, {"Retry-After": "3600"}, {})]
    waits: list[float] = []
    with pytest.raises(SlackUnavailable, match="429"):
        SlackBot(token="t", channel="C", api_url=slack.url, sleep=waits.append).post({"text": "x"})
    assert waits == []


def test_redirects_are_not_followed(slack: FakeSlack) -> None:
    """A redirect is refused, so the token goes nowhere else."""
    slack.script = [(302, {"Location": f"{slack.url}/elsewhere"}, {})]
    with pytest.raises(SlackRefused, match="302"):
        SlackBot(token="t", channel="C", api_url=slack.url).post({"text": "x"})
    assert len(slack.calls) == 1


def test_nobody_listening_is_unavailable() -> None:
    """A refused connection is a failure that a retry may heal."""
    bot = SlackBot(token="xoxb-hidden", channel="C", api_url="http://127.0.0.1:9", sleep=lambda _: None)
    with pytest.raises(SlackUnavailable):
        bot.post({"text": "x"})
    assert "xoxb-hidden" not in repr(bot)


def test_a_rejection_is_told_with_its_lines_and_a_link(stack: Stack, slack: FakeSlack) -> None:
    """The card, its thread and the e-mail name the first faults and where a person can read all of them."""
    stack.patch.setenv("AWS_REGION", "eu-central-1")
    first = [
        {"file": "train.jsonl", "line": 7, "code": "ROLE_ORDER", "message": "found two users", "count": 3}
    ]
    page = f"s3://runs/runs/{RUN}/report/index.html"
    tell("DatasetRejected", "DATASET_REJECTED", error_count=9, first=first, report_uri=page)
    tell("RunEnded", "DATASET_REJECTED", event_id="e2", report_uri=page)
    address = f"https://eu-central-1.console.aws.amazon.com/s3/object/runs?region=eu-central-1&prefix=runs/{RUN}/report/index.html"
    card, reply = json.dumps(slack.calls[0][1]), json.dumps(slack.calls[1][1])
    (mail,) = stack.mails()
    for said in (card, reply, mail["Message"]):
        assert "train.jsonl:7" in said
        assert "(and 2 more like it)" in said
        assert "and 6 more" in said
        assert address in said
