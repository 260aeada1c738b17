"""The upstream that writes is killed in the middle of a reply; another one writes the rest.

Two real servers with the demo's model, processes of their own, ended with SIGKILL.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.settings import Settings, build
from tests.servers import serve_in_thread
from training.world.problems import problems

MODEL = Path(__file__).parents[2] / "stream_aligner_proxy" / "demo" / "models" / "upstream"
QUESTIONS = [problem.question for problem in problems(3, 40, "test")]
pytestmark = pytest.mark.skipif(not MODEL.is_dir(), reason="the demo models have not been built")
# One that the model's replies have in their middle, so that corrected text is continued, too.
RULES = "- {find: '\\bThat means\\b', replace: 'This means'}\n- {find: '\\bSo\\b', replace: Thus}\n"


@contextmanager
def writer(speed: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the demo's model; `speed`: tokens per second."""
    command = [sys.executable, "-m", "stream_aligner_proxy.demo.upstream", "--port", "0"]
    command += ["--name", "writer", "--tokens-per-second", str(speed)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if "http://" in line:
                yield process, re.search(r"http://[\w.:]+", line)[0]
                return
        raise AssertionError("the upstream did not start")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Reply:
    """A streamed reply, read sentence by sentence."""

    def __init__(self, address: str, question: str, kill: dict[str, subprocess.Popen[str]] | None):
        self.text, self.errors, self.finish, self.killed = "", [], [], None
        self.cost: dict[str, int] = {}
        body = {
            "model": "writer",
            "stream": True,
            "temperature": 0,
            "stream_aligner": {"provenance": True},
            "messages": [{"role": "user", "content": question}],
        }
        sentences = 0
        with httpx.stream(
            "POST", f"{address}/v1/chat/completions", json=body, timeout=60
        ) as answer:
            self.began = answer.headers["x-stream-aligner-upstream"]
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                frame = json.loads(line.removeprefix("data: "))
                if "error" in frame:
                    self.errors.append(frame["error"])
                    continue
                extension = frame.get("stream_aligner", {})
                for choice in frame["choices"]:
                    self.text += choice["delta"].get("content") or ""
                    self.finish += [choice["finish_reason"]] if choice["finish_reason"] else []
                sentences += "sentence" in extension
                self.cost = extension.get("cost", self.cost)
                if kill is not None and sentences == 1 and self.killed is None:
                    self.killed = self.began
                    self.before = self.text
                    kill[self.began].kill()


def configured(folder: Path, here: str, there: str, route: dict[str, Any]) -> Settings:
    """Both upstreams behind `route`, with the rules above."""
    (folder / "rules.yaml").write_text(RULES)
    upstreams = (("here", here), ("there", there))
    return build(
        {
            "upstreams": [
                {"name": name, "base_url": f"{address}/v1", "dialect": "vllm"}
                for name, address in upstreams
            ],
            "routes": [route],
            "aligner": {"backend": "rules", "path": str(folder / "rules.yaml")},
            "alignment": {"mode": "stream"},
        }
    )


def test_a_reply_outlives_the_upstream_that_wrote_it(tmp_path: Path) -> None:
    with writer(25) as (first, here), writer(25) as (second, there):
        route = {"model": "*", "to": [{"upstream": "here"}, {"upstream": "there"}]}
        settings = configured(tmp_path, here, there, route)
        with serve_in_thread(create_app(settings)) as proxy:
            question = next(q for q in QUESTIONS if Reply(proxy, q, None).cost["reviews"] >= 4)
            whole = Reply(proxy, question, None)
            broken = Reply(proxy, question, {"here": first, "there": second})
            health = {
                upstream["name"]: upstream
                for upstream in httpx.get(f"{proxy}/status").json()["upstreams"]
            }
            metrics = httpx.get(f"{proxy}/metrics").text
    assert broken.killed is not None
    assert broken.errors == []
    assert broken.finish == ["stop"]
    assert len(broken.before) < len(broken.text)
    assert broken.text == whole.text
    assert broken.cost["resumes"] == 1
    assert health[broken.killed]["last_error"] is not None
    assert "stream_aligner_failovers_total 1.0" in metrics


def test_what_is_killed_before_the_first_text_is_asked_elsewhere(tmp_path: Path) -> None:
    with writer(200) as (first, here), writer(200) as (_, there):
        route = {"model": "*", "to": [{"upstream": "here"}], "fallback": [{"upstream": "there"}]}
        settings = configured(tmp_path, here, there, route)
        with serve_in_thread(create_app(settings)) as proxy:
            first.kill()
            first.wait()
            reply = Reply(proxy, QUESTIONS[0], None)
    assert (reply.began, reply.errors, reply.finish) == ("there", [], ["stop"])
