"""Cards, Slack blocks and e-mails: what people read is complete, in order, and never markup of a stranger."""

import json
from typing import Any, get_args
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.events import DetailType, RunEvent
from dropforge_core.ledger import Status
from dropforge_core.messages import email, slack
from dropforge_core.messages.card import RunCard, dollars, duration, load_card, size
from dropforge_core.messages.lines import also_on
from dropforge_core.messages.links import console_link
from dropforge_core.messages.told import told_as
from dropforge_core.messages.wording import PHRASES, next_step, phrase, tone

RUN = "abcdefghijklmnopqrstuvwxyz"
REGION = "eu-central-1"
KINDS = get_args(DetailType)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "objects",
        "bytes",
        "first",
        "error_count",
        "report_uri",
        "cost_expected",
        "hours",
        "rows_train",
        "rows_eval",
        "package_arn",
        "summary",
    ]
)
EVENTS = st.builds(
    RunEvent,
    run_id=st.just(RUN),
    model=st.just("support-bot"),
    status=st.sampled_from([*Status]) | st.text(max_size=12),
    message=st.text(max_size=300),
    data=st.dictionaries(FIELDS | st.text(max_size=8), JSON_VALUES, max_size=6),
)


def event(status: str, message: str = "", **data: object) -> RunEvent:
    return RunEvent(run_id=RUN, model="support-bot", status=status, message=message, data=data)


def card_of(*events: tuple[DetailType, RunEvent]) -> RunCard:
    card = RunCard(run_id=RUN, model="support-bot")
    for kind, happened in events:
        card = card.after(kind, happened)
    return card


def test_every_status_has_words() -> None:
    """No status reaches a person as a constant's name, and none is without a tone."""
    assert set(PHRASES) == set(Status)
    assert {tone(status) for status in Status} == {"working", "waiting", "good", "doubtful", "bad"}


def test_an_unknown_status_is_shown_not_raised() -> None:
    """A status of a newer version is shown in its own words."""
    assert (phrase("COOLING_DOWN"), tone("COOLING_DOWN"), next_step("COOLING_DOWN", RUN)) == (
        "cooling down",
        "working",
        "",
    )


@pytest.mark.parametrize("status", [s for s in Status if s.is_failure])
def test_a_failure_names_the_command_that_resumes_it(status: Status) -> None:
    """Whoever reads of a failure finds the exact command to go on with."""
    assert next_step(status, RUN).endswith(f"dropforge redrive {RUN}")


def test_the_card_gathers_what_events_told() -> None:
    """Cost from the plan and the package from the end stand on one card."""
    card = card_of(
        ("RunReceived", event("RECEIVED", "It arrived.", objects=1, bytes=380_449)),
        (
            "RunPlanned",
            event(
                "PLANNING",
                "Planned.",
                instance_type="ml.g6.xlarge",
                cost_low=0.2,
                cost_expected=0.41,
                cost_high="0.9",
                hours=0.4,
                rows_train=700,
                rows_eval=82,
                steps=50,
                max_cost_usd=25,
            ),
        ),
        ("RunEnded", event("REGISTERED", "Registered.", package_arn="arn:x", cost_usd="0.38")),
    )
    assert card.message == "Registered."
    assert card.facts == {
        "Upload": "1 file, 380 kB",
        "Instance": "ml.g6.xlarge",
        "Cost": "about $0.41 ($0.20 to $0.90), at most $25.00",
        "Time": "about 24 min",
        "Rows": "700 to train, 82 held out",
        "Steps": "50",
        "Spent": "$0.38",
        "Package": "arn:x",
    }


@given(st.permutations(range(4)))
def test_the_order_of_events_does_not_matter_to_the_headline(order: list[int]) -> None:
    """EventBridge may deliver in any order; the card ends at the same status, message and facts."""
    events: list[tuple[DetailType, RunEvent]] = [
        ("RunReceived", event("RECEIVED", "a", objects=1, bytes=1)),
        ("RunPlanned", event("PLANNING", "b", instance_type="ml.g5.xlarge")),
        ("GateDecided", event("GATING", "c", summary="better")),
        ("RunEnded", event("REGISTERED", "d", package_arn="arn")),
    ]
    card = card_of(*(events[i] for i in order))
    assert (card.status, card.message) == ("REGISTERED", "d")
    assert dict(card.facts) == {
        "Upload": "1 file, 1 B",
        "Instance": "ml.g5.xlarge",
        "Gate": "better",
        "Package": "arn",
    }


def test_a_redrive_reopens_the_headline() -> None:
    """After a failure, a redriven run's earlier phase is news again."""
    failed = card_of(("RunEnded", event("FAILED_CODE", "It crashed.")))
    assert failed.after("TrainingProgressed", event("TRAINING", "Again."), redrive=1).status == "TRAINING"
    assert failed.after("TrainingProgressed", event("TRAINING", "Late."), redrive=0).status == "FAILED_CODE"


