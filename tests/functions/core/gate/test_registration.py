"""What reaches the registry stays within the bounds that the service enforces."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dropforge_core.gate.judgement import outcome
from dropforge_core.gate.registration import sanitised
from dropforge_core.recipe import Evaluation, Gate


def fits(value, at_most=256):
    """The service's pattern, with the three Unicode classes spelled out."""
    letters = "".join("x" if unicodedata.category(c)[0] in "LNZ" else c for c in value)
    return 1 <= len(value) <= at_most and re.fullmatch(r"[\w.:/=+\-@]+", letters, re.ASCII) is not None


@given(st.text(max_size=400))
def test_any_text_becomes_a_value(text):
    """Whatever a person wrote becomes 1 to 256 allowed characters."""
    assert fits(sanitised(text))
    assert sanitised(sanitised(text)) == sanitised(text)


def test_metadata_names_everything_that_was_judged(improved):
    """Digests, base model and metrics before and after travel with the package, within 50 entries."""
    every = ("base", "champion", "candidate")
    policy = Gate()
    everything = (
        "exact_match", "normalised_match", "token_f1", "json_valid", "field_f1", "rouge_l", "chrf",
        "length_ratio", "refusal",
    )  # fmt: skip
    judgement = improved(variants=every).judged(policy, Evaluation(metrics=everything))
    found = outcome(judgement, policy, "runs")
    assert len(found.metadata) <= 50
    assert all(fits(key, 128) and fits(value) for key, value in found.metadata.items())
    assert found.metadata["gate_digest"] == found.gate_digest
    assert found.metadata["quantization"] == "nf4"
    assert found.metadata["base_model_prefix"].startswith("base-models/org/base/")
    assert float(found.metadata["base.nll_per_byte"]) > float(found.metadata["candidate.nll_per_byte"])
    assert found.metadata["champion"] == "arn:champion"


def test_the_same_run_registers_under_the_same_token(improved):
    """The client token is a function of the run alone."""
    first = outcome(improved().judged(), Gate(), "runs")
    second = outcome(improved(rows=40).judged(), Gate(), "runs")
    assert first.client_token == second.client_token
    assert first.gate_digest != second.gate_digest
    assert first.model_data == "s3://runs/candidate.tar.gz"


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_nothing_is_none(text):
    """An empty value, which the service refuses, says none."""
    assert sanitised(text) == "none"
