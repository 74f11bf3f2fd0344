"""Fixtures of the planner's tests."""

import pytest
from planning_cases import planned


@pytest.fixture
def make_plan():
    return planned
