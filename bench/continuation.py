"""At temperature 0, is a reply continued from its own beginning the reply in one go? On every
server that is installed here, by every way it has, cut at every sentence end. Nothing is timed."""

import argparse
import asyncio
import sys
from dataclasses import dataclass
from typing import Any

from bench.continuing import Cut, Tokens, measure, misses, questions, through
from bench.real_servers import MODEL, Running, servers
from bench.report import Row, publish
from stream_aligner_proxy.upstream.client import HttpUpstream
from stream_aligner_proxy.upstream.ways import Setting


@dataclass(frozen=True, slots=True)
class Asked:
    """As an operator would configure it. `template`: with the model's tokenizer."""

    dialect: str
    continuation: Setting
    template: bool = False


ASKED: dict[str, tuple[Asked, ...]] = {
    "demo": (
        Asked("vllm", "prefill"),
        Asked("vllm", "ids"),
        Asked("vllm", "ids", template=True),
    ),
    "transformers": (
        Asked("transformers", "ids", template=True),
        Asked("transformers", "instruct"),
        Asked("generic", "prefill"),
    ),
    "llamacpp": (
        Asked("llamacpp", "prefill"),
        Asked("llamacpp", "ids", template=True),
        Asked("generic", "prefill"),
    ),
    "vllm": (
        Asked("vllm", "prefill"),
        Asked("vllm", "ids"),
        Asked("vllm", "ids", template=True),
        Asked("generic", "prefill"),
    ),
}


def tokenizer() -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415  (slow to import)

    return AutoTokenizer.from_pretrained(MODEL)


def compared(cuts: list[Cut], tokens: Tokens) -> Row:
    equal = sum(cut.equal for cut in cuts)
    return {
        "cuts": len(cuts),
        "equal": equal,
        "rate": equal / len(cuts),
        "misses": misses(cuts, tokens),
    }


async def rows_of(server: str, running: Running, asked: list[str], tokens: Tokens) -> list[Row]:
    """One row for each way that is asked of `server`."""
    rows: list[Row] = []
    for way in ASKED[server]:
        upstream = HttpUpstream(
            server,
            f"{running.address}/v1",
            way.dialect,
            continuation=way.continuation,
            tokenizer=MODEL if way.template else None,
        )
        try:
            cuts = await measure(through(upstream, running.model), asked)
        finally:
            await upstream.aclose()
        row: Row = {
            "server": server,
            "version": running.version,
            "dialect": way.dialect,
            "way": way.continuation + (", own template" if way.template else ""),
        }
        rows.append(row | compared(cuts, tokens))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=40, help="questions (default 40)")
    parser.add_argument("--only", nargs="+", choices=list(ASKED), default=list(ASKED))
    options = parser.parse_args()
    encode = tokenizer()
    rows: list[Row] = []
    for name in options.only:
        server = servers()[name]
        if server.missing:
            print(f"{name}: skipped, {server.missing}", file=sys.stderr)
            continue
        with server.run() as running:
            rows += asyncio.run(
                rows_of(
                    name,
                    running,
                    questions(options.count),
                    lambda text: encode(text, add_special_tokens=False)["input_ids"],
                )
            )
    publish("continuation", rows, "bench.continuation")


if __name__ == "__main__":
    main()
