"""Log lines: one for each record, nothing of a client's in them that could be taken for another."""

import asyncio
import io
import json
import logging
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from stream_aligner_proxy.observers import log_format
from stream_aligner_proxy.observers.log_format import LineFormatter, configure
from stream_aligner_proxy.observers.traces import Traces, Tracing
from tests.api.proxy import proxy
from tests.observers.traffic import MODEL, RULES, SECRET, busy
from tests.servers import serve_in_thread

FORGED = 'gpt\n{"level": "info", "message": "forged"}\r\x1b[2J\u2028x'
Lines = Callable[[], list[str]]


@pytest.fixture
def logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`configure` is for a process of its own."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("threading.excepthook", lambda args: None)
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    logging.captureWarnings(False)
    for client in ("aiohttp", "httpx2", "httpcore2"):
        logging.getLogger(client).setLevel(logging.NOTSET)


@pytest.fixture(params=["json", "text"])
def lines(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, logging_as_it_was: None
) -> Lines:
    """Everything that is logged, at level debug, in one of the formats."""
    return _capture(monkeypatch, request.param)


@pytest.fixture
def json_lines(monkeypatch: pytest.MonkeyPatch, logging_as_it_was: None) -> Lines:
    return _capture(monkeypatch, "json")


def _capture(monkeypatch: pytest.MonkeyPatch, style: Any, *, content: bool = False) -> Lines:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    configure("debug", style=style, content=content)
    # The test's own client and runner are not what is looked at.
    for other in ("httpx", "httpcore", "asyncio"):
        logging.getLogger(other).setLevel(logging.WARNING)
    return lambda: out.getvalue().split("\n")[:-1]


def answered(lines: list[str]) -> list[dict[str, Any]]:
    told = [json.loads(line) for line in lines]
    return [line for line in told if line["message"] == "answered" and line["level"] == "info"]


# --- the line of a request --------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_reply_is_told_in_one_line(json_lines: Lines) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"x-request-id": "mine", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    async with busy() as b:
        body = b.body("sum", stream=True)
        answer = await b.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.status_code == 200
    [line] = answered(json_lines())
    assert list(line)[:4] == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert 0 < line.pop("first_text_seconds") <= line.pop("seconds")
    assert line.pop("pid") > 1
    assert line.pop("completion_tokens") > 5
    assert line == {
        "level": "info",
        "logger": "stream_aligner_proxy.access",
        "message": "answered",
        "request_id": "mine",
        "method": "POST",
        "path": "/v1/chat/completions",
        "status": 200,
        "mode": "stream",
        "route": MODEL,
        "model": MODEL,
        "upstream": "main",
        "outcome": "finished",
        "stream": True,
        "corrections": 1,
        "branches": 2,
        "discarded_tokens": line["discarded_tokens"],
        "trace_id": trace,
    }


@pytest.mark.anyio
async def test_what_did_not_go_well_is_told_with_its_status_and_outcome(json_lines: Lines) -> None:
    async with busy() as b:
        await b.ask("fail")
        await b.ask(model="nobody")
        await b.leave("hold the first", after_text=False)
        await b.leave("hold", after_text=True)
        await b.client.get("/v1/nothing")
        await b.client.get("/healthz")
    told = [
        (line["status"], line.get("outcome")) for line in answered(json_lines()) if "status" in line
    ]
    assert (502, "review_failed") in told
    assert (404, "model_not_found") in told
    assert (200, "cancelled") in told
    left = [line for line in answered(json_lines()) if "status" not in line]
    assert [line["outcome"] for line in left] == ["cancelled"]
    assert not any(line["path"] == "/healthz" for line in answered(json_lines()))


@pytest.mark.anyio
async def test_the_choices_of_a_request_are_one_line(json_lines: Lines) -> None:
    async with busy() as b:
        await b.ask("sum", n=3)
    [line] = answered(json_lines())
    assert (line["replies"], line["corrections"], line["branches"]) == (3, 3, 6)


