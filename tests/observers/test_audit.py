"""From a reply to rows that an aligner is trained on."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from stream_aligner_proxy.app import create_app
from stream_aligner_proxy.core.errors import ConfigError
from stream_aligner_proxy.core.records import ChatRequest, Committed, Cost, Mode, Turn
from stream_aligner_proxy.core.watching import Opening
from stream_aligner_proxy.demo.script import Rule
from stream_aligner_proxy.observers.audit import AuditLog, Sampling
from stream_aligner_proxy.observers.audit_counts import audit_counts
from stream_aligner_proxy.observers.audit_files import AuditFiles, Counts
from stream_aligner_proxy.observers.redacting import WITHHELD, Redaction
from stream_aligner_proxy.settings import build
from tests.api.proxy import QUESTION, REPLY, proxy, replacing, settings
from tests.servers import refused_address
from training.data.__main__ import main as training_data
from training.data.sources.audit import line

pytestmark = pytest.mark.anyio
RIGHT = "So 2 are left, and I am ann@mail.example.org."


def records(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    return [json.loads(one) for file in files for one in file.read_bytes().splitlines()]


async def test_nothing_is_written_unless_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with proxy() as p:
        await p.post()
        assert "audit_records_total 0.0" in (await p.client.get("/metrics")).text
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


@pytest.mark.parametrize("mode", ["stream", "whole", "shadow"])
async def test_every_mode_leaves_its_verdicts_and_they_become_rows(
    tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "log"
    aligner = replacing(left=RIGHT) if mode != "whole" else replacing(left=f"Anna has 3. {RIGHT}")
    async with proxy(Rule(REPLY, after=None), aligner=aligner, audit={"path": str(folder)}) as p:
        reply = await p.post(
            stream_aligner={"mode": mode}, headers={"x-request-id": "req-1"}, user="someone"
        )
        said = reply.json()["choices"][0]["message"]["content"]
    (record,) = records(folder)
    assert record["v"] == 1
    assert record["conversation"] == QUESTION
    delivered = "original" if mode == "shadow" else "text"
    assert (
        "".join(unit[delivered] for unit in record["units"]).replace(
            "[email]", "ann@mail.example.org"
        )
        == said
    )
    about = {key: record[key] for key in ("request_id", "model", "mode", "outcome", "upstream")}
    assert about == {
        "request_id": "req-1",
        "model": "scripted",
        "mode": mode,
        "outcome": "finished",
        "upstream": "main",
    }
    assert "mail.example.org" not in json.dumps(record)
    out = tmp_path / "rows"
    arguments = ["build", "--source", f"audit-log:{folder}", "--out", str(out)]
    assert training_data(arguments) == 0
    rows = [
        json.loads(one) for file in out.rglob("*.jsonl") for one in file.read_text().splitlines()
    ]
    assert any("[email]" in json.dumps(row) for row in rows), rows


async def test_the_last_half_line_of_a_killed_process_is_set_aside_by_training(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "log"
    async with proxy(aligner=replacing(left=RIGHT), audit={"path": str(folder)}) as p:
        await p.post()
    (file,) = folder.iterdir()
    half = file.read_bytes()[: file.stat().st_size // 2]
    file.write_bytes(file.read_bytes() + half)
    out = tmp_path / "rows"
    assert training_data(["build", "--source", f"audit-log:{folder}", "--out", str(out)]) == 0
    assert "Unterminated" in (out / "rejected.jsonl").read_text()


async def test_a_proxy_that_answers_nobody_leaves_no_file_and_no_thread(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    async with proxy(audit={"path": str(folder)}) as p:
        assert (await p.client.get("/healthz")).status_code == 200
        assert not [thread for thread in threading.enumerate() if thread.name == "audit"]
        assert os.listdir(folder) == []
    assert os.listdir(folder) == []


async def test_align_is_written_too_and_shared_by_the_next_configuration(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    async with proxy(aligner=replacing(left=RIGHT), audit={"path": str(folder)}) as p:
        answer = {"question": "How many?", "answer": REPLY}
        assert (await p.client.post("/v1/align", json=answer)).status_code == 200
    (record,) = records(folder)
    assert record["path"] == "align"


def units(text: str) -> list[Committed]:
    return [Committed(0, text, text, "keep", 0)]


def log(
    folder: Path, *, share: float = 1.0, corrected: bool = False, redact=None, **more
) -> AuditLog:
    return AuditLog(
        AuditFiles(folder),
        redact or Redaction(()),
        Sampling(share, corrected),
        more.pop("counts", Counts()),
        **more,
    )


def write(audit: AuditLog, request_id: str, *committed: Committed) -> None:
    request = ChatRequest("m", {}, (Turn("user", "q"),), request_id=request_id)
    watch = audit.opened(Opening(Mode.STREAM, request))
    for unit in committed:
        watch.committed(unit, None)
    watch.closed("finished", 1.0, Cost())


def test_a_share_is_chosen_by_the_requests_ids_and_corrected_ones_in_any_case(
    tmp_path: Path,
) -> None:
    chosen = []
    for attempt in range(2):
        folder = tmp_path / str(attempt)
        audit = log(folder, share=0.25)
        for number in range(400):
            write(audit, f"req-{number}", *units("Fine."))
        audit.close()
        chosen.append([record["request_id"] for record in records(folder)])
    assert chosen[0] == chosen[1]
    assert 60 < len(chosen[0]) < 140
    audit = log(tmp_path / "corrected", share=0.0, corrected=True)
    write(audit, "kept", *units("Fine."))
    write(audit, "changed", Committed(0, "Bad.", "Good.", "replace", 0))
    audit.close()
    assert [record["request_id"] for record in records(tmp_path / "corrected")] == ["changed"]


def test_the_format_is_the_one_that_training_reads(tmp_path: Path) -> None:
    unit = Committed(0, "Bad. ", "Good. ", "replace", 0, review=3, start=7)
    audit = log(tmp_path)
    write(audit, "r", unit)
    audit.close()
    (record,) = records(tmp_path)
    expected = line((Turn("user", "q"),), [unit])
    assert {key: record[key] for key in expected} == expected


def test_where_redaction_fails_the_record_is_dropped_and_not_written_as_it_was(
    tmp_path: Path,
) -> None:
    class Fails(Redaction):
        def record(self) -> Any:
            raise RecursionError

    dropped: list[str] = []
    audit = log(tmp_path, redact=Fails(()), counts=Counts(dropped=dropped.append))
    write(audit, "r", *units("A secret."))
    audit.close()
    assert dropped == ["redaction"]
    assert records(tmp_path) == []


def test_a_text_that_takes_too_long_is_withheld_and_its_record_is_not_trained_on(
    tmp_path: Path,
) -> None:
    registry = CollectorRegistry()
    folder = tmp_path / "log"
    redact = Redaction([("(a|aa)+$", "x")], seconds=0.1)
    audit = log(folder, redact=redact, counts=audit_counts(registry))
    secret = f"secret {'a' * 5000}!"
    write(audit, "r", Committed(0, "Fine.", "Fine.", "keep", 0), *units(secret))
    audit.close()
    (record,) = records(folder)
    assert [unit["text"] for unit in record["units"]] == ["Fine.", WITHHELD]
    assert [unit["original"] for unit in record["units"]] == ["Fine.", WITHHELD]
    assert "secret" not in json.dumps(record)
    assert record["withheld"] == 1
    assert registry.get_sample_value("stream_aligner_audit_withheld_texts_total") == 1
    out = tmp_path / "rows"
    assert training_data(["build", "--source", f"audit-log:{folder}", "--out", str(out)]) == 1
    assert "withheld" in (tmp_path / "rows.rejected.jsonl").read_text()


def test_of_a_very_long_reply_the_beginning_is_kept(tmp_path: Path) -> None:
    audit = log(tmp_path, most_chars=2000)
    many = [Committed(number, "x" * 100, "x" * 100, "keep", 0) for number in range(1000)]
    write(audit, "r", *many)
    audit.close()
    (record,) = records(tmp_path)
    assert record["truncated"] is True
    assert 1 <= len(record["units"]) < 10


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"path": "x", "redact": ["names"]}, r"audit\.redact"),
        ({"path": "x", "redact": [{"find": "("}]}, r"audit\.redact"),
        ({"path": "x", "redact": [{"find": "a", "replace": "\\1"}]}, r"audit\.redact"),
        ({"path": "x", "sample": 2}, r"audit\.sample"),
        ({}, r"audit\.path"),
    ],
)
def test_a_wrong_section_is_told_by_its_key(section: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings(refused_address(), audit=section)


def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"audit\.path: "):
        create_app(settings(refused_address(), audit={"path": str(tmp_path / "file" / "log")}))


def test_rules_come_from_the_file_and_names_from_the_environment_too(tmp_path: Path) -> None:
    base = {
        "upstreams": [{"name": "m", "base_url": "http://127.0.0.1:9/v1", "dialect": "vllm"}],
        "aligner": {"backend": "rules", "path": str(Path(__file__))},
    }
    rules = yaml.safe_load("[emails, {find: 'project \\w+', replace: '[project]'}]")
    made = build({**base, "audit": {"path": "log", "redact": rules}}, base=tmp_path, environ={})
    assert made.audit is not None
    assert made.audit.path == tmp_path / "log"
    named = build({**base, "audit": {"path": "log", "redact": "emails, cards"}}, environ={})
    assert named.audit is not None
    assert named.audit.redact == ("emails", "cards")
