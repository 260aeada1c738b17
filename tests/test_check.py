"""`stream-aligner check`: exit codes, the table, and JSON."""

import json
from pathlib import Path

import pytest

from stream_aligner_proxy.cli import main
from stream_aligner_proxy.demo.script import Rule, Script
from stream_aligner_proxy.demo.scripted import ScriptedUpstream
from tests.servers import refused_address, serve_in_thread


@pytest.fixture
def file(tmp_path: Path):
    (tmp_path / "rules.yaml").write_text("- {find: utilise, replace: use}\n")

    def write(*upstreams: str, rest: str = "") -> str:
        entries = "".join(f"- {entry}\n" for entry in upstreams)
        path = tmp_path / "proxy.yaml"
        path.write_text(
            f"upstreams:\n{entries}aligner: {{backend: rules, path: rules.yaml}}\n{rest}"
        )
        return str(path)

    return write


@pytest.fixture
def server():
    with serve_in_thread(ScriptedUpstream(Script((Rule("Hi."),)))) as address:
        yield address


def entry(name: str, address: str, dialect: str = "vllm", more: str = "") -> str:
    return f'{{name: {name}, base_url: "{address}/v1", dialect: {dialect}{more}}}'


def test_when_all_serve_the_code_is_0_and_the_table_says_how(file, server, capsys) -> None:
    path = file(entry("first", server), entry("second-one", server, "openai"))
    assert main(["check", "--config", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = lines[0].split("  ")[0]
    assert head == "upstream"
    columns = {name: lines[0].index(name) for name in ("answers", "dialect", "continues by")}
    assert lines[1][columns["answers"] :].startswith("yes")
    assert lines[1][columns["dialect"] :].startswith("vllm")
    assert lines[1][columns["continues by"] :].startswith("prefill")
    assert lines[2][columns["continues by"] :].startswith("instruct")
    assert lines[4].startswith("aligner")
    assert lines[5].startswith("default  yes")


def test_an_upstream_that_does_not_answer_is_code_1_and_no_address_is_shown(
    file, server, capsys
) -> None:
    gone = refused_address()
    key = ", api_key: sk-very-secret"
    path = file(entry("here", server), entry("gone", gone, more=key))
    assert main(["check", "--config", path, "--no-aligner"]) == 1
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "NO: upstream_unreachable" in shown
    assert "upstream 'gone' cannot be reached: the connection was refused" in shown
    assert "not asked" in shown
    assert "sk-very-secret" not in shown
    assert gone.removeprefix("http://") not in shown


def test_a_wrong_file_is_code_2_and_one_line(file, server, capsys) -> None:
    path = file(entry("here", server), rest="alignment: {mode: loud}\n")
    assert main(["check", "--config", path]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("stream-aligner: alignment.mode: ")
    assert len(captured.err.splitlines()) == 1


def test_json_is_for_machines(file, server, capsys) -> None:
    path = file(entry("here", server), entry("gone", refused_address()))
    assert main(["check", "--config", path, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["serves"] is False
    here, gone = report["upstreams"]
    assert (here["models"], here["error"], here["way"]) == (["scripted"], None, "prefill")
    assert gone["error"] == "upstream_unreachable"
    assert gone["reason"].endswith(": the connection was refused")
    assert report["aligners"][0]["error"] is None


def test_a_model_that_its_upstream_does_not_list_is_noted(file, server, capsys) -> None:
    routes = "routes: [{model: fast, to: [{upstream: here, model: nobody}]}]\n"
    assert main(["check", "--config", file(entry("here", server), rest=routes)]) == 0
    assert "note: routes[0]: here does not list nobody" in capsys.readouterr().out


def test_an_aligner_that_cannot_work_as_a_route_wants_it_is_a_wrong_file(
    file, server, capsys
) -> None:
    rest = "alignment: {strength: 0.9}\n"
    assert main(["check", "--config", file(entry("here", server), rest=rest)]) == 2
    assert "alignment.strength: " in capsys.readouterr().err


def test_keys_that_cannot_be_read_are_a_wrong_file(file, server, capsys) -> None:
    path = file(entry("here", server), rest="access: {keys_file: keys.yaml}\n")
    assert main(["check", "--config", path]) == 2
    assert "keys_file: keys.yaml: cannot be read: No such file" in capsys.readouterr().err


def test_an_audit_log_that_cannot_be_written_is_a_wrong_file(file, server, capsys) -> None:
    path = file(entry("here", server), rest="audit: {path: rules.yaml/audit}\n")
    assert main(["check", "--config", path]) == 2
    assert "audit.path: " in capsys.readouterr().err


def test_a_redis_that_does_not_answer_is_noted(file, server, capsys) -> None:
    url = refused_address().replace("http://", "redis://")
    path = file(entry("here", server), rest=f'access: {{redis: {{url: "{url}/0"}}}}\n')
    assert main(["check", "--config", path]) == 0
    said = capsys.readouterr().out
    assert "note: access.redis: does not answer" in said
    assert url not in said


def test_help_tells_the_exit_codes(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert "2: the" in capsys.readouterr().out
