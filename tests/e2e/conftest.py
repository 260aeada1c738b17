"""A scripted upstream and a proxy in front of it, both real servers on loopback."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.demo.script import parse
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from stream_aligner_proxy.settings import build
from tests.servers import serve_in_thread


@dataclass(frozen=True)
class Stack:
    """`url` and `upstream_url` end with `/v1`."""

    url: str
    upstream_url: str
    upstream: ScriptedUpstream


Start = Callable[..., Stack]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a stack: `start(rules=…, script={…}, **settings)`; it ends with the test."""
    with ExitStack() as running:

        def start_stack(
            *,
            script: dict[str, Any],
            rules: list[dict[str, Any]] | None = None,
            dialect: str = "vllm",
            timeouts: dict[str, float] | None = None,
            api_key: str | None = None,
            **alignment: Any,
        ) -> Stack:
            upstream = ScriptedUpstream(parse({"model": "scripted", **script}))
            upstream_url = running.enter_context(serve_in_thread(upstream)) + "/v1"
            path = tmp_path / "rules.yaml"
            path.write_text(yaml.safe_dump(rules or []))
            entry: dict[str, Any] = {"name": "main", "base_url": upstream_url, "dialect": dialect}
            entry["probe"] = False  # tests count requests
            if timeouts is not None:
                entry["timeouts"] = timeouts
            if api_key is not None:
                entry["api_key"] = api_key
            settings = build(
                {
                    "upstreams": [entry],
                    "aligner": {"backend": "rules", "path": str(path)},
                    "alignment": {
                        "mode": "stream",
                        "allow_override": ["stream", "whole", "shadow", "off"],
                        **alignment,
                    },
                },
                environ={},
            )
            url = running.enter_context(serve_in_thread(create_app(settings))) + "/v1"
            return Stack(url, upstream_url, upstream)

        yield start_stack
