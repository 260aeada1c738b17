"""Write docs/upstreams.md: one row for each dialect, from the dialects themselves and from what
`bench.continuation` measured. `--check` says whether the page is current instead."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.report import RESULTS, Row, table
from stream_aligner_proxy.upstream.dialects import DIALECTS, Dialect

PAGE = Path(__file__).parents[1] / "docs" / "upstreams.md"

_HEAD = """# Upstreams: how each continues a reply

Made by `python -m bench.upstreams_page`; edit that, or the dialect's own file, instead.

After a rewrite the upstream has to go on from the corrected text. There are three ways; a dialect
has them in the order in which it is asked:

- **ids**: the conversation and the text so far as token ids, or as one prompt, through
  `/completions`. The ids come from the server's own `/tokenize`, or from the chat template applied
  in the proxy: give `tokenizer`, a folder with the model's tokenizer. Exact.
- **prefill**: a partial message of the assistant's at the end of the chat. Where it was as exact as
  ids (vLLM, below) it comes first: it costs one request less.
- **instruct**: the text so far as a message, and the request to go on. Held back until it is sure
  that it goes on: what is repeated is taken out, and an answer that begins again is not delivered;
  the reply then goes on as it was written, and the correction stands.

Where none holds, for a request with tools for instance, corrections are delivered and the upstream
does not see them: **rewrite-only**.

`continuation: auto` asks an upstream at the start with a fragment that no fresh answer would have
(two requests, at most 24 tokens) wherever partial messages may work, and again when a continuation
failed in use. What it does then is its class: *continues*, *repeats* (the prefix comes back, and is
taken out), *restarts*, *rejects*. `stream-aligner check --config FILE` shows it, and so do
`/status`, the header `x-stream-aligner-class` and the metric `stream_aligner_continuation_info`.
"Tried" below means that this decides; the others are known to work and are asked all the same.

"""
_MIDDLE = """
The real server is the one named, with the demo's upstream model, on a CPU, at temperature 0: the
reply in one go against the reply continued from the end of each of its sentences. A service that
could not be reached is an emulator built from its documentation and from reports of what it does,
strict about what it refuses (`tests/upstream/emulators`); `tests/upstream/test_dialects.py` asks
the same of all of them.

## Measured on real servers

`python -m bench.continuation`; a reply is continued from each of its sentence ends. Rows of dialect
`generic` show what the server does with a partial message and no flags.

"""
_TAIL = """
Misses are what the second column of the dialect's row warns of: a server without partial messages
opens a new turn in silence. With `auto` the probe finds that out, and the way is not used; here it
was forced. `instruct` depends on the model's obedience, of which the demo's model, which knows
nothing but its own world, has none.
"""


def _ways(dialect: Dialect) -> str:
    ways = ", ".join(
        way + (" (tried)" if way == "prefill" and not dialect.proven else "")
        for way in dialect.ways
    )
    models = "; for models known to" if dialect.models is not None else ""
    return ways + models


def _real(name: str, measured: list[dict[str, Any]]) -> str:
    """The rows of the server that the dialect is named after."""
    mine = [row for row in measured if row["dialect"] == name and row["way"] != "instruct"]
    if name == "generic":
        return "see below"
    mine.sort(key=lambda row: str(row["server"]) != name)
    told = [
        f"{row['server']} {row['version']}, {row['way']}: {row['equal']}/{row['cuts']}"
        for row in mine
    ]
    return "<br>".join(told) or "no"


def page() -> str:
    """The whole page."""
    measured = json.loads((RESULTS / "continuation.json").read_text())["rows"]
    rows: list[Row] = [
        {
            "dialect": f"`{dialect.name}`",
            "server or API": dialect.title,
            "a partial message": dialect.says,
            "ways": _ways(dialect),
            "with `tokenizer`": {"ids": "ids", "text": "a prompt", None: "-"}[dialect.prompts],
            "real server": _real(name, measured),
            "emulator": "yes",
        }
        for name, dialect in DIALECTS.items()
    ]
    return _HEAD + table(rows) + "\n" + _MIDDLE + table(measured) + "\n" + _TAIL


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    if parser.parse_args().check:
        sys.exit(PAGE.read_text() != page())
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
