"""Dashboard and alerts speak of metrics that are there; a real Prometheus understands them."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.observers.prometheus import DASHBOARD, ROOT, RULES, program, prometheus
from tests.observers.test_metrics import listed
from tests.observers.traffic import busy

# Series that no traffic of this test makes: there are no keys, and nothing is reloaded or shed. A
# line is full, or not, as the machine will.
QUIET = re.compile(
    "key_replies|breaker_|candidate_|access_refusals|keys_reloads|shed_requests|configuration_reloads|stall|retries"
)
SCRAPER_LABELS = {"namespace", "job", "instance", "le"}


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries() -> list[tuple[str, str, str]]:
    """Panel, query, legend."""
    return [
        (panel["title"], target["expr"], target.get("legendFormat", ""))
        for panel in panels()
        for target in panel.get("targets", [])
    ]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def filled_in(query: str) -> str:
    """As Grafana would ask it, with everything chosen."""
    for name, value in (("__rate_interval", "10s"), ("__range", "1m")):
        query = query.replace(f"${name}", value)
    return re.sub(r"\$\w+", ".*", query)


def names(expression: str) -> set[str]:
    """The metrics in it, as they are listed: histograms without the ends of their series."""
    found = re.findall(r"\b(?:stream_aligner|process|python)_\w+", _bare(expression))
    known = listed()
    return {name if name in known else re.sub("_(bucket|count|sum)$", "", name) for name in found}


def _bare(expression: str) -> str:
    return re.sub(r"stream_aligner:[\w:]+|\"[^\"]*\"", "", expression)


def labels(expression: str) -> set[str]:
    matched = re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression)
    grouped = re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression)
    return {*matched, *(label.strip() for group in grouped for label in group.split(","))}


def check(expression: str, legend: str = "") -> None:
    used = names(expression)
    assert used <= set(listed()), expression
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert set(re.findall(r"stream_aligner:[\w:]+", expression)) <= recorded, expression
    known = {label for name in used for label in listed()[name][1]} | SCRAPER_LABELS
    assert labels(expression) | set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known, expression


def test_every_metric_and_label_of_the_dashboard_exists() -> None:
    assert len(queries()) > 50
    for _, query, legend in queries():
        check(query, legend)
    for variable in json.loads(DASHBOARD.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["definition"]
            ).groups()
            assert label in listed()[metric][1] | SCRAPER_LABELS


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = set().union(*(names(query) for _, query, _ in queries()))
    ours = {name for name in listed() if name.startswith("stream_aligner")}
    assert ours - shown == {"stream_aligner_continuation_info"}  # `/status` tells it better


def test_panels_have_numbers_and_places_of_their_own() -> None:
    numbers = [panel["id"] for panel in panels()]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["datasource"]["uid"] == "${datasource}"


def test_every_metric_and_label_of_the_rules_exists() -> None:
    for rule in rules():
        check(rule["expr"])


def test_every_alert_says_what_it_is_and_what_to_do() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert sorted(headings) == sorted(rule["alert"] for rule in alerts)
    for rule in alerts:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description", "runbook"} == set(rule["annotations"])
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", RULES), ("test", "rules", Path(__file__).parent / "alerts_test.yaml")],
)
def test_promtool_is_content(arguments: tuple[object, ...]) -> None:
    done = subprocess.run(
        [program("promtool"), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.anyio
async def test_a_real_prometheus_answers_every_query_of_the_dashboard(tmp_path: Path) -> None:
    program("prometheus")  # or nothing is begun
    async with busy() as proxy:
        target = proxy.address.removeprefix("http://")
        await proxy.drive()
        async with prometheus(tmp_path, [target]) as server:
            seen = "stream_aligner_started_replies_total"
            await server.until(seen)
            before = await server.number(f"sum({seen})")
            await proxy.drive()  # rates need a before and an after
            await server.until(f"sum({seen}) >= {2 * before:g}")
            await server.until(f"min(count_over_time({seen}[1m])) > 3")
            for panel, query, _ in queries():
                found = await server.query(filled_in(query))
                assert found or QUIET.search(query), f"{panel}: {query}"
            for rule in await server.rules():
                assert rule["health"] == "ok", rule
            for rule in rules():
                if "record" in rule:
                    assert await server.query(rule["record"]), rule["record"]
            up = await server.query("up")
            assert [one["value"][1] for one in up] == ["1"]
