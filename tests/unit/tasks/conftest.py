"""Fixtures for the tests of tasks: families of chat templates and tokenizers, each built once."""

import pytest
from tests.unit.tasks.families import FAMILIES, Family


@pytest.fixture(scope="session", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def chatml() -> Family:
    return FAMILIES["chatml"]


@pytest.fixture(scope="session")
def thinking() -> Family:
    return FAMILIES["thinking"]
