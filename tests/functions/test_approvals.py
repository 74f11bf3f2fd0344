"""RequestApproval and DecideApproval over HTTP: asked, answered once, and never by leak of the token."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError

import decide_approval
import request_approval
from dropforge_core.approval import LIMIT_FIELD, TOKEN_FIELD
from dropforge_core.aws import Ledger, Purse
from dropforge_core.contracts import DatasetFacts
from dropforge_core.ledger import Status
from dropforge_core.planning import BaseSource, plan, shape_of
from dropforge_core.recipe import Recipe

RUN = "h" * 26
TOKEN = "token-that-nobody-else-may-know"
SMALL = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}


def made_plan(expires_hours):
    facts = DatasetFacts(
        digest="sha256:0",
        rows_train=100,
        rows_eval=20,
        bytes_train=1,
        tokens_train=10_000,
        tokens_exact=True,
        longest_tokens=300,
        format="messages",
    )
    asked = {"base_model": "org/m", "approval": {"spend": "always", "expires_hours": expires_hours}}
    return plan(
        recipe=Recipe.model_validate(asked),
        dataset=facts,
        shape=shape_of(SMALL),
        base=BaseSource(name="org/m", source="hub:org/m@0", prefix="base-models/m/0/", cached=True),
        run_id=RUN,
        model="m",
    )


class StepFunctions:
    """The one call that an answer makes."""

    def __init__(self):
        self.sent = []
        self.refusal = None
        self.before = lambda: None

    def send_task_success(self, **sent):
        self.before()
        self.sent.append(sent)
        if self.refusal:
            raise ClientError({"Error": {"Code": self.refusal}}, "SendTaskSuccess")


@pytest.fixture
def machine(monkeypatch):
    made = StepFunctions()
    monkeypatch.setattr(decide_approval, "client", lambda _service: made)
    return made


@pytest.fixture
def ask(account, published, context):
    Ledger("runs").open_run(RUN, "m", Status.PLANNING, {})

    def go(token=TOKEN, expires_hours=1.0):
        planned = made_plan(expires_hours).model_dump(mode="json")
        event = {"run_id": RUN, "model": "m", "redrive": 0, "task_token": token, "plan": planned}
        return request_approval.handler(event, context)

    return go


@pytest.fixture
def answer(account, context, machine):
    def go(decision, decided_by="ana"):
        return decide_approval.handler(
            {"run_id": RUN, "decision": decision, "decided_by": decided_by}, context
        )

    return go


def test_the_question_is_asked_and_keeps_its_token(ask, published):
    """People hear sum, time limit and the two commands; the token is nowhere in the event."""
    ask()
    [(kind, event)] = published
    assert kind == "ApprovalRequested"
    assert f"dropforge approve {RUN}" in event.message
    assert f"dropforge deny {RUN}" in event.message
    assert event.data["expires_at"]
    assert TOKEN not in event.model_dump_json()
    assert Ledger("runs").run(RUN)["status"] == "AWAITING_APPROVAL"


@pytest.mark.parametrize(("decision", "approved"), [("approve", True), ("deny", False)])
def test_an_answer_reaches_the_waiting_state_once(ask, answer, machine, decision, approved):
    """The first answer is sent with who gave it, and kept with when; a later one is refused and names the first."""
    ask()
    assert answer(decision)["accepted"]
    [sent] = machine.sent
    assert sent["taskToken"] == TOKEN
    assert json.loads(sent["output"]) == {
        "approved": approved,
        "decided_by": "ana",
        "message": f"The cost was {'approved' if approved else 'denied'} by ana.",
    }
    kept = Ledger("runs").run(RUN)
    assert kept["approval"] == f"{decision} by ana"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(kept["approval_at"])) < timedelta(hours=1)
    assert kept[TOKEN_FIELD] == ""
    late = answer("deny", "bo")
    assert (late["accepted"], late["code"]) == (False, "decided_already")
    assert "by ana" in late["message"]
    assert len(machine.sent) == 1


def test_an_answer_that_was_lost_may_be_given_again(ask, answer, machine):
    """Sending failed: the same person's same answer is sent again, another's is not."""
    ask()
    machine.refusal = "InternalServerError"
    with pytest.raises(ClientError):
        answer("approve")
    machine.refusal = None
    assert answer("deny", "bo")["code"] == "decided_already"
    assert answer("approve")["accepted"]


def test_a_question_asked_anew_may_be_answered_anew(ask, answer, machine):
    """A redriven run has another token, and its answer is not the old one."""
    ask()
    answer("deny")
    ask(token="another")
    assert answer("approve", "bo")["accepted"]
    assert [sent["taskToken"] for sent in machine.sent] == [TOKEN, "another"]


@pytest.mark.parametrize("gone", ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"])
def test_a_state_that_waits_no_more_is_told(ask, answer, machine, gone):
    """Too late, or forged: nothing happens, and it is said."""
    ask()
    machine.refusal = gone
    assert answer("approve")["code"] == "not_waiting"


@pytest.mark.parametrize(
    ("repeated", "ended", "kept"), [(False, False, 0), (True, False, 1), (True, True, 0)]
)
def test_money_stays_reserved_for_a_run_that_may_go_on(ask, answer, machine, *, repeated, ended, kept):
    """A yes that comes too late gives the money back; the same yes again does so only where the run has ended."""
    ask()
    Ledger("runs").annotate(RUN, {LIMIT_FIELD: "2.5"})
    if repeated:
        machine.refusal = "InternalServerError"
        with pytest.raises(ClientError):
            answer("approve")
    machine.refusal = "TaskTimedOut"
    if ended:
        # Between the question's status and its answer.
        machine.before = lambda: Ledger("runs").move(RUN, Status.APPROVAL_EXPIRED)
    assert answer("approve")["code"] == "not_waiting"
    assert Purse("runs").held(RUN).reserved_micro == kept * 2_500_000


def test_a_lapsed_question_takes_no_answer(ask, answer, machine):
    """After its time nothing is sent."""
    ask(expires_hours=1e-9)
    assert answer("approve")["code"] == "expired"
    assert machine.sent == []


def test_runs_that_ask_nothing_take_no_answer(account, answer, machine):
    """An unknown run, and one that goes on without approval."""
    assert answer("approve")["code"] == "unknown_run"
    Ledger("runs").open_run(RUN, "m", Status.TRAINING, {})
    assert answer("approve")["code"] == "not_waiting"
    assert machine.sent == []
