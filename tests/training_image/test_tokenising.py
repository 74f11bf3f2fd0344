"""A channel tokenised by several processes is the channel tokenised by one."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_jobs import chat_rows

from tuner import tokenising
from tuner.conversation import ChatCodec
from tuner.data import Example
from tuner.failure import Failure
from tuner.model import load_base
from tuner.tokenising import encode_channel


@pytest.fixture(scope="module")
def codec(tiny_base: Path) -> ChatCodec:
    return load_base(tiny_base, "none", torch.device("cpu")).codec


@pytest.fixture
def channel(tmp_path: Path) -> Path:
    """Two shards, several chunks each, a blank line between."""
    for number in range(2):
        lines = [json.dumps(row) for row in chat_rows(600, seed=number)]
        (tmp_path / f"part-{number:05d}.jsonl").write_text("\n\n".join(lines))
    return tmp_path


def tokenised(channel: Path, codec: ChatCodec, processes: int, most: int = 512) -> list[Example]:
    return encode_channel(channel, codec, "sft", most, lambda _: None, processes)


def test_many_processes_give_what_one_gives(channel: Path, codec: ChatCodec) -> None:
    """The same examples in the same order, token for token and weight for weight."""
    one, many = tokenised(channel, codec, 1), tokenised(channel, codec, 3)
    assert [example.id for example in many] == [example.id for example in one]
    assert len(one) == 1200
    for ours, theirs in zip(many, one, strict=True):
        for a, b in zip(ours.documents, theirs.documents, strict=True):
            assert np.array_equal(a.ids, b.ids)
            assert np.array_equal(a.weights, b.weights)


@pytest.mark.parametrize("processes", [1, 2])
def test_faults_are_told_alike(channel: Path, codec: ChatCodec, processes: int) -> None:
    """Rows that are too long are counted over all of them and named in order; a broken line by file and number."""
    with pytest.raises(Failure) as found:
        tokenised(channel, codec, processes, most=60)
    with pytest.raises(Failure) as expected:
        tokenised(channel, codec, 1, most=60)
    assert found.value.message == expected.value.message
    assert "longer than max_seq_len = 60 tokens" in found.value.message
    with (channel / "part-00001.jsonl").open("a") as shard:
        shard.write("\n{")
    with pytest.raises(Failure, match=r"part-00001\.jsonl, line 1200: ") as broken:
        tokenised(channel, codec, processes)
    assert broken.value.word == "BAD_DATA"


def test_a_process_that_is_killed_costs_time_only(
    channel: Path, codec: ChatCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host may be short of memory for them: then one process does it all, and the log says so."""
    parent = os.getpid()
    real = tokenising.encode

    def encode(*given: Any) -> Any:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*given)

    monkeypatch.setattr(tokenising, "encode", encode)
    lines: list[str] = []
    assert len(encode_channel(channel, codec, "sft", 512, lines.append, 2)) == 1200
    assert lines == ["phase=tokenising_alone BrokenProcessPool: the processes for it did not live"]


def test_few_rows_start_no_process(channel: Path, codec: ChatCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be done before a process has begun."""
    monkeypatch.setattr(tokenising, "ProcessPoolExecutor", None)
    assert len(encode_channel(channel, codec, "sft", 512, lambda _: None)) == 1200


def test_processes_that_train_together_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a host's processes tokenises by its part of them, and by one at least."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert tokenising.cores() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert tokenising.cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert tokenising.cores() == 1
