"""A real proxy, every secret that it can hold, every kind of answer and error, at log level debug:
no secret comes out anywhere."""

import base64
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import yaml

from stream_aligner_proxy.access.keys import hash_of, new_key
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.demo.script import Fault, Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import build
from tests.access.redis_server import redis_server
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import tokenizer, trained
from tests.operating.processes import serving
from tests.servers import refused_address, serve
from tests.tls import serve_tls

pytestmark = pytest.mark.anyio

PROXY_KEY, METRICS_KEY, WRONG_KEY = new_key(), new_key(), new_key()
SECRETS = {
    "upstream key": "sk-upstream-4f9a6c1d2b7e8035",
    "upstream header": "header-secret-91c2d3e4f5a6b7c8",
    "upstream query": "query-secret-0a1b2c3d4e5f6a7b",
    "second upstream's key": "sk-second-7788990011223344",
    "aligner key": "sk-aligner-5566778899aabbcc",
    "redis password": "redis-secret-ddeeff0011223344",
    "client key": "sk-client-99887766554433221100",
    "wrong key": WRONG_KEY,
    "proxy key": PROXY_KEY,
    "metrics key": METRICS_KEY,
}
QUOTED = "You sent " + " and ".join(SECRETS.values())
RULES = (
    Rule("", when="refuse", fault=Fault(status=400, body={"error": {"message": QUOTED}})),
    Rule("", when="denied", fault=Fault(status=401, body={"error": {"message": QUOTED}})),
    Rule("", when="broken", fault=Fault(status=500, body=QUOTED)),
    Rule("One. Two. Three.", when="reset", fault=Fault(reset=1)),
    Rule("One. Two. Three.", when="garbage", fault=Fault(garbage_after=1)),
    Rule("One. Two. Three.", when="frame", fault=Fault(error_after=1, error={"message": QUOTED})),
    Rule("", when="silent", fault=Fault(stall="headers")),
    Rule("The cat sat on it."),
)
QUESTIONS = ("refuse", "denied", "broken", "reset", "garbage", "frame", "silent", "fine")


@asynccontextmanager
async def whole(folder: Path) -> AsyncIterator[Path]:
    """All that a proxy has to do with; its configuration."""
    tokenizer().save_pretrained(folder)
    (folder / "training_config.json").write_text('{"prompt_profile": "compact"}')
    script = ScriptedUpstream(Script(RULES))
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(redis_server(folder, SECRETS["redis password"]))
        plain = await stack.enter_async_context(serve(script))
        tls = await stack.enter_async_context(serve_tls(script, trustme.CA(), folder))
        server = CompletionServer(trained(), key=SECRETS["aligner key"])
        aligner = await stack.enter_async_context(serve(server.app))
        timeouts = {"connect": 1, "first_byte": 0.5, "between_chunks": 0.5, "total": 10}
        common = {"dialect": "vllm", "probe": False, "timeouts": timeouts, "retries": 0}
        config: dict[str, Any] = {
            "upstreams": [
                {
                    **common,
                    "name": "main",
                    "base_url": f"{plain}/v1",
                    "api_key": SECRETS["upstream key"],
                    "headers": {"x-gateway-key": SECRETS["upstream header"]},
                    "query": {"token": SECRETS["upstream query"]},
                },
                {
                    **common,
                    "name": "http2",
                    "base_url": tls,
                    "ca_file": "ca.pem",
                    "api_key_env": "SECOND_KEY",
                    "headers": {"x-gateway-key": SECRETS["upstream header"]},
                },
                {**common, "name": "gone", "base_url": f"{refused_address()}/v1"},
            ],
            "routes": [
                {"model": name, "to": [{"upstream": name, "model": "scripted"}]}
                for name in ("main", "http2", "gone")
            ],
            "aligner": {
                "backend": "remote",
                "path": ".",
                "urls": [f"{aligner}/v1"],
                "api_key": SECRETS["aligner key"],
            },
            "server": {"port": 0, "log_level": "debug"},
            "access": {
                "mode": "both",
                "keys_file": "keys.yaml",
                "watch_seconds": 0.1,
                "redis": {"url_env": "REDIS_URL", "timeout": 2.0},
                "defaults": {"requests_per_minute": 10_000, "tokens_per_minute": 10_000_000},
            },
        }
        keys = [
            {"name": "team", "hash": hash_of(PROXY_KEY), "max_open": 50},
            {"name": "metrics", "hash": hash_of(METRICS_KEY), "models": []},
        ]
        (folder / "keys.yaml").write_text(yaml.safe_dump(keys))
        os.environ["REDIS_URL"] = redis.url
        os.environ["SECOND_KEY"] = SECRETS["second upstream's key"]
        file = folder / "proxy.yaml"
        file.write_text(yaml.safe_dump(config))
        try:
            yield file
            redis.stop()
        finally:
            del os.environ["REDIS_URL"], os.environ["SECOND_KEY"]


