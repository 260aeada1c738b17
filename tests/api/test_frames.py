"""Joining deliveries into one completion, where no scripted upstream can bring it about."""

import orjson

from stream_aligner_proxy.api.faces.chat import Chunks, Gatherer
from stream_aligner_proxy.core.records import (
    Committed,
    Cost,
    Delivery,
    Finished,
    Mode,
    Usage,
)
from tests.api.plans import plan


def completion(*deliveries: Delivery, usage: Usage | None = None) -> dict:
    gatherer = Gatherer(plan())
    for delivery in deliveries:
        gatherer.add(delivery)
    return orjson.loads(gatherer.completion([Finished("stop", usage, Cost(), Mode.STREAM, "none")]))


def test_content_that_is_not_text_stands_beside_the_text_and_does_not_replace_it():
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}
    said = [Delivery(part={"content": [thought]}), Delivery("It is "), Delivery("four.")]
    [choice] = completion(*said)["choices"]
    assert choice["message"]["content"] == [thought, {"type": "text", "text": "It is four."}]


def test_the_total_of_the_upstream_is_not_counted_again():
    details = {"total_tokens": 100, "prompt_tokens_details": {"cached_tokens": 3}}
    usage = completion(usage=Usage(10, 20, details))["usage"]
    assert usage == {"prompt_tokens": 10, "completion_tokens": 20, **details}
    assert completion(usage=Usage(10, 20))["usage"]["total_tokens"] == 30


def test_a_sentence_that_came_in_two_parts_has_one_record_in_its_last_chunk():
    unit = Committed(0, "One bad.", "One good.", "replace", 0, review=0)
    parts = [Delivery("One go"), Delivery("od.", unit=unit, review_seconds=0.1)]
    chunks = Chunks(plan(provenance=True))
    events = [orjson.loads(chunks.delivery(part)[6:]) for part in parts]
    assert "".join(event["choices"][0]["delta"]["content"] for event in events) == "One good."
    assert "stream_aligner" not in events[0]
    assert events[1]["stream_aligner"]["sentence"]["text"] == "One good."
    gatherer = Gatherer(plan(provenance=True))
    for part in parts:
        gatherer.add(part)
    finished = Finished("stop", None, Cost(), Mode.STREAM, "none")
    body = orjson.loads(gatherer.completion([finished]))
    assert body["choices"][0]["message"]["content"] == "One good."
    assert [s["text"] for s in body["stream_aligner"]["sentences"]] == ["One good."]
