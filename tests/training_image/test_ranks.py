"""What several processes agree on before they start, and what is told of them after they end."""

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.contract import Container
from tuner.conversation import Document
from tuner.data import Example
from tuner.distributed.cluster import PROCESSES, is_rank, processes_per_host, read_cluster
from tuner.distributed.launch import failure_file, reason
from tuner.distributed.ranks import shares
from tuner.failure import Failure, classify


def example(number: int, length: int) -> Example:
    ids = np.zeros(length, dtype=np.int64)
    return Example(str(number), (Document(ids, np.ones(length, dtype=np.float32)),))


@given(lengths=st.lists(st.integers(2, 500), max_size=40), count=st.integers(1, 9))
def test_a_step_is_dealt_whole_and_evenly(lengths: list[int], count: int) -> None:
    """Every example goes to one process, in order; no share is heavier than the mean and one example together."""
    examples = [example(number, length) for number, length in enumerate(lengths)]
    dealt = shares(lengths, examples, count)
    assert len(dealt) == count
    assert sorted(int(one.id) for part in dealt for one in part) == list(range(len(lengths)))
    for part in dealt:
        assert [int(one.id) for one in part] == sorted(int(one.id) for one in part)
        assert sum(one.length for one in part) <= sum(lengths) / count + max(lengths, default=0)


def container(root: Path, document: object | None) -> Container:
    made = Container(root)
    made.resource_config.parent.mkdir(parents=True)
    if document is not None:
        made.resource_config.write_text(json.dumps(document))
    return made


def test_hosts_are_numbered_alike_everywhere(tmp_path: Path) -> None:
    """Whatever order a host is told them in, all hosts have the same first one and places of their own."""
    names = ["algo-2", "algo-1", "algo-3"]
    places = {}
    for number, name in enumerate(names):
        told = {
            "current_host": name,
            "hosts": names[number:] + names[:number],
            "network_interface_name": "eth0",
        }
        cluster = read_cluster(container(tmp_path / name, told))
        assert cluster.order[0] == "algo-1"
        places[name] = cluster.place
    assert places == {"algo-1": 0, "algo-2": 1, "algo-3": 2}


def test_without_a_word_about_hosts_this_one_is_alone(tmp_path: Path) -> None:
    """A laptop writes no resourceconfig.json."""
    cluster = read_cluster(container(tmp_path, None))
    assert (len(cluster.hosts), cluster.place) == (1, 0)


@pytest.mark.parametrize("document", [{"current_host": "algo-9", "hosts": ["algo-1"]}, {"hosts": 3}, []])
def test_hosts_that_make_no_sense_end_the_job(tmp_path: Path, document: object) -> None:
    """A host that would wait for others for ever says so instead, as CODE."""
    with pytest.raises(Failure, match=r"CODE: .*resourceconfig\.json"):
        read_cluster(container(tmp_path, document))


def test_processes_of_a_host_are_torchrun_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a GPU, as many as torchrun's variable says with it, and a word that is no number is refused."""
    monkeypatch.delenv(PROCESSES, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert processes_per_host() == 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert processes_per_host() == 8
    monkeypatch.setenv(PROCESSES, "3")
    assert processes_per_host() == 3
    monkeypatch.setenv(PROCESSES, "gpu")
    with pytest.raises(Failure, match="CODE"):
        processes_per_host()


def test_only_one_of_several_is_a_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Torchrun's environment makes a process one of several, with a reason of its own to leave."""
    here = container(tmp_path, None)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not is_rank()
    assert failure_file(here) == here.failure
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("DROPFORGE_FAILURES", str(tmp_path))
    assert is_rank()
    assert failure_file(here) == tmp_path / "rank-1"


def ended(code: int, at: int = 0) -> SimpleNamespace:
    """Torch's ProcessFailure, as far as it is read."""
    return SimpleNamespace(exitcode=code, timestamp=at)


LOST = "RANK_LOST: the connection to another process was lost"


@pytest.mark.parametrize(
    ("left", "failures", "told"),
    [
        (
            {0: LOST, 1: "NAN_LOSS: the loss of these rows is not finite: row-7"},
            {0: 1, 1: 1},
            "NAN_LOSS: process 1: the",
        ),
        ({0: LOST}, {0: 1, 1: -signal.SIGKILL}, "RANK_LOST: process 1 was ended by SIGKILL"),
        ({0: LOST}, {0: 1}, LOST),
        ({}, {0: -signal.SIGTERM, 1: -signal.SIGABRT}, "RANK_LOST: process 1 was ended by SIGABRT"),
        ({}, {0: 7, 1: -signal.SIGTERM}, "CODE: processes exited without a reason: process 0 with 7"),
        ({0: "no word at all"}, {0: 1}, "CODE: processes exited without a reason: process 0 with 1"),
    ],
)
def test_one_reason_is_told_for_all(
    tmp_path: Path, left: dict[int, str], failures: dict[int, int], told: str
) -> None:
    """Who has a word of its own comes first, then who was killed; who only lost a peer is never blamed for it."""
    for rank, text in left.items():
        (tmp_path / f"rank-{rank}").write_text(text)
    found = reason(tmp_path, {rank: ended(code) for rank, code in failures.items()})
    assert str(found).startswith(told)


def test_of_two_killed_the_first_is_named(tmp_path: Path) -> None:
    """The agent kills what does not end half a minute after the one that began it."""
    failures = {0: ended(-signal.SIGKILL, at=30), 1: ended(-signal.SIGKILL, at=1)}
    assert "process 1 was ended by SIGKILL" in str(reason(tmp_path, failures))


@pytest.mark.parametrize(
    "text",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:9",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv",
    ],
)
def test_a_lost_connection_has_a_word(text: str) -> None:
    """What the collectives raise when a peer goes away is RANK_LOST, and other errors stay what they are."""
    assert classify(RuntimeError(text)).word == "RANK_LOST"
    assert classify(RuntimeError("shape mismatch")).word == "CODE"
