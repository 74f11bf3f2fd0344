"""TrackRun over real HTTP: S3, DynamoDB and Secrets Manager by boto3, and an MLflow server of our own."""

import io
import json
import logging
import tarfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from stub_mlflow import StubMlflow, stub_mlflow

import mlflow_server
import track_run
from dropforge_core.aws import Ledger
from dropforge_core.gate.documents import MetricFacts, MetricsReport
from dropforge_core.gate.evidence import Estimate
from dropforge_core.layout import RunLayout
from dropforge_core.recipe import Recipe
from mlflow_server import MlflowServer, TrackingRefused, TrackingUnavailable

RUN = "e" * 26
LAYOUT = RunLayout(run_id=RUN)
SUMMARY = {
    "steps": 4, "epochs": 1.0, "tokens": 100, "seconds": 3.5, "best_step": 4, "best_eval_loss": 0.5,
    "loss_curve": [[step, 2.0 / step] for step in range(1, 5)], "eval_curve": [[0, 2.5], [4, 0.5]],
}  # fmt: skip
METRICS = MetricsReport(
    run_id=RUN,
    model="m",
    task="json",
    reason="r",
    alpha=0.05,
    variants=("base", "candidate"),
    metrics=(
        MetricFacts(
            name="field_f1",
            label="Field F1",
            direction="higher",
            kind="continuous",
            description="d",
            estimates=(
                Estimate(
                    metric="field_f1", variant="candidate", n=9, clusters=9, mean=0.75,
                    lower=0.5, upper=0.9, deviation=0.1, method="t",
                ),
            ),
        ),
    ),
    comparisons=(),
    fields={},
)  # fmt: skip


@pytest.fixture
def mlflow() -> Iterator[StubMlflow]:
    with stub_mlflow() as stub:
        yield stub


