"""What can never work behind a remote aligner ends its start; what is read ahead."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stream_aligner_proxy.aligners.registry import create
from stream_aligner_proxy.aligners.remote import RemoteAligner
from stream_aligner_proxy.core.errors import ConfigError, ReviewError
from stream_aligner_proxy.core.records import Review, Turn
from tests.aligners.completion_server import CompletionServer
from tests.aligners.models import QUESTION, checkpoint, tokenizer, trained
from tests.aligners.remotes import (
    asked,
    served,
)
from tests.aligners.test_transformers_engine import CHANGED, KEPT, VERDICTS, same
from tests.servers import refused_address

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick")]

HIDDEN = {"ids": False, "shows": False, "chances": 0}


@pytest.mark.parametrize(
    ("server", "options", "message"),
    [
        ({"key": "right"}, {"api_key": "wrong"}, r"aligner\.api_key: urls\[0\] does not accept"),
        ({}, {"model": "other"}, r"aligner\.model: 'other' is not a model of urls\[0\].*tiny"),
        ({"lists_models": False}, {}, r"aligner\.model: must be given"),
        (
            {"lists_models": False},
            {"model": "other"},
            r"aligner\.urls\[0\]: has no such model, or no /completions",
        ),
        (HIDDEN, {}, r"aligner\.urls\[0\]: gives no token ids"),
        ({"ids": False, "strict": True}, {}, r"aligner\.urls\[0\]: gives no token ids"),
        ({"window": 20}, {}, r"aligner\.window: 20 tokens: "),
        ({}, {"profile": "haiku"}, r"aligner\.profile: unknown profile 'haiku'"),
        ({}, {"queue": 0}, r"aligner\.queue: must be at least 1"),
    ],
)
async def test_what_can_never_work_ends_the_start_with_the_setting_to_mend(
    folder: Path, server: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        async with served(folder, CompletionServer(trained(), **server), **options):
            pass
    assert "wrong" not in str(caught.value)


async def test_a_server_that_lists_no_models_will_do_where_the_name_is_given(folder: Path) -> None:
    server = CompletionServer(trained(), lists_models=False, key="right")
    async with served(folder, server, model="tiny", api_key="right") as aligner:
        assert same(await aligner.review(asked()), VERDICTS[CHANGED])


async def test_a_tokenizer_that_is_not_the_servers_is_found_out(tmp_path: Path) -> None:
    tokenizer().save_pretrained(tmp_path)
    spec = json.loads((tmp_path / "tokenizer.json").read_text())
    words = spec["model"]["vocab"]
    words["in"], words["on"] = words["on"], words["in"]
    words["\u0120a"], words["the"] = words["the"], words["\u0120a"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ConfigError, match=r"aligner\.path: its tokenizer is not the one"):
        async with served(tmp_path, CompletionServer(checkpoint()), profile="stream-aligner-plain"):
            pass


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "needs at least one"),
        (["http://a/v1", "http://a/v1"], "the same address twice"),
    ],
)
def test_addresses_must_be_given_once_each(folder: Path, urls: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"aligner\.urls: .*{message}"):
        create({"backend": "remote", "path": folder, "urls": urls})


async def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    aligner = RemoteAligner(tmp_path, urls=[refused_address()], profile="compact")
    with pytest.raises(ConfigError, match=r"aligner\.path: .*tokenizer cannot be loaded"):
        await aligner.start()
    with pytest.raises(ReviewError, match="not started"):
        await aligner.review(asked())
    await aligner.close()


def test_it_works_where_torch_is_not_installed(folder: Path) -> None:
    settings = {"backend": "remote", "path": str(folder), "urls": [refused_address()]}
    code = f"""
import asyncio, sys
sys.modules["torch"] = None
from stream_aligner_proxy.aligners.registry import create
async def main():
    aligner = create({settings!r})
    await aligner.start()
    print(sorted(aligner.scopes), aligner.ready, aligner.strengths)
    await aligner.close()
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['sentence', 'whole'] False (0.0, 1.0)\n"


async def test_a_long_prefix_is_read_ahead_once_and_one_at_a_time(folder: Path) -> None:
    server = CompletionServer(trained(), window=None)
    talk = (Turn("user", "Is it so? " * 20),)
    committed = "It is. " * 200
    async with served(folder, server, prefill=True) as aligner:
        server.gate = asyncio.Event()
        aligner.expect(Review(talk, committed, ""))  # far more than a prefix that is not worth it
        aligner.expect(Review(talk, committed, "The"))
        await server.until(lambda: server.running == 1)
        server.gate.set()
        await server.until(lambda: server.running == 0)
        assert [body["max_tokens"] for body in server.bodies] == [1]
        aligner.expect(Review(talk, committed, "The hen"))
        aligner.expect(Review(QUESTION, "", "The hen"))
        await aligner.review(asked(KEPT))
        assert len(server.bodies) == 2


async def test_nothing_is_read_ahead_unless_it_is_wanted_nor_before_the_start(
    folder: Path,
) -> None:
    long = Review((Turn("user", "Is it so? " * 200),), "", "")
    server = CompletionServer(trained())
    async with served(folder, server) as aligner:
        aligner.expect(long)
        await aligner.review(asked(KEPT))
        assert len(server.bodies) == 1
    RemoteAligner(folder, urls=[refused_address()], prefill=True).expect(long)


async def test_closing_ends_what_is_read_ahead(folder: Path) -> None:
    server = CompletionServer(trained())
    async with served(folder, server, prefill=True) as aligner:
        server.gate = asyncio.Event()
        aligner.expect(Review((Turn("user", "Is it so? " * 200),), "", ""))
        await server.until(lambda: server.running == 1)
        await aligner.close()
        await server.until(lambda: server.running == 0)
