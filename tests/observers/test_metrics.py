"""What /metrics shows after real traffic, and that docs/metrics.md lists exactly that."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.observers.traffic import SECRET, busy

pytestmark = pytest.mark.anyio

DOCS = Path(__file__).parents[2] / "docs"
_ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<type>\w+) \|(?P<labels>[^|]*)\|", re.MULTILINE)


def shown(text: str) -> dict[str, tuple[str, set[str]]]:
    """By name: the type, and the labels of those that have a series."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = family.name + "_total" * (family.type == "counter")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[name] = (family.type, labels)
    return found


@cache
def listed() -> dict[str, tuple[str, set[str]]]:
    text = (DOCS / "metrics.md").read_text()
    return {
        row["name"]: (row["type"], set(re.findall(r"`(\w+)`", row["labels"])))
        for row in _ROW.finditer(text)
    }


def value(text: str, name: str, **labels: str) -> float:
    """The sum of the series of that name that have these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


async def test_the_documented_metrics_are_those_that_are_shown() -> None:
    async with busy() as proxy:
        await proxy.drive()
        text = await proxy.metrics()
    real, told = shown(text), listed()
    assert set(real) == set(told)
    assert {name: kind for name, (kind, _) in real.items()} == {
        name: kind for name, (kind, _) in told.items()
    }
    # Those that nothing in this traffic moves; what their labels are is in the instruments.
    unmoved = {name for name, (_, labels) in real.items() if told[name][1] and not labels}
    assert unmoved == {
        "stream_aligner_access_refusals_total",
        "stream_aligner_key_replies_total",
        "stream_aligner_keys_reloads_total",
        "stream_aligner_shed_requests_total",
        "stream_aligner_stalls_total",
        "stream_aligner_stalled_seconds_total",
        *(name for name in told if name.startswith("stream_aligner_candidate_")),
    } - moved(text)
    for name in set(real) - unmoved:
        assert real[name][1] == told[name][1], name


def moved(text: str) -> set[str]:
    """A line may be full or not, as the machine will."""
    return {name for name, (_, labels) in shown(text).items() if labels}


async def test_every_kind_of_event_is_counted_where_it_belongs() -> None:
    async with busy() as proxy:
        await proxy.drive()
        text = await proxy.metrics()

    def told(name: str, **labels: str) -> float:
        return value(text, f"stream_aligner_{name}", **labels)

    assert told("started_replies_total") == told("replies_total") == 16
    assert told("started_replies_total", route="loose-*", delivery="whole") == 2
    assert told("started_replies_total", path="align") == 1
    assert told("open_replies") == told("open_streams") == told("open_branches") == 0
    assert told("open_reviews") == told("aligner_queue") == 0
    assert told("cancellations_total", when="before_first_text") == 1
    assert told("cancellations_total", when="after_first_text") == 1
    assert told("corrections_total", route="loose-*") == 1
    assert told("judged_sentences_total", route="loose-*") == 3
    assert told("correction_edit_distance_count") == told("sentences_total", verdict="replace") > 3
    assert told("unreviewed_characters_total") == len("This cannot be judged.")
    assert told("failed_reviews_total", aligner="default") >= 2
    assert told("branches_total", reason="break") == told("resumes_total") == 1
    assert told("branches_total", reason="correction") >= 3
    assert told("broken_branches_total", code="upstream_garbled") == 1
    assert told("sentence_seconds_count") == told("sentences_total")
    assert told("upstream_first_byte_seconds_count", upstream="main") > 10
    assert told("aligner_queue_seconds_count", aligner="default") >= told("review_seconds_count")
    assert told("aligner_tokens_total", kind="prompt") > 0
    assert told("delivered_tokens_total") > 20
    assert told("failovers_total") == 1
    assert told("errors_total", code="model_not_found") == 1
    assert told("ready") == told("workers") == 1


async def test_a_request_that_the_upstream_finds_wrong_is_no_failure_of_the_proxy() -> None:
    async with busy() as proxy:
        for mode in ("stream", "whole", "shadow", "off"):
            answer = await proxy.ask("refuse", stream_aligner={"mode": mode})
            assert answer.status_code == 400
            text = await proxy.metrics()
            name = "stream_aligner_replies_total"
            assert value(text, name, mode=mode, outcome="request_rejected") == 1
        assert value(text, name) == 4


async def test_what_shadow_could_not_review_is_no_unreviewed_text() -> None:
    async with busy() as proxy:
        answer = await proxy.ask("fail", stream_aligner={"mode": "shadow"})
        assert answer.status_code == 200
        text = await proxy.metrics()
    assert value(text, "stream_aligner_sentences_total", verdict="unreviewed") == 1
    assert value(text, "stream_aligner_unreviewed_characters_total") == 0


async def test_reasons_for_shedding_are_shown_before_the_first_request_is_shed() -> None:
    async with busy() as proxy:
        text = await proxy.metrics()
    for reason in ("open", "bytes", "memory", "loading", "draining"):
        assert f'stream_aligner_shed_requests_total{{reason="{reason}"}} 0.0' in text


async def test_nothing_that_anybody_wrote_becomes_a_label() -> None:
    async with busy() as proxy:
        await proxy.ask("sum", model="loose-invented")
        await proxy.leave("hold", after_text=True)
        text = await proxy.metrics()
    assert "invented" not in text
    assert SECRET not in text


async def test_observing_is_the_same_number_of_series_however_much_is_asked() -> None:
    def series(text: str) -> int:
        return sum(not line.startswith("#") for line in text.splitlines())

    async with busy() as proxy:
        await proxy.drive()
        before = series(await proxy.metrics())
        for number in range(5):
            await proxy.ask("sum", model=f"loose-{number}")
            await proxy.ask("sum", model=f"unknown-{number}")
        assert series(await proxy.metrics()) == before


def test_the_table_is_read() -> None:
    assert isinstance(listed(), Mapping)
    assert listed()["stream_aligner_open_replies"] == ("gauge", {"mode"})