@pytest.mark.anyio
async def test_every_line_of_a_request_has_its_id(json_lines: Lines) -> None:
    async with busy() as b:
        body = b.body("fail")
        await b.client.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"})
    told = [json.loads(line) for line in json_lines()]
    [error] = [line for line in told if "ReviewError" in line["message"]]
    assert error["request_id"] == "mine"


@pytest.mark.anyio
async def test_the_trace_of_a_reply_is_told_though_it_began_here(json_lines: Lines) -> None:
    traces = Traces(Tracing(TracerProvider(shutdown_on_exit=False)))
    async with proxy(observers=[traces]) as p:
        assert (await p.post()).status_code == 200
        sent = p.upstream.requests[0].headers["traceparent"]
    [line] = answered(json_lines())
    assert line["trace_id"] == sent.split("-")[1]


# --- content ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_clients_ask_and_models_write_is_not_logged(lines: Lines) -> None:
    async with busy() as b:
        await b.ask(f"fail {SECRET}")
        await b.leave("hold", after_text=True)
        await b.ask(f"sum, {SECRET}", stream=True)
    text = "\n".join(lines())
    assert "answered" in text
    assert SECRET not in text
    assert "judged" not in text
    assert "13" not in re.sub(r"[\d.:-]{6,}Z|req_\w+|\d+\.\d+|:\d+|pid\S+ \d+", "", text)


@pytest.mark.anyio
async def test_content_is_logged_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, logging_as_it_was: None
) -> None:
    lines = _capture(monkeypatch, "json", content=True)
    assert "log_content is on" in lines()[0]
    async with busy(log_content=True) as b:
        await b.ask("the sum")
    [line] = answered(lines())
    assert line["question"] == "the sum"
    assert line["original"].startswith("The sum is 13.")
    assert line["text"].startswith("The sum is 12.")


# --- forging ----------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_nothing_a_client_sends_ends_a_line(lines: Lines) -> None:
    async with busy() as b:
        await b.ask(model=FORGED)
        await b.ask(model=f"loose-{FORGED}")
        await b.client.get("/v1/x%0aforged%1b[2J")
    text = "\n".join(lines())
    assert "forged" in text  # it is told, as what it is
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]", text)
    for line in lines():
        assert line.startswith(('{"time": "20', "20"))
        assert not line.startswith('{"level"')


@pytest.mark.parametrize("as_json", [True, False])
def test_no_field_can_replace_what_every_line_has(as_json: bool) -> None:
    record = logging.makeLogRecord(
        {
            "name": "n",
            "msg": "real",
            "fields": {"message": "forged", "level": "critical", "x": "a b"},
        }
    )
    line = LineFormatter(as_json=as_json).format(record)
    if as_json:
        assert (json.loads(line)["message"], json.loads(line)["x"]) == ("real", "a b")
    else:
        assert 'n: real message=forged level=critical x="a b"' in line


# --- exceptions, warnings, other people's logs ------------------------------------------------


def _raised() -> BaseException:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise ExceptionGroup(SECRET, [error, OSError(2, "No such file")]) from error
    except ExceptionGroup as error:
        return error


def test_an_exception_is_one_line_that_says_where_and_not_what(lines: Lines) -> None:
    logging.getLogger("x").error("failed", exc_info=_raised())
    logging.getLogger("y").error("Exception in ASGI application\n", exc_info=_raised())
    assert len(lines()) == 2
    for line in lines():
        assert SECRET not in line
        assert "ExceptionGroup" in line
        assert "ValueError" in line
        assert "No such file" in line
        assert re.search(r"test_logs\.py:\d+ _raised", line)