@given(st.lists(st.tuples(st.sampled_from(KINDS), EVENTS), max_size=6))
def test_no_event_breaks_a_message(events: list[tuple[DetailType, RunEvent]]) -> None:
    """Whatever other programs put into an event, the card, its blocks and its e-mail keep to the limits."""
    card = RunCard(run_id=RUN, model="support-bot")
    for kind, happened in events:
        card = card.after(kind, happened)
        assert load_card(card.model_dump_json(), happened) == card
        for shown in filter(None, [slack.message(card, REGION), slack.reply(kind, happened, card, REGION)]):
            _keeps_slack_limits(shown)
        if mail := email.compose(kind, card, REGION):
            assert len(mail.subject) < 100
            assert mail.subject.isascii()
            assert mail.subject.isprintable()
            assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in mail.body)


def _keeps_slack_limits(shown: dict[str, object]) -> None:
    for block in json.loads(json.dumps(shown))["blocks"]:
        if block["type"] == "rich_text":
            _is_rich_text(block)
            continue
        assert block["type"] in {"section", "context"}
        texts = [
            *([block["text"]] if "text" in block else []),
            *block.get("fields", []),
            *block.get("elements", []),
        ]
        assert texts
        assert len(block.get("fields", [])) <= 10
        for text in texts:
            assert 1 <= len(text["text"]) <= (2000 if text in block.get("fields", []) else 3000)
            if text["type"] == "mrkdwn":
                assert "<" not in text["text"]
                assert ">" not in text["text"]


def _is_rich_text(block: dict[str, Any]) -> None:
    """Lists and sections of texts and links, none of them empty (Block Kit reference, rich text)."""
    sections = []
    for part in block["elements"]:
        assert part["type"] in {"rich_text_list", "rich_text_section"}
        sections += part["elements"] if part["type"] == "rich_text_list" else [part]
    for section in sections:
        assert section["type"] == "rich_text_section"
        for element in section["elements"]:
            assert element["type"] in {"text", "link"}
            assert 1 <= len(element["text"]) <= 3000
            assert element["type"] == "text" or element["url"].startswith("https://")


def test_what_was_uploaded_is_never_markup() -> None:
    """A mention, a link or an ampersand in a message stays text in Slack."""
    evil = "<!channel> & <https://evil|click>"
    card = card_of(("GateDecided", event("GATING", evil, summary=evil)))
    message, field = slack.blocks(card)[1]["text"], slack.blocks(card)[2]["fields"][0]
    assert message == {"type": "plain_text", "text": evil, "emoji": False}
    assert field["text"] == "*Gate*\n&lt;!channel&gt; &amp; &lt;https://evil|click&gt;"
    body = slack.reply("GateDecided", event("GATING", evil), card)
    assert body is not None
    assert body["text"] == "&lt;!channel&gt; &amp; &lt;https://evil|click&gt;"


FAULTS = [
    {
        "file": "train.jsonl",
        "line": 7,
        "code": "ROLE_ORDER",
        "message": "found <b>two</b> users",
        "count": 4212,
    },
    {"file": "train.jsonl", "line": 9, "code": "JSON_INVALID", "message": "found a comma"},
    {"file": "(dataset)", "line": None, "code": "ROWS_TOO_FEW", "message": "found 3 of 4 rows", "count": 1},
]
PAGE = f"s3://runs/runs/{RUN}/report/index.html"
LINK = f"https://{REGION}.console.aws.amazon.com/s3/object/runs?region={REGION}&prefix=runs/{RUN}/report/index.html"


def test_a_rejected_dataset_is_told_with_its_faults() -> None:
    """Slack and e-mail name file, line, code and message, how many are alike, how many more, and where all are."""
    card = card_of(
        (
            "DatasetRejected",
            event("DATASET_REJECTED", "Faults.", error_count=4220, first=FAULTS, report_uri=PAGE),
        ),
        ("RunEnded", event("DATASET_REJECTED", "Faults.", report_uri=PAGE)),
    )
    mail = email.compose("RunEnded", card, REGION)
    assert mail is not None
    assert (
        "Faults (4,220), the first 3:\n"
        "  train.jsonl:7  ROLE_ORDER  found <b>two</b> users  (and 4,211 more like it)\n"
        "  train.jsonl:9  JSON_INVALID  found a comma\n"
        "  (dataset)  ROWS_TOO_FEW  found 3 of 4 rows\n"
        "  and 6 more\n\n"
        f"All faults, with their lines: {LINK}\n"
    ) in mail.body
    assert email.compose("DatasetRejected", card, REGION) is None
    rich = [block for block in slack.blocks(card, REGION) if block["type"] == "rich_text"]
    lines = [
        "".join(element["text"] for element in item["elements"])
        for item in rich[0]["elements"][0]["elements"]
    ]
    assert lines == [
        "train.jsonl:7 ROLE_ORDER found <b>two</b> users (and 4,211 more like it)",
        "train.jsonl:9 JSON_INVALID found a comma",
        "(dataset) ROWS_TOO_FEW found 3 of 4 rows",
    ]
    assert rich[0]["elements"][1]["elements"][0]["text"] == "and 6 more"
    (link,) = rich[1]["elements"][0]["elements"]
    assert link == {"type": "link", "url": LINK, "text": "All 4,220 faults, with their lines"}
    reply = slack.reply("DatasetRejected", event("DATASET_REJECTED", "Faults."), card, REGION)
    assert reply is not None
    assert reply["blocks"][1:] == rich


