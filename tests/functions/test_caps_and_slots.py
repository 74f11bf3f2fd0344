"""Slots and caps over HTTP: the queue's item, its tokens, the money's transactions, and what a crash leaves."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

import acquire_slot
import settle_run
import slot_desk
from dropforge_core.aws import Contended, Ledger, Purse
from dropforge_core.budget import JUDGE_FIELD, Caps, reserving
from dropforge_core.ladder import slots
from dropforge_core.ledger import Status
from dropforge_core.planning import load_catalogue
from dropforge_core.planning.catalogue import ProcessingRow
from dropforge_core.recipe import Recipe
from dropforge_core.report.spending import job_cost
from jobs import Jobs
from money import cost_of_run, left_for_evaluation, reserve, settle
from patience import TRIES, patiently
from write_report import measured_jobs

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def run_id(number):
    letters = "abcdefghijklmnopqrstuvwxyz"
    return (letters[number // 26] + letters[number % 26]) * 13


class StepFunctions:
    """The one call that lets a run go on. `gone` are tokens of states that have ended."""

    def __init__(self):
        self.sent = []
        self.gone = set()

    def send_task_success(self, **sent):
        if sent["taskToken"] in self.gone:
            raise ClientError({"Error": {"Code": "TaskTimedOut"}}, "SendTaskSuccess")
        self.sent.append(sent["taskToken"])


@pytest.fixture
def machine(monkeypatch):
    made = StepFunctions()
    for module in (acquire_slot, "closing"):
        target = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{target}.client", lambda _service: made)
    return made


@pytest.fixture
def ask(account, machine, context, monkeypatch):
    monkeypatch.setenv("MAX_CONCURRENT_JOBS", "2")

    def go(number, model="m", token=None, stage="TRAIN", since="2026-03-01T12:00:00Z", *, instances=1):
        event = {
            "run_id": run_id(number),
            "model": model,
            "redrive": 0,
            "stage": stage,
            "instance_type": "ml.g5.xlarge",
            "spot": True,
            "instances": instances,
            "hold_s": 3600,
            "started_at": since,
            "task_token": token or f"token-{number}",
        }
        return acquire_slot.handler(event, context)["has_slot"]

    return go


@pytest.fixture
def end(account, machine, context, monkeypatch):
    monkeypatch.setenv("MAX_CONCURRENT_JOBS", "2")
    return lambda number: settle_run.handler({"run_id": run_id(number), "model": "m"}, context)


def queue():
    return slots.unpacked(Ledger("runs").note(slot_desk.QUEUE).get("queue", ""))


def test_who_ends_lets_the_next_go_on(ask, end, machine):
    """Two run, the third waits for its token; the first one's end answers it, and nobody else's."""
    assert [ask(n, since=f"2026-03-01T12:00:0{n}Z") for n in range(4)] == [True, True, False, False]
    assert machine.sent == ["token-0", "token-1"]
    assert end(0) == {"cost_usd": 0}
    assert machine.sent == ["token-0", "token-1", "token-2"]
    end(0)
    assert machine.sent == ["token-0", "token-1", "token-2"]


def test_a_jobs_instances_are_in_the_queue(ask):
    """What the state machine asks for is what the pool counts."""
    ask(0, instances=2)
    ask(1)
    assert slots.in_pool(queue(), slots.pool_of("TRAIN", "ml.g5.xlarge", spot=True)) == 3


def test_a_lost_word_is_said_again(ask, end, machine):
    """A run that was given a slot and not told keeps it, and is told when it asks anew."""
    for number in range(3):
        ask(number)
    machine.gone.add("token-2")
    end(0)
    assert slots.lease_of(queue(), run_id(2)) is not None
    assert ask(2, token="token-2-again")
    assert machine.sent[-1] == "token-2-again"


def test_the_evaluation_gives_the_trainings_slot_back(ask, machine):
    """Another quota, another slot: who waits for the first one gets it."""
    for number in range(3):
        ask(number, since=f"2026-03-01T12:00:0{9 - number}Z")
    assert ask(0, token="evaluation", stage="EVALUATE", since="2026-03-01T12:00:09Z") is False
    assert "token-2" in machine.sent
    assert [one.run_id for one in queue().waiting] == [run_id(0)]


def test_many_who_ask_at_once_are_all_there(ask):
    """Each writes the one item of the queue; whoever comes between makes the other look again."""
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(ask, range(24)))
    assert sum(got) == 2
    now = queue()
    assert sorted(one.run_id for one in (*now.waiting, *now.leases)) == sorted(map(run_id, range(24)))


def test_patience_ends():
    """Where others come between at every try the caller hears of it, after pauses that stay short."""
    pauses = []

    def never():
        raise Contended("busy")

    with pytest.raises(Contended):
        patiently(never, pauses.append)
    assert len(pauses) == TRIES - 1
    assert all(0 <= pause <= 1 for pause in pauses)


def test_runs_that_reserve_stay_within_every_cap(account):
    """Twelve at once ask for 3 dollars of a day's 10: three get it, the others hear what is left, no other cap moves."""
    caps = Caps(stack_day_usd=10, model_month_usd=100)
    purse = Purse("runs")

    def one(number):
        return reserve(purse, run_id=run_id(number), model="m", limit_usd=3.0, caps=caps, at=NOON)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(one, range(12)))
    assert answers.count("") == 3
    assert purse.taken("SPENT#stack#2026-03-01") == purse.taken("SPENT#model#m#2026-03") == 9_000_000
    assert all("daily cap of the stack, $10.00, $1.00 are left" in said for said in answers if said)


