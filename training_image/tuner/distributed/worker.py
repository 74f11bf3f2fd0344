"""What each of the processes does that train together: join, train, part."""

from collections.abc import Callable

from tuner.contract import Container, Say, read_training_job
from tuner.distributed.ranks import Together
from tuner.loop import train
from tuner.signals import Stopped, StopRequest


def train_together(container: Container, stop: StopRequest, say: Say, clock: Callable[[], float]) -> None:
    """Train as one of several processes; only the first one speaks and writes.

    Raises:
        Failure: with the class that the ladder reads. The others are then ended by their agent.
        Stopped: in all processes, after the first wrote a checkpoint and the best adapter so far.
    """
    with stop.at_once():
        job = read_training_job(container)
        ranks = Together(job.hyperparameters.parallelism)
    aloud = say if ranks.leads else _silently
    aloud(f"ranks={ranks.size} parallelism={job.hyperparameters.parallelism}")
    try:
        train(container, stop, aloud, clock, ranks)
    except Stopped:
        ranks.leave()
        raise
    ranks.leave()


def _silently(_line: str) -> None:
    """Metrics are those of the first process."""
