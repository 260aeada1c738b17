"""The whole proxy with its aligner behind a server: sockets on both sides."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.demo.script import parse
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import Settings, build
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import tokenizer, trained
from tests.servers import refused_address, serve_in_thread

ORIGINAL, CORRECTED = "The cat sat on it.", "The dog sat on it."
KEY = "sk-aligner-secret"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "training_config.json").write_text('{"prompt_profile": "compact"}')
    return tmp_path


def configured(folder: Path, upstream: str, *aligners: str, **alignment: Any) -> Settings:
    settings = {
        "upstreams": [{"name": "main", "base_url": upstream, "dialect": "vllm"}],
        "aligner": {
            "backend": "remote",
            "path": str(folder),
            "urls": [f"{address}/v1" for address in aligners],
            "api_key_env": "ALIGNER_KEY",
        },
        "alignment": {"mode": "stream", **alignment},
    }
    return build(settings, environ={"ALIGNER_KEY": KEY})


def test_a_reply_is_corrected_by_a_model_on_a_server(folder: Path) -> None:
    writer = ScriptedUpstream(parse({"model": "scripted", "rules": [{"reply": ORIGINAL}]}))
    aligner = CompletionServer(trained(), key=KEY)
    with serve_in_thread(writer) as upstream, serve_in_thread(aligner.app) as address:
        settings = configured(folder, f"{upstream}/v1", address)
        assert KEY not in repr(settings)
        with serve_in_thread(create_app(settings)) as proxy:
            body = {"model": "scripted", "messages": [{"role": "user", "content": "Go on."}]}
            answer = httpx.post(f"{proxy}/v1/chat/completions", json=body, trust_env=False)
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"].startswith(CORRECTED)
            low = {**body, "stream_aligner": {"strength": 0.0}}
            answer = httpx.post(f"{proxy}/v1/chat/completions", json=low, trust_env=False)
            assert answer.json()["choices"][0]["message"]["content"] == ORIGINAL


def test_a_proxy_whose_aligner_is_down_starts_and_says_that_it_is_not_ready(folder: Path) -> None:
    writer = ScriptedUpstream(parse({"model": "scripted", "rules": [{"reply": ORIGINAL}]}))
    with serve_in_thread(writer) as upstream:
        settings = configured(folder, f"{upstream}/v1", refused_address())
        with serve_in_thread(create_app(settings)) as proxy:
            assert httpx.get(f"{proxy}/readyz", trust_env=False).status_code == 503
            body = {"model": "scripted", "messages": [{"role": "user", "content": "Go on."}]}
            answer = httpx.post(f"{proxy}/v1/chat/completions", json=body, trust_env=False)
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "aligner_unavailable"
            assert ORIGINAL not in answer.text


@pytest.mark.filterwarnings("ignore:.*httpx.*starlette.testclient.*")
def test_a_strength_that_the_server_cannot_obey_ends_the_start(folder: Path) -> None:
    aligner = CompletionServer(trained(), key=KEY, chances=0)
    with serve_in_thread(aligner.app) as address:
        settings = configured(folder, "http://127.0.0.1:9/v1", address, strength=0.2)
        with (
            pytest.raises(ConfigError, match=r"alignment\.strength: .*it can only be 0\.5"),
            TestClient(create_app(settings)),
        ):
            pass
