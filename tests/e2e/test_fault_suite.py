"""The fault suite (docs/faults.md), small: everything fails, and nothing unreviewed or left over
comes of it."""

import pytest

from bench.faults import suite
from bench.faulty.client import Seen
from bench.faulty.plan import aligned, plan
from bench.faulty.reading import judge

pytestmark = pytest.mark.anyio
SEED = 20261126
STREAMS = 150


async def test_whatever_fails_streams_end_validly_and_nothing_unreviewed_or_left_over_comes_of_it():
    async with suite(SEED) as running:
        outcome = await running.run(STREAMS, warm_up=10, at_once=24)
    assert outcome.unreviewed == 0
    assert outcome.invalid == []
    assert outcome.wrong == []
    assert outcome.row()["leaked_sockets"] == 0
    assert not outcome.row()["leaked_tasks"]
    # Two in five where nothing else runs; what is late on a busy machine ends as validly.
    assert outcome.ends["finished"] > STREAMS // 6
    assert len(outcome.shown) > 15  # kinds of faults that the upstream has shown


def chat(text: str, *rest: str) -> Seen:
    """What a client saw that got `text` of a clean stream, and then `rest`."""
    number = next(
        n
        for n in range(1000)
        if (p := plan(1, n)).clean
        and p.api == "chat"
        and p.stream
        and p.choices == 1
        and p.mode == "stream"
    )
    made = plan(1, number)
    frames = [TEXT.replace("…", text), *rest]
    body = "".join(f"data: {frame}\n\n" for frame in frames).encode()
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    return Seen(made, "whole", 200, headers, bytearray(body))


TEXT = '{"choices":[{"index":0,"delta":{"content":"…"},"finish_reason":null}]}'
ERROR = '{"error":{"message":"m","type":"t","param":null,"code":"review_failed"}}'
FINISH = '{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("rest", "fault"),
    [
        ((ERROR, "[DONE]"), ""),
        ((ERROR, ERROR, "[DONE]"), "two errors"),
        ((ERROR,), "no [DONE] at the end"),
        (("[DONE]",), "0 of 1 choices have finished"),
        ((FINISH, "[DONE]"), "finished, and not all of the text came"),
        ((FINISH, "[DONE]", ERROR), "no [DONE] at the end"),
        (('{"error":"oops"}', "[DONE]"), "an error of another shape"),
    ],
)
def test_the_suite_sees_an_end_that_must_not_be(rest, fault):
    seen = chat("", *rest)
    assert judge(seen).fault.startswith(fault)
    assert bool(judge(seen).fault) == bool(fault)


def test_the_suite_sees_each_unreviewed_character():
    seen = chat("Zzr", ERROR, "[DONE]")
    assert judge(seen).unreviewed == 3
    word = aligned(seen.plan.sentences[0])[:4]
    seen = chat(word + "zz", ERROR, "[DONE]")
    assert judge(seen).unreviewed in (1, 2)
