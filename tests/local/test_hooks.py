"""A canary for each private interface of MiniStack and the JSONata library: an upgrade fails here, by name."""

import importlib.metadata
import time

import pytest
from jsonata import Jsonata
from ministack.services import eventbridge

from dropforge.local import hooks
from dropforge.local.asl.expression import Evaluator


def test_the_installed_version_is_the_one_written_for() -> None:
    """The pin, the code and the installation agree."""
    assert importlib.metadata.version("ministack") == hooks.WRITTEN_FOR


@pytest.mark.parametrize("hook", [*hooks.FUNCTIONS, *hooks.TABLES])
def test_each_hook_is_as_it_was(hook: str) -> None:
    """Every function and table that the engine replaces or calls is there, with the same parameters."""
    module, name = hooks.resolve(hook)
    assert hasattr(module, name)
    assert [sentence for sentence in hooks.differences() if hook in sentence] == []


def test_a_changed_hook_stops_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another signature, or a function that is gone, is refused with a sentence that names it."""
    monkeypatch.setattr(eventbridge, "_put_events", lambda data: data)
    monkeypatch.delattr(eventbridge, "_dispatch_event")
    with pytest.raises(hooks.HookChanged) as refused:
        hooks.check()
    message = str(refused.value)
    assert "_put_events takes (data); the engine was written for (data allow_aws_source)" in message
    assert "_dispatch_event is gone" in message


def test_the_jsonata_library_lets_expressions_be_kept() -> None:
    """Compiled expressions are used again; the time of day in them moves on all the same."""
    assert hasattr(Jsonata, "CURRENT")
    evaluator = Evaluator()
    first = evaluator.fill("{% $millis() %}", {}, {})
    evaluator.fill("{% 1 + 1 %}", {}, {})
    time.sleep(0.01)
    assert evaluator.fill("{% $millis() %}", {}, {}) > first