def test_money_that_was_not_spent_is_there_again(account):
    """A cap that was full has room after a run ended; settling again changes nothing."""
    purse, caps = Purse("runs"), Caps(model_day_usd=10)
    ask = {"model": "m", "limit_usd": 6.0, "caps": caps, "at": NOON}
    assert reserve(purse, run_id=run_id(0), **ask) == ""
    assert "daily cap of the model m" in reserve(purse, run_id=run_id(1), **ask)
    for _ in range(2):
        settle(purse, run_id=run_id(0), cost_usd=1.25)
    assert purse.taken("SPENT#model#m#2026-03-01") == 1_250_000
    assert reserve(purse, run_id=run_id(1), **ask) == ""
    # A person's yes passes the cap, and counts into it.
    assert reserve(purse, run_id=run_id(2), forced=True, **ask) == ""
    assert purse.taken("SPENT#model#m#2026-03-01") == 13_250_000


def test_what_the_judge_cost_counts_into_the_caps(account, end):
    """It is no job of SageMaker's, but money of the run: reserved with it, and settled with it."""
    reserve(Purse("runs"), run_id=run_id(0), model="m", limit_usd=6.0, caps=Caps(), at=NOON)
    Ledger("runs").open_run(run_id(0), "m", Status.GATING, {JUDGE_FIELD: "1.500000"})
    assert end(0) == {"cost_usd": 1.5}
    assert Purse("runs").taken("SPENT#stack#2026-03-01") == 1_500_000


def test_a_run_that_reserved_nothing_settles_nothing(account):
    """A dataset that was rejected has no account to move."""
    settle(Purse("runs"), run_id=run_id(0), cost_usd=5.0)
    assert Purse("runs").held(run_id(0)).accounts == ()


def test_a_reservation_that_others_wrote_meanwhile_is_read_again(account):
    """What was decided on an old reservation is not written; patience then decides anew."""
    purse = Purse("runs")
    old = purse.held(run_id(0))
    reserve(purse, run_id=run_id(0), model="m", limit_usd=2.0, caps=Caps(), at=NOON)
    change = reserving(old, 5.0, ("SPENT#x",))
    with pytest.raises(Contended):
        purse.exchange(run_id(0), old, change, ())
    assert purse.taken("SPENT#x") == 0
    assert reserve(purse, run_id=run_id(0), model="m", limit_usd=5.0, caps=Caps(), at=NOON) == ""
    assert purse.taken("SPENT#stack#2026-03-01") == 5_000_000


