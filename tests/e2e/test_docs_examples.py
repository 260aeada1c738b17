"""The curl lines of the API's pages, run as they stand."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.conftest import Start
from tests.strict import events

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("api", "completions", "responses", "messages", "align")
# An indented block whose lines belong together: `\` at the end goes on.
_EXAMPLE = re.compile(r"^    (curl (?:.*\\\n    )*.*)$", re.MULTILINE)
EXAMPLES = [
    pytest.param(found.group(1).replace("\n    ", "\n"), id=f"{page}-{number}")
    for page in PAGES
    for number, found in enumerate(_EXAMPLE.finditer((DOCS / f"{page}.md").read_text()))
]


def test_every_page_has_examples() -> None:
    shown = {str(example.id).rpartition("-")[0] for example in EXAMPLES}
    assert shown == set(PAGES)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_gives_a_reply(start: Start, line: str) -> None:
    stack = start(
        script={"rules": [{"reply": "I am rude. All is well."}]},
        rules=[{"find": r"I am rude\.", "replace": "I am kind."}],
    )
    done = subprocess.run(
        ["bash", "-c", f"set -eu; {line}"],
        env={"PATH": "/usr/bin:/bin", "BASE": stack.url.removesuffix("/v1"), "MODEL": "scripted"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    if said.startswith(("data:", "event:")):
        found = [event for event in events([said.encode()]) if event.data != "[DONE]"]
        assert found
        assert not any(json.loads(event.data).get("error") for event in found)
        assert any("kind" in event.data for event in found)
    else:
        answer = json.loads(said)
        assert "error" not in answer, answer
