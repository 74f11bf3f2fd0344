"""A metric of a team's own package, from the recipe to the verdict."""

import json

import pytest
from test_decisions import answer, holdout

from dropforge_core.gate.documents import GateReport
from dropforge_core.layout import RunLayout
from dropforge_core.metrics.catalogue import installed
from dropforge_core.metrics.registry import installed_names
from dropforge_core.recipe import RecipeInvalid, parse_recipe

RUN = "b" * 26
LAYOUT = RunLayout(run_id=RUN)
RECIPE = "base_model: org/base\ngate: {primary: ends_politely, forgetting: 'off'}"
PACKAGE = """
from dropforge_core.metrics.catalogue import Installed
from dropforge_core.metrics.registry import Metric

ends_politely = Installed(
    Metric("ends_politely", "Ends politely", "higher", "binary", "generation", "1 where the last word is thanks."),
    lambda reference, answer: float(answer.split()[-1:] == ["thanks"]),
)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The package as `pip install` leaves it."""
    (tmp_path / "polite_metrics.py").write_text(PACKAGE)
    info = tmp_path / "polite_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: polite-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dropforge.metrics]\nends_politely = polite_metrics:ends_politely\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for cached in (installed, installed_names):
        cached.cache_clear()
    yield
    for cached in (installed, installed_names):
        cached.cache_clear()


def test_a_gate_decides_by_a_teams_metric(run, package):
    """The recipe names it, the answers are scored by it, and the verdict with its interval is in gate.json."""
    run.put(LAYOUT.recipe, parse_recipe(RECIPE).model_dump_json())
    holdout(run, 60)
    setup = run.prepare()
    answer(run, {"base": lambda _: False, "candidate": lambda _: True})
    for key in run.keys(LAYOUT.predictions):
        told = [json.loads(line) for line in run.read(key).splitlines()]
        thanked = [one | ({"text": "thanks"} if one["variant"] == "candidate" else {}) for one in told]
        run.put(key, "\n".join(map(json.dumps, thanked)))
    found = run.score(setup)
    assert found.verdict == "PASS"
    rules = GateReport.model_validate_json(run.read(LAYOUT.gate)).rules
    (rule,) = [one for one in rules if one.name == "better_than_base"]
    assert (rule.metric, rule.value, rule.n) == ("ends_politely", 1.0, 60)


def test_a_metric_that_nobody_installed_is_refused_with_the_recipe():
    """Before anything is spent, not when the answers are there."""
    with pytest.raises(RecipeInvalid) as found:
        parse_recipe(RECIPE)
    assert found.value.faults[0].path == "gate.primary"