class Described:
    """SageMaker with one job of each kind, of an hour, and a failed attempt of ten minutes."""

    def __init__(self, training=None):
        self._training = training or {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}

    def __getattr__(self, call):
        kind = {"training": "TrainingJob", "transform": "TransformJob", "processing": "ProcessingJob"}[
            call.split("_")[1]
        ]
        began, ended = NOON, NOON.replace(hour=13)
        resources = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 1}
        described = {
            "TrainingJob": {"ResourceConfig": self._training},
            "TransformJob": {
                "TransformResources": resources,
                "TransformStartTime": began,
                "TransformEndTime": ended,
            },
            "ProcessingJob": {
                "ProcessingResources": {
                    "ClusterConfig": {"InstanceType": "ml.m5.xlarge", "InstanceCount": 1}
                },
                "ProcessingStartTime": began,
                "ProcessingEndTime": ended,
            },
        }[kind]
        names = ["one", "two"] if kind == "TrainingJob" else ["one"]
        if call.startswith("list_"):
            return lambda **_: {f"{kind}Summaries": [{f"{kind}Name": name} for name in names]}
        billable = {"one": 3600, "two": 600}
        return lambda **asked: (
            described | {"BillableTimeInSeconds": billable[asked[f"{kind}Name"]]}
            if kind == "TrainingJob"
            else described
        )


def test_a_job_that_goes_on_counts_up_to_now():
    """Whoever asks what is left while a job stops is not told that it cost nothing; settling waits for its end."""
    table = load_catalogue()
    described = Described()
    running = {
        "TrainingStartTime": NOON,
        "ResourceConfig": {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2},
    }
    described.describe_training_job = lambda **_: running
    kinds = ["TrainingJob"]
    hour = table.find("ml.g5.xlarge").usd_hour
    asked = cost_of_run(Jobs(described), "r", table, kinds=kinds, until=NOON.replace(minute=30))
    assert asked == pytest.approx(2 * 0.5 * 2 * hour)
    assert cost_of_run(Jobs(described), "r", table, kinds=kinds) == 0


def test_what_an_evaluation_may_cost_is_what_the_run_has_not_spent():
    """All jobs so far count, and the most that the recipe's judge may cost."""
    table, jobs = load_catalogue(), Jobs(Described())
    judge = {
        "model": "amazon.nova-pro-v1:0",
        "usd_per_million_input_tokens": 1.0,
        "usd_per_million_output_tokens": 1.0,
        "max_cost_usd": 2.0,
    }
    spent = cost_of_run(jobs, "r", table)
    for evaluation, most in (({}, 0.0), ({"judge": judge}, 2.0)):
        recipe = Recipe.model_validate({"base_model": "org/model", "evaluation": evaluation})
        plan = SimpleNamespace(run_id="r", spend_limit_usd=25.0)
        left = left_for_evaluation(jobs, plan, recipe, table, NOON)
        assert left == pytest.approx(25.0 - spent - most)


def test_every_kind_of_job_counts():
    """Training by billed seconds, whose saving is not taken twice; transform and processing from start to end."""
    table = load_catalogue()
    found = table.find("ml.g5.xlarge")
    transform = found.transform_usd_hour or found.usd_hour
    expected = found.usd_hour * 7 / 6 + transform + (table.processing_price("ml.m5.xlarge") or 0.0)
    assert cost_of_run(Jobs(Described()), "r", table) == pytest.approx(expected)


def test_the_page_and_the_caps_tell_the_same_cost():
    """Two instances, that stayed warm, failed attempts, transform and processing: one sum, wherever it is told."""
    table = load_catalogue()
    row = ProcessingRow(type="ml.m5.xlarge", usd_hour=0.23, source=next(iter(table.sources)))
    table = table.model_copy(update={"processing": (row,)})
    warm = {"InstanceType": "ml.g5.xlarge", "InstanceCount": 2, "KeepAlivePeriodInSeconds": 900}
    jobs = Jobs(Described(warm))
    told = [job_cost(job) for job in measured_jobs(jobs, "r", table)]
    assert len(told) == 4
    assert sum(told) == pytest.approx(cost_of_run(jobs, "r", table))


@pytest.mark.parametrize(
    ("selected", "hours"),
    [({"SelectedInstanceType": "ml.g6.xlarge", "SelectedInstanceCount": 2}, 2 * 7 / 6), ({}, 0.0)],
)
def test_of_several_types_the_one_that_was_taken_is_paid(selected, hours):
    """A job is billed for what it ran on, and for nothing where none of the types had capacity."""
    table = load_catalogue()
    listed = {"InstancePreferences": [{"InstanceType": name} for name in ("ml.g5.xlarge", "ml.g6.xlarge")]}
    paid, without = (
        cost_of_run(Jobs(Described({**listed, **taken})), "r", table) for taken in (selected, {})
    )
    assert paid - without == pytest.approx(hours * table.find("ml.g6.xlarge").usd_hour)