def look_for_secrets(text: str, where: str, echoed: tuple[str, ...] = ()) -> None:
    """`echoed`: those that the scripted upstream itself made up or was not told of: it may say
    them."""
    for name, secret in SECRETS.items():
        if name in echoed:
            continue
        for shape in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
            at = text.find(shape)
            assert at < 0, f"{name} in {where}: …{text[max(0, at - 80) : at]}…"


# What the scripted upstream cannot know from what it was sent, and quotes all the same.
_MADE_UP = ("proxy key", "metrics key", "wrong key", "redis password", "aligner key")
_MADE_UP += ("upstream key", "upstream header", "upstream query", "second upstream's key")


def told(answer: httpx.Response, text: str) -> str:
    return f"{answer.headers!r} {dict(answer.headers)} {text}"


async def drive(client: httpx.AsyncClient, headers: Mapping[str, str]) -> None:
    """Every mode, streamed and whole, before every kind of upstream fault."""
    for model in ("main", "http2", "gone", "none"):
        sent = {
            "main": ("upstream key", "upstream header"),
            "http2": ("second upstream's key", "upstream header"),
        }
        own = {*sent.get(model, ()), *(("client key",) if model == "gone" else ())}
        echoed = tuple(name for name in (*_MADE_UP, "client key") if name not in own)
        for question in QUESTIONS if model in ("main", "http2") else ("fine",):
            for mode, stream in (("stream", True), ("whole", False), ("off", True), ("off", False)):
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": question}],
                    "stream": stream,
                    "stream_aligner": {"mode": mode, "provenance": mode != "off"},
                }
                answer = await client.post("/v1/chat/completions", json=body, headers=headers)
                where = f"{model}, {question}, {mode}, {answer.status_code}"
                look_for_secrets(told(answer, answer.text), where, echoed)


@pytest.mark.slow
async def test_no_secret_comes_out_of_a_proxy_at_log_level_debug(tmp_path: Path) -> None:
    own = {"authorization": f"Bearer {SECRETS['client key']}"}
    keyed = own | {"x-stream-aligner-key": PROXY_KEY}
    outputs: list[str] = []
    async with whole(tmp_path) as config, serving(config) as running:
        async with httpx.AsyncClient(base_url=running.address, timeout=30) as client:
            await drive(client, keyed)
            for headers in (own, own | {"x-stream-aligner-key": WRONG_KEY}, keyed):
                for path in ("/", "/metrics", "/status", "/v1/models", "/openapi.json", "/x"):
                    answer = await client.get(path, headers=headers)
                    look_for_secrets(told(answer, answer.text), f"GET {path}")
                for body in (b"{", b'{"model": 1}', b"[" * 5000, b"\xff"):
                    answer = await client.post("/v1/responses", content=body, headers=headers)
                    look_for_secrets(told(answer, answer.text), "a malformed request")
            # A broken file of keys that has one in clear, by mistake; then Redis goes away.
            text = (tmp_path / "keys.yaml").read_text()
            (tmp_path / "keys.yaml").write_text(text.replace(hash_of(METRICS_KEY), METRICS_KEY))
            await running.logged("the keys stay as they were")
            status = (await client.get("/status", headers=keyed)).text
            assert "keys[1].hash" in status
            look_for_secrets(status, "/status")
        outputs += running.lines
    log = "".join(outputs)
    assert '"level": "info"' in log
    look_for_secrets(log, "the log")


async def test_no_secret_comes_out_when_redis_refuses_the_password(tmp_path: Path) -> None:
    with redis_server(tmp_path, "another-password") as redis:
        secret = SECRETS["redis password"]
        url = redis.url.replace("another-password", secret)
        (tmp_path / "rules.yaml").write_text("[]")
        (tmp_path / "proxy.yaml").write_text(
            yaml.safe_dump(
                {
                    "upstreams": [
                        {"name": "m", "base_url": f"{refused_address()}/v1", "dialect": "vllm"}
                    ],
                    "aligner": {"backend": "rules", "path": "rules.yaml"},
                    "server": {"port": 0, "log_level": "debug", "warm_up_seconds": 0},
                    "access": {
                        "keys": [
                            {"name": "t", "hash": hash_of(PROXY_KEY), "requests_per_minute": 9}
                        ],
                        "redis": {"url": url, "on_failure": "closed"},
                    },
                }
            )
        )
        async with serving(tmp_path / "proxy.yaml") as running:
            async with httpx.AsyncClient(base_url=running.address, timeout=30) as client:
                headers = {"authorization": f"Bearer {PROXY_KEY}"}
                answer = await client.get("/v1/models", headers=headers)
                assert answer.status_code == 503
                look_for_secrets(told(answer, answer.text), "an answer")
                answer = await client.get("/status", headers=headers)
                assert answer.json()["access"]["limits"]["state"] == "unreachable"
                look_for_secrets(answer.text, "/status")
            await running.logged("access.redis: cannot be reached (")
            look_for_secrets("".join(running.lines), "the log")


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    upstream = {"name": "m", "base_url": "http://u:hidden-7f3a@h/v1", "dialect": "vllm"}
    with pytest.raises(ConfigError) as raised:
        build({"upstreams": [upstream], "aligner": {"backend": "rules", "path": __file__}})
    assert "hidden-7f3a" not in str(raised.value)
