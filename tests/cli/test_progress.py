"""Log lines of jobs become progress, and nothing in a log can break the follower."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dropforge.cli.progress import JobProgress, TrainingProgress

LINE = (
    "step=10/50 epoch=0.52 loss=1.2340 grad_norm=0.913 learning_rate=1.2e-04 "
    "tokens_per_s=181 memory_gib=2.10 eta_s=130"
)


def test_a_metric_line_is_read_whole() -> None:
    """Every figure of the trainer's line that people are shown arrives."""
    assert JobProgress().after([LINE]).training == TrainingProgress(
        step=10, steps=50, loss=1.234, tokens_per_s=181, memory_gib=2.1, eta_s=130
    )


def test_held_out_loss_joins_the_step_before() -> None:
    """An evaluation's line adds its loss and loses nothing of the line before."""
    training = JobProgress().after([LINE, "noise", "step=25/50 eval_loss=0.5100"]).training
    assert training is not None
    assert (training.step, training.loss, training.eval_loss, training.share) == (25, 1.234, 0.51, 0.5)


def test_counts_of_other_jobs() -> None:
    """Answered prompts and copied files are progress of the jobs that have no steps."""
    copied = JobProgress().after(["file=model.safetensors bytes=9 files=3/4"])
    assert (copied.done, copied.total) == (3, 4)
    assert JobProgress().after(["answered=12", "noise", "2026-11-21 answered=38"]).done == 50


def test_the_image_writes_what_is_read() -> None:
    """The words by which other jobs tell how far they are stand in the image's code."""
    tuner = Path(__file__).parents[2] / "training_image" / "tuner"
    assert 'f"answered={' in (tuner / "answering.py").read_text()
    assert "files={number}/{" in (tuner / "cache_base_model.py").read_text()


@given(st.lists(st.text() | st.sampled_from([LINE, "answered=2", "step=1/0", "loss=nan step=3/9"])))
def test_any_log_is_survived(lines: list[str]) -> None:
    """Whatever a job prints, shares stay between 0 and 1."""
    training = JobProgress().after(lines).training
    assert training is None or 0 <= training.share <= 1
