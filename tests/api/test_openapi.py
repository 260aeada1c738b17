"""The OpenAPI document against the running proxy: requests that it allows, and some that it does
not, from Schemathesis."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.api.proxy import REPLY, replacing, settings
from tests.servers import serve_in_thread


@pytest.fixture(scope="module")
def document() -> Iterator[BaseSchema]:
    upstream = ScriptedUpstream(Script((Rule(REPLY),)))
    with serve_in_thread(upstream) as behind:
        app = create_app(settings(behind), aligner=replacing(eats="She eats two."))
        with serve_in_thread(app) as address:
            yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_every_operation_answers_as_documented(document: BaseSchema) -> None:
    asked = 0
    for found in document.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            try:
                strategy = operation.as_strategy(generation_mode=mode)
            except Unsatisfiable:
                continue
            asked += 1
            _ask(strategy)
    assert asked >= 5


def _ask(strategy: SearchStrategy[schemathesis.Case]) -> None:
    @examples(
        max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None
    )
    @given(case=strategy)
    def check(case: schemathesis.Case) -> None:
        answer = case.call(timeout=20)
        case.validate_response(answer, checks=[not_a_server_error])
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400:
            error = answer.json()["error"]
            assert error["message"]
            assert error.get("code") != "internal_error"

    # An operation without anything to get wrong has no wrong requests.
    with contextlib.suppress(Unsatisfiable):
        check()
