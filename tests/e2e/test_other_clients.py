"""Clients that others wrote, each against a real proxy: Node's `openai`, LangChain, `llm`."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import Stack, Start

ALIGNED = "I am kind. Dear friend, all is well."
NODE = Path(__file__).parent / "node"
SCRIPT = {
    "rules": [
        {"after": r"kind\.$", "when": "break", "reply": " Now", "fault": {"reset": 0}},
        {"after": r"kind\.$", "reply": " Dear friend, all is well."},
        {"when": "as JSON", "reply": '{"sum": 4}'},
        {"when": "sunny", "reply": "It is sunny in Rome."},
        {
            "when": "the weather",
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
                }
            ],
        },
        {"reply": "I am rude. You fool, go away."},
    ]
}
RULES = [{"find": r"I am rude\.", "replace": "I am kind."}]


@pytest.fixture
def stack(start: Start) -> Stack:
    return start(script=SCRIPT, rules=RULES)


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_node_sdk(stack: Stack) -> None:
    """Replies, streams, the streaming helper, choices, parse, the tool runner, errors, models."""
    if shutil.which("node") is None or not (NODE / "node_modules").is_dir():
        why = "needs node, and `make node` for the openai package"
        if os.environ.get("NODE_REQUIRED"):
            pytest.fail(why)
        pytest.skip(why)
    said = run(["node", str(NODE / "openai.mjs")], BASE_URL=stack.url)
    assert said.count("ok ") == 8


LANGCHAIN = """
import asyncio, json, os
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

chat = ChatOpenAI(
    base_url=os.environ["BASE_URL"], api_key="sk-test", model="scripted", max_retries=0,
    stream_usage=True,
)
found = {}
reply = chat.invoke("hello")
found["invoke"] = reply.content
found["usage"] = reply.usage_metadata["output_tokens"] > 0
found["stream"] = [piece.content for piece in chat.stream("hello") if piece.content]
async def listen():
    return "".join([piece.content async for piece in chat.astream("hello")])
found["astream"] = asyncio.run(listen())
found["batch"] = [one.content for one in chat.batch(["hello", "hello"])]

@tool
def weather(city: str) -> str:
    "The weather of a city."
    return "sunny in " + city

armed = chat.bind_tools([weather])
asked = HumanMessage("the weather")
call = armed.invoke([asked])
found["calls"] = [one["args"] for one in call.tool_calls]
result = weather.invoke(call.tool_calls[0])
assert isinstance(result, ToolMessage)
found["after"] = armed.invoke([asked, call, result]).content
found["structured"] = chat.with_structured_output(
    {"title": "Sum", "type": "object", "properties": {"sum": {"type": "number"}}},
    method="json_schema",
).invoke("as JSON")
print(json.dumps(found))
"""


def test_langchain(stack: Stack) -> None:
    pytest.importorskip("langchain_openai")
    found = json.loads(run([sys.executable, "-c", LANGCHAIN], BASE_URL=stack.url))
    assert found["invoke"] == found["astream"] == ALIGNED
    assert found["stream"][0] == "I am kind."
    assert "".join(found["stream"]) == ALIGNED
    assert found["batch"] == [ALIGNED, ALIGNED]
    assert found["usage"]
    assert found["calls"] == [{"city": "Rome"}]
    assert found["after"] == "It is sunny in Rome."
    assert found["structured"] == {"sum": 4}


def test_the_llm_command(stack: Stack, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    entry = {"model_id": "proxy", "model_name": "scripted", "api_base": stack.url}
    (tmp_path / "extra-openai-models.yaml").write_text(yaml.safe_dump([entry]))
    command = [sys.executable, "-m", "llm", "-m", "proxy", "--key", "sk-test", "hello"]
    for more in ([], ["--no-stream"]):
        assert run([*command, *more], LLM_USER_PATH=str(tmp_path)).strip() == ALIGNED
