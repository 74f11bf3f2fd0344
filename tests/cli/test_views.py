"""What a person sees of a run at every moment."""

import io

import pytest
from rich.console import Console

from dropforge.cli.console import said
from dropforge.cli.follow import view
from dropforge.cli.progress import JobProgress
from dropforge.cli.stack import RunRecord
from dropforge.cli.summary import RunSummary, render
from dropforge.cli.watch import Snapshot
from dropforge_core.gate.documents import MetricFacts, MetricsReport
from dropforge_core.gate.evidence import Estimate
from dropforge_core.gate.examples import Answer, Example, ExampleAnswers
from dropforge_core.ledger import PHASES, Status
from dropforge_core.messages.wording import phrase

RUN = "abcdefghijklmnopqrstuvwxyz"


def shown(renderable) -> str:
    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def record(status: str, **fields: str) -> RunRecord:
    return RunRecord(run_id=RUN, model="support-bot", status=status, **fields)


@pytest.mark.parametrize("status", Status)
def test_every_status_has_a_picture(status):
    """Whatever the ledger says, the live view and the summary show it in words."""
    assert phrase(status) in shown(view(Snapshot(run=record(status)), frozenset(PHASES[:3])))
    assert phrase(status) in shown(render(RunSummary(run=record(status))))


def test_an_unknown_status_is_shown():
    """A status of a newer version does not break an older command line."""
    assert "cooling down" in shown(view(Snapshot(run=record("COOLING_DOWN"))))


def test_training_shows_its_figures():
    """Step, losses, speed and time left stand beside the bar; phases passed have a mark."""
    progress = JobProgress().after(
        ["step=10/50 loss=1.2 tokens_per_s=181 eta_s=130", "step=10/50 eval_loss=0.9"]
    )
    picture = shown(view(Snapshot(run=record("TRAINING"), progress=progress, spent_usd=0.02), frozenset()))
    assert "10/50  loss 1.200  held-out 0.900  181 tok/s  2 min left" in picture
    assert "✓ planning" in picture
    assert "$0.02 so far" in picture
    assert "waiting for approval" not in picture


def estimate(variant: str, mean: float) -> Estimate:
    return Estimate(
        metric="field_f1",
        variant=variant,
        n=50,
        clusters=50,
        mean=mean,
        lower=mean - 0.1,
        upper=mean + 0.1,
        deviation=0.2,
        method="t",
    )


def test_the_summary_shows_before_and_after():
    """Metrics with intervals, and answers of both models side by side, as text."""
    metrics = MetricsReport(
        run_id=RUN,
        model="support-bot",
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
                estimates=(estimate("base", 0.2), estimate("candidate", 0.8)),
            ),
        ),
        comparisons=(),
        fields={},
    )
    example = Example(
        id="1",
        change="better",
        prompt="user: 1 main st",
        reference='{"number": "1"}',
        answers={
            "base": Answer(text="[red]no[/red]", score=0, nll_per_byte=1, cut_off=False),
            "candidate": Answer(text='{"number": "1"}', score=1, nll_per_byte=0.1, cut_off=False),
        },
    )
    summary = RunSummary(
        run=record("REGISTERED", package_arn="arn:aws:sagemaker:p", cost_usd="0.05"),
        metrics=metrics,
        examples=ExampleAnswers(metric="field_f1", counts={"better": 1}, examples=(example,) * 5),
        report_path="x/index.html",
        emails=("[dropforge] support-bot: registered",),
    )
    picture = shown(render(summary))
    assert "0.200 (0.100 to 0.300)" in picture
    assert "0.800 (0.700 to 0.900)" in picture
    assert picture.count("[red]no[/red]") == 3
    for part in ("arn:aws:sagemaker:p", "x/index.html", "[dropforge] support-bot: registered", "$0.05"):
        assert part in picture


def test_control_characters_do_not_reach_the_terminal():
    """Escape sequences, and marks that reorder text, are shown as replacement characters."""
    assert said("a\x1b[2Jb\u202ec\x07").plain == "a\ufffd[2Jb\ufffdc\ufffd"


def test_the_message_is_never_cut(dropforge, world):
    """A long message wraps; no word of it is lost."""
    words = " ".join(f"word{index}" for index in range(80))
    world.run(status="FAILED_CODE", message=words)
    out = dropforge("show", RUN).out
    assert all(f"word{index}" in out for index in range(80))
