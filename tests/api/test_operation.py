"""Health, readiness, metrics, the page and the OpenAPI document."""

import re
from html.parser import HTMLParser

import httpx
import orjson
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.watching import Observer, Opening, Watch
from tests.api.proxy import proxy, settings
from tests.fakes import FunctionAligner
from tests.servers import refused_address, serve

pytestmark = pytest.mark.anyio


async def test_a_proxy_whose_parts_answer_is_ready() -> None:
    async with proxy() as p:
        assert (await p.client.get("/healthz")).json() == {"status": "ok"}
        ready = await p.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"status": "ready", "aligner": "ok", "upstreams": {"main": "ok"}}


async def test_without_an_upstream_the_proxy_lives_but_is_not_ready() -> None:
    gone = {"name": "main", "base_url": f"{refused_address()}/v1", "dialect": "vllm"}
    async with proxy(upstreams=[gone]) as p:
        assert (await p.client.get("/healthz")).status_code == 200
        ready = await p.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["upstreams"] == {"main": "upstream_unreachable"}
    assert "127.0.0.1" not in ready.text


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
async def test_who_asks_with_head_is_told_the_same_without_a_body(path: str) -> None:
    async with proxy() as p:
        answer = await p.client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_slash_too_many_is_an_unknown_path_and_no_redirect() -> None:
    async with proxy() as p:
        answer = await p.client.post("/v1/chat/completions/", json={})
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_a_compressed_body_is_refused_as_such() -> None:
    async with proxy() as p:
        answer = await p.client.post(
            "/v1/chat/completions", content=b"x", headers={"content-encoding": "gzip"}
        )
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"


async def test_an_aligner_that_broke_for_good_makes_the_proxy_unready() -> None:
    aligner = FunctionAligner()
    async with proxy(aligner=aligner) as p:
        assert (await p.client.get("/readyz")).status_code == 200
        aligner.ready = False
        broken = await p.client.get("/readyz")
        # What the alert StreamAlignerNotReady looks at.
        assert "stream_aligner_ready 0.0" in (await p.client.get("/metrics")).text
        lost = await p.client.get("/healthz")
    assert broken.status_code == 503
    assert broken.json() == {"status": "unready", "aligner": "failed", "upstreams": {"main": "ok"}}
    # Nothing but another process has it again: this is what has the kubelet start one.
    assert lost.status_code == 503
    assert lost.json() == {"status": "failed", "aligners": ["default"]}


async def test_an_aligner_that_cannot_work_in_the_routes_mode_stops_the_start() -> None:
    aligner = FunctionAligner()
    aligner.scopes = frozenset(("whole",))
    app = create_app(settings(refused_address()), aligner=aligner)
    with pytest.raises(ConfigError, match=r"alignment\.mode: .*whole, off"):
        async with app.router.lifespan_context(app):
            pass


async def test_metrics_count_replies_sentences_and_errors() -> None:
    async with proxy() as p:
        await p.post()
        await p.post(model="nobody")
        text = (await p.client.get("/metrics")).text
    assert 'stream_aligner_replies_total{mode="stream",outcome="finished"} 1.0' in text
    assert 'stream_aligner_sentences_total{verdict="keep"} 3.0' in text
    assert 'stream_aligner_errors_total{code="model_not_found"} 1.0' in text
    assert "stream_aligner_first_text_seconds_count 1.0" in text
    assert "stream_aligner_review_seconds_count 3.0" in text
    assert "stream_aligner_reviews_total 3.0" in text
    assert "stream_aligner_reviews_in_vain_total 0.0" in text
    assert "stream_aligner_skipped_sentences_total 0.0" in text
    assert "stream_aligner_open_branches 0.0" in text


async def test_two_apps_have_their_own_metrics() -> None:
    async with proxy() as one, proxy() as two:
        await one.post()
        assert 'outcome="finished"' not in (await two.client.get("/metrics")).text


async def test_an_observer_that_raises_is_counted_and_changes_nothing() -> None:
    class Broken(Observer):
        def opened(self, opening: Opening) -> Watch:
            return BrokenWatch()

    class BrokenWatch(Watch):
        def __getattribute__(self, name: str):
            raise RuntimeError("broken")

    async with proxy(observers=[Broken()]) as p:
        for mode in ("stream", "off"):
            frames = await p.frames(stream_aligner={"mode": mode})
            assert frames[-1] == "[DONE]"
            assert not any("error" in frame for frame in frames[:-1])
        metrics = (await p.client.get("/metrics")).text
    count = re.search(r"observer_failures_total ([0-9.]+)", metrics)
    assert count is not None
    assert float(count[1]) > 5


class _Assets(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value and not value.startswith(("#", "data:")):
                self.outside.append(value)


async def test_the_page_needs_nothing_from_outside_and_is_told_the_modes() -> None:
    async with proxy(alignment={"allow_override": ["off"]}) as p:
        response = await p.client.get("/")
    assert response.status_code == 200
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = _Assets()
    page.feed(response.text)
    assert all(not link.startswith(("http", "//")) for link in page.outside)
    told = re.search(r'<script type="application/json" id="config">(.*?)</script>', response.text)
    assert told is not None
    assert orjson.loads(told[1])["modes"] == ["stream", "off"]


async def test_examples_cannot_break_out_of_the_page() -> None:
    app = create_app(
        settings(refused_address()),
        aligner=FunctionAligner(),
        examples=["</script><script>alert(1)</script>"],
    )
    async with serve(app) as address, httpx.AsyncClient(base_url=address) as client:
        page = (await client.get("/")).text
    assert "<script>alert(1)" not in page


async def test_the_page_can_be_switched_off() -> None:
    async with proxy(server={"page": False}) as p:
        assert (await p.client.get("/")).status_code == 404


async def test_the_openapi_document_describes_the_body() -> None:
    async with proxy() as p:
        document = (await p.client.get("/openapi.json")).json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    name = body["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
    schema = document["components"]["schemas"][name]
    assert {"model", "messages", "stream_aligner"} <= set(schema["properties"])
    references = re.findall(
        r'"\$ref":"#/components/schemas/(\w+)"', orjson.dumps(document).decode()
    )
    assert set(references) <= set(document["components"]["schemas"])