@pytest.fixture
def run(account: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A finished run in the bucket, whose recipe names the server that the stack allows."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.url)
    put_recipe(account, mlflow.url)
    account.put(LAYOUT.metrics, METRICS.model_dump_json())
    put_summary(account, SUMMARY)
    return account


def put_recipe(account: Any, uri: str | None) -> None:
    tracking = {"mlflow_uri": uri, "mlflow_experiment": "addresses"} if uri else {}
    recipe = Recipe.model_validate({"base_model": "org/tiny", "tracking": tracking})
    account.put(LAYOUT.recipe, recipe.model_dump_json())


def put_summary(account: Any, summary: Any) -> None:
    body, out = json.dumps(summary).encode(), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        info = tarfile.TarInfo("training_summary.json")
        info.size = len(body)
        packed.addfile(info, io.BytesIO(body))
    account.put(f"{LAYOUT.training_output}m-t1/output/model.tar.gz", out.getvalue())


def end(status: str = "REGISTERED", event: str = "e1", request: str = "q1", **data: Any) -> dict[str, Any]:
    said = {
        "version": "0",
        "id": event,
        "time": "2026-11-21T16:00:00Z",
        "source": "dropforge",
        "detail-type": "RunEnded",
        "detail": {"run_id": RUN, "model": "m", "status": status, "message": "It ended.", "data": data},
    }
    context = SimpleNamespace(
        aws_request_id=request,
        function_name="track-run",
        memory_limit_in_mb=1024,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:track-run",
    )
    return track_run.handler(said, context)  # type: ignore[arg-type]


def logged(mlflow: StubMlflow, name: str = "r1") -> list[tuple[str, int, float]]:
    return sorted((m["key"], m["step"], m["value"]) for m in mlflow.runs[name]["metrics"])


def test_a_finished_run_is_told_whole(run: Any, mlflow: StubMlflow) -> None:
    """Curves by step, figures, parameters, tags, the end; in the experiment that the recipe names."""
    answer = end(report_uri=f"s3://runs/{LAYOUT.report}", package_arn="", cost_usd=1.5)
    assert answer == {"tracked": True}
    assert mlflow.experiments == {"addresses": "7"}
    (told,) = mlflow.runs.values()
    values = logged(mlflow)
    assert {value for value in values if value[0] in {"loss", "eval_loss"}} == {
        *(("loss", step, 2.0 / step) for step in range(1, 5)),
        *(("eval_loss", 0, 2.5), ("eval_loss", 4, 0.5)),
    }
    assert {("cost_usd", 0, 1.5), ("gate.field_f1.candidate", 0, 0.75), ("training.steps", 0, 4)} <= set(
        values
    )
    assert told["params"]["base_model"] == "org/tiny"
    assert told["tags"]["dropforge.report"] == f"s3://runs/{LAYOUT.report}"
    assert told["tags"]["dropforge.run_id"] == RUN
    assert (told["status"], told["end_time"] - told["start_time"]) == ("FINISHED", 3500)
    assert Ledger("runs").note(f"MLFLOW#{RUN}")["mlflow_run"] == "r1"


def test_the_same_end_is_told_once_and_a_redrives_end_goes_on(run: Any, mlflow: StubMlflow) -> None:
    """A second delivery says nothing; another end of the run changes the same MLflow run, and repeats no value."""
    end("FAILED_CAPACITY")
    assert mlflow.runs["r1"]["status"] == "FAILED"
    before, said = logged(mlflow), len(mlflow.said)
    assert end("FAILED_CAPACITY", request="q2") == {"tracked": False}
    assert len(mlflow.said) == said
    put_summary(run, {**SUMMARY, "loss_curve": [*SUMMARY["loss_curve"], [5, 0.3]]})
    assert end("REGISTERED", event="e2") == {"tracked": True}
    assert list(mlflow.runs) == ["r1"]
    assert logged(mlflow) == sorted([*before, ("loss", 5, 0.3)])
    assert mlflow.runs["r1"]["status"] == "FINISHED"
    assert mlflow.runs["r1"]["tags"]["dropforge.status"] == "REGISTERED"


def test_a_run_that_a_job_told_live_is_gone_on_with(run: Any, mlflow: StubMlflow) -> None:
    """On the local AWS the job has a network: its run is found by its tag, and its curve is not told again."""
    mlflow.experiments["addresses"] = "7"
    tag = {"key": "dropforge.run_id", "value": RUN}
    mlflow.answer("runs/create", {}, {"experiment_id": "7", "tags": [tag]})
    live = [{"key": "loss", "value": 9.0, "timestamp": 1, "step": step} for step in range(1, 4)]
    mlflow.answer("runs/log-batch", {}, {"run_id": "r1", "metrics": live})
    end()
    assert list(mlflow.runs) == ["r1"]
    assert [value for value in logged(mlflow) if value[0] == "loss"] == [
        ("loss", 1, 9.0), ("loss", 2, 9.0), ("loss", 3, 9.0), ("loss", 4, 0.5),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "asked", [None, "https://elsewhere.example.org", "http://169.254.169.254/latest", "{stack}/more"]
)
def test_no_server_is_called_but_the_stacks(
    run: Any, mlflow: StubMlflow, asked: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe comes with an upload; the address that is called is the owner's, and nothing is sent where they differ."""

    def nobody(*_: Any, **__: Any) -> None:
        raise AssertionError("a request was sent")

    monkeypatch.setattr(mlflow_server._OPENER, "open", nobody)
    put_recipe(run, asked and asked.format(stack=mlflow.url))
    assert end() == {"tracked": False}
    assert mlflow.said == []


def test_without_a_server_of_the_stack_nothing_is_sent(
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parameter is empty unless somebody fills it, and then no recipe can make the function speak."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert end() == {"tracked": False}
    assert mlflow.said == []


@pytest.mark.parametrize(
    "uri",
    [
        "http://mlflow.example.org",
        "https://user@host",
        "ftp://host",
        "http://127.0.0.1.evil.org",
        "https://h/?q",
    ],
)
def test_an_address_that_is_not_safe_is_no_setting(
    run: Any, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    """Only https without user and query; plain http only to this very machine."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ValidationError, match="mlflow_tracking_uri"):
        end()


@pytest.mark.parametrize("status", ["DUPLICATE", "DATASET_REJECTED", "OVER_BUDGET"])
def test_what_never_trained_is_no_mlflow_run(run: Any, mlflow: StubMlflow, status: str) -> None:
    """An experiment shows runs that trained, not uploads."""
    assert end(status) == {"tracked": False}
    assert mlflow.said == []


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (" tok-1\n", "Bearer tok-1"),
        ('{"username": "ci", "password": "p:w"}', "Basic Y2k6cDp3"),
        ("", ""),
    ],
)
def test_the_secret_goes_to_the_server_and_nowhere_else(  # noqa: PLR0917  # fixtures
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str, header: str
) -> None:
    """As a bearer token, or as user and password; neither in the log nor in the ledger."""
    name = f"mlflow-{len(header)}"
    arn = run.secrets.create_secret(Name=name, SecretString=text or " ")["ARN"]
    monkeypatch.setenv("MLFLOW_TOKEN_SECRET_ARN", arn)
    end()
    assert mlflow.authorizations == {header}
    kept = json.dumps(Ledger("runs").note(f"MLFLOW#{RUN}")) + capsys.readouterr().out
    assert not any(word in kept for word in ("tok-1", "p:w", "Y2k6"))


@pytest.mark.parametrize("text", ["two\nlines", "smörgås"])
def test_a_secret_that_can_t_be_one_is_refused_unseen(
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch, caplog: Any, text: str
) -> None:
    """The log says what form it must have, not what it is."""
    arn = run.secrets.create_secret(Name=f"odd-{len(text)}", SecretString=text)["ARN"]
    monkeypatch.setenv("MLFLOW_TOKEN_SECRET_ARN", arn)
    with caplog.at_level(logging.ERROR):
        assert end() == {"tracked": False}
    refused = Ledger("runs").note(f"MLFLOW#{RUN}")["refused"]
    assert "Put a new value into Secrets Manager" in refused
    assert text not in refused
    assert mlflow.said == []


def test_a_secret_that_is_gone_is_told_once(
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No try later makes it readable, so nothing is raised for Lambda to repeat."""
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:gone-AbCdEf"
    monkeypatch.setenv("MLFLOW_TOKEN_SECRET_ARN", arn)
    assert end() == {"tracked": False}
    assert "ResourceNotFoundException" in Ledger("runs").note(f"MLFLOW#{RUN}")["refused"]
    assert mlflow.said == []


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("experiments/get-by-name", 401, b"{}"),
        ("experiments/get-by-name", 302, b""),
        ("experiments/get-by-name", 200, b"<html>sign in</html>"),
        ("runs/search", 200, b'{"runs": [1]}'),
        ("runs/create", 200, b""),
        ("runs/create", 200, b'{"run": 1}'),
        ("runs/log-batch", 400, b"{}"),
        ("runs/log-batch", 200, b"[]"),
        ("runs/update", 403, b"{}"),
    ],
)
def test_a_server_that_will_never_take_it_is_told_once(
    run: Any, mlflow: StubMlflow, path: str, status: int, body: bytes
) -> None:
    """Refused, sent elsewhere, answered by something that is no MLflow: noted, and not tried again."""
    mlflow.instead[path] = (status, body)
    assert end() == {"tracked": False}
    assert path in Ledger("runs").note(f"MLFLOW#{RUN}")["refused"]
    said = len(mlflow.said)
    assert end(request="q2") == {"tracked": False}
    assert len(mlflow.said) == said


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("experiments/create", 500),
        ("runs/search", 429),
        ("runs/create", 503),
        ("runs/log-batch", 502),
        ("runs/update", 504),
    ],
)
def test_a_server_in_trouble_is_asked_again_by_lambda(
    run: Any, mlflow: StubMlflow, path: str, status: int
) -> None:
    """The invocation fails, its retry completes the same MLflow run, and no value stands twice."""
    mlflow.failing.append((path, status))
    with pytest.raises(TrackingUnavailable, match=f"HTTP {status}"):
        end()
    assert end() == {"tracked": True}
    assert len(mlflow.runs) == 1
    values = logged(mlflow)
    assert len(values) == len(set(values))
    assert [value for value in values if value[0] == "loss"] == [("loss", s, 2.0 / s) for s in range(1, 5)]


