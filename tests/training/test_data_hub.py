"""Sets on the hub, by name, through the real `datasets` library and a hub on this machine."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.training import making
from tests.training.fake_hub import Hub, Sets, serving
from training.data.rows import Example, Row

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(not find_spec("datasets"), reason="needs the extra `data` (datasets)"),
]

ROOT = Path(__file__).parents[2]


def lines(*records: dict[str, Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in records).encode()


def parquet(*records: dict[str, Any]) -> bytes:
    made = io.BytesIO()
    table = import_module("pyarrow").Table.from_pylist(list(records))
    import_module("pyarrow.parquet").write_table(table, made)
    return made.getvalue()


def transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def reviewed(prefix: str, last: str, correction: str) -> dict[str, Any]:
    question = "How does a bicycle stay up?"
    return {"question": question, "prefix": prefix, "last": last, "correction": correction}


def preferred(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"chosen": transcript(question, chosen), "rejected": transcript(question, rejected)}


def corrected(question: str, answer: str, correction: str) -> dict[str, Any]:
    return {"question": question, "answer": answer, "correction": correction}


def sets() -> Sets:
    """Four published sets by name: their layout and columns, and made-up rows."""
    unread = lines({"prompt": "Unread?", "response": "It is.", "is_safe": True})
    return {
        "htlou/stream-aligner": {
            "README.md": b"---\nlicense: mit\n---\n",
            "train.jsonl": lines(
                reviewed("", "It turns into the fall.", "It turns into the fall."),
                reviewed("It turns into the fall.", "The hubs do it.", "The rider does it."),
                reviewed("It turns into the fall.", "Just buy a car.", ""),
            ),
        },
        # Without a card's front matter: the folders and names of files tell the splits.
        "Anthropic/hh-rlhf": {
            "README.md": b"Transcripts.\n",
            "harmless/test.jsonl.gz": gzip.compress(lines({"chosen": "", "rejected": ""})),
            "harmless/train.jsonl.gz": gzip.compress(
                lines(preferred("What is bread?", "It is baked dough.", "It is boiled dough."))
            ),
            "helpful/train.jsonl.gz": gzip.compress(
                lines(preferred("What is tea?", "It is leaves in water.", "It is leaves in milk."))
            ),
            "attempts/attempts.jsonl.gz": gzip.compress(lines({"transcript": "", "rating": 4})),
        },
        "aligner/aligner-20K": {
            "data/train-00000-of-00001.parquet": parquet(
                corrected("Moons?", "Mars has three moons.", "Mars has two moons."),
                corrected("Rings?", "Saturn has rings.", "Saturn has rings."),
                corrected("Suns?", "There is one sun.", "There is one sun."),
                corrected("Beyond the limit?", "It is read.", "It is not read."),
            ),
        },
        "PKU-Alignment/BeaverTails": {
            "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n"
            b"  - {split: 330k_train, path: round0/330k/train.jsonl.xz}\n"
            b"  - {split: 30k_train, path: round0/30k/train.jsonl.gz}\n---\n",
            "round0/30k/train.jsonl.gz": gzip.compress(unread),
            "round0/330k/train.jsonl.xz": lzma.compress(
                lines(
                    {"prompt": "Why sleep?", "response": "It mends the body.", "is_safe": True,
                     "category": {"terrorism": False}},
                    {"prompt": "Why?", "response": "Because.", "is_safe": False,
                     "category": {"terrorism": True}},
                )
            ),
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving(sets()) as running:
        yield running


def build(endpoint: str, home: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A build in a process of its own: the libraries read where the hub is as they are imported."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own.pop("TRANSFORMERS_OFFLINE", None)
    own |= {"PYTHONPATH": str(ROOT), "HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    command = [sys.executable, "-m", "training.data", "build", *options, "--out", str(out)]
    return subprocess.run(
        command,
        env=own | {"NO_PROXY": "127.0.0.1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def told(example: Example) -> tuple[str, ...]:
    question = example.question[0].text
    if isinstance(example, Row):
        return example.source, question, example.prefix, example.last, example.correction
    return example.source, question, example.answer, example.correction


def test_sets_are_read_by_name_as_they_come(hub: Hub, tmp_path: Path) -> None:
    names = ("stream-aligner", "hh-rlhf", "aligner/aligner-20K", "beavertails")
    sources = [part for name in names for part in ("--source", name)]
    home, out = tmp_path / "home", tmp_path / "out"
    done = build(hub.url, home, out, *sources, "--limit", "3", "--keep-share", "0.99")
    assert done.returncode == 0, done.stderr
    bicycle, turns = "How does a bicycle stay up?", "It turns into the fall."
    assert sorted(map(told, making.made(out))) == sorted(
        [
            ("stream-aligner", bicycle, "", turns, turns),
            ("stream-aligner", bicycle, turns, "The hubs do it.", "The rider does it."),
            ("stream-aligner", bicycle, turns, "Just buy a car.", ""),
            ("hh-rlhf", "What is bread?", "", "It is boiled dough.", "It is baked dough."),
            ("hh-rlhf", "What is bread?", "It is boiled dough.", "It is baked dough."),
            ("hh-rlhf", "What is tea?", "", "It is leaves in milk.", "It is leaves in water."),
            ("hh-rlhf", "What is tea?", "It is leaves in milk.", "It is leaves in water."),
            ("aligner-20k", "Moons?", "", "Mars has three moons.", "Mars has two moons."),
            ("aligner-20k", "Moons?", "Mars has three moons.", "Mars has two moons."),
            ("aligner-20k", "Rings?", "", "Saturn has rings.", "Saturn has rings."),
            ("aligner-20k", "Rings?", "Saturn has rings.", "Saturn has rings."),
            ("aligner-20k", "Suns?", "", "There is one sun.", "There is one sun."),
            ("aligner-20k", "Suns?", "There is one sun.", "There is one sun."),
            ("beavertails", "Why sleep?", "", "It mends the body.", "It mends the body."),
            ("beavertails", "Why sleep?", "It mends the body.", "It mends the body."),
        ]
    )
    assert making.aside(out / "rejected.jsonl")[0]["at"] == (
        "PKU-Alignment/BeaverTails/330k_train#1"
    )
    # Streamed: of the sets only their cards are kept here.
    assert {path.name for path in (home / "hub").rglob("*") if path.is_symlink()} == {"README.md"}
    assert not list(home.rglob("*.arrow"))


def fails(done: subprocess.CompletedProcess[str], why: str) -> None:
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    assert why in done.stderr


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("ultrafeedback", "openbmb/UltraFeedback (train) cannot be read from the hub: Dataset 'op"),
        ("{name: stream-aligner, split: valid}", "(valid) cannot be read from the hub: Bad split"),
    ],
)
def test_what_the_hub_does_not_have_is_said_in_a_line(
    hub: Hub, tmp_path: Path, source: str, why: str
) -> None:
    config = tmp_path / "build.yaml"
    config.write_text(f"sources: [{source}]\n")
    fails(build(hub.url, tmp_path / "home", tmp_path / "out", "--config", str(config)), why)


def test_records_that_do_not_fit_together_are_said_in_a_line(tmp_path: Path) -> None:
    files = {"a.jsonl": lines({"question": "Q?"}), "b.jsonl": lines({"other": "Q?"})}
    with serving({"aligner/aligner-20K": files}) as hub:
        done = build(hub.url, tmp_path / "home", tmp_path / "out", "--source", "aligner-20k")
    fails(done, "because column names don't match")


def test_a_hub_that_is_not_there_is_said_in_a_line_and_at_once(hub: Hub, tmp_path: Path) -> None:
    """Also where a set's card is known from before; no line says that it is tried again."""
    home = tmp_path / "home"
    built = build(hub.url, home, tmp_path / "built", "--source", "stream-aligner")
    assert built.returncode == 0, built.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for known in (home, tmp_path / "none"):
            done = build(nowhere, known, tmp_path / "out", "--source", "stream-aligner")
            fails(done, "cannot be read from the hub: [Errno 111] Connection refused")
