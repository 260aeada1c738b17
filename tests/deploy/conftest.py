"""Helm is started once for all tests here, and what the examples make is kept."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.deploy.helm import EXAMPLES, RELEASE, Helm, running

Rendered = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="session")
def engine() -> Iterator[Helm]:
    with running() as helm:
        yield helm


@pytest.fixture
def helm(engine: Helm) -> Iterator[Helm]:
    """With an empty cluster."""
    engine.cluster.empty()
    yield engine
    engine.cluster.empty()


@pytest.fixture(scope="session")
def rendered(engine: Helm) -> Rendered:
    """What the cluster has been given, for each of the example values."""
    found: Rendered = {}
    for example in EXAMPLES:
        engine.cluster.empty()
        engine.install(yaml.safe_load(example.read_text()))
        found[example.stem] = copy.deepcopy(engine.cluster.objects)
        engine("uninstall", RELEASE)
    return found