def test_a_server_that_is_down_fails_the_invocation_alone(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised for Lambda's retries and the queue; the ledger's run is left as it ended."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    put_recipe(run, "http://127.0.0.1:9")
    with pytest.raises(TrackingUnavailable, match="ConnectionRefusedError"):
        end()
    assert Ledger("runs").run(RUN) is None


def test_a_slow_server_is_not_waited_for(
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer has a time-out."""
    monkeypatch.setattr(mlflow_server, "TIMEOUT_S", 0.05)
    mlflow.slow_s = 0.3
    with pytest.raises(TrackingUnavailable, match=r"(?i)timeout"):
        end()


def test_all_requests_together_have_a_deadline(mlflow: StubMlflow) -> None:
    """A server that answers everything just in time does not outlast the function."""
    late = MlflowServer(mlflow.url, clock=lambda: 10.0, deadline=9.0)
    with pytest.raises(TrackingUnavailable, match="took longer than 90 s, up to experiments/get-by-name"):
        late._experiment("e")
    assert mlflow_server.PATIENCE_S + 2 * mlflow_server.TIMEOUT_S < 120


def test_an_experiment_that_another_run_just_made_is_taken(
    run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two first runs may end in the same moment."""
    seen: list[str] = []
    known = mlflow.answer

    def late(path: str, query: Any, body: Any) -> Any:
        seen.append(path)
        if seen == ["experiments/get-by-name"]:
            mlflow.experiments["addresses"] = "7"
            return 404, {}
        return known(path, query, body)

    monkeypatch.setattr(mlflow, "answer", late)
    assert end() == {"tracked": True}
    assert seen[:3] == ["experiments/get-by-name", "experiments/create", "experiments/get-by-name"]


def test_while_one_tells_another_waits(run: Any, mlflow: StubMlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same end is left to who is telling it; another end is tried later; a dead one's lease runs out."""
    ledger = Ledger("runs")
    first = track_run.Turn(ledger, RUN, "e1", "q1")
    assert first.taken()
    assert end(event="e1", request="q2") == {"tracked": False}
    with pytest.raises(TrackingUnavailable, match="another end"):
        end(event="e2", request="q3")
    assert mlflow.said == []
    later = track_run.time.time() + track_run.LEASE_S
    monkeypatch.setattr(track_run, "time", SimpleNamespace(time=lambda: later + 1))
    assert end(event="e2", request="q3") == {"tracked": True}
    first.over({"refused": "late"})
    assert ledger.note(f"MLFLOW#{RUN}")["told"] == "e2"


@pytest.mark.parametrize("body", [b"", b"no archive", b"\x1f\x8b\x08\x00cut"])
def test_a_history_that_can_t_be_read_costs_the_curves_only(
    run: Any, mlflow: StubMlflow, body: bytes
) -> None:
    """Verdict, figures and settings are told without it."""
    run.put(f"{LAYOUT.training_output}m-t1/output/model.tar.gz", body)
    assert end() == {"tracked": True}
    assert {key for key, _, _ in logged(mlflow)} == {"gate.field_f1.candidate"}


def test_a_huge_history_is_told_within_bounds(run: Any, mlflow: StubMlflow) -> None:
    """A hundred thousand steps become ten thousand points, a thousand a request."""
    put_summary(run, {**SUMMARY, "loss_curve": [[step, 1.0] for step in range(100_000)]})
    assert end() == {"tracked": True}
    sizes = [len(body.get("metrics", ())) for path, body in mlflow.said if path == "runs/log-batch"]
    assert max(sizes) == 1000
    assert sum(1 for key, _, _ in logged(mlflow) if key == "loss") == 10_000


def test_a_run_without_a_recipe_that_can_be_read_tracks_nothing(run: Any, mlflow: StubMlflow) -> None:
    """Its recipe is absent, or of another version."""
    run.put(LAYOUT.recipe, '{"another": "version"}')
    assert end() == {"tracked": False}
    run.s3.delete_object(Bucket="runs", Key=LAYOUT.recipe)
    assert end() == {"tracked": False}
    assert mlflow.said == []


def test_refusals_and_troubles_are_two_errors() -> None:
    """Only trouble is worth another try."""
    assert not issubclass(TrackingRefused, TrackingUnavailable)