def test_a_few_faults_are_all_of_them() -> None:
    """Where everything is listed, nothing says 'the first' or 'more'."""
    told = event("DATASET_REJECTED", "Faults.", error_count=2, first=FAULTS[1:])
    card = card_of(("DatasetRejected", told), ("RunEnded", event("DATASET_REJECTED")))
    mail = email.compose("RunEnded", card)
    assert mail is not None
    assert "Faults (2):\n" in mail.body
    assert " more" not in mail.body.partition("Mend")[0]
    assert "more" not in json.dumps(slack.blocks(card))


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("eu-central-1", "eu-central-1.console.aws.amazon.com"),
        ("cn-north-1", "cn-north-1.console.amazonaws.cn"),
        ("us-gov-west-1", "console.amazonaws-us-gov.com"),
    ],
)
def test_a_link_opens_for_who_may_read(region: str, host: str) -> None:
    """It goes to the console of the bucket's partition, carries no signature, and survives any key."""
    link = urlsplit(console_link("s3://my-runs/runs/a b&c=d/é.html", region))
    assert (link.scheme, link.netloc, link.path) == ("https", host, "/s3/object/my-runs")
    assert parse_qs(link.query) == {"region": [region], "prefix": ["runs/a b&c=d/é.html"]}


@pytest.mark.parametrize("uri", ["", "s3://", "s3://bucket", "s3://bucket/", "https://evil", "runs/x"])
def test_what_is_no_object_has_no_link(uri: str) -> None:
    """A message never shows an address that leads nowhere."""
    assert console_link(uri, REGION) == ""
    assert console_link("s3://bucket/key", "") == ""


def test_terminal_escapes_do_not_reach_an_email() -> None:
    """Control characters of a hostile message are dropped, its words stay."""
    mail = email.compose(
        "RunEnded", card_of(("RunEnded", event("FAILED_CODE", "boom\x1b[31m\x00\u202e red")))
    )
    assert mail is not None
    assert mail.body.startswith("boom[31m red\n")


def test_what_is_told_once() -> None:
    """The same news under two event ids is one telling; two diagnoses are two; a redrive tells anew."""
    ended = event("REGISTERED")
    assert told_as("RunEnded", ended, "e1", 0) == told_as("RunEnded", ended, "e2", 0)
    assert told_as("RunEnded", ended, "e1", 0) != told_as("RunEnded", ended, "e1", 1)
    assert told_as("RunDiagnosed", ended, "e1", 0) != told_as("RunDiagnosed", ended, "e2", 0)
    started, stopped = (event("TRAINING", job_name="j", secondary_status=s) for s in ("Starting", "Training"))
    assert told_as("TrainingProgressed", started, "e", 0) != told_as("TrainingProgressed", stopped, "e", 0)


def test_amounts_read_well() -> None:
    """Dollars, durations and sizes keep two or three figures."""
    assert [dollars(a) for a in (0, 0.004, 0.41, 25, 1234.5)] == [
        "$0.00",
        "$0.004",
        "$0.41",
        "$25.00",
        "$1,234",
    ]
    assert [duration(s) for s in (0.4, 89, 90, 3700, 11_100)] == [
        "0 s",
        "89 s",
        "2 min",
        "62 min",
        "3 h 05 min",
    ]
    assert [size(b) for b in (0, 999, 1500, 380_449, 2_400_000_000)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "380 kB",
        "2.4 GB",
    ]


@pytest.mark.parametrize(
    ("lines", "count", "said"),
    [
        ((7,), 1, ""),
        ((7, 9), 2, "Also on line 9."),
        ((7, 9, 11), 3, "Also on lines 9, 11."),
        (tuple(range(1, 101)), 4212, "Also on lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 4,201 more."),
        ((), 5, "And 4 more like it."),
    ],
)
def test_other_lines_in_words(lines: tuple[int, ...], count: int, said: str) -> None:
    """A few are named, the others counted, and the first one is not told again."""
    assert also_on(lines, count) == said