def test_of_other_libraries_only_what_holds_no_addresses_and_no_keys_is_let_through(
    lines: Lines,
) -> None:
    for name in ("aiohttp.client", "httpx2", "httpcore2.connection", "redis", "urllib3.pool"):
        logging.getLogger(name).debug("header %s", SECRET)
    for name in ("aiohttp.access", "httpx2", "httpcore2.http11"):
        logging.getLogger(name).info("GET http://u:%s@h/", SECRET)
    assert lines() == []
    logging.getLogger("stream_aligner_proxy.x").debug("ours")
    logging.getLogger("httpx2").warning("theirs")
    logging.getLogger("redis").info("theirs, too")
    assert len(lines()) == 3


def test_a_warning_is_a_line_like_ours(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("do not\ndo this", stacklevel=1)
    [line] = lines()
    assert "py.warnings" in line


def test_a_forgotten_task_does_not_tell_what_it_died_of(lines: Lines) -> None:
    async def dies() -> None:
        raise ValueError(SECRET)

    async def forgets() -> None:
        task = asyncio.ensure_future(dies())
        await asyncio.wait((task,))
        del task

    asyncio.run(forgets())
    [line] = lines()
    assert "Task exception was never retrieved" in line
    assert "ValueError" in line
    assert SECRET not in line


@pytest.mark.parametrize("as_json", [True, False])
def test_arguments_that_do_not_fit_are_no_reason_to_print_them(as_json: bool) -> None:
    record = logging.makeLogRecord({"msg": "%d of %d", "args": (SECRET,)})
    line = LineFormatter(as_json=as_json).format(record)
    assert "%d of %d" in line
    assert SECRET not in line


def test_an_exception_that_ends_a_thread_or_the_process_is_a_line(json_lines: Lines) -> None:
    error = _raised()
    sys.excepthook(type(error), error, error.__traceback__)
    [line] = map(json.loads, json_lines())
    assert (line["level"], line["exception"]["type"]) == ("critical", "ExceptionGroup")
    log_format._unhandled(SystemExit, SystemExit(2), None)
    assert len(json_lines()) == 1


# --- the command ------------------------------------------------------------------------------


def test_the_command_writes_json_where_nobody_reads_and_text_where_told(tmp_path: Path) -> None:
    from stream_aligner_proxy.demo.script import Script
    from stream_aligner_proxy.demo.scripted import ScriptedUpstream

    (tmp_path / "rules.yaml").write_text("[{find: '13', replace: '12'}]")
    with serve_in_thread(ScriptedUpstream(Script(RULES))) as upstream:
        (tmp_path / "proxy.yaml").write_text(
            f"upstreams: [{{name: main, base_url: '{upstream}/v1', dialect: vllm, probe: false}}]\n"
            "aligner: {backend: rules, path: rules.yaml}\nserver: {log_content: true}\n"
        )
        for style in ("auto", "text"):
            told = _run(tmp_path / "proxy.yaml", style)
            assert "log_content is on" in told[0]
            assert "The sum is 12." in told[-1]
            assert all(line.startswith("{") == (style == "auto") for line in told)
            assert any("uvicorn.error" in line for line in told)


def _send_garbage(address: str) -> None:
    """Something that uvicorn itself writes a line about."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(b"no HTTP at all\r\n\r\n")
        connection.recv(1000)


def _run(config: Path, style: str) -> list[str]:
    """Its lines, up to that of one request."""
    command = [sys.executable, "-m", "stream_aligner_proxy", "serve", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env={
            "STREAM_ALIGNER_SERVER__LOG_FORMAT": style,
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert process.stderr is not None
    with process:
        try:
            lines: list[str] = []
            for line in process.stderr:
                lines.append(line)
                if found := re.search(r"listening on (\S+) ", line):
                    _send_garbage(found[1])
                    body = {"model": MODEL, "messages": [{"role": "user", "content": "sum"}]}
                    httpx.post(f"{found[1]}/v1/chat/completions", json=body).raise_for_status()
                if "answered" in line:
                    return lines
            raise AssertionError(lines)
        finally:
            process.kill()
