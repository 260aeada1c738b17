"""Anything at all to the routes beside chat: an answer that is valid, and no defect."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from tests.api.test_fuzz import _PATIENT, JSON, Standing, over_script  # noqa: F401  (a fixture)
from tests.strict import events

FIELDS = (
    "model", "prompt", "stream", "stream_options", "max_tokens", "n", "best_of", "echo", "suffix",
    "stop", "logprobs", "seed", "messages", "stream_aligner", "response_format",
    "answer", "question", "scope", "strength", "items",
)  # fmt: skip
CHANGES = st.dictionaries(st.sampled_from(FIELDS), JSON | st.just([{"answer": "One."}]), max_size=3)


def checked(standing: Standing, path: str, body: dict[str, Any]) -> None:
    answer = standing.post(orjson.dumps(body, option=orjson.OPT_NON_STR_KEYS), path)
    assert answer.status_code in (200, 400, 404, 413, 502), answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert events([answer.content])[-1].data == "[DONE]"
    else:
        told = answer.json()
        assert (answer.status_code == 200) == ("error" not in told)
    assert b"internal_error" not in answer.content


@given(CHANGES)
@_PATIENT
def test_anything_to_completions(over_script: Standing, changes: dict[str, Any]) -> None:  # noqa: F811
    checked(over_script, "/v1/completions", {"model": "scripted", "prompt": "a"} | changes)


@given(CHANGES)
@_PATIENT
def test_anything_to_align(over_script: Standing, changes: dict[str, Any]) -> None:  # noqa: F811
    given = {"question": "a", "answer": "She eats one. Two are left."}
    checked(over_script, "/v1/align", given | changes)
